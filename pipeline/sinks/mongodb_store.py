"""One MongoDB collection: connecting, marking it as ours, trying again what may succeed, typed errors.

What belongs here: what every request needs, whatever it is for. Every request made through ``MongoStore`` may be repeated: it
leaves done twice what it leaves done once.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import bson
from pymongo import ASCENDING, AsyncMongoClient, IndexModel, ReadPreference, WriteConcern
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import (
    BulkWriteError,
    ConfigurationError,
    ConnectionFailure,
    InvalidURI,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
)
from pymongo.read_concern import ReadConcern

from pipeline.embedding.base import ModelIdentity
from pipeline.errors import ConfigError, SinkConflict, SinkUnavailable
from pipeline.quoting import quoted
from pipeline.sinks.backoff import backoff
from pipeline.sinks.mongodb_layout import CODEC, GENERATION, Document

T = TypeVar("T")

FORMAT: Final = "1"

_ATTEMPTS: Final = 8
_FIRST_WAIT: Final = 0.1
_LONGEST_WAIT: Final = 5.0

_ADDRESS: Final = [(name, ASCENDING) for name in ("tenant_id", "export_config_id", "parsed_directory_file_id")]
_INDEXES: Final = (
    IndexModel([*_ADDRESS, ("chunk_index", ASCENDING)], name="records"),
    IndexModel([*_ADDRESS, (GENERATION, ASCENDING)], name="heads", unique=True, partialFilterExpression={"chunk_index": 0}),
)

_NAMESPACE_EXISTS: Final = 48
_INDEX_CONFLICTS: Final = frozenset({85, 86})
_DUPLICATE_KEY: Final = 11000
_PASSING: Final = frozenset({6, 7, 89, 91, 112, 134, 189, 262, 9001, 10107, 11600, 11602, 13435, 13436})
"""Server errors that pass: elections, shutdowns, lost connections between servers, conflicts (documented by the vendor)."""

_PASSING_LABELS: Final = (
    "TransientTransactionError",
    "UnknownTransactionCommitResult",
    "RetryableWriteError",
    "RetryableError",
    "SystemOverloadedError",
)


class MongoStore:
    """One model's collection of one database, read from the primary; a write is answered when a majority has it."""

    def __init__(self, uri_env: str, database: str, collection: str, model: ModelIdentity, timeout_seconds: float) -> None:
        self.collection_name = collection
        self._uri_env = uri_env
        self._database_name = database
        self._model = model
        self._timeout_ms = round(timeout_seconds * 1000)
        self._client: AsyncMongoClient[Document] | None = None
        self._opened: AsyncCollection[Document] | None = None
        self._opening = asyncio.Lock()
        self.has_transactions = False
        """Known once the collection has been opened."""

    async def create(self) -> AsyncCollection[Document]:
        """The collection with its indexes, made when missing; of processes that make it at once one does.

        Nothing is asked for that is there, so a role without the right to create anything can use what an administrator has
        provisioned. Raises SinkConflict when it exists and is not ours, or holds another model's vectors.
        """
        database = self._database()
        if await self.call("look up the collection", lambda: self._look_up(database)) is None:
            await self.call("create the collection", lambda: self._create(database))
        collection = await self.collection()
        await self.call("create the indexes", lambda: self._create_indexes(collection))
        return collection

    async def _create(self, database: AsyncDatabase[Document]) -> None:
        """The mark is a schema that is never enforced: it comes into being with the collection and stays with it."""
        try:
            await database.create_collection(
                self.collection_name, validator={"$jsonSchema": _mark(self._model)}, validationLevel="off", check_exists=False
            )
        except OperationFailure as error:
            if error.code != _NAMESPACE_EXISTS:
                raise

    async def _create_indexes(self, collection: AsyncCollection[Document]) -> None:
        held = {found["name"]: found async for found in await collection.list_indexes()}
        missing = [index for index in _INDEXES if index.document["name"] not in held]
        if not all(index in missing or _is_the_same(held[index.document["name"]], index) for index in _INDEXES):
            raise self._index_conflict()
        if not missing:
            return
        try:
            await collection.create_indexes(missing)
        except OperationFailure as error:
            if error.code in _INDEX_CONFLICTS:
                raise self._index_conflict() from None
            raise

    def _index_conflict(self) -> SinkConflict:
        return SinkConflict(
            f"MongoDB collection {self.collection_name!r} has another index named 'records' or 'heads', or the same "
            "under another name; drop it and provision again"
        )

    async def collection(self) -> AsyncCollection[Document]:
        """The collection, checked once. Raises SinkUnavailable when it is missing, SinkConflict when it does not fit."""
        async with self._opening:
            if self._opened is None:
                database = self._database()
                found = await self.call("look up the collection", lambda: self._look_up(database))
                self._check_mark(found)
                hello = await self.call("read the server's features", lambda: database.client.admin.command("hello"))
                self.has_transactions = "setName" in hello or hello.get("msg") == "isdbgrid"
                self._opened = database.get_collection(
                    self.collection_name, CODEC, ReadPreference.PRIMARY, WriteConcern("majority"), ReadConcern("local")
                )
            return self._opened

    async def drop(self) -> None:
        """Remove the collection with its indexes. Raises SinkConflict when it is not ours."""
        database = self._database()
        found = await self.call("look up the collection", lambda: self._look_up(database))
        if found is not None:
            self._check_mark(found)
            await self.call("drop the collection", lambda: database.drop_collection(self.collection_name))
        self._opened = None

    async def _look_up(self, database: AsyncDatabase[Document]) -> Mapping[str, Any] | None:
        return await anext(await database.list_collections(filter={"name": self.collection_name}), None)

    def _check_mark(self, found: Mapping[str, Any] | None) -> None:
        if found is None:
            raise SinkUnavailable(
                f"MongoDB database {self._database_name!r} has no collection {self.collection_name!r}; "
                "provision the sink first (a sync does)"
            )
        held = found.get("options", {}).get("validator", {}).get("$jsonSchema", {})
        remedy = "choose another collection_prefix, or drop the collection if nothing needs it"
        wanted = _mark(self._model)
        if held.get("title") != wanted["title"]:
            raise SinkConflict(f"MongoDB collection {self.collection_name!r} was not made by this version of Indexport; {remedy}")
        if held.get("description") != wanted["description"]:
            raise SinkConflict(
                f"MongoDB collection {self.collection_name!r} holds vectors of another model than {self._model.name!r} with "
                f"{self._model.dimension} dimensions; {remedy}"
            )

    def _database(self) -> AsyncDatabase[Document]:
        if self._client is None:
            self._client = self._connect()
        return self._client[self._database_name]

    def _connect(self) -> AsyncMongoClient[Document]:
        """The client connects on its first request. No cause is shown: it could quote the address."""
        if not self._uri:
            raise ConfigError(f"the mongodb sink needs the environment variable {self._uri_env}: the server's mongodb:// address")
        try:
            return AsyncMongoClient(
                self._uri,
                appname="indexport",
                serverSelectionTimeoutMS=self._timeout_ms,
                connectTimeoutMS=self._timeout_ms,
                socketTimeoutMS=self._timeout_ms,
            )
        except (InvalidURI, ConfigurationError, ValueError):
            raise ConfigError(
                f"{self._uri_env} is no address MongoDB understands; use mongodb://user:password@host/?options or "
                "mongodb+srv://..., with special characters of user and password percent-encoded"
            ) from None
        except OSError:  # also what ssl raises
            raise ConfigError(f"{self._uri_env} names a tlsCAFile or tlsCertificateKeyFile that cannot be read") from None

    @property
    def _uri(self) -> str:
        return os.environ.get(self._uri_env, "")

    async def call(self, action: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """One request, tried again while its failure may pass, eight times in all."""
        with self._errors(action):
            for number in range(1, _ATTEMPTS):
                try:
                    return await attempt()
                except PyMongoError as error:
                    if not _passes(error):
                        raise
                await asyncio.sleep(backoff(number, first=_FIRST_WAIT, longest=_LONGEST_WAIT))
            return await attempt()

    async def in_transaction(self, action: str, work: Callable[[AsyncClientSession], Awaitable[None]]) -> None:
        """Everything ``work`` does through the session, or nothing. Begun anew while its failure may pass."""
        client = self._database().client

        async def attempt() -> None:
            async with (
                client.start_session() as session,
                await session.start_transaction(
                    ReadConcern("snapshot"), WriteConcern("majority"), read_preference=ReadPreference.PRIMARY
                ),
            ):
                await work(session)

        await self.call(action, attempt)

    async def bulk_write(self, collection: AsyncCollection[Document], requests: Sequence[Any]) -> None:
        """Send these writes in any order; what failed and may succeed is sent again, the rest is not."""
        left = list(requests)

        async def attempt() -> None:
            nonlocal left
            try:
                await collection.bulk_write(left, ordered=False)
            except BulkWriteError as error:
                left = [left[item["index"]] for item in error.details["writeErrors"]] or left
                raise

        await self.call("write records", attempt)

    async def read_all(
        self, action: str, collection: AsyncCollection[Document], selection: Document, **find: Any
    ) -> list[Document]:
        """All documents found, read anew when the reading breaks off and that may pass."""

        async def attempt() -> list[Document]:
            return [document async for batch, _ in _raw_batches(collection, selection, find) for document in batch]

        return await self.call(action, attempt)

    async def stream(
        self, action: str, collection: AsyncCollection[Document], selection: Document, **find: Any
    ) -> AsyncIterator[tuple[list[Document], int]]:
        """The documents found and their bytes, one of the server's batches (of 16 MB at most) at a time."""
        with self._errors(action):
            async for batch in _raw_batches(collection, selection, find):
                yield batch

    @contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        try:
            yield
        except PyMongoError as error:
            raise SinkUnavailable(f"MongoDB at {self._uri_env} cannot {action}: {self._reason(error)}") from None

    def _reason(self, error: PyMongoError) -> str:
        """What went wrong, without the address: only a server's own message is quoted, the driver's name hosts and options."""
        if isinstance(error, ServerSelectionTimeoutError):
            return f"no server that takes writes answered within {self._timeout_ms / 1000:g} s"
        if isinstance(error, ConnectionFailure):
            return f"the connection failed ({type(error).__name__})"
        if isinstance(error, ConfigurationError):
            return "its host name or options cannot be resolved"
        if isinstance(error, BulkWriteError) and error.details.get("writeErrors"):
            first = error.details["writeErrors"][0]
            return f"{len(error.details['writeErrors'])} writes failed, first {self._shown(first)}"
        if isinstance(error, OperationFailure):
            return self._shown(error.details or {})
        return type(error).__name__

    def _shown(self, details: Mapping[str, Any]) -> str:
        told = f"{details.get('codeName', 'error')} {details.get('code', '')}: {details.get('errmsg', 'no message')}"
        return quoted(told, self._uri)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
        self._client = self._opened = None


def _mark(model: ModelIdentity) -> dict[str, str]:
    described = json.dumps({"model": model.fingerprint, "dimension": model.dimension})
    return {"title": f"indexport/{FORMAT}", "description": described}


def _is_the_same(found: Mapping[str, Any], wanted: IndexModel) -> bool:
    """Whether an index that exists has the wanted fields, in their order, and options."""
    in_order = list(found["key"].items()) == list(wanted.document["key"].items())
    return in_order and all(found.get(option) == value for option, value in wanted.document.items())


async def _raw_batches(
    collection: AsyncCollection[Document], selection: Document, find: Mapping[str, Any]
) -> AsyncIterator[tuple[list[Document], int]]:
    """Decoded in a thread: a batch can have megabytes."""
    async with collection.find_raw_batches(selection, **find) as cursor:
        async for batch in cursor:
            yield await asyncio.to_thread(_decoded, batch), len(batch)


def _decoded(batch: Any) -> list[Document]:
    """``batch`` is raw BSON; the driver's annotation says documents."""
    return bson.decode_all(batch, CODEC)


def _passes(error: PyMongoError) -> bool:
    if isinstance(error, ServerSelectionTimeoutError):
        return False  # the driver has already tried for as long as it may
    if isinstance(error, ConnectionFailure) or any(error.has_error_label(label) for label in _PASSING_LABELS):
        return True
    if isinstance(error, BulkWriteError):
        codes = {item["code"] for key in ("writeErrors", "writeConcernErrors") for item in error.details.get(key, ())}
        return bool(codes) and codes <= _PASSING | {_DUPLICATE_KEY}
    return isinstance(error, OperationFailure) and error.code in _PASSING | {_DUPLICATE_KEY}
