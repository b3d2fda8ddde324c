"""The sample documents in the repository."""

from __future__ import annotations

import importlib.util
from io import BytesIO
from pathlib import Path
from types import ModuleType

import pypdf
import pytest

from pipeline_tests.local_cloud.conftest import SAMPLES
from pipeline_tests.local_cloud.harness import running

_PDFS = ["reports/annual-report-2025.pdf", "manuals/ts-400-field-manual.pdf", "policies/security-policy.pdf"]


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_sample_pdfs", SAMPLES.parent / "docs" / "build_sample_pdfs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_building_twice_gives_the_same_bytes(builder: ModuleType, tmp_path: Path) -> None:
    one, two = builder.build(tmp_path / "one"), builder.build(tmp_path / "two")
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_the_committed_pdfs_are_what_the_script_says(builder: ModuleType, tmp_path: Path) -> None:
    builder.build(tmp_path)
    for name in _PDFS:
        committed, built = (_page_texts((folder / name).read_bytes()) for folder in (SAMPLES, tmp_path))
        assert committed == built
        assert len(committed) > 1
        assert (SAMPLES / name).stat().st_size < 100_000


def test_the_samples_are_served_and_only_the_broken_ones_fail(tmp_path: Path) -> None:
    with running(SAMPLES, tmp_path) as cloud:
        assert set(cloud.failures()) == {"broken.pdf"}
        files, texts = cloud.output(), cloud.texts()
        report = files["reports/annual-report-2025.pdf"].metadata
        assert report is not None
        assert report["department"] == "finance"
        assert len(files) == 11
        assert all(any(pages) for pages in texts.values())
        assert texts["products/catalogue-2026.md"][0].count("\n| ") > 200
        assert "\n### " in texts["handbook/onboarding.md"][0]
        assert "Ελληνικά" in texts["handbook/glossary-of-water.md"][0]
        manual = texts["manuals/ts-400-field-manual.pdf"]
        assert "| E34 | Flow | Velocity: signal too weak | Lengthen the averaging to 60 s | No |" in manual[1]
        assert manual[2].startswith("| Code | Part | Meaning | Remedy | Visit needed |")


def _page_texts(content: bytes) -> list[str]:
    return [page.extract_text() for page in pypdf.PdfReader(BytesIO(content)).pages]
