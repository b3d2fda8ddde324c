"""Records: their digest, ids, and the way from rows to files and back."""

from __future__ import annotations

import hashlib
import json
import uuid

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sinks.records import (
    HASHED_FIELDS,
    build_file_records,
    build_record_sets,
    canonical_json,
    chunk_ids,
    from_records,
    group_files,
    record_set_hash,
    split_files,
    to_records,
)
from pipeline_tests.conformance.harness import MODEL, Bench, chunk_id, matrix, synthetic_chunks, unit_vectors, vector_column

FILES = Bench(sink=None, tenant="prj-1", config="cfg-1")  # type: ignore[arg-type] # only its builder of files is used


def _digest_row_by_row(table: pa.Table) -> str:
    """What record_set_hash is documented to be, written the slow way."""
    digest = hashlib.sha256()
    for row in sorted(table.select(HASHED_FIELDS).to_pylist(), key=lambda row: row["chunk_index"]):
        digest.update(canonical_json([row[name] for name in HASHED_FIELDS]).encode() + b"\n")
    return digest.hexdigest()


TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=6)


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.dictionaries(st.sampled_from(["a", 'k"\\', "é"]), st.none() | st.integers() | st.booleans() | st.just(["x"])))
def test_the_digest_is_that_of_canonical_json_row_by_row(texts: list[str], metadata: dict[str, object]) -> None:
    file = FILES.file("dfl-1", texts, metadata=metadata)
    assert file.record_set_hash == _digest_row_by_row(file.table) == record_set_hash(file.table)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(TEXTS, st.sampled_from([{}, {"a": 1}, {"tags": ["x"]}])), max_size=5))
def test_files_made_together_are_those_made_one_by_one(files: list[tuple[list[str], dict[str, object]]]) -> None:
    alone = [FILES.file(f"dfl-{number}", texts, metadata=metadata) for number, (texts, metadata) in enumerate(files)]
    given = [(file.provenance, file.table, file.table["embedding"].combine_chunks()) for file in alone]
    together = build_record_sets(given, MODEL)
    assert [file.provenance for file in together] == [file.provenance for file in alone]
    assert [file.record_set_hash for file in together] == [_digest_row_by_row(file.table) for file in alone]
    for one, other in zip(together, alone, strict=True):
        one.table.validate(full=True)
        assert one.table.equals(other.table)


def test_the_digest_ignores_row_order_ids_and_vectors() -> None:
    file = FILES.file("dfl-1", 5)
    shuffled = file.table.take([3, 0, 4, 1, 2])
    assert record_set_hash(shuffled) == file.record_set_hash
    for name in ("id", "embedding", "record_set_hash"):
        assert record_set_hash(file.table.drop_columns([name])) == file.record_set_hash


@pytest.mark.parametrize("field", HASHED_FIELDS)
def test_every_other_field_moves_the_digest(field: str) -> None:
    table = FILES.file("dfl-1", 1).table
    column = table.schema.field(field)
    other: object = {"string": "other", "int32": 99, "int64": 99}.get(str(column.type), [])
    if str(column.type).startswith("timestamp"):
        other = None
    elif str(column.type).startswith("list"):
        other = [{"attachment_name": "a", "source_id": "b", "type": "c"}]
    changed = table.set_column(table.schema.get_field_index(field), field, pa.array([other], column.type))
    assert record_set_hash(changed) != record_set_hash(table)


def test_ids_are_the_documented_uuid5_and_differ_by_every_part() -> None:
    address = ["t", "c", 'f"', 7]
    assert chunk_id("t", "c", 'f"', 7) == str(uuid.uuid5(uuid.UUID("6f1c2e0a-5d0b-5b0e-9f57-0f3a1d6f7c11"), json.dumps(address)))
    ids = {chunk_id(*parts) for parts in (("t", "c", "f", 1), ("u", "c", "f", 1), ("t", "d", "f", 1), ("t", "c", "g", 1))}
    assert len(ids | {chunk_id("t", "c", "f", 2), chunk_id("t", "c", "f", 1, "generation")}) == 6
    assert chunk_ids("t", "c", "f", [3, 1]) == [chunk_id("t", "c", "f", 3), chunk_id("t", "c", "f", 1)]


@given(st.text(), st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5), st.none() | st.text())
def test_every_id_is_a_uuid5_whatever_the_address(file_id: str, indices: list[int], generation: str | None) -> None:
    namespace = uuid.UUID("6f1c2e0a-5d0b-5b0e-9f57-0f3a1d6f7c11")
    version = [] if generation is None else [generation]
    wanted = [str(uuid.uuid5(namespace, json.dumps(["t", "c", file_id, *version, index]))) for index in indices]
    assert chunk_ids("t", "c", file_id, indices, generation) == wanted


def test_building_checks_that_chunks_and_vectors_fit() -> None:
    provenance = FILES.file("dfl-1").provenance
    chunks = synthetic_chunks(["a", "b"])
    for vectors in (unit_vectors("x", 1), unit_vectors("x", 2, 4), unit_vectors("x", 2).astype(np.float64)):
        with pytest.raises(ValueError, match="dfl-1"):
            build_file_records(provenance, chunks, vector_column(vectors), MODEL)


def test_records_survive_the_way_to_plain_values_and_back() -> None:
    table = FILES.file("dfl-1", 4, metadata={"year": 1, "tags": ["a"]}).table
    assert from_records(to_records(table), matrix(table).tolist(), MODEL.dimension).equals(table)
    assert from_records([], [], MODEL.dimension).equals(table.slice(0, 0))


def test_embeddings_of_another_shape_are_refused() -> None:
    records = to_records(FILES.file("dfl-1", 2).table)
    for embeddings in (np.ones((2, 3)).tolist(), np.ones((1, MODEL.dimension)).tolist()):
        with pytest.raises(ValueError, match="dimension"):
            from_records(records, embeddings, MODEL.dimension)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_shuffled_rows_of_many_files_are_split_into_the_files_they_came_from(sizes: list[int], random: object) -> None:
    files = [FILES.file(f"dfl-{number}", size, config=f"cfg-{number % 2}") for number, size in enumerate(sizes)]
    rows = pa.concat_tables([file.table for file in files])
    order = list(range(rows.num_rows))
    random.shuffle(order)  # type: ignore[attr-defined] # hypothesis types its Random as object
    split = split_files(rows.take(pa.array(order, pa.int64())))
    expected = {(f.provenance.export_config_id, f.file_id): f for f in files if f.table.num_rows}
    assert {(f.provenance.export_config_id, f.file_id) for f in split} == set(expected)
    for file in split:
        original = expected[file.provenance.export_config_id, file.file_id]
        assert file.table.equals(original.table)
        assert (file.record_set_hash, file.provenance) == (original.record_set_hash, original.provenance)


def test_splitting_computes_ids_and_digest_anew() -> None:
    file = FILES.file("dfl-1", 3)
    forged = file.table.set_column(0, file.table.schema.field(0), pa.array(["x", "x", "x"]))
    (split,) = split_files(forged)
    assert split.table.equals(file.table)


def test_an_incomplete_or_mixed_file_is_refused_by_name() -> None:
    table = FILES.file("dfl-1", 3).table
    renamed = FILES.file("dfl-1", 3, name="other.pdf").table
    for damaged in (table.slice(1), table.slice(0, 2), pa.concat_tables([table, table.slice(2)])):
        with pytest.raises(ValueError, match=r"dfl-1.*each once"):
            split_files(damaged)
    with pytest.raises(ValueError, match=r"dfl-1.*file_name"):
        split_files(pa.concat_tables([table.slice(0, 2), renamed.slice(2)]))


def test_grouping_accepts_what_splitting_refuses() -> None:
    damaged = pa.concat_tables([FILES.file("dfl-2", 3).table.slice(1), FILES.file("dfl-1", 2).table])
    assert [rows["chunk_index"].to_pylist() for rows in group_files(damaged)] == [[0, 1], [1, 2]]
    assert list(group_files(damaged.slice(0, 0))) == []


def test_canonical_json_has_one_form_and_refuses_what_has_none() -> None:
    assert canonical_json({"b": 1, "a": "é\n"}) == '{"a":"é\\n","b":1}'
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))
    with pytest.raises(TypeError, match="set"):
        canonical_json({1})
