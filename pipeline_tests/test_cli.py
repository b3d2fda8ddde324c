"""The command line as a user types it, in processes of its own where the process matters."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import pytest
from llama_cloud.resources.indexes import AsyncIndexesResource
from rich.console import Console
from sqlalchemy import URL
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.cli_common import open_export
from pipeline.cli_output import print_awaiting_approval, print_hits
from pipeline.errors import ConfigError
from pipeline.home import Home
from pipeline.ledger.models import MODEL
from pipeline.local_cloud.environment import local_cloud_environment
from pipeline.stages.known_files import KnownFiles
from pipeline.stages.search import search
from pipeline_tests.command_line import INDEXPORT, invoke, run


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Documents behind a local cloud, a home of their own."""
    write_documents(tmp_path)
    with served(tmp_path):
        yield tmp_path / "documents"


@pytest.fixture(scope="module")
def once_synced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    write_documents(root := tmp_path_factory.mktemp("synced"))
    with served(root):
        invoke("sync", "--refresh")
    return root


@pytest.fixture
def synced(once_synced: Path) -> Iterator[None]:
    """Such a folder that has been synced, for tests that only read."""
    with served(once_synced):
        yield


def write_documents(root: Path) -> None:
    (documents := root / "documents").mkdir()
    (documents / "gauges.md").write_text("# Gauges\n\nThe gauge at the weir is read at noon.\n")
    (documents / "boats.md").write_text("# Boats\n\nThe red boat leaks.\n")


@contextmanager
def served(root: Path) -> Iterator[None]:
    with patch.dict(os.environ, {"INDEXPORT_HOME": str(root / "home")}):
        os.environ.pop("DAGSTER_HOME", None)
        with local_cloud_environment(str(root / "documents"), root / "cloud"):
            yield


def test_the_version_is_that_of_the_distribution() -> None:
    assert invoke("--version") == f"indexport {version('indexport')}\n"


def test_plan_sync_search_records_status_and_history_tell_one_story(folder: Path) -> None:
    invoke("index", "sync", "--wait")
    plan = json.loads(invoke("plan", "--json"))
    assert (plan["new"], plan["chunks_to_embed"], plan["failing"]) == (2, 2, {})
    assert plan["tokens_to_embed"] > 0
    assert invoke("records", "--json") == ""

    synced = json.loads(invoke("sync", "--json"))
    assert synced["ok"]
    assert len(synced["ingested"]) == 2

    hits = json.loads(invoke("search", "when is the gauge read?", "-k", "1", "--json"))
    assert (hits[0]["file_name"], hits[0]["page_range_start"], hits[0]["page_range_end"]) == ("gauges.md", 1, 1)
    assert 0.0 < hits[0]["score"] <= 1.0
    by_text = json.loads(invoke("search", "leaks", "--mode", "text", "--json"))
    assert [hit["file_name"] for hit in by_text] == ["boats.md"]
    assert json.loads(invoke("search", "boat", "--mode", "hybrid", "--where", 'file_name="boats.md"', "--json"))

    held = [json.loads(line) for line in invoke("records", "--file", "boats.md", "--json").splitlines()]
    assert [record["content"] for record in held] == ["# Boats\n\nThe red boat leaks."]

    status = json.loads(invoke("status", "--json"))
    assert status["files"] == {"done": 2}
    events = [json.loads(line)["event"] for line in invoke("history", "boats.md", "--json").splitlines()]
    assert events == ["listed", "loaded into lancedb"]

    again = json.loads(invoke("plan", "--json"))
    assert (again["new"], again["changed"], again["stale"], again["tokens_to_embed"]) == (0, 0, 0, 0)


def test_the_plan_counts_what_an_edit_and_a_removal_cost(folder: Path) -> None:
    invoke("sync", "--refresh", "--json")
    (folder / "gauges.md").write_text("# Gauges\n\nThe gauge at the weir is read at dawn.\n")
    (folder / "boats.md").unlink()
    invoke("index", "sync", "--wait")
    plan = json.loads(invoke("plan", "--json"))
    assert (plan["changed"], plan["removed"], plan["chunks_to_embed"]) == (1, 1, 1)


def test_an_index_is_created_with_its_attachments_and_products_and_found_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    real = AsyncIndexesResource.create

    async def create(self: AsyncIndexesResource, **given: Any) -> Any:
        asked.append(given)
        return await real(self, **given)

    monkeypatch.setattr(AsyncIndexesResource, "create", create)
    with httpx.Client(base_url=os.environ["LLAMA_CLOUD_BASE_URL"], headers={"Authorization": "Bearer local"}) as cloud:
        [first] = cloud.get("/api/v1/indexes").json()["items"]
        command = ["index", "create", first["source_directory_id"], "--name", "second"]
        options = ["--attachment", "items", "--attachment", "screenshots", "--product", "parse=cfg-PARSE_AGENTIC"]
        created = json.loads(invoke(*command, *options))
        assert json.loads(invoke(*command))["index_id"] == created["index_id"]
        listed = {index["name"] for index in cloud.get("/api/v1/indexes").json()["items"]}
    assert listed == {first["name"], "second"}
    [request] = asked
    assert (request["vector_target"], request["store_attachments"]) == ("DISABLED", ["items", "screenshots"])
    assert request["products"] == [{"product_type": "parse", "product_config_id": "cfg-PARSE_AGENTIC"}]


def test_a_product_without_its_configuration_is_refused(folder: Path) -> None:
    outcome = CliRunner().invoke(app, ["index", "create", "dir-1", "--name", "second", "--product", "parse"])
    assert isinstance(outcome.exception, ConfigError)
    assert "parse=ID" in str(outcome.exception)


@pytest.mark.usefixtures("synced")
def test_output_for_people_cites_pages() -> None:
    assert "boats.md, page 1" in invoke("search", "red boat", "-k", "1")
    assert "in lancedb" in invoke("status")
    assert "ready" in invoke("index", "status")
    assert "Plan of default" in invoke("plan")


@pytest.mark.usefixtures("synced")
@pytest.mark.parametrize(("score", "shown"), [(0.73912, "0.739"), (0.000432109, "0.000432"), (12.3456, "12.3"), (1.0, "1")])
def test_a_score_is_shown_with_three_digits_however_small_it_is(score: float, shown: str) -> None:
    [hit] = asyncio.run(search(open_export("default"), "lancedb", "boat", mode="text"))
    told = io.StringIO()
    print_hits(Console(file=told, width=200), [replace(hit, score=score)])
    assert f"page 1 score {shown}\n" in told.getvalue()


@pytest.mark.usefixtures("synced")
def test_a_question_longer_than_the_model_reads_is_said_to_be_too_long() -> None:
    outcome = CliRunner().invoke(app, ["search", "boat " * 600])
    assert isinstance(outcome.exception, ConfigError)
    assert str(outcome.exception) == "the question is too long: it has 602 tokens, and the model reads 512; shorten it"


@pytest.mark.usefixtures("synced")
def test_conditions_on_one_key_hold_together() -> None:
    gauges, boats = ("--where", "file_name=gauges.md"), ("--where", 'file_name={"ne": "gauges.md"}')
    assert len(json.loads(invoke("search", "red boat", *boats, "--json"))) == 1
    assert json.loads(invoke("search", "red boat", *gauges, *boats, "--json")) == []


@pytest.mark.usefixtures("synced")
@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        (["file_name=a.md", "file_name=b.md"], "'file_name': eq is given twice"),
        (["file_name={}"], "key=value"),
        (["file_name"], "key=value"),
        (['file_name={"gte"'], "is no JSON"),
        (["file_name=[draft].md"], 'file_name="[draft].md"'),
        (["team=x"], "declare it in the export's metadata_fields"),
    ],
)
def test_a_condition_that_says_nothing_or_too_much_is_refused(conditions: list[str], message: str) -> None:
    where = [part for condition in conditions for part in ("--where", condition)]
    outcome = CliRunner().invoke(app, ["search", "x", *where])
    assert isinstance(outcome.exception, ConfigError)
    assert message in str(outcome.exception)


@pytest.mark.usefixtures("synced")
def test_a_search_that_finds_nothing_says_so_beside_the_results() -> None:
    for options, told in ((["--mode", "text"], "nothing found\n"), (["--mode", "text", "--json"], "")):
        outcome = CliRunner().invoke(app, ["search", "zeppelin", *options])
        assert (outcome.exit_code, outcome.stderr) == (0, told)


@pytest.mark.usefixtures("synced")
def test_a_search_that_finds_nothing_says_how_many_files_it_could_not_look_through() -> None:
    with patch("pipeline.stages.search.not_loaded", return_value=2):
        outcome = CliRunner().invoke(app, ["search", "zeppelin", "--mode", "text"])
    assert outcome.stderr == "nothing found; files that are not in lancedb yet: 2 (`indexport sync` loads them)\n"


def test_a_search_in_a_home_that_knows_no_file_says_so(folder: Path) -> None:
    outcome = CliRunner().invoke(app, ["search", "boat"])
    nothing = f"nothing was exported in {folder.parent}/home yet: `indexport sync` does, or INDEXPORT_HOME names another home"
    assert (outcome.exit_code, outcome.stderr) == (0, f"nothing found; {nothing}\n")


def test_what_looks_like_markup_is_shown_as_it_is(folder: Path) -> None:
    (folder / "boats [").mkdir()
    (folder / "boats.md").rename(folder / "boats [" / "final].md")
    invoke("sync", "--refresh")
    assert "boats [/final].md, page 1" in invoke("search", "red boat", "-k", "1")
    assert "boats [/final].md" in invoke("records")
    opened = open_export("default")
    (file_id,) = KnownFiles(opened).ids_of("boats [/final].md")
    opened.record_failures({file_id: "[/poison]"}, "run")
    opened.ledger.record_sink_state(MODEL, error="[/quota]", backoff=lambda _: 60.0)
    opened.ledger.record_sink_state("lancedb", error="[/full]", backoff=lambda _: 60.0)
    shown = invoke("status")
    assert all(text in shown for text in ("boats [/final].md", "[/poison]", "(down: [/quota])", "(down: [/full])"))
    assert json.loads(invoke("status", "--json"))["model"] == {"down": "[/quota]"}


def test_nothing_that_a_terminal_obeys_is_shown_to_it(folder: Path) -> None:
    """Names and texts of others, in every output for people: also a name of two lines, and one that turns the line round."""
    name, shown = "red \x1b[31m\n\u202e\x9bboat.md", r"red \x1b[31m\n\u202e\x9bboat.md"
    (folder / "boats.md").rename(folder / name)
    (folder / name).write_text("# Boats \x1b]0;owned\x07 :boat:\n\nThe \u2066red\u2069 boat leaks.\n")
    (folder / "\x1b[2Jbad.xyz").touch()
    command = ["sync", "--documents", str(folder)]
    synced = subprocess.run([*INDEXPORT, *command], capture_output=True, text=True)
    assert synced.returncode == 0
    assert r"no payload for \x1b[2Jbad.xyz: unsupported type" in synced.stderr
    told = json.loads(run(*command, "--json").stdout)
    assert list(told["skipped"]) == ["\x1b[2Jbad.xyz"]
    opened = open_export("default")
    (file_id,) = KnownFiles(opened).ids_of(name)
    texts = [synced.stdout, synced.stderr, invoke("history", name)]
    for command in (["search", "red boat", "-k", "1"], ["records"]):
        texts.append(invoke(*command))
        assert shown in texts[-1]
        assert r"\x1b]0;owned\x07 :boat: The \u2066red\u2069 boat" in texts[-1]
    opened.record_failures({file_id: "\x1b[1mpoison"}, "run")
    (folder / name).unlink()
    texts.append(invoke("status"))
    assert rf"{shown} ({file_id}): \x1b[1mpoison" in texts[-1]
    outcome = run("history", "\x1b[2J")
    assert r"\x1b[2J" in outcome.stderr
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "".join([*texts, outcome.stderr]))


@pytest.mark.usefixtures("folder")
def test_status_names_how_many_files_wait_for_approval_to_be_deleted() -> None:
    invoke("sync", "--refresh")
    assert json.loads(invoke("status", "--json"))["awaiting_approval"] == []
    assert "approval" not in invoke("status")
    ledger = open_export("default").ledger
    ledger.update_files([{"file_id": file_id, "missing_since": 1.0} for file_id in ledger.files()])
    assert json.loads(invoke("status", "--json"))["awaiting_approval"] == list(ledger.files())
    assert "2 files wait for approval to be deleted: indexport sync --allow-deletes 2" in invoke("status")
    told = io.StringIO()
    print_awaiting_approval(Console(file=told, width=200), 2, "/my documents")
    assert "indexport sync --documents '/my documents' --allow-deletes 2" in told.getvalue()


def test_lines_stay_whole_in_a_pipe(folder: Path) -> None:
    assert CliRunner().invoke(app, ["sync", "--refresh"]).stderr == ""
    (folder / "gauges.md").rename(folder / f"{'very ' * 20}long.md")
    invoke("sync", "--refresh")
    assert len(invoke("records").splitlines()) == 2
    assert len(invoke("history", f"{'very ' * 20}long.md").splitlines()) == 2


@pytest.mark.usefixtures("synced")
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_reader_that_has_seen_enough_is_no_traceback(options: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    outcome = subprocess.run([*INDEXPORT, "records", *options], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (outcome.returncode, outcome.stderr) == (1, "")


def test_a_terminal_that_has_not_every_letter_gets_the_rest_escaped(folder: Path) -> None:
    text = "# Boats\n\nЛодка → “réd” 🛶."
    (folder / "boats.md").write_text(text)
    invoke("sync", "--refresh")
    command = ["records", "--file", "boats.md"]
    for encoding in ("ascii", "iso-8859-1"):
        for options in ([], ["--json"]):
            outcome = run(*command, *options, encoding=encoding)
            assert (outcome.returncode, outcome.stderr) == (0, "")
            assert r"\u2192 \u201cr" in outcome.stdout
        assert json.loads(outcome.stdout)["content"] == text
    environment = {**os.environ, "PYTHONIOENCODING": "iso-8859-1"}
    in_its_process = subprocess.run([*INDEXPORT, *command, "--json"], capture_output=True, env=environment)
    assert (in_its_process.returncode, in_its_process.stderr) == (0, b"")
    assert in_its_process.stdout == outcome.stdout.encode("iso-8859-1")


def test_a_home_whose_local_cloud_is_in_use_is_waited_for(folder: Path, tmp_path: Path) -> None:
    with local_cloud_environment(str(folder), tmp_path / "home" / "local_cloud"):
        outcome = subprocess.run([*INDEXPORT, "plan", "--documents", str(folder)], capture_output=True, text=True)
    assert outcome.returncode == 1
    assert re.fullmatch(r"error: .*local_cloud/\w+ is in use by another command with --documents, .*; wait .*\n", outcome.stderr)


def test_what_is_to_be_copied_is_whole_and_has_the_port_that_was_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def serve_the_ui(port: int) -> int:
        asked.append(port)
        httpx.get(
            f"{os.environ['LLAMA_CLOUD_BASE_URL']}/api/v1/indexes", headers={"Authorization": "Bearer local"}
        ).raise_for_status()
        return 0

    monkeypatch.setattr("pipeline.orchestration.launcher.run_dagster_dev", serve_the_ui)
    monkeypatch.setenv("INDEXPORT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LLAMA_CLOUD_API_KEY", " ")  # no key, as if there were none
    documents = tmp_path / f"{'very ' * 20}long [documents]"
    documents.mkdir()
    outcome = CliRunner().invoke(app, ["dev", "--documents", str(documents), "--port", "0", "--cloud-port", "0"])
    assert outcome.exit_code == 0, outcome.exception
    (line,) = outcome.stderr.splitlines()
    assert re.search(
        rf"serves {re.escape(str(documents))}.* LLAMA_CLOUD_BASE_URL=http://127.0.0.1:[1-9]\d+ LLAMA_CLOUD_API_KEY=", line
    )
    assert asked[0] > 0


def test_a_local_cloud_prints_the_port_it_has(tmp_path: Path) -> None:
    command = [*INDEXPORT, "local-cloud", str(tmp_path), "--port", "0"]
    environment = {**os.environ, "INDEXPORT_HOME": str(tmp_path / ".home")}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        line = server.stderr.readline()
        server.kill()  # also where signals to stop are ignored
    assert re.fullmatch(r"LLAMA_CLOUD_BASE_URL=http://127.0.0.1:[1-9]\d+ LLAMA_CLOUD_API_KEY=local\n", line)


@pytest.mark.parametrize("name", ["a?b", "a%41b", "a%2Fb", "a#b", "100%", "a b+c"])
def test_a_ledger_is_in_its_home_whatever_that_is_called(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INDEXPORT_HOME", str(tmp_path / name))
    invoke("status")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name / "ledger.sqlite").is_file()


def test_a_home_that_sqlalchemy_before_2_1_would_cut_off_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(URL, "render_as_string", lambda url: f"sqlite:///{url.database}")
    with pytest.raises(ConfigError, match=r"a\?b/ledger.sqlite cannot be a URL; set INDEXPORT_HOME to a path without"):
        _ = Home(tmp_path / "a?b").ledger_url
    assert Home(tmp_path / "a b").ledger_url == f"sqlite:///{tmp_path}/a b/ledger.sqlite"


def test_two_homes_never_touch_each_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    invoke("sync", "--refresh", "--json")
    monkeypatch.setenv("INDEXPORT_HOME", str(folder.parent / "other"))
    os.environ.pop("DAGSTER_HOME", None)  # the sync has set it; a fixture that remembered it would put it back
    assert json.loads(invoke("status", "--json"))["files"] == {}
