"""Faults a test asks for: throttling, outages, bad payloads, broken listings, failing syncs. None of them is on by default."""

from __future__ import annotations

import threading
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

PayloadFault = Literal["truncated", "not_json", "wrong_shape", "missing"]


class Faults(BaseModel):
    """What goes wrong. Patterns are matched against display names as shells do (``*.pdf``); counters count down."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rate_limited_requests: NonNegativeInt = Field(default=0, description="This many next API requests answer 429.")
    retry_after_seconds: float = Field(default=1.0, ge=0, description="The Retry-After of those answers.")
    server_error_requests: NonNegativeInt = Field(default=0, description="This many next API requests answer an error.")
    server_error_status: int = Field(default=503, ge=500, le=599)
    expired_blob_requests: NonNegativeInt = Field(default=0, description="This many next downloads answer 403.")
    null_file_ids: tuple[str, ...] = Field(default=(), description="Files listed without a file_id.")
    hidden_files: tuple[str, ...] = Field(default=(), description="Files missing from listings although they exist.")
    repeat_items_across_pages: bool = Field(default=False, description="A page begins with the last item of the one before.")
    fail_listing_at_page: PositiveInt | None = Field(default=None, description="From this page on a listing answers 500.")
    page_size_cap: PositiveInt | None = Field(default=None, description="Pages are never longer, whatever was asked for.")
    payloads: dict[str, PayloadFault] = Field(default_factory=dict, description="What is served instead of a payload.")
    slow_bodies: dict[str, float] = Field(default_factory=dict, description="Seconds a download stops for half way.")
    sync_error: str | None = Field(default=None, description="Syncs fail with this message.")
    hold_syncs: bool = Field(default=False, description="Syncs stay in progress until this is cleared or they are cancelled.")
    id_mode: Literal["both", "id", "export_config_id"] = Field(
        default="both", description="Which of an index's two ids its endpoints accept."
    )


_COUNTERS = Literal["rate_limited_requests", "server_error_requests", "expired_blob_requests"]


class FaultInjector:
    """The faults in force; set from any thread."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._changed = threading.Condition()

    @property
    def current(self) -> Faults:
        return self._faults

    def set(self, faults: Faults) -> None:
        """Replaces every fault."""
        with self._changed:
            self._faults = faults
            self._changed.notify_all()

    def take(self, counter: _COUNTERS) -> bool:
        """Whether this request is one of those counted; counts it."""
        if not getattr(self._faults, counter):
            return False
        with self._changed:
            left: int = getattr(self._faults, counter)
            if left:
                self._faults = self._faults.model_copy(update={counter: left - 1})
            return left > 0

    def wait_while_held(self, cancelled: Callable[[], bool]) -> None:
        """Blocks while syncs are held, until ``cancelled`` after a ``wake``."""
        with self._changed:
            self._changed.wait_for(lambda: not self._faults.hold_syncs or cancelled())

    def wake(self) -> None:
        """Makes held syncs look again whether they are cancelled."""
        with self._changed:
            self._changed.notify_all()


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def matching_value(name: str, by_pattern: dict[str, Any]) -> Any | None:
    """The value of the first pattern that matches."""
    return next((value for pattern, value in by_pattern.items() if fnmatchcase(name, pattern)), None)


def spoil(body: bytes, fault: PayloadFault) -> bytes:
    """What is served instead of a payload's JSON (``missing`` has no body)."""
    match fault:
        case "truncated":
            return body[: len(body) // 2]
        case "not_json":
            return b"%PDF-1.7 this is the original document, not a payload"
        case "wrong_shape":
            return b'{"result":{"markdown":"pages of an unknown shape"}}'
        case "missing":
            return b""
