# mypy: disable-error-code="import-not-found"
# LlamaIndex has an environment of its own, which the type checker does not see.
"""A LlamaIndex vector store and docstore at work for the llama_index sink: how a file is replaced, and records are found.

What belongs here: the order of changes. Everything blocks; callers run it in threads. Changes of one process take turns;
several processes must not write one file at once, and leases see to that.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import pyarrow as pa
from llama_index.core.schema import BaseNode, Document
from llama_index.core.vector_stores.types import BasePydanticVectorStore, MetadataFilter, MetadataFilters, VectorStoreQuery

from pipeline.errors import SinkConflict, SinkUnavailable
from pipeline.sinks.base import Snapshot
from pipeline.sinks.file_keys import FileKey, Generation
from pipeline.sinks.llama_index_documents import (
    FILE_ID,
    MARKER,
    Address,
    FileState,
    address_of,
    decode_records,
    decode_state,
    encode_state,
    nodes_of,
    records_id,
    state_id,
)
from pipeline.sinks.llama_kvstore import FILES_BY_NAME, Docstore, at_once
from pipeline.sinks.records import FileRecords, ref_doc_id
from pipeline.sinks.slicing import slices

_NODES_AT_ONCE: Final = 500
_ALIKE: Final = 1e-5
"""Largest difference between scores of equal vectors, computed in float32."""


@dataclass(frozen=True, slots=True)
class EncodedFile:
    """A file with at least one record, and its record set as the docstore holds it."""

    file: FileRecords
    encoded: str


@dataclass(frozen=True, slots=True)
class _Plan:
    """A replace: ``stale`` has to go; ``rewritten`` is the new version itself where some of it is there already."""

    file: EncodedFile
    key: FileKey
    new: Generation
    stale: Sequence[Generation]
    rewritten: Sequence[Generation]
    pending: FileState
    complete: FileState


@dataclass(frozen=True, slots=True)
class Nearest:
    """Which records the vector store finds nearest, ``None`` for nodes of others; fewer than were asked for when there are no
    more. ``alike``: the last is as near as the first."""

    addresses: list[Address | None]
    alike: bool


class Stores:
    """The vector store, and three namespaces of the docstore. One for all exporters of a process with the same settings."""

    def __init__(self, make_vectors: Callable[[], Any], nodes: Any, records: Any, states: Any, *, in_memory: bool) -> None:
        self._make_vectors = make_vectors
        self._nodes = Docstore(nodes)
        self._records = Docstore(records)
        self._states = Docstore(states)
        self._in_memory = in_memory
        self._vectors: Any = None if in_memory else make_vectors()
        self._loaded: dict[FileKey, FileState] = {}
        self._lock = threading.RLock()
        deletes = getattr(type(self._vectors), "delete_nodes", None)
        self.replaces_beside = in_memory or deletes is not BasePydanticVectorStore.delete_nodes
        """Whether a new version can stand beside the old one for a moment; else the old one goes first."""

    def mark(self, marker: str) -> None:
        """Say what the namespaces are, or raise SinkConflict when they are something else."""
        with self._lock:
            if self._text(self._states, MARKER) is None:
                self._states.add_documents([Document(id_=MARKER, text=marker)])
        self.check(marker)

    def check(self, marker: str) -> None:
        """Raises SinkUnavailable for namespaces that were never provisioned, SinkConflict for those of something else."""
        found = self._text(self._states, MARKER)
        if found is None:
            raise SinkUnavailable("this LlamaIndex docstore holds nothing of Indexport; provision the sink first (a sync does)")
        if found != marker:
            raise SinkConflict(f"this LlamaIndex docstore is marked {found}, not {marker}; choose another prefix, or empty it")

    def _opened(self) -> Any:
        """The vector store. One that lives in memory is made anew from the docstore, which has every vector, after a change,
        of another process too: LlamaIndex's FAISS store gives the number of a removed vector to a second one (seen in its
        release 0.7)."""
        if self._in_memory:
            states = {state.key: state for state in self.states()}
            if self._vectors is None or states != self._loaded:
                self._vectors, self._loaded = self._made_from(states.values()), states
        return self._vectors

    def _made_from(self, states: Iterable[FileState]) -> Any:
        vectors = self._make_vectors()
        for state in states:
            for generation in state.generations:
                table = self.records(state.key, generation)
                if table is not None:
                    _add(vectors, nodes_of(table, state.key, generation))
        return vectors

    def states(self, keys: Sequence[FileKey] | None = None) -> list[FileState]:
        """Of all files of all tenants and configs, in one request of most docstores, or of these, each in its own."""
        if keys is not None and len(keys) <= FILES_BY_NAME:
            return [state for state in at_once(self.state, keys) if state is not None]
        found = [decode_state(document.text) for name, document in self._states.all().items() if name != MARKER]
        wanted = None if keys is None else set(keys)
        return [state for state in found if wanted is None or state.key in wanted]

    def state(self, key: FileKey) -> FileState | None:
        text = self._text(self._states, state_id(key))
        return None if text is None else decode_state(text)

    def records(self, key: FileKey, generation: Generation) -> pa.Table | None:
        text = self._text(self._records, records_id(key, generation))
        return None if text is None else decode_records(text)

    def replace(self, files: Sequence[EncodedFile]) -> None:
        """Say what is coming, write it, remove what it replaces, and say that it is complete; every step for all the files."""
        with self._lock:
            plans = [self._plan(file) for file in files]
            self._write_states([plan.pending for plan in plans])
            first = [(p.key, [*p.rewritten, *([] if self.replaces_beside else p.stale)]) for p in plans]
            self._remove_nodes(first)
            self._records.add_documents([Document(id_=records_id(p.key, p.new), text=p.file.encoded) for p in plans])
            nodes = [node for p in plans for node in nodes_of(p.file.file.table, p.key, p.new)]
            self._nodes.add_nodes(nodes)
            self._write_vectors(nodes)
            if self.replaces_beside:
                self._remove_nodes([(p.key, p.stale) for p in plans])
            self._forget_records([(p.key, p.stale) for p in plans])
            self._write_states([plan.complete for plan in plans])

    def _plan(self, file: EncodedFile) -> _Plan:
        key = FileKey.of(file.file)
        new = Generation.of(file.file)
        held = self.state(key)
        generations = [] if held is None else list(held.generations)
        stale = [item for item in generations if item != new]
        snapshot = Snapshot.of(file.file)
        return _Plan(
            file,
            key,
            new,
            stale=stale,
            rewritten=[new] if new in generations else [],
            pending=FileState(key.tenant_id, held.snapshot if held else snapshot, (new, *stale), pending=True),
            complete=FileState(key.tenant_id, snapshot, (new,), pending=False),
        )

    def distrust(self, tenant_id: str, export_config_id: str) -> None:
        """Let no file of this config look complete until it is written again."""
        with self._lock:
            mine = [s for s in self.states() if (s.key.tenant_id, s.key.export_config_id) == (tenant_id, export_config_id)]
            self._write_states([replace(state, pending=True) for state in mine])

    def remove(self, keys: Sequence[FileKey]) -> None:
        """Whether the docstore knows them or not: it may have lost what the vector store still shows."""
        if not keys:
            return
        with self._lock:
            held = [state for state in map(self.state, keys) if state is not None]
            self._write_states([replace(state, pending=True) for state in held])
            self._remove_nodes([(state.key, state.generations) for state in held])
            self._delete_documents(keys)
            self._forget_records([(state.key, state.generations) for state in held])
            for state in held:
                self._states.delete(state_id(state.key))

    def left(self, keys: Sequence[FileKey]) -> int | None:
        """How many nodes of these files the vector store still has; ``None`` where it cannot be asked."""
        if self._in_memory:
            return 0
        try:
            return sum(self._nodes_left(key) for key in keys)
        except NotImplementedError:
            return None

    def _nodes_left(self, key: FileKey) -> int:
        of_file = MetadataFilters(filters=[MetadataFilter(key=FILE_ID, value=key.file_id)])
        with self._lock:
            found = [address_of(node) for node in self._vectors.get_nodes(node_ids=None, filters=of_file)]
        return sum(address is not None and address.key == key for address in found)

    def held(self, ids: Sequence[str]) -> set[str] | None:
        """Which of these nodes the vector store has; ``None`` where it cannot be asked for nodes by their ids."""
        try:
            with self._lock:
                return {node.node_id for some in slices(ids, count=_NODES_AT_ONCE) for node in self._vectors.get_nodes(some)}
        except NotImplementedError:
            return None

    def nearest(self, vector: Sequence[float], k: int) -> Nearest:
        with self._lock:
            found = self._opened().query(VectorStoreQuery(query_embedding=list(vector), similarity_top_k=k))
            nodes = found.nodes or [self._nodes.get(node_id) for node_id in found.ids or []]
            scores = found.similarities or [0.0]
            return Nearest([node and address_of(node) for node in nodes], abs(scores[0] - scores[-1]) <= _ALIKE)

    def _write_states(self, states: Iterable[FileState]) -> None:
        self._states.add_documents([Document(id_=state_id(state.key), text=encode_state(state)) for state in states])

    def _write_vectors(self, nodes: Sequence[BaseNode]) -> None:
        if self._in_memory:
            self._vectors = None
        else:
            _add(self._vectors, nodes)

    def _remove_nodes(self, versions: Iterable[tuple[FileKey, Sequence[Generation]]]) -> None:
        gone: dict[str, list[str]] = {}
        for key, generations in versions:
            names = [name for generation in generations for name in key.ids(generation)]
            if names:
                gone.setdefault(ref_doc_id(key.export_config_id, key.file_id), []).extend(names)
        if not gone:
            return
        if self._in_memory:
            self._vectors = None
        elif self.replaces_beside:
            for some in slices([name for names in gone.values() for name in names], count=_NODES_AT_ONCE):
                self._vectors.delete_nodes(some)
        else:
            for document in gone:
                self._vectors.delete(document)
        self._nodes.remove_nodes(gone)

    def _delete_documents(self, keys: Sequence[FileKey]) -> None:
        if not self._in_memory:
            for key in keys:
                self._vectors.delete(ref_doc_id(key.export_config_id, key.file_id))

    def _forget_records(self, versions: Iterable[tuple[FileKey, Sequence[Generation]]]) -> None:
        for key, generations in versions:
            for generation in generations:
                self._records.delete(records_id(key, generation))

    @staticmethod
    def _text(docstore: Docstore, name: str) -> str | None:
        document = docstore.get(name)
        return None if document is None else str(document.text)


def _add(vectors: Any, nodes: Sequence[BaseNode]) -> None:
    for some in slices(nodes, count=_NODES_AT_ONCE):
        vectors.add(some)


def marker_of(fingerprint: str, dimension: int) -> str:
    return json.dumps({"dimension": dimension, "format": "1", "model": fingerprint}, sort_keys=True)
