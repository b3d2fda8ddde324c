"""Embedding over HTTP with any OpenAI-compatible endpoint.

What belongs here: which texts travel together, and what becomes of those that are refused. When a request is sent, and sent
again, is openai_session's, what an answer means openai_wire's.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import numpy as np
from tokenizers import Tokenizer

from pipeline.api_keys import read_key
from pipeline.documents.tokens import EstimatedTokens, HuggingFaceTokens, TokenCounter
from pipeline.embedding.base import ModelIdentity, TextsRefused, Vectors, keeping, side_by_side, stopped
from pipeline.embedding.batching import check_inputs, check_question, plan_requests
from pipeline.embedding.openai_session import KeepsBreakingDown, Session
from pipeline.embedding.openai_wire import BrokeDown, EncodingRefused, Refused, TimedOut, TryAgain, read_vectors, refused_for_good
from pipeline.embedding.settings import OpenAISettings
from pipeline.errors import ConfigError, EmbedderUnavailable
from pipeline.proxies import client_mounts
from pipeline.quoting import quoted
from pipeline.tls import ssl_context

_log = logging.getLogger(__name__)

NATIVE_DIMENSIONS = {"text-embedding-3-small": 1536, "text-embedding-3-large": 3072, "text-embedding-ada-002": 1536}
"""Vector sizes documented by the vendor."""
_ENCODINGS = ("base64", "float", None)
"""What is asked for, in turn: base64 is a quarter of the bytes, some servers know only floats, and LiteLLM in front of some
vendors refuses the field itself."""
_HARMLESS_TEXT = "text"


class OpenAIEmbedder:
    """``POST {base_url}/embeddings`` in requests of bounded size, a few at a time. Safe to share between event loops.

    The key is read from the environment when the embedder is made and appears in no message. Raises ConfigError when the
    variable is empty, the vector size is unknown or the tokenizer file cannot be read.
    """

    def __init__(self, model: str, settings: OpenAISettings, *, first_wait_seconds: float = 0.5) -> None:
        self._model = model
        self._settings = settings
        self._first_wait = first_wait_seconds
        self._key = _read_key(settings.api_key_env)
        self._tokens = _token_counter(settings)
        self._identity = _identity(model, settings)
        self._encoding = 0
        self._most_items = settings.request_items

    @property
    def identity(self) -> ModelIdentity:
        return self._identity

    @property
    def max_tokens(self) -> int:
        return self._settings.max_tokens

    @property
    def tokens(self) -> TokenCounter:
        return self._tokens

    async def embed(self, texts: Sequence[str], token_counts: Sequence[int]) -> Vectors:
        """See ``Embedder.embed``. After the first request that fails for good no other is sent; those under way are paid for, and
        may end. A text the endpoint refuses costs no other."""
        check_inputs(texts, token_counts, max_tokens=self.max_tokens)
        settings = self._settings
        pending = iter(plan_requests(token_counts, max_tokens=settings.request_tokens, max_items=self._most_items))
        vectors = np.full((len(texts), self._identity.dimension), np.nan, np.float32)
        refused: dict[int, str] = {}
        async with self._session() as session:

            async def work_off() -> None:
                for request in pending:
                    if session.failure:
                        break
                    try:
                        await self._fill(session, {index: texts[index] for index in request}, vectors, refused)
                    except (EmbedderUnavailable, ConfigError) as error:
                        session.fail(error)

            with keeping(vectors):
                await side_by_side(work_off, settings.concurrency)
        if session.failure:
            raise stopped(session.failure, vectors) from None
        if refused:
            raise TextsRefused(refused, vectors)
        return vectors

    async def embed_query(self, text: str) -> Vectors:
        check_question(self._tokens.count([text])[0], max_tokens=self.max_tokens)
        async with self._session() as session:
            try:
                vectors: Vectors = (await session.request([text]))[0]
            except Refused as refusal:
                raise ConfigError(refused_for_good(str(refusal))) from None
        return vectors

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[Session]:
        settings = self._settings
        async with self._client() as client:
            yield Session(
                partial(self._attempt, client),
                url=settings.base_url,
                max_attempts=settings.max_attempts,
                first_wait_seconds=self._first_wait,
            )

    def _client(self) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {self._key}"} if self._key else {}
        limits = httpx.Limits(max_connections=self._settings.concurrency)
        return httpx.AsyncClient(
            headers=headers,
            timeout=None,  # noqa: S113 - see _post
            limits=limits,
            verify=ssl_context(),
            mounts=client_mounts(),
        )

    async def _fill(
        self,
        session: Session,
        texts: Mapping[int, str],
        vectors: Vectors,
        refused: dict[int, str],
        *,
        suspected: bool = False,
        late: int = 0,
    ) -> None:
        """Put the vectors of ``texts`` into their rows. A request the endpoint refuses is halved, until it is small enough or the
        text to blame stands alone: its reason is put into ``refused``.

        So is a request that the server breaks down over while it answers another. Its texts are ``suspected`` from then on: a
        breakdown over them is a refusal, as each half would have to wait through all tries otherwise.

        So is one that it has not the time for: no text is to blame, and no larger one is sent any more. ``late`` counts how often
        that was so in a row, nobody else being answered."""
        rows = list(texts)
        middle = len(rows) // 2
        if len(rows) <= self._most_items:
            answers = session.answers
            try:
                vectors[rows] = await session.request(list(texts.values()), suspected=suspected)
                return
            except Refused as refusal:
                if len(rows) == 1:
                    await self._check_that_the_text_is_to_blame(session, refusal)
                    refused[rows[0]] = str(refusal)
                    return
                _log.warning("a request of %d texts is sent again in halves, the endpoint refused it: %s", len(rows), refusal)
            except KeepsBreakingDown as failure:
                await self._check_that_another_text_is_answered(session, failure)
                suspected = True
                _log.warning("the endpoint answers another text: %d texts are sent again in halves; %s", len(rows), failure)
            except TimedOut as slow:
                late = late + 1 if session.answers == answers else 1
                if late == self._settings.max_attempts:
                    raise session.given_up(late, slow) from None
                self._most_items = min(self._most_items, middle)
                _log.warning("a request of %d texts is sent again in halves: %s", len(rows), slow)
        for half in filter(None, (rows[:middle], rows[middle:])):  # The first is empty for a lone text, which is asked for again.
            await self._fill(session, {row: texts[row] for row in half}, vectors, refused, suspected=suspected, late=late)

    async def _check_that_another_text_is_answered(self, session: Session, failure: EmbedderUnavailable) -> None:
        """Raise ``failure`` when none is at once."""
        try:
            await session.send([_HARMLESS_TEXT])
        except (TryAgain, Refused):
            raise failure from None

    async def _check_that_the_text_is_to_blame(self, session: Session, refusal: Refused) -> None:
        """Raise ConfigError when the endpoint refuses another text, too."""
        try:
            await session.request([_HARMLESS_TEXT])
        except Refused:
            raise ConfigError(refused_for_good(str(refusal))) from None

    async def _attempt(self, client: httpx.AsyncClient, texts: list[str]) -> Vectors:
        """One attempt, in the first encoding the endpoint takes. Requests under way at once learn it each for themselves."""
        while True:
            asked = self._encoding
            try:
                return await self._post(client, texts, _ENCODINGS[asked])
            except EncodingRefused:
                if asked == len(_ENCODINGS) - 1:
                    raise
                self._encoding = max(self._encoding, asked + 1)

    async def _post(self, client: httpx.AsyncClient, texts: list[str], encoding: str | None) -> Vectors:
        body: dict[str, Any] = {"model": self._model, "input": texts}
        if encoding is not None:
            body["encoding_format"] = encoding
        if self._settings.dimensions is not None:
            body["dimensions"] = self._settings.dimensions
        seconds = self._settings.timeout_seconds
        try:
            async with asyncio.timeout(seconds):  # httpx's own timeout is of each read: an answer in drops never exceeds it
                response = await client.post(f"{self._settings.base_url}/embeddings", json=body)
        except TimeoutError:
            remedy = "raise embedding.openai.timeout_seconds, or lower request_items or concurrency"
            raise TimedOut(f"no whole answer in {seconds:g} s; {remedy}") from None
        except httpx.RequestError as error:
            hung_up = isinstance(error, httpx.RemoteProtocolError | httpx.ReadError)  # as a worker does that a text has killed
            raise (BrokeDown if hung_up else TryAgain)(
                f"{type(error).__name__} {quoted(str(error), self._key)}".rstrip()
            ) from None
        return read_vectors(
            response,
            count=len(texts),
            dimension=self._identity.dimension,
            key_hint=f"check the key in {self._settings.api_key_env or 'api_key_env (none is set)'}",
            secret=self._key,
        )


def _read_key(variable: str | None) -> str:
    if variable is None:
        return ""
    key = read_key(variable)
    if not key:
        raise ConfigError(
            f"{variable} is empty; put the embedding endpoint's API key there, or set embedding.openai.api_key_env to null"
        )
    return key


def _token_counter(settings: OpenAISettings) -> TokenCounter:
    path = settings.tokenizer_file
    if path is None:
        return EstimatedTokens()
    if not path.is_file():
        raise ConfigError(f"embedding.openai.tokenizer_file: {path} is not a file")
    try:
        text = path.read_text("utf-8")
        return HuggingFaceTokens(Tokenizer.from_str(text), hashlib.sha256(text.encode()).hexdigest())
    except Exception as error:  # tokenizers raises bare Exception for a file it cannot parse
        raise ConfigError(f"embedding.openai.tokenizer_file: {path} is not a Hugging Face tokenizer.json ({error})") from error


def _identity(model: str, settings: OpenAISettings) -> ModelIdentity:
    """The endpoint is part of it: two servers may call different weights by one name."""
    dimension = settings.dimensions or settings.native_dimension or NATIVE_DIMENSIONS.get(model)
    if dimension is None:
        raise ConfigError(f"The vector size of {model} is unknown; set embedding.openai.native_dimension")
    parts = json.dumps([model, dimension, settings.base_url, *settings.named_revision])
    return ModelIdentity(model, f"{model}@{hashlib.sha256(parts.encode()).hexdigest()[:16]}", dimension)
