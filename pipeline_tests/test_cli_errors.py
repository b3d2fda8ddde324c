"""What the command line says of wrong questions and of what is wrong around it: one line, and never a traceback."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.local_cloud import environment
from pipeline_tests.command_line import INDEXPORT, run


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_an_output_that_cannot_be_written_is_not_blamed_on_the_home_alone(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        variables = {**os.environ, "INDEXPORT_HOME": str(tmp_path)}
        outcome = subprocess.run([*INDEXPORT, "status"], stdout=full, stderr=subprocess.PIPE, text=True, env=variables)
    told = f"error: standard output, or {tmp_path}: No space left on device; check its space and rights\n"
    assert (outcome.returncode, outcome.stderr) == (1, told)


def test_an_error_is_one_whole_line_whatever_it_names(tmp_path: Path) -> None:
    name = f"report [final] [/a] {'very ' * 20}long.md"
    outcome = run("history", name, INDEXPORT_HOME=str(tmp_path))
    told = f"no file of 'default' has the id or name {name!r}; one that has left the directory is known by its id alone"
    assert (outcome.returncode, outcome.stderr) == (2, f"configuration: {told}\n")


def test_wrong_questions_end_with_two_and_one_line() -> None:
    for arguments, message in (
        (["status", "--export", "nope"], "there is no export 'nope'"),
        (["search", "x", "--sink", "nope"], "has no sink 'nope'"),
    ):
        outcome = run(*arguments, INDEXPORT_HOME="/nonexistent-parent/home", LLAMA_CLOUD_BASE_URL="http://127.0.0.1:9")
        assert outcome.returncode in (1, 2)
        if arguments[0] == "status":
            assert message in outcome.stderr


@pytest.mark.parametrize("command", [("search", "x"), ("records",), ("verify",)])
def test_a_home_without_an_export_is_named_where_an_index_cannot_be_asked_instead(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    """As of who reads from another directory than the one that was synced in."""
    outcome = run(*command, INDEXPORT_HOME=str(tmp_path / "home"), DAGSTER_HOME="", LLAMA_CLOUD_API_KEY="")
    nothing = f"nothing was exported in {tmp_path}/home yet: `indexport sync` does, or INDEXPORT_HOME names another home"
    told = f"no LlamaCloud API key: set the environment variable LLAMA_CLOUD_API_KEY; {nothing}"
    assert (outcome.returncode, outcome.stderr) == (2, f"configuration: {told}\n")


def test_exports_are_those_of_the_folder_that_the_environment_names(tmp_path: Path) -> None:
    folder = tmp_path / "defs" / "x"
    folder.mkdir(parents=True)
    (folder / "defs.yaml").write_text("type: pipeline.components.IndexExport\nattributes: {name: handbook}\n")
    here = {"INDEXPORT_HOME": str(tmp_path / "home"), "INDEXPORT_DEFS": str(tmp_path / "defs")}
    assert run("history", "a.md", "--export", "handbook", **here).stderr.startswith("configuration: no file of 'handbook'")
    told = f"there is no export 'default' in {tmp_path}/defs; it has: handbook; INDEXPORT_DEFS names the defs folder of a project"
    assert run("history", "a.md", **here).stderr == f"configuration: {told}\n"


def test_where_no_export_is_found_the_files_are_named_that_hold_none(tmp_path: Path) -> None:
    here = {"INDEXPORT_HOME": str(tmp_path / "home"), "INDEXPORT_DEFS": str(tmp_path)}
    told = f"configuration: there is no export 'default' in {tmp_path}; it has: none; %s\n"
    empty = "no defs.yaml lies under it; INDEXPORT_DEFS names the defs folder of a project"
    assert run("status", **here).stderr == told % empty
    (tmp_path / "defs.yaml").write_text("type: elsewhere.Component\n")
    other = f"no component in {tmp_path}/defs.yaml is of type pipeline.components.IndexExport"
    assert run("status", **here).stderr == told % f"{other}; INDEXPORT_DEFS names the defs folder of a project"


def test_a_development_server_is_refused_before_anything_begins_where_an_export_is_set_up_wrong(tmp_path: Path) -> None:
    (tmp_path / "defs.yaml").write_text("type: IndexExport\nattributes: {name: x}\n")
    here = {"INDEXPORT_HOME": str(tmp_path / "home"), "INDEXPORT_DEFS": str(tmp_path), "LLAMA_CLOUD_API_KEY": ""}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        outcome = run("dev", "--port", str(taken.getsockname()[1]), "--documents", str(tmp_path), **here)
    told = f"configuration: {tmp_path}/defs.yaml: type: misspelt; an export's is pipeline.components.IndexExport\n"
    assert (outcome.returncode, outcome.stderr) == (2, told)
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("command", ["sync", "plan"])
def test_a_folder_is_not_served_for_an_export_that_is_set_up_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(environment, "local_cloud_environment", None)
    (tmp_path / "defs.yaml").write_text("type: IndexExport\n")
    here = {"INDEXPORT_HOME": str(tmp_path / "home"), "INDEXPORT_DEFS": str(tmp_path)}
    outcome = run(command, "--documents", str(tmp_path), **here)
    assert (outcome.returncode, len(outcome.stderr.splitlines())) == (2, 1), outcome.stderr


@pytest.mark.parametrize("made", [Path.touch, lambda _path: None], ids=["a file", "nothing"])
def test_a_folder_of_exports_that_is_none_is_one_line(tmp_path: Path, made: Callable[[Path], None]) -> None:
    made(tmp_path / "defs")
    outcome = run("status", INDEXPORT_HOME=str(tmp_path / "home"), INDEXPORT_DEFS=str(tmp_path / "defs"))
    assert (outcome.returncode, len(outcome.stderr.splitlines())) == (2, 1), outcome.stderr
    assert outcome.stderr.startswith(f"configuration: INDEXPORT_DEFS: {tmp_path}/defs cannot be read: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ("search", "caf\udce9"),
        ("search", "x", "--sink", "caf\udce9"),
        ("records", "--file", "caf\udce9"),
        ("history", "caf\udce9"),
        ("erase", "caf\udce9"),
        ("release", "caf\udce9"),
        ("status", "--export", "caf\udce9"),
    ],
)
def test_an_argument_that_is_not_utf8_is_one_line(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Python has each such byte as half a surrogate pair."""
    outcome = run(*arguments, INDEXPORT_HOME=str(tmp_path))
    assert (outcome.returncode, len(outcome.stderr.splitlines())) == (2, 1), outcome.stderr
    assert outcome.stderr.startswith("configuration: ")
    assert r"caf\udce9" in outcome.stderr


@pytest.mark.parametrize(
    ("arguments", "variables", "code", "message"),
    [
        (["status"], {"INDEXPORT_LEDGER_URL": "postgres://user:canary@host/db"}, 2, "cannot be in 'postgres'"),
        (["status"], {"INDEXPORT_LEDGER_URL": "host=h password=canary"}, 2, "no SQLAlchemy URL"),
        (["status"], {"INDEXPORT_LEDGER_URL": "postgresql://host:canary/db"}, 2, "no SQLAlchemy URL"),
        (["status"], {"INDEXPORT_LEDGER_URL": "postgresql+asyncpg://host/db"}, 2, "'asyncpg' is not installed"),
        (["removals"], {"INDEXPORT_HOME": __file__}, 1, "Not a directory"),
        (["removals"], {"DAGSTER_HOME": "x/../relative"}, 0, ""),
        (["removals"], {"DAGSTER_HOME": "a%2Fb"}, 2, "a%2Fb: set DAGSTER_HOME, or INDEXPORT_HOME, to a path"),
        (["prune", "--older-than-days", "1000000"], {}, 2, "no date is so many days ago"),
        (["local-cloud", "--port", "99999"], {}, 2, "65535"),
        (["sync", "--allow-deletes", "-1"], {}, 2, "--allow-deletes'"),
        (["repair", "--allow-deletes", "-1"], {}, 2, "--allow-deletes'"),
        (["local-cloud", ""], {}, 2, "local-cloud: '' is no folder"),
        (["sync", "--documents", ""], {}, 2, "--documents: '' is no folder"),
        (["sync", "--documents", "/nope"], {}, 2, "--documents: '/nope' is no folder"),
        (["plan", "--documents", __file__], {}, 2, f"--documents: {__file__!r} is no folder"),
        (["dev", "--documents", "", "--port", "0"], {"LLAMA_CLOUD_API_KEY": ""}, 2, "--documents: '' is no folder"),
    ],
)
def test_what_is_wrong_around_a_command_is_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], variables: dict[str, str], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run(*arguments, **{"INDEXPORT_HOME": str(tmp_path / "home"), **variables})
    assert outcome.returncode == code, outcome.stderr
    assert message in outcome.stderr
    assert "canary" not in outcome.stderr


@pytest.mark.parametrize(
    ("arguments", "home", "code", "message"),
    [
        (["removals"], "100% 'ours' #1 +ü", 0, ""),
        (["removals"], "a?b", 2, "a?b/dagster: set DAGSTER_HOME, or INDEXPORT_HOME, to a path"),
        (["status"], __file__, 1, f"{__file__}: File exists"),
    ],
)
def test_what_is_wrong_is_no_traceback_of_a_process_either(
    tmp_path: Path, arguments: list[str], home: str, code: int, message: str
) -> None:
    environment = {**os.environ, "INDEXPORT_HOME": home}
    outcome = subprocess.run([*INDEXPORT, *arguments], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert (outcome.returncode, "Traceback" in outcome.stderr) == (code, False), outcome.stderr
    assert message in outcome.stderr


@pytest.mark.parametrize("command", [["status"], ["removals"], ["sync", "--documents", "."]])
@pytest.mark.parametrize(
    ("home", "told"),
    [
        ("a" * 300, "File name too long.*; set INDEXPORT_HOME, or DAGSTER_HOME, to a shorter path"),
        (f"{'a' * 250}/{'b' * 250}", "unable to open database file; .* that its path has at most 500 bytes"),
        ("loop/home", "Too many levels of symbolic links.*; its links lead to themselves: set INDEXPORT_HOME"),
    ],
)
def test_a_home_whose_path_no_disk_can_hold_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], home: str, told: str
) -> None:
    (tmp_path / "documents").mkdir()
    monkeypatch.chdir(tmp_path / "documents")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    outcome = run(*command, INDEXPORT_HOME=str(tmp_path / home))
    assert (outcome.returncode, len(outcome.stderr.splitlines())) == (1, 1), outcome.stderr
    assert re.search(told, outcome.stderr), outcome.stderr


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"module": "no_such.storage"}, "what is not installed: No module named 'no_such'; .* pip install 'indexport.postgres"),
        ({"config": {"postgres_url": {"env": "NO_SUCH_URL"}}}, "names the environment variable NO_SUCH_URL, which is not set"),
        ({"config": {"postgres_url": {"canary": "x"}}}, 'Received unexpected config entry "canary"'),
        ({"config": {"postgres_url": "postgres://u:secret@host/db"}}, "no SQLAlchemy URL, such as"),
        ({"config": {"postgres_url": "secret"}}, "no SQLAlchemy URL, such as"),
        ({"config": {"postgres_url": ["secret"]}}, "at path root:postgres_url"),
        ({"class": "NoSuchStorage"}, "Couldn't find class NoSuchStorage"),
    ],
)
def test_wrong_settings_of_the_dagster_instance_are_one_line_without_their_values(
    tmp_path: Path, given: dict[str, object], told: str
) -> None:
    settings = tmp_path / "dagster" / "dagster.yaml"
    settings.parent.mkdir()
    custom = {"module": "pipeline.orchestration.postgres_storage", "class": "BatchingPostgresStorage", **given}
    settings.write_text(json.dumps({"storage": {"custom": custom}}))
    outcome = run("removals", INDEXPORT_HOME=str(tmp_path))
    assert (outcome.returncode, len(outcome.stderr.splitlines())) == (2, 1), outcome.stderr
    assert outcome.stderr.startswith(f"configuration: {settings}: ")
    assert re.search(told, outcome.stderr)
    assert "secret" not in outcome.stderr


def test_a_dagster_yaml_that_is_no_yaml_is_one_line(tmp_path: Path) -> None:
    settings = tmp_path / "dagster" / "dagster.yaml"
    settings.parent.mkdir()
    settings.write_text("storage: {}\nrun_queue: [secret\n")
    outcome = run("removals", INDEXPORT_HOME=str(tmp_path))
    assert (outcome.returncode, outcome.stderr) == (2, f"configuration: {settings}: line 3 is no YAML\n")


@pytest.mark.parametrize("number", {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP})
def test_a_home_on_a_disk_without_locks_is_one_line_that_names_it_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(_descriptor: int, _how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    outcome = run("removals", INDEXPORT_HOME=str(tmp_path))
    assert (outcome.returncode, len(outcome.stderr.splitlines())) == (1, 1), outcome.stderr
    assert outcome.stderr.startswith(f"error: the storage of the Dagster instance in {tmp_path}/dagster cannot be used: ")
    assert (
        f"{os.strerror(number)}: '{tmp_path}/dagster/.making'; that disk has no file locks: set INDEXPORT_HOME" in outcome.stderr
    )


def test_a_disk_without_locks_is_told_of_outside_of_the_instance_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise OSError(errno.ENOLCK, "No locks available", str(tmp_path))

    monkeypatch.setattr(cli, "app", refuse)
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    told = "that disk has no file locks: set INDEXPORT_HOME, or DAGSTER_HOME, to a folder on a local disk"
    assert capsys.readouterr().err == f"error: {tmp_path}: No locks available; {told}\n"


def test_a_development_server_whose_port_is_taken_is_refused_before_anything_begins(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = ["dev", "--port", str(port), "--documents", str(tmp_path)]
        outcome = run(*command, INDEXPORT_HOME=str(tmp_path / "home"), LLAMA_CLOUD_API_KEY="")
    assert (outcome.returncode, len(outcome.stderr.splitlines())) == (2, 1), outcome.stderr
    assert f"127.0.0.1:{port}: Address already in use; choose another with --port" in outcome.stderr
    assert not (tmp_path / "home").exists()


@pytest.mark.usefixtures("impatient_sdk")
def test_an_unreachable_llamacloud_is_one_line_and_exit_one(tmp_path: Path) -> None:
    nowhere = {"LLAMA_CLOUD_BASE_URL": "http://127.0.0.1:9", "LLAMA_CLOUD_API_KEY": "llx-canary"}
    outcome = run("index", "status", INDEXPORT_HOME=str(tmp_path), **nowhere)
    assert outcome.returncode == 1
    assert len(outcome.stderr.splitlines()) == 1
    assert "127.0.0.1:9" in outcome.stderr
    assert "llx-canary" not in outcome.stderr + outcome.stdout
