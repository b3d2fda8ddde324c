"""What a sync makes of a folder, and what it leaves alone."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from datetime import datetime
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_cloud.types.beta.directories import FileListResponse

from pipeline.local_cloud import sync as sync_module
from pipeline_tests.local_cloud.harness import Harness, metadata, running


def _updated(file: FileListResponse) -> datetime:
    assert file.updated_at is not None
    return file.updated_at


def test_text_is_paged_at_form_feeds_and_named_by_relative_path(cloud: Harness) -> None:
    assert cloud.texts() == {"hello.md": ["# Hello\n\nA first page."], "guides/boats.txt": ["Boats float.", "Oars push."]}
    payload = cloud.payload(cloud.output()["guides/boats.txt"])
    assert [page["page_number"] for page in payload["parse"]["pages"]] == [1, 2]
    assert payload["source"]["display_name"] == "guides/boats.txt"
    assert payload["source_modified_at"].endswith("Z")


def test_a_changed_document_keeps_its_id_and_gets_another_file(cloud: Harness, documents: Path) -> None:
    before, old = cloud.output(), cloud.payload(cloud.output()["hello.md"])
    (documents / "hello.md").write_text("# Hello again")
    cloud.sync()
    after, new = cloud.output(), cloud.payload(cloud.output()["hello.md"])
    assert after["hello.md"].id == before["hello.md"].id
    assert after["hello.md"].file_id != before["hello.md"].file_id
    assert _updated(after["hello.md"]) > _updated(before["hello.md"])
    assert after["hello.md"].created_at == before["hello.md"].created_at
    assert after["guides/boats.txt"] == before["guides/boats.txt"]
    assert new["content_fingerprint_hash"] != old["content_fingerprint_hash"]
    assert [page["text"] for page in new["parse"]["pages"]] == ["# Hello again"]


def test_a_change_of_the_same_size_at_once_is_not_missed(cloud: Harness, documents: Path) -> None:
    document = documents / "hello.md"
    for text in ("aaaa", "bbbb", "cccc"):
        document.write_text(text)
        cloud.sync()
        assert cloud.texts()["hello.md"] == [text]


def test_a_document_its_parser_trips_over_is_listed_and_holds_nothing_up(cloud: Harness, documents: Path) -> None:
    (documents / "fraction.html").write_text('<ol start="½"><li>x</li></ol>')
    (documents / "new.md").write_text("new")
    told = metadata(cloud.sync())
    assert [failed["name"] for failed in told["failed_files"]] == ["fraction.html"]
    assert all(failed["reason"].startswith("cannot be parsed: ") for failed in told["failed_files"])
    assert cloud.texts()["new.md"] == ["new"]


def test_a_name_that_is_not_utf8_is_listed_and_holds_nothing_up(cloud: Harness, documents: Path) -> None:
    try:
        Path(os.fsdecode(os.fsencode(documents) + b"/caf\xe9.md")).write_text("# Latin")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (documents / "new.md").write_text("new")
    told = metadata(cloud.sync())
    assert told["failed_files"] == [{"name": "caf\ufffd.md", "reason": "its name is not UTF-8; rename it"}]
    assert cloud.texts()["new.md"] == ["new"]


def test_what_is_skipped_is_logged_once_a_reason_and_listed_whole(
    cloud: Harness, documents: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(4):
        (documents / f"data{number}.xyz").touch()
    (documents / "only\x1b[2J.pdf").write_text("none")
    cloud.sync()
    many, one = sorted(record.getMessage() for record in caplog.records)
    assert many.startswith("no payload for 4 files (data0.xyz, data1.xyz, data2.xyz, ...): unsupported type .xyz")
    assert one == r"no payload for only\x1b[2J.pdf: not a PDF"
    skipped = cloud.server.skipped()
    assert skipped == cloud.failures()
    assert set(skipped) == {*(f"data{number}.xyz" for number in range(4)), "only\x1b[2J.pdf"}


def test_what_is_wrong_with_a_sidecar_is_said_in_the_log(
    cloud: Harness, documents: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (documents / "hello.md.meta.json").write_text('{"nested": {"a": 1}}')
    cloud.sync()
    assert "hello.md.meta.json: metadata must be a flat JSON object" in caplog.text


def test_a_touched_document_is_left_alone(cloud: Harness, documents: Path) -> None:
    before = cloud.output(), cloud.source()
    os.utime(documents / "hello.md", (1, 1))
    cloud.sync()
    assert (cloud.output(), cloud.source()) == before


def test_a_sync_without_changes_moves_only_the_index(cloud: Harness) -> None:
    last, before = cloud.index().last_synced_at, (cloud.output(), cloud.source())
    cloud.sync()
    assert (cloud.output(), cloud.source()) == before
    synced = cloud.index().last_synced_at
    assert last is not None
    assert synced is not None
    assert synced > last


def test_a_removed_document_is_soft_deleted_and_returns_under_its_id(cloud: Harness, documents: Path) -> None:
    before = cloud.output()["hello.md"]
    content = (documents / "hello.md").read_text()
    (documents / "hello.md").unlink()
    cloud.sync()
    assert set(cloud.output()) == set(cloud.source()) == {"guides/boats.txt"}
    deleted = cloud.output(include_deleted=True)["hello.md"]
    assert deleted.id == before.id
    assert deleted.deleted_at is not None
    assert _updated(deleted) > _updated(before)
    cloud.sync()
    (documents / "hello.md").write_text(content)
    cloud.sync()
    back = cloud.output()["hello.md"]
    assert (back.id, back.deleted_at) == (before.id, None)
    assert cloud.texts()["hello.md"] == [content]


def test_a_document_removed_through_the_api_stays_removed_until_it_changes(cloud: Harness, documents: Path) -> None:
    source = cloud.source()["hello.md"]
    cloud.client.beta.directories.files.delete(source.id, directory_id=cloud.index().source_directory_id)
    for _ in range(2):
        cloud.sync()
        assert set(cloud.output()) == {"guides/boats.txt"}
    (documents / "hello.md").write_text("changed")
    cloud.sync()
    assert cloud.source()["hello.md"].id == source.id
    assert cloud.texts()["hello.md"] == ["changed"]


def test_a_document_removed_through_the_api_returns_after_it_left_the_folder(cloud: Harness, documents: Path) -> None:
    source = cloud.source()["hello.md"]
    cloud.client.beta.directories.files.delete(source.id, directory_id=cloud.index().source_directory_id)
    cloud.sync()
    content = (documents / "hello.md").read_text()
    (documents / "hello.md").unlink()
    cloud.sync()
    (documents / "hello.md").write_text(content)
    cloud.sync()
    assert "hello.md" in cloud.output()


def test_a_sidecar_gives_metadata_and_is_no_document(cloud: Harness, documents: Path) -> None:
    before = cloud.output()["hello.md"]
    (documents / "hello.md.meta.json").write_text(json.dumps({"team": "crew", "tags": ["a"]}))
    cloud.sync()
    after = cloud.output()["hello.md"]
    assert after.metadata == {"team": "crew", "tags": ["a"]}
    assert _updated(after) > _updated(before)
    assert after.file_id == before.file_id
    assert set(cloud.output()) == {"hello.md", "guides/boats.txt"}
    (documents / "hello.md.meta.json").unlink()
    cloud.sync()
    assert cloud.output()["hello.md"].metadata == {}


def test_user_metadata_overrides_the_sidecar(cloud: Harness, documents: Path) -> None:
    (documents / "hello.md.meta.json").write_text('{"team": "crew", "year": 1}')
    cloud.sync()
    source = cloud.source()["hello.md"]
    cloud.client.beta.directories.files.update(
        source.id, directory_id=cloud.index().source_directory_id, metadata={"team": "office"}
    )
    cloud.sync()
    assert cloud.output()["hello.md"].metadata == {"team": "office", "year": 1}


@pytest.mark.parametrize(
    "broken",
    [
        "{",
        "[1]",
        '{"a": {"b": 1}}',
        '{"a": NaN}',
        "\udcff",
        r'{"a": "\ud800"}',
        r'{"\ud800": "a"}',
        r'{"\ud800": {}}',
        r'{"a": ["\ud800"]}',
        '{"a":' * 100_000 + "1" + "}" * 100_000,
        '{"a": ' + "9" * 5_000 + "}",
    ],
    ids=lambda broken: ascii(broken[:20]),
)
def test_a_broken_sidecar_is_a_warning_and_the_old_metadata_stays(cloud: Harness, documents: Path, broken: str) -> None:
    sidecar = documents / "hello.md.meta.json"
    sidecar.write_text('{"team": "crew"}')
    cloud.sync()
    sidecar.write_bytes(broken.encode("utf-8", "surrogateescape"))
    assert [warning["name"] for warning in metadata(cloud.sync())["warnings"]] == ["hello.md"]
    assert cloud.output()["hello.md"].metadata == {"team": "crew"}


def test_documents_without_a_payload_are_listed_with_a_reason(
    cloud: Harness, documents: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (documents / "photo.jpg").write_bytes(b"\xff\xd8")
    (documents / "broken.pdf").write_bytes(b"%PDF-1.7 cut")
    (documents / "latin.txt").write_bytes("Ø".encode("latin-1"))
    (documents / "README").write_text("no suffix")
    with caplog.at_level("WARNING", logger=sync_module.__name__):
        synced = metadata(cloud.sync())
    assert synced["status"] == "ready"
    assert synced["failed_file_count"] == 4
    failures = cloud.failures()
    assert set(failures) == {"photo.jpg", "broken.pdf", "latin.txt", "README"}
    assert "unsupported type .jpg" in failures["photo.jpg"]
    assert "cannot be parsed" in failures["broken.pdf"]
    assert "not UTF-8" in failures["latin.txt"]
    assert "without a suffix" in failures["README"]
    assert set(cloud.output()) == {"hello.md", "guides/boats.txt"}
    assert set(failures) <= set(cloud.source())
    assert "photo.jpg" in caplog.text
    cloud.sync()
    assert cloud.failures() == failures


def test_a_document_that_breaks_keeps_its_last_payload(cloud: Harness, documents: Path) -> None:
    before = cloud.output()
    (documents / "hello.md").write_bytes(b"\xff\xfe\x00")
    cloud.sync()
    assert set(cloud.failures()) == {"hello.md"}
    assert cloud.output() == before


def test_large_documents_are_refused_by_the_limit(documents: Path, state_dir: Path) -> None:
    (documents / "large.txt").write_text("x" * 100)
    with running(documents, state_dir, max_document_bytes=99) as cloud:
        assert cloud.failures() == {"large.txt": "100 bytes; max_document_bytes allows 99"}


def test_a_folder_that_is_gone_fails_the_sync_and_removes_nothing(cloud: Harness, documents: Path) -> None:
    before = cloud.output()
    documents.rename(documents.with_name("elsewhere"))
    failed = metadata(cloud.sync())
    assert failed["status"] == "failed"
    assert "does not exist" in failed["error_message"]
    assert cloud.output() == before
    documents.with_name("elsewhere").rename(documents)
    assert metadata(cloud.sync())["status"] == "ready"
    assert cloud.output() == before


def test_a_replaced_payload_can_be_read_until_the_sync_after(cloud: Harness, documents: Path) -> None:
    old = cloud.output()["hello.md"].file_id
    assert old is not None
    url = cloud.client.files.content(old).url
    (documents / "hello.md").write_text("second")
    cloud.sync()
    assert httpx.get(url).status_code == 200
    cloud.sync()
    assert httpx.get(url).status_code == 404


def test_nothing_is_kept_of_what_no_directory_holds_any_more(cloud: Harness, documents: Path, state_dir: Path) -> None:
    api = cloud.client.beta.directories.files
    source = cloud.index().source_directory_id
    other = cloud.client.beta.directories.create(name="other")
    kept = api.upload(other.id, upload_file=("kept.txt", b"kept in another directory"))
    gone = api.upload(source, upload_file=("gone.txt", b"uploaded secret"))
    cloud.settled(cloud.client.indexes.create(source_directory_id=other.id, name="other").id)
    (documents / "hello.md").write_text("old secret")
    (documents / "copy.md").write_text("shared by two")
    (documents / "boats.md").write_text("shared by two")
    cloud.sync()
    before = texts_in(state_dir)
    assert {"old secret", "uploaded secret", "shared by two", "kept in another directory"} <= before
    (documents / "hello.md").write_text("new")
    (documents / "copy.md").unlink()
    api.delete(gone.id, directory_id=source)
    cloud.sync()
    cloud.sync()
    assert not {"old secret", "uploaded secret"} & texts_in(state_dir)
    assert {"new", "shared by two", "kept in another directory"} <= texts_in(state_dir)
    assert api.get(kept.id, directory_id=other.id).deleted_at is None


def test_a_sync_that_fails_drops_nothing(cloud: Harness, documents: Path, state_dir: Path) -> None:
    before = texts_in(state_dir)
    (documents / "hello.md").write_text("new")
    cloud.inject(sync_error="no")
    cloud.sync()
    assert texts_in(state_dir) == {*before, "new"}


def texts_in(state_dir: Path) -> set[str]:
    """The texts of all pages in the cache of parsed documents."""
    entries = [json.loads(gzip.decompress(path.read_bytes())) for path in state_dir.glob("*/parsed/**/*.gz")]
    return {page["text"] for entry in entries for page in entry["document"]["pages"]}


def test_a_document_never_hides_behind_an_upload_of_the_same_name(cloud: Harness, documents: Path) -> None:
    source = cloud.index().source_directory_id
    cloud.client.beta.directories.files.upload(source, upload_file=("new.md", b"uploaded"))
    (documents / "new.md").write_text("from the folder")
    cloud.sync()
    assert cloud.texts()["new.md"] == ["uploaded"]
    assert "already has this unique_id" in cloud.failures()["new.md"]


_NAMES = st.sampled_from(["a.md", "b.txt", "sub/a.md", "sub/deep/c.html", "ü ñ.md"])
_EDITS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), _NAMES, st.text(st.characters(codec="utf-8", exclude_characters="\x00\r\f"), max_size=20)),
        st.tuples(st.just("remove"), _NAMES, st.just("")),
        st.tuples(st.just("sync"), st.just(""), st.just("")),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(edits=_EDITS)
def test_after_any_edits_a_sync_shows_the_folder_under_stable_ids(edits: list[tuple[str, str, str]]) -> None:
    ids: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        documents = Path(folder, "documents")
        documents.mkdir()
        expected: dict[str, str] = {}
        with running(documents, Path(folder, "state")) as cloud:
            for action, name, text in [*edits, ("sync", "", "")]:
                if action == "write":
                    (documents / name).parent.mkdir(parents=True, exist_ok=True)
                    (documents / name).write_text(text, encoding="utf-8", newline="")
                    expected[name] = text
                elif action == "remove":
                    (documents / name).unlink(missing_ok=True)
                    expected.pop(name, None)
                else:
                    cloud.sync()
                    listed = cloud.output()
                    assert set(listed) == set(expected)
                    for name, file in listed.items():
                        assert ids.setdefault(name, file.id) == file.id
            texts = cloud.texts()
            assert {name: texts[name] for name in expected if not name.endswith(".html")} == {
                name: [text] for name, text in expected.items() if not name.endswith(".html")
            }
