"""A real HTTP server on this machine that speaks OpenAI's embeddings and misbehaves on demand, and the embedder that asks it."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from pipeline.embedding.openai_embedder import OpenAIEmbedder
from pipeline.embedding.settings import OpenAISettings

KEY = "sk-secret-of-the-tests"
Body = dict[str, Any]
Answer = tuple[int, Any] | tuple[int, Any, dict[str, str]]


class Drops(bytes):
    """A body that is sent a byte at a time, 50 ms apart."""


def vector(text: str) -> list[float]:
    return [float(len(text)), 1.0, 0.5]


def right(request: Body) -> Answer:
    """What a healthy server says."""

    def encode(text: str) -> Any:
        numbers = vector(text)
        if request.get("encoding_format") != "base64":
            return numbers
        return base64.b64encode(np.asarray(numbers, "<f4").tobytes()).decode()

    data = [{"object": "embedding", "index": index, "embedding": encode(text)} for index, text in enumerate(request["input"])]
    return 200, {"object": "list", "data": data}


@dataclass
class Endpoint:
    """Answers with ``script``, one entry a request, then rightly."""

    url: str
    script: list[Callable[[Body], Answer | None] | Answer | None] = field(default_factory=list)
    requests: list[Body] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    under_way: int = 0
    most_under_way: int = 0
    gate: threading.Barrier | None = None

    def answer(self, body: Body, key: str | None) -> Answer | None:
        with self.lock:
            self.requests.append(body)
            self.keys.append(key)
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
            step = self.script.pop(0) if self.script else right
        if self.gate is not None:
            self.gate.wait(timeout=30)
        with self.lock:
            self.under_way -= 1
        return step(body) if callable(step) else step


@contextmanager
def serving() -> Iterator[Endpoint]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/embeddings"
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            answer = state.answer(body, self.headers.get("authorization"))
            if answer is None:
                self.close_connection = True
                return
            status, content, *headers = answer
            payload = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in (headers[0] if headers else {}).items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(payload)))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # A client that timed out is gone.
                self.end_headers()
                while isinstance(content, Drops) and payload:
                    self.wfile.write(payload[:1])
                    payload = payload[1:]
                    time.sleep(0.05)
                self.wfile.write(payload)

        def log_message(self, *args: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = Endpoint(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def embedder(endpoint: Endpoint, **settings: Any) -> OpenAIEmbedder:
    chosen = {"base_url": endpoint.url, "native_dimension": 3, "max_attempts": 3, **settings}
    return OpenAIEmbedder("any-model", OpenAISettings.model_validate(chosen), first_wait_seconds=0.001)


async def embed(endpoint: Endpoint, texts: list[str], **settings: Any) -> list[list[float]]:
    made = embedder(endpoint, **settings)
    vectors: list[list[float]] = (await made.embed(texts, [len(text) for text in texts])).tolist()
    return vectors
