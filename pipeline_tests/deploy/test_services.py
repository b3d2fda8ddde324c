"""The services of ``deploy/compose.yaml`` as processes of this machine: their very commands, health checks and environments,
with this machine's folders, ports and PostgreSQL instead of the containers'."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest

from pipeline.local_cloud.server import RunningLocalCloud
from pipeline.local_cloud.settings import LocalCloudSettings
from pipeline_tests.command_line import run
from pipeline_tests.deploy.files import DEPLOY, image_environment, instructions, services
from pipeline_tests.ports import free_port
from pipeline_tests.postgres import fresh_database, postgres
from pipeline_tests.test_daemon import Deployment, until

EXPORT = """\
type: pipeline.components.IndexExport
attributes:
  name: default
  sinks: {lancedb: {}, pgvector: {schema_name: search}}
"""


class Services:
    """Those of compose.yaml, over a home and a database of this machine. ``secrets`` are what .env would say."""

    def __init__(self, home: Path, database: str, secrets: dict[str, str]) -> None:
        self.home = home
        self.ui = free_port()
        self._secrets = secrets
        (volume,) = instructions("VOLUME")
        self._here = {
            volume: str(home),
            "/opt/indexport": sys.prefix,
            "//indexport@postgres/indexport": database.removeprefix("postgresql:"),
            "0.0.0.0": "127.0.0.1",  # noqa: S104
            "host: code": "host: 127.0.0.1",
            "3000": str(self.ui),
            "4000": str(free_port()),
            "$PATH": os.environ["PATH"],
        }
        (home / "dagster").mkdir(parents=True)
        for name in ("dagster.yaml", "workspace.yaml"):
            (home / "dagster" / name).write_text(self._told((DEPLOY / name).read_text()))

    def _told(self, text: str) -> str:
        text = re.sub(r"\$\{POSTGRES_PASSWORD:\?.*\}", "asked-for-by-nobody", text)
        return re.sub("|".join(map(re.escape, self._here)), lambda found: self._here[found[0]], text)

    def environment(self, name: str) -> dict[str, str]:
        """All that a service's container would have, and where this project's modules lie."""
        told = {**image_environment(), **services()[name]["environment"]}
        modules = {"PYTHONPATH": path} if (path := os.environ.get("PYTHONPATH")) else {}
        secrets = self._secrets if "env_file" in services()[name] else {}
        return {**modules, **secrets, **{key: self._told(value) for key, value in told.items()}}

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        """Until the end of the block, when it is asked to stop; what it leaves behind is killed."""
        with (self.home / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [self._told(word) for word in services()[name]["command"]],
                env=self.environment(name),
                cwd=self.home,
                stdout=log,
                stderr=log,
            )
        try:
            yield
        finally:
            family = [*psutil.Process(process.pid).children(recursive=True), process]
            process.terminate()
            _, left = psutil.wait_procs(family, timeout=30)
            for each in left:
                each.kill()
            process.wait()

    def is_healthy(self, name: str) -> bool:
        check = [self._told(word) for word in services()[name]["healthcheck"]["test"][1:]]
        return subprocess.run(check, env=self.environment(name), cwd=self.home, capture_output=True).returncode == 0


@pytest.mark.takes_long
def test_the_services_of_compose_export_what_the_sensor_finds(tmp_path: Path) -> None:
    (documents := tmp_path / "documents").mkdir()
    (documents / "gauge.md").write_text("# Gauge\n\nThe gauge of station 7 reads 3 metres.\n")
    (defs := tmp_path / "defs" / "default").mkdir(parents=True)
    (defs / "defs.yaml").write_text(EXPORT)
    local_cloud = LocalCloudSettings(documents=str(documents), state_dir=tmp_path / "cloud")
    with postgres() as server, RunningLocalCloud(local_cloud) as cloud, ExitStack() as stack:
        address = {"LLAMA_CLOUD_BASE_URL": cloud.base_url, "LLAMA_CLOUD_API_KEY": cloud.api_key}
        secrets = {**address, "INDEXPORT_DEFS": str(defs.parent)}
        composed = Services(tmp_path / "home", fresh_database(server), secrets)
        for name in ("code", "webserver", "daemon"):
            stack.enter_context(composed.running(name))
            if name != "daemon":
                until(partial(composed.is_healthy, name), name)

        asked = Deployment(tmp_path, composed.ui, httpx.URL(cloud.base_url).port or 0)
        until(lambda: len(asked.materialized()) == 1, "the sensor's run")
        told = run("records", "--sink", "pgvector", "--json", **composed.environment("code"))
        assert "station 7 reads 3 metres" in json.loads(told.stdout)["content"]
        proof = run("verify", "--deep", **composed.environment("code"))
        assert proof.returncode == 0, proof.stdout
        until(partial(composed.is_healthy, "daemon"), "the daemon's health")
