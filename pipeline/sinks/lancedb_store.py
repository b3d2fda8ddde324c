"""A LanceDB table that may be locked, missing, full or written by others: opening it, trying again, typed errors."""

from __future__ import annotations

import asyncio
import re
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import pyarrow as pa

from pipeline.api_keys import store_secrets
from pipeline.errors import ConfigError, SinkDamaged, SinkUnavailable
from pipeline.quoting import masked
from pipeline.sinks.backoff import apart
from pipeline.urls import without_secrets

if TYPE_CHECKING:
    from lancedb import AsyncConnection
    from lancedb.table import AsyncTable

T = TypeVar("T")

_ATTEMPTS: Final = 10
_FIRST_WAIT: Final = 0.05
_LONGEST_WAIT: Final = 2.0
_LONGEST_REASON: Final = 600
_CONFLICT: Final = re.compile(r"conflict|concurrent|already exists", re.IGNORECASE)
"""How Lance says that another writer's commit came first, or made the same index; it has no error class for it."""

_BROKEN: Final = re.compile("request or response body error")
"""How it says that a connection ended in the middle of an answer. It asks again for the rest of an object, not of a listing."""

_DAMAGE: Final = re.compile(
    r"file size is too small|fill whole buffer|Invalid range|invalid magic|unexpected EOF|failed to decode|panicked|Not found: "
)
"""How it says, in errors of many classes, that a file is not what it was when it was written, or gone."""

_REMEDY: Final = (
    "if that stays so, its files are damaged: `indexport rebuild sink lancedb`, or whatever it is called, renews them"
)
_ANSWER: Final = re.compile(r"<Code>(?P<code>[^<]*)</Code>\s*<Message>(?P<message>[^<]*)</Message>")
"""An error of S3, and of what speaks its protocol, of Azure and of Google, as Lance quotes it."""

_SOURCE_LOCATION: Final = re.compile(r",? ?\S+/(registry|src|rustc)/\S+\.rs(:\d+){0,2}")


class _Query(Protocol):
    async def to_arrow(self) -> pa.Table: ...


class LanceStore:
    """One table of one database. Reads always see the newest version."""

    def __init__(self, uri: str, table_name: str) -> None:
        self.table_name = table_name
        self._uri = uri
        self._connection: AsyncConnection | None = None
        self._table: AsyncTable | None = None
        self._opening = asyncio.Lock()

    async def create(self, schema: pa.Schema) -> AsyncTable:
        """The table, created when missing; of processes that create it at once one does and the others open."""
        database = await self._database()
        await self.commit("open or create the table", lambda: self._create_missing(database, schema))
        return await self.table()

    async def _create_missing(self, database: AsyncConnection, schema: pa.Schema) -> None:
        if await self._exists(database):
            return
        try:
            await database.create_table(self.table_name, schema=schema)
        except ValueError:
            if not await self._exists(database):
                raise

    async def _exists(self, database: AsyncConnection) -> bool:
        try:
            _release(await database.open_table(self.table_name))
        except ValueError:
            return False
        return True

    async def table(self) -> AsyncTable:
        """The table. Raises SinkUnavailable when it is missing."""
        async with self._opening:
            if self._table is None:
                self._table = await self._open()
            return self._table

    @property
    def removal(self) -> str:
        """How a person gets rid of a table that cannot be read, which may be others' too."""
        folder = f"{self._shown_uri}/{self.table_name}.lance"
        return f"remove {folder} and rebuild the sink of every export that uses it: the lake has all of it"

    async def drop(self) -> None:
        """Remove the table."""
        database = await self._database()
        self.close_table()
        await self.call("drop the table", lambda: database.drop_table(self.table_name, ignore_missing=True))

    @asynccontextmanager
    async def pinned(self) -> AsyncIterator[AsyncTable]:
        """A handle of its own that stays at the present version."""
        table = await self._open()
        try:
            await self.call("pin a version", lambda: _pin(table))
            yield table
        finally:
            _release(table)

    async def _open(self) -> AsyncTable:
        database = await self._database()
        try:
            return await self.call("open the table", lambda: database.open_table(self.table_name))
        except ValueError:
            raise SinkUnavailable(
                f"LanceDB at {self._shown_uri} has no table {self.table_name!r}; provision the sink first (a sync does)"
            ) from None

    async def _database(self) -> AsyncConnection:
        if self._connection is None:
            connect = await asyncio.to_thread(_import_connect)
            with self._errors("open the database"):
                try:
                    self._connection = await connect(self._uri, read_consistency_interval=timedelta(0))
                except ValueError as error:  # Lance's word for a bad address and for a bucket that is not there
                    raise self._unusable(error) from None
        return self._connection

    async def call(self, action: str, attempt: Callable[[], Awaitable[T]], *passing: re.Pattern[str]) -> T:
        """A request that may be made twice: again after a connection broke, or after an error that is ``passing``, ten times in
        all. Its failure is SinkUnavailable."""
        with self._errors(action):
            for number in range(_ATTEMPTS - 1):
                try:
                    return await attempt()
                except (RuntimeError, OSError) as error:
                    if not any(one.search(str(error)) for one in (_BROKEN, *passing)):
                        raise
                await asyncio.sleep(apart(number, first=_FIRST_WAIT, longest=_LONGEST_WAIT))
            return await attempt()

    async def read(self, query: _Query) -> pa.Table:
        return await self.call("read", query.to_arrow)

    async def commit(self, action: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """One commit, which may be done twice, tried again as long as another writer's came first."""
        return await self.call(action, attempt, _CONFLICT)

    @contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        """Lance knows RuntimeError and OSError for everything that goes wrong in the store, but for damage."""
        try:
            yield
        except Exception as error:
            is_damage = _DAMAGE.search(str(error))
            if not (is_damage or isinstance(error, RuntimeError | OSError)):
                raise
            self._table = None  # a table dropped and made anew is opened anew
            told = f"LanceDB at {self._shown_uri} cannot {action}: {self._shown(error)}"
            raise (SinkDamaged(f"{told}; {_REMEDY}") if is_damage else SinkUnavailable(told)) from None

    def unpurged(self, versions: int) -> SinkUnavailable:
        """That the store has kept files of this many former versions."""
        return SinkUnavailable(
            f"LanceDB at {self._shown_uri} cannot drop the former versions of the table: {versions} of them still there; "
            "check the store, and that its credentials may delete (S3: s3:DeleteObject)"
        )

    def _unusable(self, error: ValueError) -> ConfigError | SinkUnavailable:
        if "scheme" in str(error):
            return ConfigError(f"LanceDB cannot use uri {self._shown_uri!r}: {self._shown(error)}")
        return SinkUnavailable(f"LanceDB at {self._shown_uri} cannot open the database: {self._shown(error)}")

    def _shown(self, error: Exception) -> str:
        """What an object store answered, where it did, for the rest is how Lance asked it."""
        text = _SOURCE_LOCATION.sub("", str(error)).replace(self._uri, self._shown_uri)
        if answered := _ANSWER.search(text):
            text = f"{answered['code']}: {answered['message']}; check the store, its credentials and what they may do"
        return textwrap.shorten(masked(text, *store_secrets()), _LONGEST_REASON, placeholder=" ...")

    @property
    def _shown_uri(self) -> str:
        """The address without what may be a secret."""
        return without_secrets(self._uri)

    def close_table(self) -> None:
        if self._table is not None:
            _release(self._table)
        self._table = None

    def close(self) -> None:
        self.close_table()
        if self._connection is not None:
            _release(self._connection)
        self._connection = None


def _release(handle: Any) -> None:
    handle.close()


async def _pin(table: AsyncTable) -> None:
    await table.checkout(await table.version())


def _import_connect() -> Any:
    from lancedb import connect_async

    return connect_async
