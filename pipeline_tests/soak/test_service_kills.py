"""SIGKILL of the local cloud while it syncs and serves; part of make soak."""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from pipeline_tests.command_line import INDEXPORT, SYNC
from pipeline_tests.ports import free_port
from pipeline_tests.soak.kills import CLOUD_KILLS, SEED, UsualTime, only_in_the_soak, until_landed
from pipeline_tests.test_daemon import Deployment, until

FILES = 10


@dataclass(frozen=True)
class LocalCloudProcess:
    """``indexport local-cloud`` on a port that stays the same when it is started again."""

    root: Path
    port: int
    environment: dict[str, str]

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        command = [*INDEXPORT, "local-cloud", str(self.root / "documents"), "--port", str(self.port)]
        with (self.root / "cloud.log").open("ab") as log:
            process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        try:
            until(lambda: httpx.get(f"http://127.0.0.1:{self.port}/", timeout=5).status_code, "the local cloud")
            yield process
        finally:
            process.kill()
            process.wait()


def write(root: Path, version: int) -> None:
    """Other words in every file, one file more, one file less."""
    documents = root / "documents"
    documents.mkdir(exist_ok=True)
    for n in range(FILES):
        (documents / f"doc-{n}.md").write_text(f"# Document {n}\n\nStation {n} reads {version} metres.\n" * (version % 3 + 1))
    (documents / f"only-{version}.md").write_text(f"# Only {version}\n\nThis file stays for one version.\n")
    (documents / f"only-{version - 1}.md").unlink(missing_ok=True)


def assert_proved(deployment: Deployment, version: int) -> None:
    """The deep verification finds nothing, and the sink holds this version of every file and no other file."""
    deployment.run("verify", "--deep")
    held = [json.loads(line) for line in deployment.run("records", "--json").splitlines()]
    assert {record["file_name"] for record in held} == {f"doc-{n}.md" for n in range(FILES)} | {f"only-{version}.md"}
    assert all(f"reads {version} metres" in r["content"] for r in held if r["file_name"].startswith("doc"))
    assert json.loads(deployment.run("status", "--json"))["files"] == {"done": FILES + 1}


@only_in_the_soak
def test_a_killed_local_cloud_goes_on_where_it_was(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    deployment = Deployment(tmp_path, free_port(), port := free_port())
    cloud = LocalCloudProcess(tmp_path, port, deployment.environment)
    write(tmp_path, 0)
    with cloud.running():
        started = time.monotonic()
        deployment.run(*SYNC)
        usual = UsualTime(time.monotonic() - started)

    def attempt(version: int) -> bool:
        write(tmp_path, version)
        with cloud.running() as server:
            sync = subprocess.Popen(
                [*INDEXPORT, *SYNC], env=deployment.cloud_environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            if landed := not usual.has_ended(sync, chance.uniform(0.4, 1.0)):
                server.kill()
            assert sync.wait(300) in (0, 1)
        with cloud.running():
            deployment.run("release", *failed) if (failed := _failed(deployment)) else None
            deployment.run(*SYNC)
            assert_proved(deployment, version)
        return landed

    until_landed(CLOUD_KILLS, attempt)


def _failed(deployment: Deployment) -> list[str]:
    return list(json.loads(deployment.run("status", "--json"))["left_behind"])
