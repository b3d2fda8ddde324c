"""The source against the local LlamaCloud-compatible server: real sockets, the real SDK, faults injected."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from pipeline.errors import IncompleteListing, PayloadError, SourceUnavailable, SyncFailed
from pipeline.llama_cloud.download import RetryPolicy
from pipeline.llama_cloud.models import Payload
from pipeline.llama_cloud.settings import LlamaCloudSettings
from pipeline.llama_cloud.source import LlamaCloudSource
from pipeline.local_cloud.faults import Faults
from pipeline.local_cloud.server import RunningLocalCloud
from pipeline.local_cloud.settings import LocalCloudSettings
from pipeline_tests.llama_cloud.fake_cloud import list_all, payload_of

DOCUMENTS = {f"note-{number:02d}.md": f"# Note {number}\n\nBody of note {number}.\n" for number in range(30)}
SECONDS = 30.0


@pytest.fixture
def served(tmp_path: Path) -> LocalCloudSettings:
    folder = tmp_path / "documents"
    folder.mkdir()
    for name, text in DOCUMENTS.items():
        (folder / name).write_text(text)
    return LocalCloudSettings(documents=str(folder), state_dir=tmp_path / "state")


@pytest.fixture
def cloud(served: LocalCloudSettings) -> Iterator[RunningLocalCloud]:
    with RunningLocalCloud(served) as running:
        yield running


def source_of(cloud: RunningLocalCloud, *, page_size: int = 1000, max_retries: int = 0) -> LlamaCloudSource:
    return LlamaCloudSource(
        LlamaCloudSettings(index_name="documents", requests_per_second=None, page_size=page_size),
        api_key=SecretStr(cloud.api_key),
        base_url=cloud.base_url,
        max_retries=max_retries,
        download_retries=RetryPolicy(attempts=2, base_seconds=0.0),
    )


def injected(served: LocalCloudSettings, faults: Faults) -> RunningLocalCloud:
    return RunningLocalCloud(served, faults=faults)


async def test_a_folder_becomes_payloads(cloud: RunningLocalCloud) -> None:
    async with source_of(cloud, page_size=7) as source:
        index = await source.wait_until_ready(SECONDS)
        files = await list_all(source)
        outcomes = {file.display_name: outcome async for file, outcome in source.fetch_payloads(list(files.values()))}
        alone = await payload_of(source, next(iter(files.values())))
    assert index.settled
    assert {file.display_name for file in files.values()} == set(DOCUMENTS)
    assert all(isinstance(outcome, Payload) for outcome in outcomes.values())
    note = outcomes["note-07.md"]
    assert isinstance(note, Payload)
    assert "Body of note 7." in note.pages[0].text
    assert alone in outcomes.values()


async def test_a_changed_and_a_removed_document_show_after_the_next_sync(
    cloud: RunningLocalCloud, served: LocalCloudSettings
) -> None:
    folder = Path(served.documents)
    async with source_of(cloud) as source:
        before = await source.wait_until_ready(SECONDS)
        old = {file.display_name: file for file in (await list_all(source)).values()}
        (folder / "note-00.md").write_text("# Rewritten\n")
        (folder / "note-01.md").unlink()
        assert await source.start_sync()
        after = await source.wait_until_ready(SECONDS)
        new = {file.display_name: file for file in (await list_all(source)).values()}
        payload = await payload_of(source, new["note-00.md"])
    assert after.change_key != before.change_key
    assert new.keys() == old.keys() - {"note-01.md"}
    assert new["note-00.md"].id == old["note-00.md"].id
    assert {name for name in new if new[name].change_token != old[name].change_token} == {"note-00.md"}
    assert "Rewritten" in payload.pages[0].text


async def test_a_held_sync_is_reported_as_running(served: LocalCloudSettings) -> None:
    with injected(served, Faults(hold_syncs=True)) as cloud:
        async with source_of(cloud) as source:
            assert (await source.get_index()).sync_in_progress
            assert await source.start_sync() is False


async def test_a_failing_sync_ends_the_wait_with_its_message(served: LocalCloudSettings) -> None:
    with injected(served, Faults(sync_error="parser quota exceeded")) as cloud:
        async with source_of(cloud) as source:
            with pytest.raises(SyncFailed, match="parser quota exceeded"):
                await source.wait_until_ready(SECONDS)


async def test_bad_payloads_and_expired_urls_stay_with_their_files(served: LocalCloudSettings) -> None:
    faults = Faults(
        payloads={"note-03.md": "not_json", "note-04.md": "truncated", "note-05.md": "wrong_shape", "note-06.md": "missing"},
        null_file_ids=("note-08.md",),
        expired_blob_requests=3,
        repeat_items_across_pages=True,
        page_size_cap=10,
    )
    with injected(served, faults) as cloud:
        async with source_of(cloud) as source:
            await source.wait_until_ready(SECONDS)
            files = await list_all(source)
            outcomes = {file.display_name: outcome async for file, outcome in source.fetch_payloads(list(files.values()))}
    assert len(outcomes) == len(DOCUMENTS)
    bad = {name for name, outcome in outcomes.items() if isinstance(outcome, PayloadError)}
    assert bad == {f"note-0{number}.md" for number in (3, 4, 5, 6, 8)}


async def test_a_listing_that_breaks_is_incomplete_and_an_outage_is_unavailable(served: LocalCloudSettings) -> None:
    with injected(served, Faults(fail_listing_at_page=2)) as cloud:
        source = source_of(cloud, page_size=10)
        await source.wait_until_ready(SECONDS)
        with pytest.raises(IncompleteListing):
            await list_all(source)
    async with source:
        with pytest.raises(SourceUnavailable, match="LLAMA_CLOUD_BASE_URL"):
            await source.get_index()
