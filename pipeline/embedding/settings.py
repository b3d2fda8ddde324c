"""What a user may say about embedding.

What belongs here: the validated settings of every provider, as they stand in an export's YAML. Secrets are not among
them: an API key is named by the environment variable that holds it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator

from pipeline.urls import is_http_url

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
OPENAI_URL = "https://api.openai.com/v1"


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class OpenAISettings(_Settings):
    """An OpenAI-compatible ``POST {base_url}/embeddings``: OpenAI, Azure's v1 API, vLLM, TEI, Ollama, LiteLLM and the like."""

    base_url: str = Field(
        default=OPENAI_URL,
        description="What stands before `/embeddings`. Part of the model's name: at another address it is another model.",
    )
    api_key_env: str | None = Field(
        default="OPENAI_API_KEY",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Variable that holds the key; null for an open endpoint.",
    )
    revision: str = Field(
        default="",
        description="A name for the weights, part of the model's own: when the endpoint serves others under the old name, "
        "another revision embeds everything anew.",
    )
    dimensions: PositiveInt | None = Field(
        default=None, description="Vector size asked of the endpoint (Matryoshka models only)."
    )
    native_dimension: PositiveInt | None = Field(default=None, description="Vector size of a model Indexport does not know.")
    tokenizer_file: Path | None = Field(
        default=None, description="The model's Hugging Face tokenizer.json; else tokens are bounded by bytes."
    )
    max_tokens: PositiveInt = Field(default=8191, description="The model's input limit.")
    request_tokens: PositiveInt = Field(default=100_000, description="Tokens a request; OpenAI documents a limit of 300,000.")
    request_items: PositiveInt = Field(
        default=512,
        description="Texts a request; OpenAI documents 2,048, other servers as few as 32. Fewer where these take too long.",
    )
    concurrency: PositiveInt = Field(default=4, description="Requests under way at once.")
    timeout_seconds: PositiveFloat = Field(default=60.0, description="Of one attempt of a request.")
    max_attempts: PositiveInt = Field(
        default=6,
        description="Tries of one request, the first included; one put off (429) while others are answered is none.",
    )

    @property
    def named_revision(self) -> list[str]:
        """Nothing where none is set, so that a model keeps the name it had before there were revisions."""
        return [self.revision] if self.revision else []

    @field_validator("base_url")
    @classmethod
    def _plain_http_url(cls, url: str) -> str:
        if not is_http_url(url):
            raise ValueError("must be an http(s) URL such as https://api.openai.com/v1")
        parts = urlsplit(url)
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError("must hold no credentials, query or fragment; name the key's variable in api_key_env")
        return url.rstrip("/")


class EmbeddingSettings(_Settings):
    """Which model embeds, and how.

    ``pooling`` and ``normalize`` describe a model in ``model_path`` whose name fastembed does not know; for every other
    model fastembed knows them.
    """

    provider: Literal["fastembed", "openai", "constant"] = Field(
        default="fastembed", description="On this machine, over HTTP, or vectors without meaning for rehearsals."
    )
    model: str = Field(
        default=MINILM,
        min_length=1,
        description="A model fastembed supports, or the endpoint's name for its model. The default reads English; others: "
        "`sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2` some 50 languages, chunks of at most 128 tokens; "
        "`intfloat/multilingual-e5-large` (2.2 GB) some 100, with the prefixes `passage: ` and `query: `.",
    )
    model_path: Path | None = Field(
        default=None, description="A folder with the ONNX model and its tokenizer, used instead of a download."
    )
    pooling: Literal["mean", "cls", "last_token"] = Field(default="mean", description="Of a model fastembed does not know.")
    normalize: bool = Field(default=True, description="Vectors of length 1, of a model fastembed does not know.")
    passage_prefix: str | None = Field(
        default=None,
        description="Put before every text that is embedded, such as `passage: `; a fastembed model that asks for prefixes "
        "is refused until both are set (empty: none).",
    )
    query_prefix: str | None = Field(default=None, description="Put before every question, such as `query: `.")
    threads: PositiveInt | None = Field(
        default=None, description="Batches computed at a time, a CPU thread each; default: one a usable CPU."
    )
    batch_tokens: PositiveInt = Field(default=256, description="Padded tokens a model run; raise it on a GPU.")
    openai: OpenAISettings = OpenAISettings()
    constant_dimension: PositiveInt = Field(default=384, description="Vector size of the provider `constant`.")

    @property
    def is_known_by_name(self) -> bool:
        """Whether nothing but its name says which weights answer."""
        return self.provider == "openai"

    def deciding_chunks(self) -> dict[str, Any]:
        """Those of the set provider's settings that the model's tokens and their limit depend on, without loading it."""
        openai = self.openai
        decisive: list[Any] = [self.passage_prefix or ""]
        match self.provider:
            case "fastembed":
                decisive += [self.model, self.model_path]
            case "openai":
                decisive += [openai.tokenizer_file, openai.max_tokens]
        return {self.provider: decisive}

    def deciding_vectors(self) -> dict[str, Any]:
        """Those that its fingerprint depends on."""
        openai = self.openai
        decisive: list[Any] = [self.passage_prefix or ""]
        match self.provider:
            case "fastembed":
                decisive += [self.model, self.model_path, *((self.pooling, self.normalize) if self.model_path else ())]
            case "openai":
                decisive += [self.model, openai.dimensions or openai.native_dimension, openai.base_url, *openai.named_revision]
            case "constant":
                decisive += [self.constant_dimension]
        return {self.provider: decisive}
