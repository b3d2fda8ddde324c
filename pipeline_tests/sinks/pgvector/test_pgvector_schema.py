"""What provisioning PostgreSQL creates, repairs and refuses."""

from __future__ import annotations

import asyncio
import dataclasses
import os

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pipeline.embedding.base import ModelIdentity
from pipeline.errors import ConfigError, SinkConflict
from pipeline.sinks import pgvector_schema
from pipeline.sinks.pgvector_store import Connection, PostgresStore
from pipeline_tests.conformance.harness import MODEL
from pipeline_tests.sinks.pgvector.bench import DSN, Database, PgVectorBench


def index_names(database: Database) -> set[str]:
    return {name for (name,) in database.query("SELECT indexname FROM pg_indexes WHERE indexname LIKE 'indexport%%'")}


def use_role(database: Database, monkeypatch: pytest.MonkeyPatch, *grants: str) -> None:
    """From now on the sink connects as a role that may do nothing but this."""
    name = f"role_{conninfo_to_dict(database.uri)['dbname']}"
    role = sql.Identifier(name)
    database.query("CREATE ROLE {role} LOGIN", role=role)
    for grant in grants:
        with psycopg.connect(database.uri, autocommit=True) as connection:
            connection.execute(f"GRANT {grant} TO {name}".encode())
    monkeypatch.setenv(DSN, make_conninfo(database.uri, user=name))


async def test_a_table_without_comment_is_not_ours(database: Database, bench: PgVectorBench) -> None:
    database.query("COMMENT ON TABLE {table} IS NULL", table=bench.table)
    with pytest.raises(SinkConflict, match="not made by this Indexport"):
        await bench.open().provision()


async def test_a_table_of_another_model_is_refused(database: Database, bench: PgVectorBench) -> None:
    other = dataclasses.replace(bench.exporter.layout, model=dataclasses.replace(MODEL, fingerprint="other"))
    database.query("COMMENT ON TABLE {table} IS {mark}", table=bench.table, mark=sql.Literal(other.mark))
    with pytest.raises(SinkConflict, match="another model"):
        await bench.open().provision()


async def test_a_table_of_another_dimension_names_both(bench: PgVectorBench) -> None:
    with pytest.raises(SinkConflict, match=r"'embedding' is vector\(16\), not vector\(32\)"):
        await bench.open(model=dataclasses.replace(MODEL, dimension=32)).provision()


async def test_a_missing_column_is_named(database: Database, bench: PgVectorBench) -> None:
    database.query("ALTER TABLE {table} DROP COLUMN content_hash", table=bench.table)
    with pytest.raises(SinkConflict, match="'content_hash' is missing"):
        await bench.open().provision()


async def test_another_text_search_config_is_refused(database: Database, bench: PgVectorBench) -> None:
    database.settings = {"text_search_config": "english"}
    with pytest.raises(SinkConflict, match="text_search_config 'english'"):
        await bench.open().provision()
    database.settings = {"text_search_config": "klingon"}
    with pytest.raises(ConfigError, match="'klingon' does not exist"):
        await bench.open().provision()


async def test_too_many_dimensions_are_refused(database: Database) -> None:
    with pytest.raises(SinkConflict, match="16,000"):
        await PgVectorBench(database).open(model=ModelIdentity("huge", "huge/1", 16_001)).provision()


async def test_missing_and_invalid_indexes_are_built_again(database: Database, bench: PgVectorBench) -> None:
    file = bench.file("dfl-1")
    await bench.replace(file)
    complete = index_names(database)
    assert len(complete) == 6 + len(bench.fields)
    for name in complete - {bench.vector_index.name}:
        database.query("DROP INDEX {name}", name=sql.Identifier(name))
    database.query(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = {name}::regclass",
        name=sql.Literal(bench.vector_index.name),
    )
    await bench.open().provision()
    assert index_names(database) == complete
    assert database.query("SELECT count(*) FROM pg_index WHERE NOT indisvalid") == [(0,)]
    await bench.assert_holds(file)


async def test_an_index_of_another_distance_is_refused(database: Database, bench: PgVectorBench) -> None:
    name = sql.Identifier(bench.vector_index.name)
    database.query("DROP INDEX {name}", name=name)
    database.query("CREATE INDEX {name} ON {table} USING hnsw (embedding vector_l2_ops)", name=name, table=bench.table)
    with pytest.raises(SinkConflict, match=r"not hnsw \(embedding vector_cosine_ops\)"):
        await bench.open().provision()


async def test_an_index_with_other_build_parameters_is_the_owners_choice(database: Database, bench: PgVectorBench) -> None:
    name = sql.Identifier(bench.vector_index.name)
    database.query("DROP INDEX {name}", name=name)
    database.query(
        "CREATE INDEX {name} ON {table} USING hnsw (embedding vector_cosine_ops) WITH (m = 24)", name=name, table=bench.table
    )
    await bench.open().provision()
    assert database.query("SELECT count(*) FROM pg_indexes WHERE indexdef LIKE '%%m=''24''%%'") == [(1,)]


async def test_provisioning_does_not_wait_for_writers_when_nothing_is_missing(database: Database, bench: PgVectorBench) -> None:
    with psycopg.connect(database.uri) as writer:
        writer.execute(sql.SQL("LOCK TABLE {} IN ROW EXCLUSIVE MODE").format(bench.table))
        database.configure("lock_timeout = '100ms'")
        await bench.open().provision()


async def test_only_who_lacks_the_same_waits_for_an_index_that_is_being_built(database: Database, bench: PgVectorBench) -> None:
    wider = PgVectorBench(database, fields={"new": "string"})
    wider.open()
    built, done = asyncio.Event(), asyncio.Event()

    async def build(connection: Connection) -> None:
        await pgvector_schema.provision(connection, wider.exporter.layout)
        built.set()
        await done.wait()

    building = asyncio.create_task(PostgresStore(DSN).change_schema("build", build))
    await built.wait()
    async with asyncio.timeout(10):
        await bench.open().provision()
        await bench.open(model=ModelIdentity("other", "other/1", 8)).provision()
    waiting = asyncio.create_task(wider.exporter.provision())
    await asyncio.sleep(0.3)
    assert not waiting.done()
    done.set()
    await asyncio.gather(building, waiting)


async def test_many_models_can_provision_an_empty_database_at_once(database: Database) -> None:
    database.settings = {"schema_name": "ours"}
    bench = PgVectorBench(database)
    exporters = [bench.open(model=ModelIdentity("m", f"m/{n}", 8)) for n in range(4)]
    await asyncio.gather(*(exporter.provision() for exporter in exporters))
    assert database.query("SELECT count(*) FROM pg_tables WHERE schemaname = 'ours'") == [(4,)]
    await bench.close()


async def test_a_schema_of_its_own_is_created(database: Database) -> None:
    database.settings = {"schema_name": 'My "schema"'}
    bench = await PgVectorBench(database).provisioned()
    file = bench.file("dfl-1")
    await bench.replace(file)
    await bench.assert_holds(file)
    assert database.query("SELECT count(*) FROM {table}", table=bench.table) == [(3,)]
    await bench.close()


async def test_many_can_provision_an_empty_database_at_once(database: Database) -> None:
    benches = [PgVectorBench(database, fields={f"field {n}": "string"}) for n in range(4)]
    for bench in benches:
        bench.open()
    await asyncio.gather(*(bench.exporter.provision() for bench in benches))
    assert len(index_names(database)) == 6 + 4


async def test_without_the_right_to_create_the_extension_the_remedy_is_named(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_role(database, monkeypatch)
    with pytest.raises(SinkConflict, match="CREATE EXTENSION vector"):
        await PgVectorBench(database).open().provision()


async def test_without_the_right_to_create_a_table_the_remedy_is_named(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.query("CREATE EXTENSION vector")
    use_role(database, monkeypatch)
    with pytest.raises(SinkConflict, match="grant the role CREATE on schema 'public'"):
        await PgVectorBench(database).open().provision()
    database.settings = {"schema_name": "elsewhere"}
    with pytest.raises(SinkConflict, match="schema_name"):
        await PgVectorBench(database).open().provision()


async def test_a_role_that_may_only_write_uses_what_is_provisioned(
    database: Database, bench: PgVectorBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = "SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public"
    use_role(database, monkeypatch, tables, "USAGE ON ALL SEQUENCES IN SCHEMA public")
    limited = await PgVectorBench(database, tenant=bench.tenant, config=bench.config).provisioned()
    file = limited.file("dfl-1")
    await limited.replace(file)
    await limited.exporter.optimize()
    await limited.assert_holds(file)
    await limited.close()
    field = PgVectorBench(database, fields={"new": "string"})
    with pytest.raises(SinkConflict, match="let the owner of table"):
        await field.open().provision()


async def test_an_erasure_needs_the_right_to_vacuum_and_says_so(
    database: Database, bench: PgVectorBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_role(database, monkeypatch, "SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public")
    limited = bench.open()
    await limited.optimize()
    with pytest.raises(SinkConflict, match=r"permission denied to vacuum .* MAINTAIN"):
        await limited.purge_history()
    role = sql.Identifier(str(conninfo_to_dict(os.environ[DSN])["user"]))
    database.query("GRANT MAINTAIN ON {table} TO {role}", table=bench.table, role=role)
    await limited.purge_history()
