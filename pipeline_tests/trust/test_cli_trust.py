"""The commands that prove and restore, as a user types them."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import dagster as dg
import pytest
from rich.console import Console
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.cli_common import defined_exports
from pipeline.cli_output import print_repair
from pipeline.errors import ConfigError
from pipeline.ledger import Ledger
from pipeline.ledger.asker import asker
from pipeline.ledger.models import FileRow
from pipeline.local_cloud.environment import local_cloud_environment
from pipeline.orchestration.instance import open_instance
from pipeline.orchestration.partitions import PARTITION, key_order
from pipeline.stages.repair import RepairReport
from pipeline.stages.verify import SinkVerification
from pipeline_tests.command_line import INDEXPORT, invoke
from pipeline_tests.world import World, home_of


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Documents behind a local cloud, in the ledger, lake and sink of a home of their own."""
    documents = tmp_path / "documents"
    documents.mkdir()
    for name in ("gauges", "boats", "weirs"):
        (documents / f"{name}.md").write_text(f"# {name.title()}\n\nWhat there is to know of {name}.\n")
    monkeypatch.setenv("INDEXPORT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    with local_cloud_environment(str(documents), tmp_path / "cloud") as cloud, dg.DagsterInstance.ephemeral() as instance:
        World(tmp_path, cloud, instance, defined_exports()["default"]).ingest()
        yield documents
    os.environ.pop("DAGSTER_HOME", None)


def test_verify_says_what_is_missing_and_ends_with_one(folder: Path) -> None:
    assert "holds its source" in invoke("verify", "--deep")
    shutil.rmtree(folder.parent / "home" / "lancedb")
    assert "missing_file  boats.md" in invoke("verify", code=1)
    found = json.loads(invoke("verify", "--json", code=1))
    assert [(one["sink"], one["ok"], len(one["findings"])) for one in found] == [("lancedb", False, 3)]


def test_repair_and_rebuild_end_with_a_sink_that_verifies(folder: Path) -> None:
    home = folder.parent / "home"
    shutil.rmtree(home / "lancedb")
    [repaired] = json.loads(invoke("repair", "--json"))
    assert (repaired["ok"], len(repaired["replaced"])) == (True, 3)
    shutil.rmtree(home / "lancedb")
    assert "3 files replaced" in invoke("repair")
    shutil.rmtree(home / "lake")
    rebuilt = json.loads(invoke("rebuild", "lake", "--json"))
    assert (rebuilt["files"], rebuilt["vectors_reused"], rebuilt["vectors_embedded"]) == (3, 3, 0)
    (home / "ledger.sqlite").unlink()
    assert json.loads(invoke("rebuild", "ledger", "--json"))["standing"] == {"lancedb": 3}
    assert invoke("rebuild", "ledger").splitlines() == [
        "3 files; of the lake 3 payloads and the vectors of 3; 0 erased",
        "lancedb: 3 files stand, 0 that the directory does not have",
    ]
    assert invoke("rebuild", "lake").startswith("0 files had lost something: 0 payloads fetched, ")
    shutil.rmtree(home / "lancedb")
    assert json.loads(invoke("rebuild", "sink", "lancedb", "--json"))["ok"]
    assert all(one["ok"] for one in json.loads(invoke("verify", "--deep", "--json")))
    assert json.loads(invoke("removals", "--json")) == []


def test_a_reason_that_keeps_several_orphans_is_told_once() -> None:
    found = SinkVerification("lancedb", deep=True)
    kept = {"dfl-1": "no listing proves it gone", "dfl-2": "no listing proves it gone", "dfl-3": "the directory has it now"}
    console = Console(file=io.StringIO(), width=200)
    print_repair(console, RepairReport(found, found, kept=kept), {"dfl-1": "a.md"})
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert lines[1:3] == [
        "  a.md (dfl-1), ? (dfl-2): no listing proves it gone",
        "  ? (dfl-3): the directory has it now",
    ]


def test_erase_prints_its_proof_and_release_lifts_the_tombstone(folder: Path) -> None:
    report = json.loads(invoke("erase", "boats.md", "--json"))
    assert report["proved"]
    assert [proof["records"] for proof in report["proofs"]] == [0, 0, 0]
    invoke("sync", "--json")
    assert json.loads(invoke("status", "--json"))["files"] == {"done": 2}
    assert "erased and proved" in invoke("erase", report["file_ids"][0])
    invoke("erase", "boats.md", code=1)
    assert "1 files released" in invoke("release", report["file_ids"][0])
    invoke("sync", "--json")
    assert json.loads(invoke("status", "--json"))["files"] == {"done": 3}
    events = [json.loads(line) for line in invoke("history", report["file_ids"][0], "--json").splitlines()]
    asked = {event["event"]: json.loads(event["details"]).get("by") for event in events}
    assert asked["removed"] == asked["erased"] == asked["released"] == asker()
    assert asked["loaded into lancedb"] is None


def test_a_name_is_known_whether_its_letters_are_composed_or_not_and_an_erasure_takes_both(folder: Path) -> None:
    composed, apart = "Vertr\u00e4ge.md", "Vertra\u0308ge.md"
    (folder / apart).write_text("# Vertr\u00e4ge\n\nWhat there is to know of them.\n")
    invoke("sync", "--refresh", "--json")
    assert invoke("records", "--file", composed, "--json").count(apart) == 1
    assert invoke("history", composed)
    assert "0 files released" in invoke("release", composed)
    (folder / composed).write_text("# Vertr\u00e4ge\n\nThe others.\n")
    invoke("sync", "--refresh", "--json")
    for name in (composed, apart):
        assert len(invoke("records", "--file", name, "--json").splitlines()) == 2
    assert len(json.loads(invoke("erase", apart, "--json"))["file_ids"]) == 2
    invoke("sync", "--refresh", "--json")
    assert json.loads(invoke("status", "--json"))["files"] == {"done": 3}


def test_an_erasure_says_nothing_but_its_proof(folder: Path) -> None:
    outcome = subprocess.run([*INDEXPORT, "erase", "boats.md"], capture_output=True, text=True)
    assert (outcome.returncode, outcome.stderr) == (0, "")


@pytest.mark.parametrize("command", ["erase", "release"])
def test_however_many_files_are_named_the_ledger_is_read_once_for_their_names(
    folder: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    files, asked = Ledger.files, []

    def counted(ledger: Ledger, file_ids: Collection[str] | None = None, **how: bool) -> dict[str, FileRow]:
        asked.append(file_ids)
        return files(ledger, file_ids, **how)

    monkeypatch.setattr(Ledger, "files", counted)
    invoke(command, "boats.md", "gauges.md", "weirs.md")
    assert asked.count(None) == 1


def test_a_release_that_is_refused_lifts_no_tombstone(folder: Path) -> None:
    (erased,) = json.loads(invoke("erase", "boats.md", "--json"))["file_ids"]
    for names, told in (([erased, "typo"], "'typo'"), (["boats.md"], f"indexport release {erased}")):
        outcome = CliRunner().invoke(app, ["release", *names])
        assert isinstance(outcome.exception, ConfigError)
        assert told in str(outcome.exception)
    invoke("sync", "--refresh", "--json")
    assert invoke("records", "--json").count("boats.md") == 0
    assert json.loads(invoke("status", "--json"))["files"] == {"done": 2}


def test_what_waits_to_be_removed_and_the_index_are_told_to_scripts(folder: Path) -> None:
    (folder / "boats.md").unlink()
    (folder / "weirs.md").unlink()
    waiting = json.loads(invoke("sync", "--refresh", "--json", code=1))["awaiting_approval"]
    removals = {removal["file_id"]: removal for removal in json.loads(invoke("removals", "--json"))}
    assert sorted(removals) == sorted(waiting)
    assert {(removal["file"], removal["records"]) for removal in removals.values()} == {("boats.md", 1), ("weirs.md", 1)}
    assert json.loads(invoke("index", "status", "--json"))["status"] == "ready"


def test_a_file_that_has_gone_is_asked_about_and_erased_by_its_id(folder: Path) -> None:
    [record] = map(json.loads, invoke("records", "--file", "boats.md", "--json").splitlines())
    file_id = record["parsed_directory_file_id"]
    (folder / "boats.md").unlink()
    assert json.loads(invoke("sync", "--refresh", "--json"))["removed"] == [file_id]
    assert "forgotten" in invoke("history", file_id)
    assert json.loads(invoke("erase", file_id, "--json"))["proved"]
    never_seen_here = "dfl-00000000-0000-4000-8000-000000000000"
    assert json.loads(invoke("erase", never_seen_here, "--json"))["proved"]
    for command in ("history", "erase"):
        outcome = CliRunner().invoke(app, [command, "boats.md"])
        assert "known by its id alone" in str(outcome.exception)


def test_retire_wants_to_know_what(folder: Path) -> None:
    for arguments in ([], ["--export", "default"]):
        outcome = CliRunner().invoke(app, ["retire", *arguments])
        assert "say what to retire" in str(outcome.exception)


def test_an_export_is_not_ended_unless_it_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.cli_trust.defined_exports", lambda: {"production": None})
        outcome = CliRunner().invoke(app, ["retire"])
    assert "say what to retire" in str(outcome.exception)
    assert len(invoke("records", "--json").splitlines()) == 3


def test_an_export_with_an_unfinished_run_is_ended_when_that_has_ended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    invoke("sync", "--json")
    monkeypatch.setattr("pipeline.cli_trust.defined_exports", dict)
    with open_instance(home_of(folder.parent)) as instance:
        run = dg.DagsterRun(
            "default_ingest", status=dg.DagsterRunStatus.STARTED, tags={PARTITION: key_order(instance, "default")[0]}
        )
        instance.add_run(run)
        outcome = CliRunner().invoke(app, ["retire", "--export", "default"])
        assert "a run or backfill of 'default' is unfinished" in str(outcome.exception)
        assert len(key_order(instance, "default")) == 3
        instance.delete_run(run.run_id)
        invoke("retire", "--export", "default", "--allow-deletes", "3")
        assert key_order(instance, "default") == []


def test_a_name_that_no_export_can_have_is_not_known(folder: Path) -> None:
    outcome = CliRunner().invoke(app, ["retire", "--export", "De Fault"])
    assert isinstance(outcome.exception, ConfigError)
    assert "knows no export 'De Fault'" in str(outcome.exception)


def test_an_export_is_ended_once_it_is_in_no_definitions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = CliRunner().invoke(app, ["retire", "--export", "default"])
    assert "take it out of the definitions first" in str(outcome.exception)
    monkeypatch.setattr("pipeline.cli_trust.defined_exports", dict)
    told = invoke("retire", "--export", "default", "--allow-deletes", "3").splitlines()
    assert told[0].endswith("in lancedb: 3 files removed; collection dropped")
    assert told[1].startswith("default has ended")
    assert not list((folder.parent / "home" / "lake").iterdir())
    outcome = CliRunner().invoke(app, ["retire", "--export", "default"])
    assert "knows no export 'default'" in str(outcome.exception)


def test_an_export_that_another_project_may_define_is_not_ended_by_its_name_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INDEXPORT_DEFS", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    for allowed in ([], ["--allow-deletes", "2"]):
        outcome = CliRunner().invoke(app, ["retire", "--export", "default", *allowed])
        assert isinstance(outcome.exception, ConfigError)
        assert re.search(r"'default' was looked at .* INDEXPORT_DEFS; .* --allow-deletes 3$", str(outcome.exception))
    monkeypatch.delenv("INDEXPORT_DEFS")
    assert len(invoke("records", "--json").splitlines()) == 3
    monkeypatch.setenv("INDEXPORT_DEFS", str(tmp_path / "elsewhere"))
    later = time.time() + 3 * 86_400
    monkeypatch.setattr("pipeline.clock.time.time", lambda: later)
    assert invoke("retire", "--export", "default").splitlines()[-1].startswith("default has ended")
