# mypy: disable-error-code="import-not-found"
# LlamaIndex has an environment of its own, which the type checker does not see.
"""LlamaIndex's key-value stores, many entries at once.

What belongs here: what both sinks that write to such stores ask of them. Everything blocks; callers run it in threads.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from llama_index.core.schema import BaseNode
from llama_index.core.storage.docstore.keyval_docstore import KVDocumentStore
from llama_index.core.storage.docstore.types import RefDocInfo
from llama_index.core.storage.docstore.utils import doc_to_json
from llama_index.core.storage.kvstore.types import BaseKVStore

from pipeline.errors import ConfigError

T = TypeVar("T")
R = TypeVar("R")

FILES_BY_NAME: Final = 1_000
"""Beyond so many files, all are read in one request instead of each in its own."""

_REQUESTS_AT_ONCE: Final = 8
_ENTRIES_AT_ONCE: Final = 100


def batch_size(kvstore: Any) -> int:
    """How many entries its ``put_all`` is given for one request: 1 for stores that know no batches, which refuse any other."""
    return _ENTRIES_AT_ONCE if type(kvstore).put_all is not BaseKVStore.put_all else 1


def at_once(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """The work's results, several at once."""
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as threads:
        return list(threads.map(work, items))


class Docstore:
    """A LlamaIndex docstore, changed as its ``add_documents`` and ``delete_document`` change it.

    For every node these read, and the latter writes, the list of all nodes of its document, so that a document of many nodes
    costs the square of their number. Here that list is read and written once.
    """

    def __init__(self, docstore: Any) -> None:
        """Raises ConfigError for a docstore that keeps no key-value store beneath it."""
        if not isinstance(docstore, KVDocumentStore):
            raise ConfigError(f"{type(docstore).__name__} is none of LlamaIndex's key-value docstores; choose one that is")
        self.docstore = docstore
        self._kvstore = docstore._kvstore
        self._batch_size = batch_size(self._kvstore)

    def all(self) -> dict[str, BaseNode]:
        documents: dict[str, BaseNode] = self.docstore.docs
        return documents

    def get(self, name: str) -> BaseNode | None:
        return self.docstore.get_document(name, raise_error=False)

    def delete(self, name: str) -> None:
        """A document that belongs to no other; one that is not there is no error."""
        self.docstore.delete_document(name, raise_error=False)

    def add_documents(self, documents: Sequence[BaseNode]) -> None:
        """Documents that belong to no other."""
        self.docstore.add_documents(documents, batch_size=self._batch_size)

    def add_nodes(self, nodes: Sequence[BaseNode]) -> None:
        """Nodes of documents."""
        self._put(self.docstore._node_collection, {node.node_id: doc_to_json(node) for node in nodes})
        hashes = {node.node_id: {"doc_hash": node.hash, "ref_doc_id": node.ref_doc_id} for node in nodes}
        self._put(self.docstore._metadata_collection, hashes)
        documents: dict[str, list[BaseNode]] = {}
        for node in nodes:
            documents.setdefault(node.ref_doc_id, []).append(node)
        infos = {document: self._extended(document, added).to_dict() for document, added in documents.items()}
        self._put(self.docstore._ref_doc_collection, infos)

    def _extended(self, document: str, added: Sequence[BaseNode]) -> RefDocInfo:
        info = self.docstore.get_ref_doc_info(document) or RefDocInfo()
        names = dict.fromkeys([*info.node_ids, *(node.node_id for node in added)])
        return RefDocInfo(node_ids=list(names), metadata=added[0].metadata)

    def remove_nodes(self, nodes: Mapping[str, Collection[str]]) -> None:
        """Document -> nodes of it; what is not there is no error."""
        for document, names in nodes.items():
            self._unlist(document, frozenset(names))
        at_once(self._delete, [name for names in nodes.values() for name in names])

    def _unlist(self, document: str, names: frozenset[str]) -> None:
        info = self.docstore.get_ref_doc_info(document)
        if info is None:
            return
        info.node_ids = [name for name in info.node_ids if name not in names]
        if info.node_ids:
            self._put(self.docstore._ref_doc_collection, {document: info.to_dict()})
        else:
            self._kvstore.delete(document, collection=self.docstore._ref_doc_collection)

    def _delete(self, name: str) -> None:
        self._kvstore.delete(name, collection=self.docstore._metadata_collection)
        self._kvstore.delete(name, collection=self.docstore._node_collection)

    def _put(self, collection: str, entries: Mapping[str, dict[str, Any]]) -> None:
        if entries:
            self._kvstore.put_all(list(entries.items()), collection=collection, batch_size=self._batch_size)
