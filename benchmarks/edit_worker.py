"""``python -m benchmarks.edit_worker JSON``: a sync, changed documents, another sync; which chunks were embedded, as JSON."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.sync_worker import settings_of
from pipeline.documents.tokens import TokenCounter
from pipeline.embedding.base import Embedder, ModelIdentity, Vectors
from pipeline.home import Home
from pipeline.orchestration.instance import open_instance
from pipeline.orchestration.launcher import sync
from pipeline.orchestration.resources import Exports
from pipeline.stages.detect import refresh


class Recording:
    """An embedder that remembers the texts it was asked for."""

    def __init__(self, inner: Embedder) -> None:
        self._inner = inner
        self.texts: list[str] = []

    @property
    def identity(self) -> ModelIdentity:
        return self._inner.identity

    @property
    def max_tokens(self) -> int:
        return self._inner.max_tokens

    @property
    def tokens(self) -> TokenCounter:
        return self._inner.tokens

    async def embed(self, texts: Sequence[str], token_counts: Sequence[int]) -> Vectors:
        self.texts += texts
        return await self._inner.embed(texts, token_counts)

    async def embed_query(self, text: str) -> Vectors:
        return await self._inner.embed_query(text)


def main() -> None:
    arguments = json.loads(sys.argv[1])
    settings = settings_of()
    with open_instance(Home.from_environment()) as instance:
        export = Exports().open(settings, instance)
        embedder = Recording(export.embedder)
        export.embedder = embedder
        asyncio.run(refresh(export))
        first = sync(settings, instance)
        embedder.texts.clear()
        for changed in Path(arguments["changes"]).iterdir():
            shutil.copyfile(changed, Path(arguments["documents"]) / changed.name)
        asyncio.run(refresh(export))
        second = sync(settings, instance)
        if not (first.ok and second.ok):
            raise SystemExit("a sync left work behind")
        asked = set(embedder.texts)
        told = {}
        for file_id, row in export.ledger.files().items():
            table = export.lake.read("chunks", file_id)
            if table is None:
                raise SystemExit(f"{row.display_name} has no chunks")
            texts = [a + b for a, b in zip(table["context"].to_pylist(), table["content"].to_pylist(), strict=True)]
            told[row.display_name] = {"chunks": len(texts), "embedded": sum(text in asked for text in texts)}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
