"""Combinations of LlamaIndex's stores, each as the llama_index sink's settings, and servers to run them on."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.core.vector_stores import SimpleVectorStore

from pipeline_tests.ports import free_port

_DOCSTORES: dict[str, SimpleDocumentStore] = {}
_VECTORS: dict[str, SimpleVectorStore] = {}
_KVSTORES: dict[str, SimpleKVStore] = {}


def shared_docstore(namespace: str, store: str) -> SimpleDocumentStore:
    """LlamaIndex's own docstore in memory, the same one for everybody who names it alike."""
    return _DOCSTORES.setdefault(f"{store}/{namespace}", SimpleDocumentStore())


def shared_vectors(store: str) -> SimpleVectorStore:
    """LlamaIndex's own vector store in memory, the same one for everybody who names it alike; it cannot be asked for nodes."""
    return _VECTORS.setdefault(store, SimpleVectorStore())


def shared_kvstore(store: str) -> SimpleKVStore:
    """LlamaIndex's own key-value store in memory, the same one for everybody who names it alike."""
    return _KVSTORES.setdefault(store, SimpleKVStore())


def chroma(directory: Path) -> dict[str, Any]:
    return {
        "class": "llama_index.vector_stores.chroma:ChromaVectorStore.from_params",
        "args": {
            "collection_name": "{collection}",
            "persist_dir": str(directory / "chroma"),
            "collection_kwargs": {"metadata": {"hnsw:space": "cosine"}},
        },
    }


def milvus(directory: Path) -> dict[str, Any]:
    return {
        "class": "llama_index.vector_stores.milvus:MilvusVectorStore",
        "args": {
            "uri": str(directory / "milvus.db"),
            "collection_name": "{collection}",
            "dim": "{dimension}",
            "similarity_metric": "COSINE",
            "consistency_level": "Strong",
            "use_async_client": False,
        },
    }


def faiss(directory: Path) -> dict[str, Any]:
    return {
        "class": "llama_index.vector_stores.faiss:FaissMapVectorStore",
        "args": [{"class": "faiss:IndexIDMap2", "args": [{"class": "faiss:IndexFlatIP", "args": ["{dimension}"]}]}],
    }


def simple_vectors(directory: Path) -> dict[str, Any]:
    return {"class": "pipeline_tests.llama_index.stacks:shared_vectors", "args": {"store": str(directory)}}


def in_process(directory: Path) -> dict[str, Any]:
    return {"class": "pipeline_tests.llama_index.stacks:shared_docstore", "args": {"store": str(directory)}}


def kvstore_in_process(directory: Path) -> dict[str, Any]:
    return {"class": "pipeline_tests.llama_index.stacks:shared_kvstore", "args": {"store": str(directory)}}


def redis(port: int) -> dict[str, Any]:
    return {
        "class": "llama_index.storage.docstore.redis:RedisDocumentStore.from_host_and_port",
        "args": {"host": "127.0.0.1", "port": port},
    }


def mongodb(variable: str) -> dict[str, Any]:
    return {
        "class": "llama_index.storage.docstore.mongodb:MongoDocumentStore.from_uri",
        "args": {"uri": f"${{{variable}}}", "db_name": "documents"},
    }


def redis_kvstore(variable: str) -> dict[str, Any]:
    return {"class": "llama_index.storage.kvstore.redis:RedisKVStore", "args": {"redis_uri": f"${{{variable}}}"}}


def mongodb_kvstore(variable: str) -> dict[str, Any]:
    return {
        "class": "llama_index.storage.kvstore.mongodb:MongoDBKVStore.from_uri",
        "args": {"uri": f"${{{variable}}}", "db_name": "documents"},
    }


@contextmanager
def redis_server(directory: Path) -> Iterator[int]:
    """The port of a Redis of its own, empty and without files."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed, so the Redis docstore is NOT TESTED: apt-get install redis-server")
    port = free_port()
    arguments = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory)]
    server = subprocess.Popen([program, *arguments], stdout=subprocess.DEVNULL)
    try:
        _wait_for(port)
        yield port
    finally:
        server.terminate()
        server.wait(10)


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return
