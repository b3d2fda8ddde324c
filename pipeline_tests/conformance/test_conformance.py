"""What every sink promises: replacing, deleting and reading back exactly what was written."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import UTC, datetime

import numpy as np
import pytest

from pipeline.embedding.base import ModelIdentity
from pipeline.errors import RecordRefused, SinkConflict, SinkUnavailable
from pipeline.sinks.base import SearchRequest, SinkContext
from pipeline.sinks.llama_index import LlamaIndexExporter
from pipeline.sinks.records import chunk_ids, to_records
from pipeline_tests.conformance.harness import FIELDS, MODEL, Bench, SinkUnderTest, matrix


async def test_a_written_file_is_read_back_exactly(bench: Bench) -> None:
    files = [bench.file("dfl-1"), bench.file("dfl-2", 8, metadata={"year": 2024, "tags": ["a", "b"], "odd key.$": True})]
    report = await bench.replace(*files)
    assert report.records_written == 11
    assert report.bytes_written > 0
    assert report.refused == ()
    await bench.assert_holds(*files)


async def test_another_handle_reads_what_was_written(bench: Bench) -> None:
    other = bench.open()
    assert await bench.snapshots(other) == {}
    file = bench.file("dfl-1")
    await bench.replace(file)
    await bench.assert_holds(file, exporter=other)


async def test_provisioning_again_changes_nothing(bench: Bench) -> None:
    file = bench.file("dfl-1")
    await bench.replace(file)
    await asyncio.gather(bench.exporter.provision(), bench.open().provision())
    await bench.assert_holds(file)


async def test_exporting_again_changes_nothing(bench: Bench) -> None:
    file = bench.file("dfl-1")
    await bench.replace(file)
    await bench.replace(file)
    await bench.assert_holds(file)


@pytest.mark.parametrize(("before", "after"), [(9, 2), (2, 9), (5, 5), (1, 0), (0, 1), (0, 0)])
async def test_a_changed_file_leaves_nothing_of_its_old_version(bench: Bench, before: int, after: int) -> None:
    neighbour = bench.file("dfl-neighbour")
    await bench.replace(neighbour, bench.file("dfl-1", before))
    changed = bench.file("dfl-1", after, version="v2")
    await bench.replace(changed)
    await bench.assert_holds(neighbour, changed)


async def test_files_empty_and_not_can_be_replaced_together(bench: Bench) -> None:
    await bench.replace(*(bench.file(f"dfl-{n}", 4) for n in range(4)))
    files = [bench.file("dfl-0", 0), bench.file("dfl-1", 2, version="v2"), bench.file("dfl-2", 0)]
    await bench.replace(*files)
    await bench.assert_holds(*files, bench.file("dfl-3", 4))


async def test_the_ids_are_those_the_sink_says_it_gives(bench: Bench) -> None:
    """A docstore beside the sink is filled under the same ids without asking it."""
    if isinstance(bench.exporter, LlamaIndexExporter):
        pytest.skip("its records are not its nodes")
    file = bench.file("dfl-1", 4)
    await bench.replace(file)
    version = file.record_set_hash if bench.exporter.ids_by_version else None
    expected = chunk_ids(bench.tenant, bench.config, "dfl-1", range(4), version)
    assert (await bench.held())["dfl-1"]["id"].to_pylist() == expected


async def test_a_file_of_the_year_one_is_held_like_any_other(bench: Bench) -> None:
    """What some programs say where they know no time."""
    file = bench.file("dfl-1", modified=datetime.min.replace(tzinfo=UTC))
    await bench.replace(file)
    await bench.assert_holds(file)


async def test_nothing_to_replace_is_no_error(bench: Bench) -> None:
    assert (await bench.replace()).records_written == 0


async def test_a_renamed_file_has_its_new_name_in_every_record(bench: Bench) -> None:
    await bench.replace(bench.file("dfl-1", 4, name="draft.pdf"))
    renamed = bench.file("dfl-1", 4, name='final\'s "copy".pdf')
    await bench.replace(renamed)
    await bench.assert_holds(renamed)


async def test_a_change_of_metadata_alone_reaches_every_record(bench: Bench) -> None:
    before, after = (bench.file("dfl-1", metadata={"year": year, "extra": str(year)}) for year in (2023, 2024))
    await bench.replace(before)
    await bench.replace(after)
    await bench.assert_holds(after)


async def test_deleting_takes_the_named_files_and_no_other(bench: Bench) -> None:
    files = [bench.file(f"dfl-{n}") for n in range(6)]
    await bench.replace(*files)
    await bench.exporter.delete_file(parsed_directory_file_id="dfl-0", export_config_id=bench.config)
    await bench.delete("dfl-1", "dfl-2", "dfl-never-there")
    await bench.delete()
    await bench.assert_holds(*files[3:])
    await bench.delete("dfl-1")
    await bench.assert_holds(*files[3:])


async def test_two_configs_keep_the_same_file_side_by_side(bench: Bench) -> None:
    one, other = bench.file("dfl-1", 4), bench.file("dfl-1", 2, version="v2", config=f"{bench.config}-b")
    await bench.replace(one, other)
    await bench.assert_holds(one)
    await bench.assert_holds(other, config=f"{bench.config}-b")
    await bench.delete("dfl-1")
    await bench.assert_holds()
    await bench.assert_holds(other, config=f"{bench.config}-b")


async def test_two_tenants_never_see_each_other(bench: Bench) -> None:
    tenant = f"{bench.tenant}-b"
    other = bench.open(tenant=tenant)
    mine, theirs = bench.file("dfl-1"), bench.file("dfl-1", 2, version="v2", tenant=tenant)
    await bench.replace(mine)
    await other.replace_files([theirs])
    await bench.sink.settle(other)
    await bench.assert_holds(mine)
    await bench.assert_holds(theirs, exporter=other)
    if bench.exporter.search_modes:
        request = SearchRequest(bench.config, vector=matrix(theirs.table)[0])
        assert {hit.record.tenant_id for hit in await bench.search(request)} == {bench.tenant}
    await bench.delete("dfl-1")
    await bench.assert_holds(theirs, exporter=other)


async def test_files_of_another_tenant_are_refused_before_anything_is_written(bench: Bench) -> None:
    with pytest.raises(ValueError, match="dfl-2"):
        await bench.replace(bench.file("dfl-1"), bench.file("dfl-2", tenant="prj-other"))
    with pytest.raises(ValueError, match="twice"):
        await bench.replace(bench.file("dfl-1"), bench.file("dfl-1", version="v2"))
    await bench.assert_holds()


async def test_a_thousand_files_are_listed_at_once(bench: Bench) -> None:
    files = [bench.file(f"dfl-{n:04}", 1 + (n % 10 == 0)) for n in range(1000)]
    await bench.replace(*files)
    snapshots = await bench.snapshots()
    assert {file.file_id: file.record_set_hash for file in files} == {
        file_id: snapshot.record_set_hash for file_id, snapshot in snapshots.items()
    }
    named = [file.file_id for file in files[::2]] + ["dfl-never-there"]
    some = await bench.exporter.list_snapshots(export_config_id=bench.config, parsed_directory_file_ids=named)
    assert sorted(snapshot.parsed_directory_file_id for snapshot in some) == named[:-1]
    assert await bench.exporter.list_snapshots(export_config_id=bench.config, parsed_directory_file_ids=[]) == []


async def test_named_files_alone_are_fetched(bench: Bench) -> None:
    await bench.replace(*(bench.file(f"dfl-{n}") for n in range(5)))
    tables = [
        table
        async for table in bench.exporter.fetch_records(
            export_config_id=bench.config, parsed_directory_file_ids=["dfl-3", "dfl-1", "dfl-never-there"]
        )
    ]
    assert sorted({name for table in tables for name in table["parsed_directory_file_id"].to_pylist()}) == ["dfl-1", "dfl-3"]


async def test_the_chunks_of_a_file_are_fetched_in_their_order(bench: Bench) -> None:
    await bench.replace(bench.file("dfl-1", 9), bench.file("dfl-2", 7))
    fetched: list[tuple[str, int]] = []
    async for table in bench.exporter.fetch_records(export_config_id=bench.config):
        fetched += zip(table["parsed_directory_file_id"].to_pylist(), table["chunk_index"].to_pylist(), strict=True)
    for file_id, count in (("dfl-1", 9), ("dfl-2", 7)):
        assert [index for file, index in fetched if file == file_id] == list(range(count))


async def test_any_text_survives(bench: Bench) -> None:
    texts = [
        "naïve Ünïcödé — “quotes” 'single' \"double\" `back` \\ \\n % _ ; --",
        "漢字とかな 한국어 עברית العربية 🏳️‍🌈 👩‍🔬 e\u0301 \u200b\u2028 \U0001f600",
        "line\nbreaks\r\n\tand tabs",
        " ",
        '{"json": ["[not]", null]}',
    ]
    file = bench.file("dfl-ünï'\"\\ 漢", texts, name="a/b 'c' \"d\" 漢.pdf", metadata={"ключ": "значение", "quote'\"": "'; DROP"})
    await bench.replace(file)
    await bench.assert_holds(file)
    await bench.delete(file.file_id)
    await bench.assert_holds()


async def test_a_chunk_of_a_megabyte_is_kept_or_refused_by_name(bench: Bench) -> None:
    small = bench.file("dfl-small")
    large = bench.file("dfl-large", ["gauge é " * 120_000, "tail"])
    report = await bench.replace(small, large)
    if bench.sink.max_content_bytes is None:
        assert report.refused == ()
        await bench.assert_holds(small, large)
    else:
        assert [refused.file_id for refused in report.refused] == ["dfl-large"]
        assert any(character.isdigit() for character in report.refused[0].reason), "the reason names the limit"
        await bench.assert_holds(small)


async def test_a_refused_file_keeps_its_old_version_and_leaves_others_alone(bench: Bench) -> None:
    old = bench.file("dfl-1", metadata={"year": 2020})
    await bench.replace(old)
    good = bench.file("dfl-2", metadata={"year": 2021})
    report = await bench.replace(bench.file("dfl-1", version="v2", metadata={"year": "Zwiebelfisch"}), good)
    (refused,) = report.refused
    assert isinstance(refused, RecordRefused)
    assert refused.file_id == "dfl-1"
    assert "'year'" in refused.reason
    assert "integer" in refused.reason
    assert "Zwiebelfisch" not in refused.reason
    await bench.assert_holds(old, good)


async def test_a_table_of_another_dimension_is_a_conflict(bench: Bench) -> None:
    wider = dataclasses.replace(MODEL, dimension=MODEL.dimension * 2)
    assert wider.slug == MODEL.slug
    with pytest.raises(SinkConflict):
        await bench.open(model=wider).provision()
    with pytest.raises(ValueError, match="dfl-1"):
        await bench.replace(bench.file("dfl-1", model=wider))


async def test_another_model_builds_beside_the_old_one(bench: Bench) -> None:
    old = bench.file("dfl-1")
    await bench.replace(old)
    model = ModelIdentity("conformance", "conformance/2", 24)
    newer = bench.open(model=model)
    await newer.provision()
    new = bench.file("dfl-1", 2, version="v2", model=model)
    await newer.replace_files([new])
    await bench.sink.settle(newer)
    await bench.assert_holds(old)
    await bench.assert_holds(new, exporter=newer)


async def test_writers_that_make_a_new_model_s_collection_at_once_all_write_to_it(bench: Bench) -> None:
    """As the first runs of an export do, which begin together."""
    for round_ in range(3):
        model = ModelIdentity("conformance", f"conformance/at-once-{round_}", 24)
        handles = [bench.open(model=model) for _ in range(3)]
        files = [bench.file(f"dfl-{n}", 2, model=model) for n in range(len(handles))]
        await asyncio.gather(*(handle.provision() for handle in handles))
        await asyncio.gather(*(handle.replace_files([file]) for handle, file in zip(handles, files, strict=True)))
        await bench.sink.settle(handles[0])
        await bench.assert_holds(*files, exporter=handles[0])


async def test_writers_of_the_same_file_end_in_one_of_its_versions(bench: Bench) -> None:
    handles = [bench.exporter, bench.open(), bench.open()]
    for round_ in range(3):
        versions = [bench.file(f"dfl-{round_}", 2 + 3 * n, version=f"v{n}") for n in range(len(handles))]
        await asyncio.gather(*(handle.replace_files([file]) for handle, file in zip(handles, versions, strict=True)))
        await bench.sink.settle(bench.exporter)
        if not bench.exporter.atomic_replace:
            await bench.replace(versions[0])
        held = (await bench.held())[f"dfl-{round_}"]
        assert held["record_set_hash"].unique().to_pylist() in [[file.record_set_hash] for file in versions]
        (winner,) = (file for file in versions if file.record_set_hash == held["record_set_hash"][0].as_py())
        assert held.num_rows == winner.table.num_rows


async def test_writers_of_different_files_do_not_disturb_each_other(bench: Bench) -> None:
    handles = [bench.exporter, *(bench.open() for _ in range(3))]
    files = [bench.file(f"dfl-{n}", 3) for n in range(16)]
    shares = [files[n :: len(handles)] for n in range(len(handles))]

    async def write_each(number: int) -> None:
        for file in shares[number]:
            await handles[number].replace_files([file])

    await asyncio.gather(*(write_each(number) for number in range(len(handles))))
    await bench.sink.settle(bench.exporter)
    await bench.assert_holds(*files)


async def test_optimizing_and_purging_lose_nothing(bench: Bench) -> None:
    files = [bench.file(f"dfl-{n}") for n in range(3)]
    await bench.replace(*files)
    await bench.replace(bench.file("dfl-0", 0))
    await bench.exporter.optimize()
    await bench.exporter.purge_history()
    await bench.sink.settle(bench.exporter)
    await bench.assert_holds(*files[1:])


async def test_the_reference_entry_point_writes_the_same_records(bench: Bench) -> None:
    files = [bench.file("dfl-1", 4), bench.file("dfl-2", 2)]
    outputs = [record for file in files for record in to_records(file.table)][::-1]
    embeddings = np.vstack([matrix(file.table) for file in files])[::-1].tolist()
    report = await bench.exporter.export(
        outputs, project_id=bench.tenant, embeddings=embeddings, embedding_model=bench.model.fingerprint
    )
    await bench.sink.settle(bench.exporter)
    assert report.records_written == 6
    await bench.assert_holds(*files)


async def test_the_reference_entry_point_refuses_what_is_not_its_own(bench: Bench) -> None:
    outputs = to_records(bench.file("dfl-1").table)
    embeddings = matrix(bench.file("dfl-1").table).tolist()
    for arguments in (
        {"project_id": "prj-other", "embeddings": embeddings},
        {"project_id": bench.tenant, "embeddings": embeddings, "embedding_model": "another"},
        {"project_id": bench.tenant, "embeddings": embeddings[:-1]},
        {"project_id": bench.tenant},
    ):
        with pytest.raises(ValueError, match=r"project|vectors|embeddings"):
            await bench.exporter.export(outputs, **arguments)
    with pytest.raises(ValueError, match="dfl-1"):
        await bench.exporter.export(outputs[:-1], project_id=bench.tenant, embeddings=embeddings[:-1])
    await bench.assert_holds()


async def test_a_store_that_does_not_answer_is_unavailable_and_tells_no_secret(sink: SinkUnderTest) -> None:
    exporter = sink.make_unreachable_exporter(SinkContext("prj-1", MODEL, FIELDS))
    for attempt in (exporter.provision, lambda: exporter.list_snapshots(export_config_id="cfg")):
        with pytest.raises(SinkUnavailable) as caught:
            await attempt()
        assert not any(secret in f"{caught.value!r}{caught.value.__cause__!r}" for secret in sink.secrets)
    await exporter.close()
