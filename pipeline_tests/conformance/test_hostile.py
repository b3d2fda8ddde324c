"""Names, ids and metadata that aim at a file system, a query or a log: every sink keeps them as they are, or refuses the file."""

from __future__ import annotations

from pipeline.llama_cloud.decoding import clean, clean_text
from pipeline.sinks.records import FileRecords
from pipeline_tests.conformance.harness import Bench
from pipeline_tests.hostile.corpus import Case, hostile_names


def _file(bench: Bench, case: Case) -> FileRecords:
    name, metadata = clean_text(case.file.display_name or case.name), clean(case.file.metadata or {})
    return bench.file(clean_text(case.file.id), ["the body", "two \u202e \x01 \x7f \ufffd"], name=name, metadata=metadata)


async def test_hostile_files_are_held_as_they_are_and_each_is_deleted_alone(bench: Bench) -> None:
    files = [_file(bench, case) for case in hostile_names()]
    report = await bench.replace(*files)
    refused = {refusal.file_id for refusal in report.refused}
    assert len(refused) <= 2, "for a documented limit of the store"
    kept = [file for file in files if file.file_id not in refused]
    await bench.assert_holds(*kept)
    await bench.delete(*(file.file_id for file in kept[::2]))
    await bench.assert_holds(*kept[1::2])
