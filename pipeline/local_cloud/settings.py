"""The settings of the local server."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from pipeline.api_keys import LOCAL_CLOUD_KEY

AttachmentKind = Literal["items", "screenshots"]


def _location(value: object) -> object:
    return str(value) if isinstance(value, PurePath) else value


class LocalCloudSettings(BaseModel):
    """What to serve, where to keep state, and whom to let in."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    documents: Annotated[str, BeforeValidator(_location)] = Field(
        min_length=1, description="Folder of documents: a local path or an fsspec URL (s3://bucket/prefix)."
    )
    storage_options: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the fsspec filesystem.")
    state_dir: Path = Field(
        description="Where the database, parsed pages and payloads are kept, apart for every folder. One server a folder."
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on; only this machine can reach the default.")
    port: int = Field(default=0, ge=0, le=65535, description="0 picks a free port.")
    api_key: SecretStr = Field(default=SecretStr(LOCAL_CLOUD_KEY), min_length=1)
    index_name: str = Field(default="documents", min_length=1, description="Name of the index created on the first start.")
    store_attachments: tuple[AttachmentKind, ...] = Field(
        default=("items",), description="Attachments of that first index; items carry bounding boxes."
    )
    auto_sync_on_start: bool = Field(default=True, description="Sync the first index whenever the server starts.")
    max_document_bytes: int = Field(default=256 * 1024 * 1024, gt=0, description="Larger documents are listed as failed.")
    allow_fault_injection: bool = Field(default=False, description="Mount the admin endpoint that injects faults, for tests.")
