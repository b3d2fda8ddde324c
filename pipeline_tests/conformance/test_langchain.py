"""LangChain's own tests of a vector store, synchronous and asynchronous, pass on the sinks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from langchain_tests.integration_tests import VectorStoreIntegrationTests
from langchain_tests.integration_tests.vectorstores import EMBEDDING_SIZE

from pipeline.embedding.base import ModelIdentity
from pipeline.sinks.base import SinkContext
from pipeline_tests.conformance.harness import SinkUnderTest
from pipeline_tests.conformance.langchain_adapter import SinkVectorStore

MODEL = ModelIdentity(name="langchain-fake", fingerprint="langchain-fake/1", dimension=EMBEDDING_SIZE)
CONTEXT = SinkContext("prj-langchain", MODEL)
CONFIG = "cfg-langchain"


class TestSinkAsALangChainVectorStore(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, sink: SinkUnderTest) -> Iterator[SinkVectorStore]:
        """Empty before and after each test, which LangChain's tests check; they share one tenant and config."""
        if not sink.make_exporter(CONTEXT).search_modes:
            pytest.skip("this sink is not searched")
        store = SinkVectorStore(sink, CONTEXT, CONFIG, self.get_embeddings())
        asyncio.run(store.provision())
        yield store
        store.delete()

    def test_a_store_made_from_texts_finds_them(self, sink: SinkUnderTest, vectorstore: SinkVectorStore) -> None:
        SinkVectorStore.from_texts(
            ["foo", "bar"], self.get_embeddings(), [{"n": 1}, {"n": 2}], sink=sink, context=CONTEXT, export_config_id=CONFIG
        )
        (found,) = vectorstore.similarity_search("bar", k=1)
        assert (found.page_content, found.metadata) == ("bar", {"n": 2})
