"""``llama_index_pipeline.py MODEL_FOLDER DOCUMENTS DATABASE``: documents through LlamaIndex's IngestionPipeline into LanceDB.

Runs in a virtual environment of its own. The same model file, the same tokenizer and the same chunk size as Indexport's
defaults; everything else is LlamaIndex's default.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from fastembed import TextEmbedding
from llama_index.core import Document
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.vector_stores.lancedb import LanceDBVectorStore
from pydantic import PrivateAttr
from tokenizers import Tokenizer

CHUNK_TOKENS = 256


class FastEmbed(BaseEmbedding):
    """fastembed behind LlamaIndex's interface."""

    _model: Any = PrivateAttr()

    def __init__(self, folder: str) -> None:
        super().__init__(model_name="sentence-transformers/all-MiniLM-L6-v2")
        self._model = TextEmbedding(self.model_name, specific_model_path=folder)

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return [vector.tolist() for vector in self._model.embed(texts)]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)


def main() -> None:
    folder, documents, database = sys.argv[1:]
    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    splitter = SentenceSplitter(
        chunk_size=CHUNK_TOKENS, chunk_overlap=0, tokenizer=lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    )
    store = LanceDBVectorStore(uri=database, table_name="peer", mode="overwrite")
    pipeline = IngestionPipeline(transformations=[splitter, FastEmbed(folder)], vector_store=store)
    loaded = [Document(text=entry["text"], id_=entry["id"]) for entry in json.loads(Path(documents).read_text(encoding="utf-8"))]
    nodes = pipeline.run(documents=loaded)
    print(json.dumps({"chunks": len(nodes), "rows": store.client.open_table("peer").count_rows()}))


if __name__ == "__main__":
    main()
