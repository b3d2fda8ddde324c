"""What the code location offers: a change of any of it is a change of this file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.events import RunFailureReason
from dagster._core.execution.retries import auto_reexecution_should_retry_run

from pipeline import definitions
from pipeline.components.index_export import export_definitions
from pipeline.definitions import defs
from pipeline.documents.models import ChunkingSettings
from pipeline.embedding.settings import EmbeddingSettings
from pipeline.errors import ConfigError
from pipeline.home import Home
from pipeline.orchestration.liveness import marking_executor
from pipeline.orchestration.partitions import JOBS
from pipeline.stages.export import Export
from pipeline.stages.settings import ExportSettings


def test_the_code_location_loads_the_default_export_from_its_yaml() -> None:
    graph = defs().resolve_asset_graph()
    assert {key.to_user_string() for key in graph.get_all_asset_keys()} == {
        "default/directory_files",
        "default/parsed_payloads",
        "default/chunks",
        "default/embeddings",
        "default/lancedb",
    }


def test_the_launchpad_explains_every_field_of_a_job() -> None:
    found = defs()
    explained: dict[str, str | None] = {}
    for job in ("ingest", "removal", "repair", "approve_removals"):
        for op in found.resolve_job_def(f"default_{job}").nodes:
            config = op.definition.config_schema
            fields = config.config_type.fields if config and isinstance(config.config_type, dg.Shape) else {}
            explained |= {name: field.description for name, field in fields.items()}
    assert set(explained) == {"refetch", "file_ids", "sink", "deep", "allow_deletes", "count"}
    assert all(explained.values()), explained


def test_the_code_location_has_the_exports_that_the_commands_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = "type: pipeline.components.IndexExport\nattributes: {name: %s}\n"
    (tmp_path / "defs.yaml").write_text("---\n".join(document % name for name in ("first", "second")))
    monkeypatch.setenv("INDEXPORT_DEFS", str(tmp_path))
    assert {key.path[0] for key in defs().resolve_asset_graph().get_all_asset_keys()} == {"first", "second"}


def test_what_is_wrong_with_a_file_of_the_code_location_is_said_before_dagster_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dagster tells of most mistakes without the file, or with what it holds."""
    (tmp_path / "defs.yaml").write_text("attributes: {name: canary}\n")
    monkeypatch.setenv("INDEXPORT_DEFS", str(tmp_path))
    monkeypatch.setattr(definitions, "OWN_DEFS", tmp_path)
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/defs.yaml: `type` is missing; an export's is pipeline\.components"):
        defs()


def test_every_asset_is_described_owned_grouped_and_has_kinds() -> None:
    graph = defs().resolve_asset_graph()
    for node in graph.asset_nodes:
        assert node.description, node.key
        assert node.owners == ["team:data-platform"], node.key
        assert node.group_name == "default", node.key
        assert node.kinds, node.key


def test_partitioned_assets_share_one_partitions_definition_and_one_backfill_policy() -> None:
    graph = defs().resolve_asset_graph()
    partitioned = [node for node in graph.asset_nodes if node.is_materializable]
    assert {getattr(node.partitions_def, "name", None) for node in partitioned} == {"default_files"}
    assert {node.backfill_policy for node in partitioned} == {dg.BackfillPolicy.multi_run(max_partitions_per_run=500)}
    assert all("dagster/column_schema" in node.metadata for node in partitioned)
    assert all(node.code_version for node in partitioned)


def moved(settings: dict[str, Any], changed: dict[str, Any]) -> set[str]:
    """The assets whose code version a change of settings moves."""

    def versions(given: dict[str, Any]) -> dict[str, str | None]:
        graph = export_definitions(ExportSettings(name="default", **given)).resolve_asset_graph()
        return {node.key.path[-1]: node.code_version for node in graph.asset_nodes if node.is_materializable}

    before, after = versions(settings), versions(changed)
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize(
    ("changed", "assets"),
    [
        ({"chunking": {"max_tokens": 128}}, {"chunks"}),
        ({"embedding": {"provider": "constant"}}, {"chunks", "embeddings"}),
        ({"embedding": {"model": "BAAI/bge-small-en-v1.5"}}, {"chunks", "embeddings"}),
        ({"embedding": {"passage_prefix": "passage: "}}, {"chunks", "embeddings"}),
        ({"embedding": {"passage_prefix": "", "query_prefix": "query: "}}, set()),
        ({"embedding": {"threads": 2, "batch_tokens": 4096, "openai": {"timeout_seconds": 5}, "constant_dimension": 8}}, set()),
        ({"index": {"requests_per_second": 5, "max_concurrent_downloads": 8, "max_payload_bytes": 10, "page_size": 10}}, set()),
        (
            {"detection": {"max_attempts": 2}, "removal": {"max_delete_fraction": 0.5}, "metadata_fields": {"team": "string"}},
            set(),
        ),
        ({"sinks": {"lancedb": {"table_prefix": "v2"}}}, {"lancedb"}),
    ],
)
def test_a_setting_moves_the_code_version_of_what_it_decides_and_of_nothing_else(
    changed: dict[str, Any], assets: set[str]
) -> None:
    assert moved({}, changed) == assets


_OPENAI = {"api_key_env": None, "native_dimension": 8, "max_tokens": 600}


@pytest.mark.parametrize(
    ("base", "change"),
    [
        *(({"provider": "constant"}, {name: value}) for name, value in {"constant_dimension": 8, "passage_prefix": "p"}.items()),
        *(({"provider": "constant", "model": "m"}, {name: 3}) for name in ("threads", "batch_tokens")),
        ({"provider": "constant"}, {"query_prefix": "q"}),
        ({"provider": "openai", "model": "m", "openai": _OPENAI}, {"model": "n"}),
        *(
            ({"provider": "openai", "model": "m", "openai": _OPENAI}, {"openai": {**_OPENAI, name: value}})
            for name, value in {
                "base_url": "http://127.0.0.1:9/v1",
                "dimensions": 4,
                "native_dimension": 9,
                "max_tokens": 500,
                "request_tokens": 1000,
                "request_items": 3,
                "concurrency": 2,
                "timeout_seconds": 3.0,
                "max_attempts": 2,
            }.items()
        ),
    ],
    ids=str,
)
def test_a_code_version_moves_with_what_the_ledger_compares(base: dict[str, Any], change: dict[str, Any], tmp_path: Path) -> None:
    def digests(embedding: dict[str, Any]) -> dict[str, str]:
        export = Export(
            ExportSettings(name="default", chunking=chunking, embedding=EmbeddingSettings(**embedding)), Home(tmp_path)
        )
        return {"chunks": export.chunker, "embeddings": export.embedder.identity.fingerprint}

    chunking = ChunkingSettings()
    before, after = digests(base), digests({**base, **change})
    differing = {name for name in before if before[name] != after[name]}
    assert moved({"embedding": base}, {"embedding": {**base, **change}}) - {"chunks"} == differing - {"chunks"}
    assert moved({"embedding": base}, {"embedding": {**base, **change}}) >= differing


def test_columns_of_vectors_claim_no_dimension() -> None:
    graph = defs().resolve_asset_graph()
    for asset in ("embeddings", "lancedb"):
        shown = graph.get(dg.AssetKey(["default", asset])).metadata["dagster/column_schema"]
        [kind] = [column.type for column in shown.columns if column.name == "embedding"]
        assert kind == "fixed_size_list<item: float>"


def test_jobs_sensors_and_checks_carry_the_exports_name() -> None:
    loaded = defs()
    jobs = {job.name: job for job in loaded.resolve_all_job_defs() if not job.name.startswith("__")}
    assert jobs.keys() == {f"default_{job}" for job in JOBS}
    assert all(job.description for job in jobs.values())
    assert loaded.resolve_sensor_def("default_directory_changes").minimum_interval_seconds == 30
    checks = {key.name for key in loaded.resolve_asset_graph().asset_check_keys}
    assert checks == {"index_is_healthy", "no_file_is_left_behind", "holds_its_source"}


def test_two_exports_live_side_by_side() -> None:
    both = dg.Definitions.merge(*(export_definitions(ExportSettings(name=name)) for name in ("first", "second")))
    assert len(both.resolve_asset_graph().get_all_asset_keys()) == 10


@pytest.mark.parametrize("chosen", [None, dg.multiprocess_executor], ids=["Dagster's", "its own"])
def test_a_location_of_others_keeps_its_executor_and_resources_and_our_jobs_have_our_executor(
    chosen: dg.ExecutorDefinition | None,
) -> None:
    job = dg.define_asset_job("theirs", selection=["their_table"])
    theirs = dg.Definitions(assets=[their_table], jobs=[job], executor=chosen, resources={"exports": "a folder of theirs"})
    both = dg.Definitions.merge(theirs, export_definitions(ExportSettings(name="ours")))
    left = dg.multi_or_in_process_executor if chosen is None else chosen
    assert both.resolve_job_def("theirs").executor_def is left
    assert both.resolve_implicit_global_asset_job_def().executor_def is left
    assert {both.resolve_job_def(f"ours_{name}").executor_def for name in JOBS} == {marking_executor}


@pytest.mark.parametrize("job", JOBS)
def test_no_job_of_ours_is_retried_by_dagster_whose_instance_retries_runs(job: str) -> None:
    """The next look asks again, with its back-off: retries would use up the attempts of a file at once."""
    tags = dict(export_definitions(ExportSettings(name="x")).resolve_job_def(f"x_{job}").run_tags)
    with dg.instance_for_test(overrides={"run_retries": {"enabled": True, "max_retries": 3}}) as instance:

        def is_retried(tags: dict[str, str]) -> bool:
            run = instance.add_run(dg.DagsterRun(job_name=f"x_{job}", status=dg.DagsterRunStatus.FAILURE, tags=tags))
            return bool(auto_reexecution_should_retry_run(instance, run, RunFailureReason.STEP_FAILURE))

        assert (is_retried({}), is_retried(tags)) == (True, False)


@dg.asset
def their_table() -> None: ...


def test_backfills_and_runs_of_assets_in_our_own_location_are_marked_too() -> None:
    assert defs().resolve_implicit_global_asset_job_def().executor_def is marking_executor
