"""The deployment people operate: webserver, daemon, sensor, queue and run processes, started by ``indexport dev``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline_tests.command_line import INDEXPORT, run
from pipeline_tests.ports import free_port

DEADLINE = 240.0


class Deployment:
    """A running ``indexport dev`` and how to ask it."""

    def __init__(self, root: Path, ui: int, cloud: int) -> None:
        self.root = root
        self.ui = ui
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("LLAMA_CLOUD", "DAGSTER", "INDEXPORT"))},
            "INDEXPORT_HOME": str(root / "home"),
            "INDEXPORT_MODEL_CACHE": os.environ.get("INDEXPORT_MODEL_CACHE", str(Path.home() / ".cache/indexport/models")),
        }
        self.cloud_environment = {
            **self.environment,
            "LLAMA_CLOUD_BASE_URL": f"http://127.0.0.1:{cloud}",
            "LLAMA_CLOUD_API_KEY": "local",
        }

    def graphql(self, query: str, **variables: Any) -> Any:
        answer = httpx.post(f"http://127.0.0.1:{self.ui}/graphql", json={"query": query, "variables": variables}, timeout=30)
        return answer.raise_for_status().json()["data"]

    def run(self, *arguments: str) -> str:
        command = [*INDEXPORT, *arguments]
        return subprocess.run(command, env=self.cloud_environment, check=True, capture_output=True, text=True).stdout

    def told(self, *arguments: str) -> str:
        """As ``run``, in this process."""
        outcome = run(*arguments, **self.cloud_environment)
        assert outcome.returncode == 0, outcome.stderr
        return outcome.stdout

    def materialized(self) -> set[str]:
        """Partition keys of the sink asset that the UI shows as materialized."""
        found = self.graphql(
            'query { assetNodeOrError(assetKey: {path: ["default", "lancedb"]}) { ... on AssetNode {'
            " assetPartitionStatuses { ... on DefaultPartitionStatuses { materializedPartitions } } } } }"
        )
        return set(found["assetNodeOrError"].get("assetPartitionStatuses", {}).get("materializedPartitions", []))

    def materialized_at(self, key: str) -> float:
        """When the UI says that a partition of the sink asset was last materialized, in milliseconds since 1970."""
        found = self.graphql(
            'query ($key: String!) { assetNodeOrError(assetKey: {path: ["default", "lancedb"]}) { ... on AssetNode {'
            " assetMaterializations(partitions: [$key], limit: 1) { timestamp } } } }",
            key=key,
        )
        return float(found["assetNodeOrError"]["assetMaterializations"][0]["timestamp"])


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait for a condition; fail with what was waited for."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        try:
            if answer := condition():
                return answer
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    pytest.fail(f"gave up waiting for {what}")


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    documents = tmp_path / "documents"
    documents.mkdir()
    for n in range(7):
        (documents / f"doc-{n}.md").write_text(f"# Document {n}\n\nThe gauge of station {n} reads {n} metres.\n")
    opened = Deployment(tmp_path, free_port(), cloud := free_port())
    command = [*INDEXPORT, "dev", "--documents", str(documents), "--port", str(opened.ui), "--cloud-port", str(cloud)]
    with (tmp_path / "dev.log").open("wb") as log:
        process = subprocess.Popen(command, env=opened.environment, stdout=log, stderr=log, start_new_session=True)
        try:
            until(lambda: opened.graphql("query { version }"), "the webserver")
            yield opened
        finally:
            process.terminate()
            try:
                process.wait(60)
            finally:
                _kill_group(process.pid)


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


@pytest.mark.takes_long
def test_sensor_queue_and_backfill_of_scattered_partitions(deployment: Deployment) -> None:
    keys = until(lambda: len(found := deployment.materialized()) == 7 and found, "the sensor's first wave")
    hits = json.loads(deployment.told("search", "gauge of station 3", "--json", "-k", "1"))
    assert hits[0]["file_name"] == "doc-3.md"
    assert (hits[0]["page_range_start"], hits[0]["page_range_end"]) == (1, 1)

    before = deployment.materialized_at(key := hits[0]["parsed_directory_file_id"])
    edited = deployment.root / "documents" / "doc-3.md"
    edited.write_text("# Document 3\n\nStation three was washed away by the flood.\n")
    deployment.told("index", "sync", "--wait")
    until(lambda: deployment.materialized_at(key) > before, "the edit to arrive through sensor and queue")
    assert "washed away" in deployment.told("records", "--file", "doc-3.md", "--json")

    order = sorted(keys)
    scattered = [order[0], order[6]]
    launched = deployment.graphql(
        "mutation ($p: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $p) {"
        " __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }",
        p={
            "partitionNames": scattered,
            "assetSelection": [{"path": ["default", name]} for name in ("parsed_payloads", "chunks", "embeddings", "lancedb")],
        },
    )["launchPartitionBackfill"]
    assert launched["__typename"] == "LaunchBackfillSuccess", launched
    done = until(lambda: _finished(deployment, launched["backfillId"]), "the backfill")
    assert done == "COMPLETED_SUCCESS"
    status = json.loads(deployment.told("status", "--json"))
    assert status["files"] == {"done": 7}
    assert status["sinks"]["lancedb"]["files"] == 7
    plan = json.loads(deployment.told("plan", "--json"))
    assert (plan["new"], plan["changed"], plan["chunks_to_embed"]) == (0, 0, 0)


def _finished(deployment: Deployment, backfill: str) -> str | None:
    found = deployment.graphql(
        "query ($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status } } }", id=backfill
    )["partitionBackfillOrError"]["status"]
    return found if found.startswith(("COMPLETED", "FAILED", "CANCELED")) else None
