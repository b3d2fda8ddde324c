"""What the code location offers: a change of any of it is a change of this file."""

from __future__ import annotations

import dagster as dg

from pipeline.components.index_export import export_definitions
from pipeline.definitions import defs
from pipeline.orchestration.partitions import JOBS
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


def test_a_setting_moves_the_code_version_of_what_it_decides_and_of_nothing_else() -> None:
    def versions(**settings: object) -> dict[str, str | None]:
        graph = export_definitions(ExportSettings(name="default", **settings)).resolve_asset_graph()  # type: ignore[arg-type]  # as YAML would
        return {node.key.path[-1]: node.code_version for node in graph.asset_nodes if node.is_materializable}

    base, chunked = versions(), versions(chunking={"max_tokens": 128})
    assert {name for name in base if base[name] != chunked[name]} == {"chunks"}
    embedded = versions(embedding={"provider": "constant"})
    assert {name for name in base if base[name] != embedded[name]} == {"chunks", "embeddings"}


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
