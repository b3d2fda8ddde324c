"""A PostgreSQL server that may be away, full, busy or strict: connections, transactions, trying again, typed errors.

Works behind a connection pooler in transaction mode: nothing outlives a transaction, nothing is prepared.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, TypeAlias, TypeVar

import psycopg
from pgvector.psycopg import register_vector_async
from psycopg import AsyncConnection, IsolationLevel, errors, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus

from pipeline.errors import ConfigError, SinkUnavailable
from pipeline.quoting import quoted
from pipeline.sinks.backoff import apart
from pipeline.sinks.pgvector_sql import READ_ONE_VERSION, WITHOUT_TIME_LIMIT

T = TypeVar("T")
Connection: TypeAlias = AsyncConnection[tuple[Any, ...]]
Work: TypeAlias = Callable[[Connection], Awaitable[T]]

_DEFAULTS: Final = {"connect_timeout": "10", "application_name": "indexport"}
_ALWAYS: Final = {"client_encoding": "utf8"}
_IDLE_KEPT: Final = 4
_ATTEMPTS: Final = 6
_FIRST_WAIT: Final = 0.05
_SCHEMES: Final = ("postgresql://", "postgres://")
_NOT_RESOLVED: Final = "failed to resolve host"
_TRANSIENT: Final = (errors.SerializationFailure, errors.DeadlockDetected)
_ENDS_THE_CONNECTION: Final = ("FATAL", "PANIC")
"""Severities; a connection survives an error of any other."""


class ValueRefused(ValueError):
    """PostgreSQL cannot take a value: its type has no room for it, or a documented limit stands against it."""


class PostgresStore:
    """Transactions on the database that the environment variable ``dsn_env`` names."""

    def __init__(self, dsn_env: str) -> None:
        self._dsn_env = dsn_env
        self._idle: list[Connection] = []

    async def run(self, action: str, work: Work[T]) -> T:
        """``work`` in one transaction, done again when another one was in its way or the connection broke."""
        for number in range(_ATTEMPTS):
            try:
                async with self._connection() as connection, connection.transaction():
                    return await work(connection)
            except psycopg.Error as error:
                if number + 1 == _ATTEMPTS or not _is_transient(error):
                    raise self._typed(action, error) from None
            await asyncio.sleep(apart(number, first=_FIRST_WAIT))
        raise AssertionError("the last attempt returns or raises")

    @asynccontextmanager
    async def snapshot(self, action: str) -> AsyncIterator[Connection]:
        """A transaction on a connection of its own in which every query sees the same version of everything."""
        with self._errors(action):
            connection = await self._connect_typed()
            async with connection, connection.transaction():
                await connection.execute(READ_ONE_VERSION)
                yield connection

    async def change_schema(self, action: str, work: Work[None]) -> None:
        """``work`` in one transaction, on a connection that knows no pgvector types: they may be missing yet."""
        connection = await self._connect()
        with self._errors(action):
            async with connection, connection.transaction():
                await connection.execute(WITHOUT_TIME_LIMIT)
                await work(connection)

    async def run_outside_transaction(self, action: str, statement: sql.Composed) -> list[str]:
        """The server's warnings: it tells no more of a table it leaves alone for want of a right."""
        warnings: list[str] = []
        connection = await self._connect()
        connection.add_notice_handler(
            lambda notice: warnings.append(notice.message_primary or "") if notice.severity_nonlocalized == "WARNING" else None
        )
        with self._errors(action):
            async with connection:
                await connection.set_autocommit(True)
                await connection.execute(statement)
        return warnings

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        """An idle connection or a new one; it is kept for the next user unless it broke."""
        connection = self._idle.pop() if self._idle else await self._connect_typed()
        try:
            yield connection
        finally:
            idle = connection.info.transaction_status == TransactionStatus.IDLE
            if idle and len(self._idle) < _IDLE_KEPT:
                self._idle.append(connection)
            else:
                await connection.close()

    async def _connect_typed(self) -> Connection:
        connection = await self._connect()
        try:
            await register_vector_async(connection)
        except psycopg.ProgrammingError:
            await connection.close()
            raise errors.UndefinedObject("type vector is missing") from None
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _connect(self) -> Connection:
        dsn = self._dsn
        wanted = "a PostgreSQL connection string such as postgresql://user:password@host:5432/database"
        if not dsn:
            raise ConfigError(f"the environment variable {self._dsn_env} is not set; it must hold {wanted}")
        if _is_ambiguous(dsn):
            raise ConfigError(
                f"the environment variable {self._dsn_env} holds an address with an '@' that may be the password's or not; "
                "percent-encode the special characters of user and password, such as @ as %40 and / as %2F"
            )
        try:
            given = conninfo_to_dict(dsn)
            conninfo = make_conninfo(dsn, **_ALWAYS, **{name: value for name, value in _DEFAULTS.items() if name not in given})
        except psycopg.ProgrammingError:
            raise ConfigError(f"the environment variable {self._dsn_env} does not hold {wanted}") from None
        try:
            connection = await AsyncConnection.connect(conninfo, prepare_threshold=None)
        except psycopg.Error as error:
            reason = "its host name cannot be resolved" if _NOT_RESOLVED in str(error) else self._shown(error)
            raise SinkUnavailable(f"PostgreSQL ({self._dsn_env}) cannot be reached: {reason}") from None
        # Whoever waited for a lock must see what was written meanwhile, whatever isolation the database has by default.
        await connection.set_isolation_level(IsolationLevel.READ_COMMITTED)
        return connection

    @contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            raise self._typed(action, error) from None

    def _typed(self, action: str, error: psycopg.Error) -> Exception:
        if isinstance(error, (psycopg.DataError, errors.ProgramLimitExceeded)):
            return ValueRefused(f"PostgreSQL refuses a value: {self._shown(error)}")
        if isinstance(error, (errors.UndefinedTable, errors.UndefinedObject, errors.InvalidSchemaName)):
            return SinkUnavailable(
                f"PostgreSQL ({self._dsn_env}) cannot {action}: {self._shown(error)}; provision the sink first (a sync does)"
            )
        return SinkUnavailable(f"PostgreSQL ({self._dsn_env}) cannot {action}: {self._shown(error)}")

    @property
    def _dsn(self) -> str:
        return os.environ.get(self._dsn_env, "").strip()

    def _shown(self, error: psycopg.Error) -> str:
        """The server's message without its details, which may quote records."""
        told = error.diag.message_primary or " ".join(str(error).split())
        return quoted(told, self._dsn, _password(self._dsn), os.environ.get("PGPASSWORD", ""))

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop().close()


def _is_ambiguous(dsn: str) -> bool:
    """Whether part of a password may stand in an address where libpq, whose user and password end at the first @, and are
    missing when a / comes first, sees host, port or database: these it shows.
    """
    if not dsn.startswith(_SCHEMES):
        return False
    address = re.sub(r"^[^@/]*@", "", dsn.partition("://")[2])
    return "@" in address.partition("?")[0]


def _is_transient(error: psycopg.Error) -> bool:
    """A connection that broke (its error has no state) or that the server ended was perhaps only the idle one we had kept."""
    lost = error.sqlstate is None or error.diag.severity_nonlocalized in _ENDS_THE_CONNECTION
    return isinstance(error, _TRANSIENT) or (isinstance(error, psycopg.OperationalError) and lost)


def _password(dsn: str) -> str:
    """As libpq reads it, of a string in keywords too."""
    try:
        return str(conninfo_to_dict(dsn).get("password") or "")
    except psycopg.ProgrammingError:
        return ""
