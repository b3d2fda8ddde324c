"""LlamaCloud's wire API in memory, for ``httpx.MockTransport``, with the ways it can misbehave."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
from pydantic import SecretStr

from pipeline.llama_cloud.download import RetryPolicy
from pipeline.llama_cloud.models import DirectoryFile, Payload
from pipeline.llama_cloud.settings import LlamaCloudSettings
from pipeline.llama_cloud.source import LlamaCloudSource
from pipeline_tests.llama_cloud.samples import FORM_A, body

BASE_URL = "https://api.example"
STORAGE = "https://storage.example"
API_KEY = "llx-secret-key"
URL_SECRET = "X-Signature-do-not-show"
AT_ONCE = RetryPolicy(attempts=3, base_seconds=0.0)

Answer = httpx.Response
Script = Callable[[httpx.Request], Answer | None]


def failure(status: int, detail: str = "no", **headers: str) -> Answer:
    """An error the SDK does not retry, as tests have no time for it."""
    return httpx.Response(status, json={"detail": detail}, headers={"x-should-retry": "false", **headers})


def index_body(**changes: Any) -> dict[str, Any]:
    return {
        "id": "idx-1",
        "export_config_id": "exp-1",
        "name": "docs",
        "project_id": "11111111-1111-1111-1111-111111111111",
        "source_directory_id": "dir-src",
        "output_directory_id": "dir-out",
        "updated_at": "2026-11-20T10:04:00Z",
        "last_synced_at": "2026-11-20T10:03:10Z",
        "last_exported_at": "2026-11-20T10:03:58Z",
        "metadata": {"status": "ready"},
        "sync_in_progress": False,
    } | changes


def file_body(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"dfl-{number}",
        "directory_id": "dir-out",
        "display_name": f"f{number}.pdf",
        "unique_id": f"f{number}.pdf",
        "file_id": f"file-{number}",
        "metadata": {"n": number},
        "updated_at": f"2026-11-20T10:00:{number % 60:02d}Z",
        "deleted_at": None,
    } | changes


@dataclass
class FakeCloud:
    """``script`` sees every request first and may answer it."""

    indexes: list[dict[str, Any]] = field(default_factory=lambda: [index_body()])
    files: list[dict[str, Any]] = field(default_factory=list)
    accepts_index_keys: tuple[str, ...] = ("id", "export_config_id")
    page_size: int = 1000
    gives_urls: bool = True
    script: Script = lambda _: None
    requests: list[httpx.Request] = field(default_factory=list)

    def paths(self) -> Counter[str]:
        return Counter(f"{request.method} {request.url.host}{request.url.path}" for request in self.requests)

    def count(self, part: str) -> int:
        return sum(part in str(request.url) for request in self.requests)

    def source(self, *, base_url: str = BASE_URL, **settings: Any) -> LlamaCloudSource:
        defaults: dict[str, Any] = {"requests_per_second": None}
        if "index_name" not in settings:
            defaults["index_id"] = "idx-1"
        return LlamaCloudSource(
            LlamaCloudSettings(**(defaults | settings)),
            api_key=SecretStr(API_KEY),
            base_url=base_url,
            max_retries=0,
            download_retries=AT_ONCE,
            transport=httpx.MockTransport(self.handle),
        )

    def handle(self, request: httpx.Request) -> Answer:
        self.requests.append(request)
        if (scripted := self.script(request)) is not None:
            return scripted
        if request.url.host == "storage.example":
            assert "Authorization" not in request.headers
            return httpx.Response(200, stream=httpx.ByteStream(body(FORM_A)))
        assert request.headers["Authorization"] == f"Bearer {API_KEY}"
        match [*request.url.path.removeprefix("/api/v1/").split("/"), request.method]:
            case ["indexes", "GET"]:
                return httpx.Response(200, json={"items": self.indexes, "next_page_token": None})
            case ["indexes", "POST"]:
                return self._create(json.loads(request.content))
            case ["indexes", key, "GET"]:
                found = next((entry for entry in self.indexes if key in [entry[name] for name in self.accepts_index_keys]), None)
                return httpx.Response(200, json=found) if found else failure(404, "Index not found")
            case ["indexes", key, "sync", *_]:
                known = any(key in [entry[name] for name in self.accepts_index_keys] for entry in self.indexes)
                return httpx.Response(200, json={}) if known else failure(404, "Index not found")
            case ["beta", "directories", directory, "files", "GET"]:
                return self._page(directory, request.url.params)
            case ["beta", "files", file_id, "content", "GET"]:
                return httpx.Response(200, json=presigned(file_id))
        raise AssertionError(f"unexpected request {request.method} {request.url}")

    def _create(self, wanted: dict[str, Any]) -> Answer:
        assert wanted["vector_target"] == "DISABLED"
        made = index_body(
            id="idx-new",
            export_config_id="exp-new",
            output_directory_id=None,
            sync_in_progress=True,
            metadata={"status": "building"},
        )
        made |= {"name": wanted["name"], "source_directory_id": wanted["source_directory_id"]}
        self.indexes.append(made)
        return httpx.Response(200, json=made)

    def _page(self, directory: str, params: httpx.QueryParams) -> Answer:
        if directory != "dir-out":
            return failure(404, "Directory not found")
        low, high = params.get("updated_at_on_or_after", ""), params.get("updated_at_on_or_before", "~")
        files = [entry for entry in self.files if low[:19] <= (entry["updated_at"] or low)[:19] <= high[:19]]
        start = int(params.get("page_token", 0))
        end = start + min(self.page_size, int(params["page_size"]))
        items = files[start:end]
        if "download_url" in params.get_list("expand") and self.gives_urls:
            items = [entry | {"download_url": presigned(entry["file_id"])} for entry in items]
        return httpx.Response(200, json={"items": items, "next_page_token": str(end) if end < len(files) else None})


def presigned(file_id: str | None, expires_at: str = "2126-01-01T00:00:00Z") -> dict[str, Any] | None:
    if file_id is None:
        return None
    return {"url": f"{STORAGE}/{file_id}?sig={URL_SECRET}", "expires_at": expires_at, "form_fields": None}


def cloud_with(count: int, **knobs: Any) -> FakeCloud:
    return FakeCloud(files=[file_body(number) for number in range(count)], **knobs)


async def list_all(source: LlamaCloudSource) -> dict[str, DirectoryFile]:
    """Every file of the payload directory by id."""
    return {file.id: file async for page in source.list_files() for file in page.files}


async def payload_of(source: LlamaCloudSource, file: DirectoryFile) -> Payload:
    """The payload of one file; what is wrong with it is raised."""
    [(_, payload)] = [outcome async for outcome in source.fetch_payloads([file])]
    if isinstance(payload, Exception):
        raise payload
    return payload
