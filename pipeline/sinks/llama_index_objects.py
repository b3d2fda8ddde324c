"""Objects named in settings: an import path, and the arguments to call it with.

What belongs here: turning a description into the object, with secrets from the environment, and keeping these secrets out of
whatever is said about it.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import ConfigError, SinkUnavailable
from pipeline.quoting import masked, quoted

_CLIENT_ERRORS: Final = {
    "chromadb.errors": "ChromaError",
    "grpc": "RpcError",
    "httpx": "HTTPError",
    "pymilvus.exceptions": "MilvusException",
    "pymongo.errors": "PyMongoError",
    "redis.exceptions": "RedisError",
    "requests": "RequestException",
}
"""What clients raise when their server cannot be used, as far as they are loaded; the settings can name more."""

_VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


class ObjectSettings(BaseModel):
    """``class`` is ``module:Class`` or ``module:Class.factory``; an argument may be such an object itself.

    In strings ``${VARIABLE}`` is replaced from the environment and ``{collection}`` by the model's physical name; an argument
    that is ``{dimension}`` becomes the number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, populate_by_name=True)

    path: str = Field(alias="class", pattern=r"^[\w.]+:[\w.]+$")
    args: dict[str, Any] | list[Any] = Field(default_factory=dict)


@dataclass
class Builder:
    """Builds objects of one sink; ``secrets`` collects the values taken from the environment, by their names.

    ``unavailable`` are import paths of errors that mean that the sink cannot be used, beside those clients are known to raise.
    """

    collection: str
    dimension: int
    unavailable: Sequence[str] = ()
    secrets: dict[str, str] = field(default_factory=dict)

    def build(self, settings: ObjectSettings, **more: Any) -> Any:
        """Raises ConfigError for a path that cannot be imported, arguments it does not take or a variable that is not set."""
        target = imported(settings.path)
        given = self._value(settings.args)
        try:
            return target(*given, **more) if isinstance(given, list) else target(**given, **more)
        except self._client_errors():
            raise
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{settings.path} does not take the arguments it is given: {self.shown(str(error))}") from None

    def resolve(self, *described: ObjectSettings) -> None:
        """Take what the descriptions want of the environment, and build nothing."""
        for settings in described:
            for found in _VARIABLE.finditer(settings.model_dump_json()):
                self._variable(found)

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, Mapping):
            if "class" in value:
                return self.build(ObjectSettings.model_validate(value))
            return {key: self._value(item) for key, item in value.items()}
        if isinstance(value, Sequence):
            return [self._value(item) for item in value]
        return value

    def _text(self, text: str) -> str | int:
        if text == "{dimension}":
            return self.dimension
        return _VARIABLE.sub(self._variable, text.replace("{collection}", self.collection))

    def _variable(self, found: re.Match[str]) -> str:
        name = found[1]
        value = os.environ.get(name)
        if value is None:
            raise ConfigError(f"the environment variable {name}, which the sink's settings name, is not set")
        self.secrets[name] = value
        return value

    def shown(self, message: str) -> str:
        """The message with the values that came from the environment named instead of shown."""
        for name, value in self.secrets.items():
            message = masked(message, value, mask=f"${{{name}}}")
        return message

    @contextmanager
    def errors(self, action: str) -> Iterator[None]:
        """Raise SinkUnavailable, without secrets, for what clients mean by it."""
        try:
            yield
        except self._client_errors() as error:
            # Cut: MongoDB's client repeats all that it was to write.
            reason = quoted(self.shown(str(error))) or type(error).__name__
            raise SinkUnavailable(f"the LlamaIndex stores of {self.collection!r} cannot {action}: {reason}") from None

    def _client_errors(self) -> tuple[type[Exception], ...]:
        loaded = ((sys.modules.get(module), name) for module, name in _CLIENT_ERRORS.items())
        known = (getattr(module, name) for module, name in loaded if module is not None)
        return (OSError, *known, *map(imported, self.unavailable))


def imported(path: str) -> Any:
    """What ``module:attribute.attribute`` names. Raises ConfigError."""
    module, _, attributes = path.partition(":")
    try:
        found = importlib.import_module(module)
        for name in attributes.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        has_it = "LlamaIndex with: pip install 'indexport[llama-index]'"
        if not (isinstance(error, ImportError) and error.name == "llama_index"):
            has_it = "the package that has it"
        raise ConfigError(f"{path!r} cannot be imported: {error}; install {has_it}") from error
    return found
