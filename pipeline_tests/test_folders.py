"""Folders behind local clouds: each is a source of its own, in one home and in several that share a place."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest

from pipeline.embedding.base import Vectors
from pipeline.embedding.constant import ConstantEmbedder
from pipeline.local_cloud.documents import DocumentFolder
from pipeline.local_cloud.environment import local_cloud_environment
from pipeline.stages.settings import ExportSettings
from pipeline.urls import without_password
from pipeline_tests.world import CONSTANT, World


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("INDEXPORT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    yield
    os.environ.pop("DAGSTER_HOME", None)


def fill(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text(f"# {name}\n\nText of {name}.\n")
    return folder


@contextmanager
def served(root: Path, name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """An export of the folder ``documents`` under ``root``, as ``--documents`` serves it."""
    monkeypatch.setenv("INDEXPORT_HOME", str(home))
    settings = ExportSettings.model_validate({"name": name, "embedding": CONSTANT, "removal": {"grace_period_seconds": 0}})
    with (
        local_cloud_environment(str(root / "documents"), home / "local_cloud") as cloud,
        dg.DagsterInstance.ephemeral() as instance,
    ):
        yield World(root, cloud, instance, settings)


@pytest.mark.parametrize("homes", [("home", "home"), ("one", "two")], ids=["one home", "two homes"])
def test_exports_of_two_folders_into_one_place_leave_each_other_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, homes: tuple[str, str]
) -> None:
    monkeypatch.setenv("INDEXPORT_LANCEDB_URI", str(tmp_path / "shared"))
    fill(tmp_path / "legal" / "documents", "index.md", "second.md", "third.md")
    fill(tmp_path / "hr" / "documents", "index.md", *(f"salary-{n}.md" for n in range(12)))
    legal, hr = ((tmp_path / name, name, tmp_path / home, monkeypatch) for name, home in zip(("legal", "hr"), homes, strict=True))
    for export, ingested in ((legal, 3), (hr, 13), (hr, 0), (legal, 0)):
        with served(*export) as world:
            needs = world.ingest()
            assert (len(needs.wanted), len(needs.due)) == (ingested, ingested)
            world.assert_settled()
            assert world.names() == {path.name for path in world.documents.iterdir()}


def test_an_export_that_is_pointed_to_another_folder_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with an index made anew: nothing goes unless approved, no text that is known is embedded, and back is as before."""
    names = [f"{n}.md" for n in range(4)]
    fill(tmp_path / "one" / "documents", *names)
    fill(tmp_path / "two" / "documents", *names, "new.md")

    embedded: list[str] = []
    real = ConstantEmbedder._vectors

    def counted(self: ConstantEmbedder, texts: Sequence[str]) -> Vectors:
        embedded.extend(texts)
        return real(self, texts)

    monkeypatch.setattr(ConstantEmbedder, "_vectors", counted)

    def sync(folder: str, approved: int = 0) -> tuple[int, int, int, int]:
        embedded.clear()
        with served(tmp_path / folder, "legal", tmp_path / "home", monkeypatch) as world:
            world.export.index_id = None  # as in a process of its own
            world.export.ledger.update_state(allowed_deletes=approved)
            report = world.sync()
            world.assert_settled()
            return len(report.ingested), len(embedded), len(report.removed), len(report.needs.awaiting_approval)

    assert sync("one") == (4, 4, 0, 0)
    assert sync("two") == (5, 1, 0, 4)
    assert sync("one") == (0, 0, 0, 5)
    assert sync("two", approved=4) == (0, 0, 4, 0)
    assert sync("one") == (4, 0, 0, 5)
    assert sync("one", approved=5) == (0, 0, 5, 0)


def test_a_folder_is_one_however_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fill(tmp_path / "größe" / "documents")
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path / "größe")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (f"{folder}/", "documents", "./documents/", "../link", "~/link", f"file://{folder}", f"{folder}/../documents"):
        assert DocumentFolder(name, {}).address == str(folder)
    assert DocumentFolder(os.fsdecode(bytes(tmp_path / "a") + b"\xff"), {}).address == f"{tmp_path}/a\\xff"


@pytest.mark.usefixtures("ignores_spelling")
def test_a_folder_is_one_in_every_case_and_unicode_form_that_finds_it(tmp_path: Path) -> None:
    folder = fill(tmp_path / "Gro\u0308ße" / "Documents")
    for name in (folder, tmp_path / "gr\u00f6ße" / "documents", tmp_path / "GRO\u0308SSE" / "DOCUMENTS"):
        assert DocumentFolder(str(name), {}).address == str(folder)


@pytest.mark.parametrize(
    ("url", "without"),
    [
        ("s3://docs/a:b@c", "s3://docs/a:b@c"),
        ("sftp://ada:canary@example.org/docs", "sftp://ada@example.org/docs"),
        ("http://:canary?#@example.org/docs", "http://@example.org/docs"),
        ("abfs://docs@account.dfs.core.windows.net", "abfs://docs@account.dfs.core.windows.net"),
        ("github://ada:docs@main/", "github://ada:docs@main/"),
    ],
)
def test_the_address_of_a_folder_elsewhere_has_everything_but_the_password(url: str, without: str) -> None:
    assert without_password(url) == without
    assert DocumentFolder("memory://docs/", {}).address == "memory://docs"
