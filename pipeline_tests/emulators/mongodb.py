"""A MongoDB in process: SecantusDB, which speaks the wire protocol, and Atlas's search beside it.

SecantusDB is optional (GPL, a pre-release): importing this module raises ModuleNotFoundError without it. Its command table is
private, so its version is pinned in ``requirements-secantus.lock``.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from secantus import SecantusDBServer, commands

from pipeline_tests.emulators.atlas_search import AtlasSearch, Namespace, SearchError

Handler = Callable[[dict[str, Any], Any], dict[str, Any]]

_WRITES = ("insert", "update", "delete", "findAndModify", "bulkWrite", "commitTransaction", "drop")
_SCORES = ("vectorSearchScore", "searchScore")
_OF_THE_CLIENT = ("lsid", "txnNumber", "autocommit", "startTransaction", "pipeline", "cursor", "maxTimeMS")
_ACTIONS: Mapping[str, str] = {
    **{name: name for name in ("find", "insert", "update", "listCollections", "listIndexes")},
    **{name: name for name in ("createSearchIndexes", "updateSearchIndex", "dropSearchIndex")},
    "aggregate": "find",
    "delete": "remove",
    "create": "createCollection",
    "createIndexes": "createIndex",
    "drop": "dropCollection",
    "dropIndexes": "dropIndex",
}
"""The privilege action a command needs (documented by the vendor); an upsert needs two."""

_ORIGINAL: Mapping[str, Handler] = dict(commands._HANDLERS)


class MongoServer:
    """One server. ``search=None`` is a server without search, ``replica_set=False`` one without transactions."""

    _by_storage: dict[int, MongoServer] = {}  # noqa: RUF012 - the command table is the process's, so this is too

    def __init__(self, server: SecantusDBServer, search: AtlasSearch | None) -> None:
        self._server = server
        self.search = search
        self.sent: list[str] = []
        """Names of the commands received, in order; a test may clear it."""
        self.statements: list[int] = []
        """How many statements each ``update`` command had."""
        self.permitted: Collection[str] | None = None
        """The privilege actions everybody has; ``None`` are all."""
        self.refusal: str | None = None
        """What everybody who tries to log in is told."""
        self._lost_replies: list[str] = []
        self._writes_to_fail: list[tuple[int, int]] = []

    @property
    def uri(self) -> str:
        return str(self._server.uri)

    def fail(
        self,
        *names: str,
        code: int | None = None,
        times: int = 1,
        skip: int = 0,
        labels: Sequence[str] | None = None,
        hang_up: bool = False,
    ) -> None:
        """The next commands of these names answer with an error, or with a closed connection, and do nothing."""
        data: dict[str, Any] = {"failCommands": list(names), "closeConnection": hang_up}
        data |= {} if code is None else {"errorCode": code}
        data |= {} if labels is None else {"errorLabels": list(labels)}
        self._server.failpoints.configure("failCommand", {"skip": skip, "times": times}, data)

    def lose_reply(self, name: str) -> None:
        """The next command of this name is carried out, but its sender never learns of it."""
        self._lost_replies.append(name)

    def fail_write(self, position: int, code: int) -> None:
        """The next ``update`` command leaves out its statement at ``position`` and reports ``code`` for it."""
        self._writes_to_fail.append((position, code))

    def handle(self, name: str, document: dict[str, Any], context: Any) -> dict[str, Any]:
        self.sent.append(name)
        if name == "update":
            self.statements.append(len(document["updates"]))
        try:
            self._authorize(name, document)
            reply = self._answer(name, document, context)
        except SearchError as error:
            return error.reply
        if name in _WRITES and self.search:
            self.search.note_write()
        if name in self._lost_replies:
            self._lost_replies.remove(name)
            context.connections.kill(context.connection_id)
        return reply

    def _authorize(self, name: str, document: dict[str, Any]) -> None:
        if name in ("saslStart", "saslContinue") and self.refusal:
            raise SearchError(18, "AuthenticationFailed", self.refusal)
        needed = {_ACTIONS[name]} if name in _ACTIONS else set()
        if name == "update" and any(statement.get("upsert") for statement in document["updates"]):
            needed.add("insert")
        if name == "aggregate" and any("$listSearchIndexes" in stage for stage in document["pipeline"]):
            needed = {"listSearchIndexes"}
        if self.permitted is not None and needed - set(self.permitted):
            raise SearchError(13, "Unauthorized", f"not authorized on {document['$db']} to execute command {name}")

    def _answer(self, name: str, document: dict[str, Any], context: Any) -> dict[str, Any]:
        original = _ORIGINAL[name]
        if name == "update" and self._writes_to_fail:
            return self._partly(document, context)
        if self.search is None or not isinstance(document[name], str):
            return original(document, context)
        namespace = (document["$db"], document[name])
        if name == "createSearchIndexes":
            self._check_exists(namespace, context)
            created = [
                self.search.create(namespace, spec.get("name", "default"), spec.get("type", "search"), spec["definition"])
                for spec in document["indexes"]
            ]
            return {"ok": 1.0, "indexesCreated": [{"id": f"id-{index.name}", "name": index.name} for index in created]}
        if name == "updateSearchIndex":
            self.search.update(namespace, document["name"], document["definition"])
            return {"ok": 1.0}
        if name == "drop":
            self.search.forget(namespace)
        if name == "dropSearchIndex":
            self.search.drop(namespace, document["name"])
            return {"ok": 1.0}
        if name == "aggregate" and document.get("pipeline"):
            return self._aggregate(self.search, namespace, document, context)
        return original(document, context)

    def _partly(self, document: dict[str, Any], context: Any) -> dict[str, Any]:
        position, code = self._writes_to_fail.pop()
        statements = list(document["updates"])
        del statements[position]
        done: dict[str, Any] = {"ok": 1.0, "n": 0, "nModified": 0}
        reply = _ORIGINAL["update"]({**document, "updates": statements}, context) if statements else done
        return {**reply, "writeErrors": [{"index": position, "code": code, "errmsg": "this write has failed"}]}

    def _check_exists(self, namespace: Namespace, context: Any) -> None:
        database, collection = namespace
        request = {"listCollections": 1, "$db": database, "filter": {"name": collection}}
        if not _ORIGINAL["listCollections"](request, context)["cursor"]["firstBatch"]:
            raise SearchError(26, "NamespaceNotFound", f"Collection '{database}.{collection}' does not exist.")

    def _aggregate(self, search: AtlasSearch, namespace: Namespace, document: dict[str, Any], context: Any) -> dict[str, Any]:
        first, *stages = document["pipeline"]
        ((stage, options),) = first.items()
        if stage == "$listSearchIndexes":
            found = search.listed(namespace, options.get("name"))
        elif stage in ("$vectorSearch", "$search"):
            rank = search.vector_search if stage == "$vectorSearch" else search.text_search
            wanted = stages[0].get("$limit") if stages else None
            ranking = rank(namespace, options, lambda: _read(document, context, {}))[:wanted]
            held = {item["_id"]: item for item in _read(document, context, {"_id": {"$in": [found for found, _ in ranking]}})}
            scored = [(dict(held[name]), score) for name, score in ranking if name in held]  # deleted since: looked up in vain
            found = _through(stages, scored)
        else:
            return _ORIGINAL["aggregate"](document, context)
        return {"ok": 1.0, "cursor": {"id": 0, "ns": ".".join(namespace), "firstBatch": found}}


def _read(document: dict[str, Any], context: Any, selection: dict[str, Any]) -> list[Mapping[str, Any]]:
    """Documents of the collection, as committed."""
    plain = {key: value for key, value in document.items() if key not in _OF_THE_CLIENT}
    reply = _ORIGINAL["aggregate"]({**plain, "pipeline": [{"$match": selection}], "cursor": {}}, context)
    found = list(reply["cursor"]["firstBatch"])
    while cursor := reply["cursor"]["id"]:
        request = {"getMore": cursor, "collection": document["aggregate"], "$db": document["$db"]}
        reply = _ORIGINAL["getMore"](request, context)
        found += reply["cursor"]["nextBatch"]
    return found


def _through(stages: Sequence[Mapping[str, Any]], scored: list[tuple[dict[str, Any], float]]) -> list[dict[str, Any]]:
    """The stages the sink and LlamaIndex put behind a search."""
    for stage in stages:
        ((name, options),) = stage.items()
        if name == "$limit":
            scored = scored[:options]
        elif name in ("$project", "$set", "$addFields"):
            scored = [(_shaped(name, options, document, score), score) for document, score in scored]
        else:
            raise SearchError(40324, "Location40324", f"this emulator has no {name!r} behind a search")
    return [document for document, _ in scored]


def _shaped(name: str, options: Mapping[str, Any], document: dict[str, Any], score: float) -> dict[str, Any]:
    scores = {key: score for key, value in options.items() if isinstance(value, Mapping) and value.get("$meta") in _SCORES}
    plain = {key: value for key, value in options.items() if key not in scores}
    if name != "$project":
        return {**document, **scores}
    if any(value in (1, True) for value in plain.values()):
        return {**{key: document[key] for key in ("_id", *plain) if key in document and plain.get(key, 1)}, **scores}
    return {**{key: value for key, value in document.items() if key not in plain}, **scores}


def _dispatch(name: str, document: dict[str, Any], context: Any) -> dict[str, Any]:
    server = MongoServer._by_storage.get(id(context.storage))
    return server.handle(name, document, context) if server else _ORIGINAL[name](document, context)


commands._HANDLERS.update({name: partial(_dispatch, name) for name in _ORIGINAL})


@contextmanager
def mongo_server(*, search: AtlasSearch | None, replica_set: bool = True) -> Iterator[MongoServer]:
    """A server on a free port that keeps nothing."""
    name = "secantus" if replica_set else None
    with SecantusDBServer(storage_path=":memory:", port=0, replica_set_name=name) as engine:
        server = MongoServer(engine, search)
        MongoServer._by_storage[id(engine.storage)] = server
        try:
            yield server
        finally:
            _wake(engine)
            del MongoServer._by_storage[id(engine.storage)]


def _wake(engine: SecantusDBServer) -> None:
    """Its accepting thread would only notice after two seconds that it shall end."""
    engine._stop_event.set()
    socket.create_connection(engine.address).close()
