"""Everything one running server is made of, put together once."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pipeline.errors import ConfigError
from pipeline.local_cloud.blobs import BlobStore, TokenSigner
from pipeline.local_cloud.documents import DocumentFolder
from pipeline.local_cloud.faults import FaultInjector, Faults
from pipeline.local_cloud.identity import Clock, timestamp, utc_now
from pipeline.local_cloud.parsing import ParsedCache
from pipeline.local_cloud.settings import LocalCloudSettings
from pipeline.local_cloud.state import State
from pipeline.local_cloud.state_folder import state_folder

URL_SECONDS = 3600
"""How long a presigned URL lives unless asked otherwise."""


@dataclass(frozen=True, slots=True)
class Cloud:
    """The parts of a server; routes and syncs share it."""

    settings: LocalCloudSettings
    state: State
    folder: DocumentFolder
    blobs: BlobStore
    cache: ParsedCache
    signer: TokenSigner
    faults: FaultInjector
    clock: Clock

    @property
    def now(self) -> str:
        return timestamp(self.clock())

    def presigned(self, base_url: str, blob_id: str, seconds: int | None = None) -> dict[str, Any]:
        """LlamaCloud's PresignedURL for a blob."""
        expires_at = self.clock() + timedelta(seconds=seconds or URL_SECONDS)
        url = f"{base_url}/_blob/{self.signer.issue(blob_id, expires_at.timestamp())}"
        return {"url": url, "expires_at": timestamp(expires_at), "form_fields": None}


def open_cloud(settings: LocalCloudSettings, clock: Clock = utc_now, faults: Faults | None = None) -> Cloud:
    """Opens the state directory and the folder. Raises ``ConfigError``, or ``SourceUnavailable`` on a full disk and
    while another server uses the state directory."""
    folder = DocumentFolder(settings.documents, settings.storage_options)
    if folder.would_scan(settings.state_dir):
        raise ConfigError(
            f"state_dir={str(settings.state_dir)!r} lies among the documents; choose a folder outside or a hidden one"
        )
    state_dir = state_folder(settings.state_dir, folder)
    state = State(state_dir)
    return Cloud(
        settings=settings,
        state=state,
        folder=folder,
        blobs=BlobStore(state_dir / "blobs"),
        cache=ParsedCache(state_dir / "parsed"),
        signer=TokenSigner(state.secret("url_key")),
        faults=FaultInjector(faults or Faults()),
        clock=clock,
    )
