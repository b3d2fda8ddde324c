# mypy: disable-error-code="import-not-found"
# LlamaIndex has an environment of its own, which the type checker does not see.
"""One config's docstore and index store in a LlamaIndex key-value store: how a file is replaced, removed and read.

What belongs here: the order of requests. Everything blocks; callers run it in threads. A version's nodes are written before the
document's ``ref_doc_info`` names them and removed after it has ceased to, so that whoever goes by it finds whole versions.
Several processes must not write one file at once, and leases see to that.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
from llama_index.core.constants import DATA_KEY, TYPE_KEY
from llama_index.core.data_structs.data_structs import IndexDict
from llama_index.core.storage.docstore.keyval_docstore import (
    DEFAULT_COLLECTION_DATA_SUFFIX,
    DEFAULT_METADATA_COLLECTION_SUFFIX,
    DEFAULT_REF_DOC_COLLECTION_SUFFIX,
)
from llama_index.core.storage.index_store.keyval_index_store import DEFAULT_COLLECTION_SUFFIX, KVIndexStore

from pipeline.errors import SinkConflict, SinkUnavailable
from pipeline.sinks.file_keys import FileKey, Generation
from pipeline.sinks.llama_docstore_entries import (
    OURS,
    Entry,
    FileEntries,
    HeldFile,
    decode_file,
    decode_info,
    encode_info,
)
from pipeline.sinks.llama_kvstore import FILES_BY_NAME, at_once, batch_size
from pipeline.sinks.records import canonical_json, ref_doc_id

IdsOf = Callable[[FileKey, Generation], Sequence[str]]
"""The ids the vector sink gives the records of a version."""


class DocstoreNamespace:
    """``name`` holds the docstore in ``{name}/docstore`` and the index store in ``{name}/index_store``."""

    def __init__(self, kvstore: Any, name: str, ids_of: IdsOf) -> None:
        self._kvstore = kvstore
        self._ids_of = ids_of
        docstore, self._index_store = namespaces(name)
        self._nodes = f"{docstore}{DEFAULT_COLLECTION_DATA_SUFFIX}"
        self._hashes = f"{docstore}{DEFAULT_METADATA_COLLECTION_SUFFIX}"
        self._infos = f"{docstore}{DEFAULT_REF_DOC_COLLECTION_SUFFIX}"
        self._batch_size = batch_size(kvstore)

    def has_index(self, index_id: str) -> bool:
        return self._listed(index_id) is not None

    def write_index(self, index_id: str, max_bytes: int) -> None:
        """The one index of this config, anew where it is not what the docstore says. It lists every node, as LlamaIndex asks of
        an index that is to delete from its docstore, or none where that would take more than ``max_bytes``."""
        wanted = self._to_list(max_bytes)
        if self._listed(index_id) != wanted:
            index = IndexDict(index_id=index_id, nodes_dict=wanted)
            KVIndexStore(self._kvstore, namespace=self._index_store).add_index_struct(index)

    def compare_index(self, index_id: str, max_bytes: int) -> str | None:
        """How the index differs from the one ``write_index`` would write, in words; a config without files needs none."""
        wanted, listed = self._to_list(max_bytes), self._listed(index_id)
        if listed is None:
            return "LlamaIndex's index is missing or unreadable: it cannot be loaded" if self.files() else None
        if listed == wanted:
            return None
        lacking, surplus = len(wanted.keys() - listed.keys()), len(listed.keys() - wanted.keys())
        return f"LlamaIndex's index lacks {lacking} of {len(wanted)} nodes and lists {surplus} that it should not"

    def _to_list(self, max_bytes: int) -> dict[str, str]:
        if not max_bytes:
            return {}
        infos = self._kvstore.get_all(collection=self._infos).values()
        names = [name for info in infos for name in info["node_ids"]]
        size = sum(len(f'"{name}": "{name}", ') for name in names)  # told before it is built: it may be of millions of nodes
        return {name: name for name in names} if size <= max_bytes else {}

    def _listed(self, index_id: str) -> dict[str, str] | None:
        """``None`` where there is no index. LlamaIndex takes twenty times as long to read a list of many nodes."""
        entry = self._kvstore.get(index_id, collection=f"{self._index_store}{DEFAULT_COLLECTION_SUFFIX}")
        try:
            listed = json.loads(entry[DATA_KEY])["nodes_dict"] if entry[TYPE_KEY] == IndexDict.get_type() else None
        except (KeyError, TypeError, ValueError):
            return None
        return listed if isinstance(listed, dict) else None

    def files(self, keys: Sequence[FileKey] | None = None) -> list[HeldFile]:
        """Of all files of the config, in one request, or of these."""
        if keys is not None and len(keys) <= FILES_BY_NAME:
            infos = at_once(lambda key: self._kvstore.get(_document_of(key), collection=self._infos), keys)
        else:
            infos = list(self._kvstore.get_all(collection=self._infos).values())
        found = [held for info in infos if info and (held := decode_info(info)) is not None]
        wanted = None if keys is None else set(keys)
        return [held for held in found if wanted is None or held.state.key in wanted]

    def without_document(self, held: Sequence[HeldFile]) -> set[FileKey]:
        """Those of these files whose document, or its hash, is gone. Each is read, and none is kept in memory."""

        def lacks(found: HeldFile) -> bool:
            return None in self._document(found)

        return {found.state.key for found, lacking in zip(held, at_once(lacks, held), strict=True) if lacking}

    def _document(self, held: HeldFile) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """The entries of a file's document and of its hash."""
        name = _document_of(held.state.key)
        return self._kvstore.get(name, collection=self._nodes), self._kvstore.get(name, collection=self._hashes)

    def replace(self, files: Sequence[FileEntries]) -> None:
        """Say what is coming, write it, point to it, remove what it replaces, and say that it is complete."""
        held = {found.state.key: found for found in self.files([file.key for file in files])}
        versions = {file.key: _versions(file, held.get(file.key)) for file in files}
        self._put(self._infos, [_announced(file, held.get(file.key), versions[file.key]) for file in files])
        self._put(self._nodes, [entry for file in files for entry in file.nodes])
        self._put(self._hashes, [entry for file in files for entry in file.hashes])
        stale = {file.key: self._stale(file, held.get(file.key), versions[file.key]) for file in files}
        changed = [file for file in files if stale[file.key]]
        self._put(self._infos, [_info(file, versions[file.key], pending=True) for file in changed])
        for file in changed:
            self._delete_nodes(stale[file.key])
        self._put(self._infos, [_info(file, [file.generation], pending=False) for file in files])

    def remove(self, held: Sequence[HeldFile]) -> None:
        """Remove what the docstore says of these files, that which says so last."""
        self._put(self._infos, [_kept(found.as_pending()) for found in held])
        for found in held:
            key = found.state.key
            document = _document_of(key)
            self._delete_nodes({*self._ids(key, found.state.generations), *found.node_ids, document})
            self._kvstore.delete(document, collection=self._infos)

    def records(self, held: Sequence[HeldFile]) -> pa.Table:
        """Of the nodes LlamaIndex sees of these files, showing which documents or hashes beside them are not as written."""
        names = [name for found in held for name in found.node_ids]
        entries = iter(at_once(lambda name: self._kvstore.get(name, collection=self._nodes), names))
        nodes = [[next(entries) for _ in found.node_ids] for found in held]
        documents = at_once(self._document, held)
        return pa.concat_tables(
            decode_file([entry for entry in of_file if entry is not None], *document)
            for of_file, document in zip(nodes, documents, strict=True)
        )

    def _stale(self, file: FileEntries, held: HeldFile | None, versions: Sequence[Generation]) -> set[str]:
        """Nodes that have to go, those somebody else has added to the document included."""
        return self._ids(file.key, versions).union(held.node_ids if held else ()).difference(file.ids)

    def _ids(self, key: FileKey, versions: Iterable[Generation]) -> set[str]:
        return {name for version in versions for name in self._ids_of(key, version)}

    def _put(self, collection: str, entries: Sequence[Entry]) -> None:
        if entries:
            self._kvstore.put_all(list(entries), collection=collection, batch_size=self._batch_size)

    def _delete_nodes(self, names: Iterable[str]) -> None:
        def delete(name: str) -> None:
            self._kvstore.delete(name, collection=self._hashes)
            self._kvstore.delete(name, collection=self._nodes)

        at_once(delete, list(names))


class StaleIndexes:
    """Which indexes of a tenant may not list what their docstores hold: kept beside the model's marker, where the next process
    finds what one that died has not brought up to date."""

    def __init__(self, kvstore: Any, collection: str, tenant_id: str) -> None:
        self._kvstore = kvstore
        self._collection = collection
        self._tenant_id = tenant_id

    def mark(self, export_config_id: str) -> str:
        """Every mark is another, so that it is not taken for one that was dealt with."""
        mark = uuid.uuid4().hex
        entry = {"tenant_id": self._tenant_id, "export_config_id": export_config_id, "mark": mark}
        self._kvstore.put(self._key(export_config_id), entry, collection=self._collection)
        return mark

    def marks(self) -> dict[str, str]:
        """By config."""
        entries = self._kvstore.get_all(collection=self._collection).values()
        return {entry["export_config_id"]: entry["mark"] for entry in entries if entry.get("tenant_id") == self._tenant_id}

    def clear(self, export_config_id: str, mark: str) -> None:
        """Unless it was marked again meanwhile."""
        key = self._key(export_config_id)
        if (self._kvstore.get(key, collection=self._collection) or {}).get("mark") == mark:
            self._kvstore.delete(key, collection=self._collection)

    def _key(self, export_config_id: str) -> str:
        return canonical_json([self._tenant_id, export_config_id])


def namespaces(name: str) -> tuple[str, str]:
    """Those of the docstore and of the index store, as LlamaIndex's classes take them."""
    return f"{name}/docstore", f"{name}/index_store"


def mark(kvstore: Any, collection: str, marker: dict[str, Any]) -> None:
    """Say what the collection's namespaces are, or raise SinkConflict when they are something else."""
    if kvstore.get(OURS, collection=collection) is None:
        kvstore.put(OURS, marker, collection=collection)
    check(kvstore, collection, marker)


def check(kvstore: Any, collection: str, marker: dict[str, Any]) -> None:
    """Raises SinkUnavailable for a collection that was never provisioned, SinkConflict for one of something else."""
    found = kvstore.get(OURS, collection=collection)
    if found is None:
        raise SinkUnavailable(
            f"the key-value store holds nothing of Indexport under {collection!r}; provision the sink first (a sync does)"
        )
    if found != marker:
        shown = [json.dumps(item, sort_keys=True) for item in (found, marker)]
        raise SinkConflict(f"{collection!r} in the key-value store is marked {shown[0]}, not {shown[1]}; choose another prefix")


def _versions(file: FileEntries, held: HeldFile | None) -> list[Generation]:
    """All that may have nodes, the one to come first."""
    stale = [] if held is None else [version for version in held.state.generations if version != file.generation]
    return [file.generation, *stale]


def _announced(file: FileEntries, held: HeldFile | None, versions: Sequence[Generation]) -> Entry:
    """The old version, or nothing, still stands."""
    if held is None:
        coming = replace(file.state, generations=tuple(versions), pending=True)
        return _document_of(file.key), encode_info([], file.metadata, coming)
    return _kept(replace(held, state=replace(held.state, generations=tuple(versions), pending=True)))


def _kept(held: HeldFile) -> Entry:
    return _document_of(held.state.key), encode_info(held.node_ids, held.metadata, held.state)


def _info(file: FileEntries, versions: Sequence[Generation], *, pending: bool) -> Entry:
    state = replace(file.state, generations=tuple(versions), pending=pending)
    return _document_of(file.key), encode_info(file.ids, file.metadata, state)


def _document_of(key: FileKey) -> str:
    return ref_doc_id(key.export_config_id, key.file_id)
