"""The documentation says what the code does."""

from __future__ import annotations

import re
import runpy
from collections import Counter
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.sinks.records import record_schema
from pipeline.sinks.registry import SINKS, exporter_class
from pipeline_tests.command_line import invoke

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_settings_page_is_what_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMA_CLOUD_API_KEY", raising=False)
    page = runpy.run_path(str(ROOT / "docs" / "build_settings.py"))["settings_page"]()
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == page, "run: python docs/build_settings.py"


def test_what_the_page_of_sinks_says_of_them_is_what_they_say_themselves() -> None:
    about = runpy.run_path(str(ROOT / "docs" / "build_sinks.py"))["about_sinks"]()
    assert (ROOT / "docs" / "sinks.md").read_text(encoding="utf-8").endswith(about), "run: python docs/build_sinks.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_sink_that_is_shown_has_settings_that_are_taken(page: Path) -> None:
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for name, given in (yaml.safe_load(block).get("sinks") or {}).items():
            if ":" not in (kind := given.pop("type", name)):
                exporter_class(kind).settings_type.model_validate(given)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_local_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_shown_exists_with_its_options(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for line in re.findall(r"^(?:\S*/)?indexport ([a-z].*?)(?:\s+#.*)?$", text, re.MULTILINE):
        words = line.split()
        command = words[:2] if words[0] == "index" else words[:1]
        shown = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
        assert shown.exit_code == 0, line
        for option in re.findall(r"(?<!\S)(--[a-z-]+)", line):
            assert option in shown.stdout, (line, option)


def test_every_make_target_of_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"\bmake ([a-z-]+)", (ROOT / "README.md").read_text(encoding="utf-8"))):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_sink_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for sink in SINKS:
        assert f"`{sink}`" in readme, sink


def test_the_page_on_reading_names_every_field_of_a_record() -> None:
    page = (ROOT / "docs" / "reading.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", page.split("## A record")[1].split("## Where")[0], re.MULTILINE)
    assert Counter(re.findall(r"`(\w+)`", " ".join(rows))) == Counter(record_schema(1).names)


def test_records_are_read_as_the_page_on_reading_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INDEXPORT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home" / "dagster"))  # or the command would leave its own behind
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "shop.md").write_text("# Shop\n\nThe opening hours are from nine to five.\n")
    invoke("sync", "--documents", str(tmp_path / "documents"))
    page = (ROOT / "docs" / "reading.md").read_text(encoding="utf-8")
    shown, *_ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "shown.py").write_text(shown, encoding="utf-8")
    capsys.readouterr()
    runpy.run_path(str(tmp_path / "shown.py"))
    assert re.fullmatch(r"1\.0 shop\.md 1 # Shop\n\nThe opening hours are from nine to five\.\n", capsys.readouterr().out)
