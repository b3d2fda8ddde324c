"""The index itself: finding it, its state, its syncs.

What belongs here: everything addressed to an index. The vendor's own sources disagree on whether ``id`` or
``export_config_id`` is the identifier the API accepts, so both are tried and the one that worked is remembered.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from llama_cloud import omit
from llama_cloud.types.index_create_params import Product

from pipeline.errors import ConfigError
from pipeline.llama_cloud.api import CloudApi, NotThere
from pipeline.llama_cloud.models import IndexState
from pipeline.llama_cloud.settings import LlamaCloudSettings
from pipeline.llama_cloud.wire import read_index, read_object

T = TypeVar("T")
_MAX_CANDIDATES_SHOWN = 20
_REFUSED = frozenset({409, 429})
"""The vendor documents 409 for a sync that is running; its own client reads 429 the same way, which may be throttling too."""


class IndexClient:
    """The one index the settings name; the project's only one when they name none."""

    def __init__(self, api: CloudApi, settings: LlamaCloudSettings) -> None:
        self._api = api
        self._settings = settings
        self._setting = "index_id" if settings.index_id else "index_name"
        self._wanted = settings.index_id or settings.index_name
        self._keys: list[str] = [settings.index_id] if settings.index_id else []
        """Identifiers to try, the one that worked last first."""

    async def get(self) -> IndexState:
        """The index now. Raises ``ConfigError`` naming the candidates when there is no such index, or more than one."""

        async def send(key: str) -> IndexState:
            request = self._api.client.indexes.with_raw_response.get(
                key, expand=["sync_in_progress"], project_id=self._api.project_id
            )
            return await self._api.call(request, self._index_of, doing="reading the index")

        state = await self._with_key(send)
        self._know(state)
        return state

    async def start_sync(self) -> bool:
        """Ask for a sync; ``False`` when it is refused. The SDK would retry that answer for 15 seconds: not here."""

        async def send(key: str) -> bool:
            request = self._api.once.indexes.with_raw_response.sync(key, project_id=self._api.project_id)
            return await self._api.attempt(request, refusals=_REFUSED, doing="starting a sync")

        return await self._with_key(send)

    async def create(
        self,
        source_directory_id: str,
        name: str,
        *,
        products: Sequence[Product] = (),
        store_attachments: Sequence[str] = (),
    ) -> IndexState:
        """The index of that name over that directory, made with ``vector_target="DISABLED"`` unless it exists.

        Raises ``ConfigError`` when the name belongs to an index over another directory.
        """
        same_name = [entry async for entry in self._all() if entry.get("name") == name]
        over_directory = [entry for entry in same_name if entry.get("source_directory_id") == source_directory_id]
        if over_directory:
            self._keys = _identifiers(over_directory[0])
            return await self.get()
        if same_name:
            raise ConfigError(f"an index named {name!r} exists over another source directory: choose another name")
        request = self._api.once.indexes.with_raw_response.create(
            source_directory_id=source_directory_id,
            name=name,
            vector_target="DISABLED",
            products=products or omit,
            store_attachments=list(store_attachments) or omit,
            project_id=self._api.project_id or omit,
        )
        state = await self._api.call(request, self._index_of, doing="creating the index", setting="the source directory's id")
        self._keys = []
        self._know(state)
        return state

    def _index_of(self, answer: object) -> IndexState:
        return read_index(read_object(answer, "an index"), self._api.client.api_key)

    def _know(self, state: IndexState) -> None:
        self._keys = list(dict.fromkeys([*self._keys[:1], state.index_id, state.export_config_id]))

    async def _with_key(self, send: Callable[[str], Awaitable[T]]) -> T:
        """``send`` with the first identifier the API accepts."""
        async for key in self._candidates():
            try:
                answer = await send(key)
            except NotThere:
                continue
            self._keys = [key, *(other for other in self._keys if other != key)]
            return answer
        raise ConfigError(f"LlamaCloud lists the index {self._wanted!r} and then does not know it: check project_id")

    async def _candidates(self) -> AsyncIterator[str]:
        """The known identifiers, and when none of them was it, those of the list."""
        known = list(self._keys)
        for key in known:
            yield key
        for key in await self._look_up():
            if key not in known:
                yield key

    async def _look_up(self) -> list[str]:
        """The identifiers of the index the settings name, or of the only one there is when they name none."""
        entries = [entry async for entry in self._all()]
        matches = [entry for entry in entries if self._is_meant(entry)]
        if len(matches) == 1:
            return _identifiers(matches[0])
        meant = f"has the {self._setting} {self._wanted!r}" if self._wanted else "exists"
        if matches:
            setting = "index_id" if self._wanted else "index_id or index_name"
            raise ConfigError(f"more than one index {meant}: set {setting} to one of {_shown(matches)}, or check project_id")
        raise ConfigError(f"no index {meant}: choose from {_shown(entries)}, or check project_id")

    def _is_meant(self, entry: Mapping[str, Any]) -> bool:
        if self._wanted is None:
            return True
        return self._wanted in (_identifiers(entry) if self._settings.index_id else [entry.get("name")])

    async def _all(self) -> AsyncIterator[Mapping[str, Any]]:
        pages = self._api.pages(
            lambda token: self._api.client.indexes.with_raw_response.list(
                page_size=self._settings.page_size, page_token=token, project_id=self._api.project_id
            ),
            what="indexes",
            setting=f"LLAMA_CLOUD_BASE_URL ({self._api.shown_url} now)",
        )
        async for items, _ in pages:
            for item in items:
                yield item


def _identifiers(entry: Mapping[str, Any]) -> list[str]:
    return [value for key in ("id", "export_config_id") if isinstance(value := entry.get(key), str) and value]


def _shown(entries: list[Mapping[str, Any]]) -> str:
    shown = [f"{entry.get('name')!r} ({entry.get('id')})" for entry in entries[:_MAX_CANDIDATES_SHOWN]]
    hidden = len(entries) - len(shown)
    return ", ".join([*shown, f"and {hidden} more"] if hidden else shown) or "(this project has none)"
