"""``python -m benchmarks.cloud FOLDER STATE``: a local LlamaCloud that parses a folder, says where it is, and serves until
its standard input closes."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from pydantic import SecretStr

from pipeline.llama_cloud.settings import LlamaCloudSettings
from pipeline.llama_cloud.source import LlamaCloudSource
from pipeline.local_cloud.server import RunningLocalCloud
from pipeline.local_cloud.settings import LocalCloudSettings

_LONGEST_PARSE_SECONDS = 1800.0


async def _wait(cloud: RunningLocalCloud) -> None:
    settings = LlamaCloudSettings(requests_per_second=None)
    async with LlamaCloudSource(settings, api_key=SecretStr(cloud.api_key), base_url=cloud.base_url) as source:
        await source.wait_until_ready(_LONGEST_PARSE_SECONDS)


def main() -> None:
    documents, state = sys.argv[1:]
    with RunningLocalCloud(LocalCloudSettings(documents=documents, state_dir=Path(state))) as cloud:
        asyncio.run(_wait(cloud))
        print(json.dumps({"LLAMA_CLOUD_BASE_URL": cloud.base_url, "LLAMA_CLOUD_API_KEY": cloud.api_key}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
