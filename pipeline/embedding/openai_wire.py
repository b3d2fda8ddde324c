"""The embeddings wire format of OpenAI-compatible servers, and the ways they break it.

What belongs here: turning one HTTP response into vectors or into a verdict (try again, give up, settings are wrong).
Nothing here does I/O.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import httpx
import numpy as np

from pipeline.embedding.base import Vectors
from pipeline.errors import ConfigError, EmbedderUnavailable
from pipeline.quoting import quoted
from pipeline.retry_after import seconds_asked

RETRYABLE_STATUS = frozenset({408, 409, 424, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
"""424 is what Text Embeddings Inference answers when its own backend fails."""
_BREAKDOWNS = frozenset({424, 500, 502, 504, 520, 524})
"""Of the server, perhaps over one of the texts. 503 and 529 are not among them: a server says so of itself."""
_ERROR_STATUS = frozenset(map(str, range(400, 600)))


class TryAgain(Exception):
    """The same request may succeed later; ``after`` is the server's own wish in seconds, if it has one."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class BrokeDown(TryAgain):
    """The server failed. It may recover; or one of the texts makes it fail, as often as it is sent."""


class Throttled(TryAgain):
    """The server puts the request off: too much was asked of it, by whomever."""


class TimedOut(TryAgain):
    """No whole answer in the time there is: too many texts for it, it may be."""


class Garbled(TryAgain):
    """A whole answer that is of no use."""


class Refused(Exception):
    """The server will not take this request, however often it is sent: for its texts, their number, or the settings."""


class EncodingRefused(Refused):
    """The server does not know the ``encoding_format`` it was asked for, or refuses the field itself."""


def read_vectors(response: httpx.Response, *, count: int, dimension: int, key_hint: str, secret: str) -> Vectors:
    """The vectors of a response in request order, shape (count, dimension).

    A text whose embedding came back empty, null or with an integer beyond every float becomes a row of NaN: the caller knows
    which file it belongs to.
    Raises TryAgain, Refused, EmbedderUnavailable (credentials, quota) or ConfigError (anything else the settings caused,
    another vector size included). ``secret`` is removed from what the server said.
    """
    answer = _json(response)
    if isinstance(answer, list) and len(answer) == 1:  # As Google wraps its errors.
        answer = answer[0]
    body: Mapping[str, Any] = answer if isinstance(answer, Mapping) else {}
    if response.status_code != 200 or body.get("error"):
        _refuse(response, body, key_hint=key_hint, secret=secret)
    data = body.get("data")
    if not isinstance(data, list):
        raise Garbled("the answer holds no data")
    return _stack(_in_request_order(data, count), dimension)


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except (ValueError, RecursionError):
        if response.status_code == 200:
            raise Garbled("the answer is not JSON") from None
        return {}


def _refuse(response: httpx.Response, body: Mapping[str, Any], *, key_hint: str, secret: str) -> None:
    error = body.get("error")
    details: Mapping[str, Any] = error if isinstance(error, Mapping) else body
    code = details.get("code")
    status = response.status_code
    if status == 200:  # Gateways report an upstream's failure inside a success, some with codes of their own.
        status = int(str(code)) if str(code) in _ERROR_STATUS else 500
    message = _message(error, details) or response.reason_phrase or "no reason given"
    message = quoted(message, secret)
    if status in (401, 403) and code != "model_not_found":  # OpenAI's word for a model that the key's project may not use.
        raise EmbedderUnavailable(f"The embedding endpoint refuses the credentials (HTTP {status}: {message}); {key_hint}")
    if status == 402 or "insufficient_quota" in (code, details.get("type")):
        raise EmbedderUnavailable(f"The embedding endpoint is out of quota (HTTP {status}): {message}")
    if status >= 500 and "NaN" in message:  # Ollama cannot write down the vector of one of the texts.
        raise Refused(f"HTTP {status}: {message}")
    if status in RETRYABLE_STATUS:
        after = _seconds_asked(response.headers)
        if status == 429 or after is not None:
            raise Throttled(f"HTTP {status}: {message}", after)
        raise (BrokeDown if status in _BREAKDOWNS else TryAgain)(f"HTTP {status}: {message}")
    if status in (400, 413, 422):
        refusal = EncodingRefused if "encoding_format" in f"{message} {details.get('param')}" else Refused
        raise refusal(f"HTTP {status}: {message}")
    raise ConfigError(refused_for_good(f"HTTP {status}: {message}"))


def _seconds_asked(headers: httpx.Headers) -> float | None:
    """The server's wish, which OpenAI and Azure say in milliseconds, too."""
    milliseconds = seconds_asked(headers.get("retry-after-ms"))
    return seconds_asked(headers.get("retry-after")) if milliseconds is None else milliseconds / 1000


def refused_for_good(reason: str) -> str:
    """The sentence for a refusal that no text is to blame for."""
    return f"The embedding endpoint refused the request ({reason}); check embedding.model and embedding.openai"


def _message(error: Any, details: Mapping[str, Any]) -> str:
    """What the server said: ``error`` as OpenAI has it or as a plain string, ``message`` beside it (Text Embeddings Inference,
    older vLLM), or FastAPI's ``detail``, whose list repeats the texts sent and is told without them."""
    told = error if isinstance(error, str) else details.get("message") or details.get("detail")
    if isinstance(told, list):
        told = "; ".join(f"{item.get('loc')}: {item.get('msg')}" for item in told if isinstance(item, Mapping))
    return str(told or "")


def _in_request_order(data: list[Any], count: int) -> list[Any]:
    if len(data) != count:
        raise Garbled(f"{count} texts were sent, {len(data)} vectors came back")
    ordered: dict[int, Any] = {}
    for position, item in enumerate(data):
        if not isinstance(item, Mapping) or "embedding" not in item:
            raise Garbled("an item of the answer holds no embedding")
        index = item.get("index", position)
        if not isinstance(index, int):
            raise Garbled("an item of the answer has no usable index")
        ordered[index] = item["embedding"]
    if ordered.keys() != set(range(count)):
        raise Garbled("the answer's indices are not those of the texts sent")
    return [ordered[index] for index in range(count)]


def _stack(embeddings: list[Any], dimension: int) -> Vectors:
    vectors = np.full((len(embeddings), dimension), np.nan, np.float32)
    for row, embedding in enumerate(embeddings):
        values = _values(embedding)
        if values.size == 0:
            continue
        if values.shape != (dimension,):
            raise ConfigError(
                f"The embedding endpoint answers vectors of {values.size} dimensions where {dimension} are configured; "
                "correct embedding.openai.dimensions or native_dimension"
            )
        vectors[row] = values
    return vectors


def _values(embedding: Any) -> Vectors:
    """One vector: a list of numbers, or base64 of little-endian float32. Empty where there is none."""
    try:
        if isinstance(embedding, str):
            return np.frombuffer(base64.b64decode(embedding, validate=True), "<f4")
        return np.asarray([] if embedding is None else embedding, np.float32)
    except OverflowError:  # An integer beyond every float, which is as little of a vector as NaN.
        return np.empty(0, np.float32)
    except (binascii.Error, ValueError, TypeError) as error:
        raise Garbled(f"an embedding is neither base64 nor numbers: {error}") from None
