# mypy: disable-error-code="import-not-found", allow-subclassing-any
# LlamaIndex has an environment of its own, which the type checker does not see.
"""Async parts behind LlamaIndex's synchronous interfaces.

What belongs here: an event loop in a thread of its own, and LlamaIndex's embedding interface over an ``Embedder``.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr

from pipeline.embedding.base import Embedder

T = TypeVar("T")


class EventLoopThread:
    """Runs coroutines for callers in any thread, inside or outside an event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="indexport-llama-index", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Blocks the calling thread until the work is done."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def arun(self, work: Coroutine[Any, Any, T]) -> T:
        """Leaves the calling event loop free meanwhile."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def close(self) -> None:
        """Ends the thread; nothing can be run afterwards."""
        if self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class EmbedderEmbedding(BaseEmbedding):
    """The embedder that made an export's vectors, for LlamaIndex: queries then lie in the same space."""

    _embedder: Embedder = PrivateAttr()
    _thread: EventLoopThread = PrivateAttr()

    def __init__(self, embedder: Embedder, thread: EventLoopThread) -> None:
        super().__init__(model_name=embedder.identity.name)
        self._embedder = embedder
        self._thread = thread

    @classmethod
    def class_name(cls) -> str:
        return "EmbedderEmbedding"

    async def _query(self, query: str) -> list[float]:
        vector: list[float] = (await self._embedder.embed_query(query)).tolist()
        return vector

    async def _texts(self, texts: list[str]) -> list[list[float]]:
        counts = await asyncio.to_thread(self._embedder.tokens.count, texts)
        vectors: list[list[float]] = (await self._embedder.embed(texts, counts)).tolist()
        return vectors

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._thread.run(self._query(query))

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await self._thread.arun(self._query(query))

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._thread.run(self._texts([text]))[0]

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self._thread.arun(self._texts([text])))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._thread.run(self._texts(texts))

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await self._thread.arun(self._texts(texts))
