"""A local cloud as the LlamaCloud of this process: for commands that serve a folder while they work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.local_cloud.server import RunningLocalCloud
from pipeline.local_cloud.settings import LocalCloudSettings

_KEYS = ("LLAMA_CLOUD_BASE_URL", "LLAMA_CLOUD_API_KEY")


@contextmanager
def local_cloud_environment(documents: str, state_dir: Path, *, port: int = 0) -> Iterator[RunningLocalCloud]:
    """Serve ``documents``, on a free port unless one is given; the environment's LlamaCloud is the server until the end."""
    before = {key: os.environ.get(key) for key in _KEYS}
    settings = LocalCloudSettings(documents=documents, state_dir=state_dir, port=port)
    with RunningLocalCloud(settings) as cloud:
        os.environ |= {"LLAMA_CLOUD_BASE_URL": cloud.base_url, "LLAMA_CLOUD_API_KEY": cloud.api_key}
        try:
            yield cloud
        finally:
            for key, value in before.items():
                if value is None:
                    os.environ.pop(key, None)
                else:
                    os.environ[key] = value
