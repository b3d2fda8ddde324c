"""Indexes and their life: creation, ids, progress, cancelling, deletion."""

from __future__ import annotations

from pathlib import Path

import llama_cloud
import pytest

from pipeline.local_cloud.faults import Faults
from pipeline_tests.local_cloud.harness import Harness, bearer, metadata, running


def test_the_first_start_makes_one_index_over_the_folder(cloud: Harness) -> None:
    indexes = list(cloud.client.indexes.list())
    assert [index.name for index in indexes] == ["documents"]
    index = cloud.index()
    assert metadata(index)["status"] == "ready"
    assert index.last_synced_at is not None
    assert index.last_exported_at == index.last_synced_at
    assert (index.id[:4], index.export_config_id[:4], index.sync_config_id[:4]) == ("idx-", "exp-", "syn-")
    assert cloud.client.beta.directories.get(index.source_directory_id).type == "user"
    assert set(cloud.source()) == set(cloud.output()) == {"hello.md", "guides/boats.txt"}


def test_progress_is_told_only_when_asked_for(cloud: Harness) -> None:
    index = cloud.index()
    assert index.sync_in_progress is False
    assert cloud.client.indexes.get(index.id).sync_in_progress is None


def test_uploads_are_parsed_by_an_index_of_their_own(cloud: Harness) -> None:
    directory = cloud.client.beta.directories.create(name="uploads")
    cloud.client.beta.directories.files.upload(directory.id, upload_file=("a.md", b"# A"), metadata='{"team": "x"}')
    stored = cloud.client.files.create(file=("b.txt", b"B"), purpose="user_data")
    cloud.client.beta.directories.files.add(directory.id, file_id=stored.id, display_name="Letter B")
    index = cloud.client.indexes.create(source_directory_id=directory.id, vector_target="DISABLED", name="mine")
    assert index.metadata == {"status": "building"}
    ready = cloud.settled(index.id)
    parsed = cloud.files(ready.output_directory_id)
    assert set(parsed) == {"a.md", "Letter B"}
    assert parsed["a.md"].metadata == {"team": "x"}
    payload = cloud.payload(parsed["Letter B"])
    assert [page["text"] for page in payload["parse"]["pages"]] == ["B"]
    assert payload["source"]["source_directory_id"] == directory.id
    assert [found.id for found in cloud.client.indexes.list(source_directory_id=directory.id)] == [index.id]


def test_changes_of_uploads_reach_the_output_with_the_next_sync(cloud: Harness) -> None:
    api = cloud.client.beta.directories.files
    directory = cloud.client.beta.directories.create(name="uploads")
    kept = api.upload(directory.id, upload_file=("kept.txt", b"kept"))
    gone = api.upload(directory.id, upload_file=("gone.txt", b"gone"))
    index = cloud.settled(cloud.client.indexes.create(source_directory_id=directory.id).id)
    before = cloud.files(index.output_directory_id)
    api.delete(gone.id, directory_id=directory.id)
    api.update(kept.id, directory_id=directory.id, metadata={"v": 2})
    assert set(cloud.files(index.output_directory_id)) == {"kept.txt", "gone.txt"}
    cloud.sync(index.id)
    after = cloud.files(index.output_directory_id)
    assert set(after) == {"kept.txt"}
    assert after["kept.txt"].metadata == {"v": 2}
    assert after["kept.txt"].file_id == before["kept.txt"].file_id
    replaced = api.upload(directory.id, upload_file=("gone.txt", b"back"))
    assert replaced.id != gone.id
    cloud.sync(index.id)
    assert cloud.files(index.output_directory_id)["gone.txt"].id == before["gone.txt"].id


def test_two_indexes_over_one_folder_do_not_share_files(cloud: Harness) -> None:
    first = cloud.index()
    second = cloud.client.indexes.create(source_directory_id=first.source_directory_id, store_attachments=[])
    other = cloud.files(cloud.settled(second.id).output_directory_id)
    assert set(other) == set(cloud.output())
    assert {file.id for file in other.values()}.isdisjoint({file.id for file in cloud.output().values()})
    cloud.client.indexes.delete(second.id)
    with pytest.raises(llama_cloud.NotFoundError):
        cloud.client.indexes.get(second.id)
    assert set(cloud.texts()) == {"hello.md", "guides/boats.txt"}


def test_an_output_directory_cannot_be_a_source(cloud: Harness) -> None:
    output = cloud.index().output_directory_id
    assert output is not None
    with pytest.raises(llama_cloud.BadRequestError):
        cloud.client.indexes.create(source_directory_id=output)


def test_what_this_server_cannot_do_is_refused_not_ignored(cloud: Harness) -> None:
    source = cloud.index().source_directory_id
    with pytest.raises(llama_cloud.UnprocessableEntityError):
        cloud.client.indexes.create(source_directory_id=source, products=[{"product_type": "extract", "product_config_id": "c"}])
    with pytest.raises(llama_cloud.UnprocessableEntityError):
        cloud.client.indexes.create(source_directory_id=source, sync_frequency="daily")


def test_a_second_sync_conflicts_while_one_runs(cloud: Harness) -> None:
    index = cloud.index()
    cloud.inject(hold_syncs=True)
    cloud.client.indexes.sync(index.id)
    running_index = cloud.index()
    assert running_index.sync_in_progress is True
    assert metadata(running_index)["status"] == "syncing"
    with pytest.raises(llama_cloud.ConflictError):
        cloud.client.indexes.sync(index.id)
    cloud.inject()
    assert cloud.settled().sync_in_progress is False


def test_a_cancelled_sync_changes_nothing(cloud: Harness, documents: Path) -> None:
    index, listing = cloud.index(), cloud.output()
    (documents / "new.md").write_text("new")
    cloud.inject(hold_syncs=True)
    cloud.client.indexes.sync(index.id)
    cloud.client.indexes.cancel_sync(index.id)
    after = cloud.index()
    assert after.sync_in_progress is False
    assert after.metadata == index.metadata
    assert after.last_synced_at == index.last_synced_at
    cloud.inject()
    assert cloud.output() == listing
    with pytest.raises(llama_cloud.ConflictError):
        cloud.client.indexes.cancel_sync(index.id)
    cloud.sync()
    assert "new.md" in cloud.output()


def test_a_first_sync_that_is_cancelled_leaves_a_failed_index(documents: Path, state_dir: Path) -> None:
    with running(documents, state_dir, faults=Faults(hold_syncs=True)) as cloud:
        index = cloud.index()
        assert index.metadata == {"status": "building"}
        assert index.sync_in_progress is True
        cloud.client.indexes.cancel_sync(index.id)
        cancelled = metadata(cloud.index())
        assert cancelled["status"] == "failed"
        assert "cancelled" in cancelled["error_message"]


def test_an_index_is_deleted_while_it_syncs(cloud: Harness) -> None:
    index = cloud.index()
    cloud.inject(hold_syncs=True)
    cloud.client.indexes.sync(index.id)
    cloud.client.indexes.delete(index.id)
    cloud.inject()
    assert list(cloud.client.indexes.list()) == []
    assert index.output_directory_id is not None
    with pytest.raises(llama_cloud.NotFoundError):
        cloud.client.beta.directories.get(index.output_directory_id)


@pytest.mark.parametrize(("mode", "accepted"), [("both", (1, 1)), ("id", (1, 0)), ("export_config_id", (0, 1))])
def test_the_ids_an_index_answers_to_can_be_chosen(
    documents: Path, state_dir: Path, mode: str, accepted: tuple[int, int]
) -> None:
    with running(documents, state_dir, faults=Faults.model_validate({"id_mode": mode}), auto_sync_on_start=False) as cloud:
        index = cloud.client.indexes.list().items[0]
        for index_id, works in zip((index.id, index.export_config_id), accepted, strict=True):
            if works:
                assert cloud.client.indexes.get(index_id).id == index.id
            else:
                with pytest.raises(llama_cloud.NotFoundError):
                    cloud.client.indexes.get(index_id)


async def test_the_async_client_does_the_same(documents: Path, state_dir: Path) -> None:
    with running(documents, state_dir) as cloud:
        async with cloud.async_client as client:
            directory = await client.beta.directories.create(name="async")
            for number in range(5):
                name = f"{number}.txt"
                await client.beta.directories.files.upload(directory.id, upload_file=(name, name.encode()))
            index = await client.indexes.create(source_directory_id=directory.id, vector_target="DISABLED")
            cloud.settled(index.id)
            assert index.output_directory_id is not None
            listed = [f async for f in client.beta.directories.files.list(index.output_directory_id, page_size=2)]
            assert [file.display_name for file in listed] == [f"{number}.txt" for number in range(5)]
            assert listed[0].file_id is not None
            assert (await client.files.content(listed[0].file_id)).url.startswith(cloud.server.base_url)
            with pytest.raises(llama_cloud.ConflictError):
                await client.indexes.cancel_sync(index.id)


def test_the_api_key_can_be_chosen(documents: Path, state_dir: Path) -> None:
    with running(documents, state_dir, api_key="llx-own", auto_sync_on_start=False) as cloud:
        assert cloud.server.api_key == "llx-own"
        assert bearer("llx-own")["Authorization"].endswith("llx-own")
        assert cloud.client.indexes.list().items[0].name == "documents"
