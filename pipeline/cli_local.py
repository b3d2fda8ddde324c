"""Commands that bring a LlamaCloud along: local-cloud, demo, dev; and one over a folder for any other command.

What belongs here: arguments and output, as in ``cli``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.api_keys import LOCAL_CLOUD_KEY, read_key
from pipeline.cli_common import defined_exports, err, out
from pipeline.errors import ConfigError
from pipeline.home import packaged
from pipeline.urls import without_secrets

if TYPE_CHECKING:
    from pipeline.local_cloud.server import RunningLocalCloud

local_app = typer.Typer(no_args_is_help=True)

LOCAL_CLOUD_PORT = 8800
_SAMPLES, _NAMED = str(packaged("samples")), "the samples"

DocumentsOption = Annotated[
    str | None,
    typer.Option("--documents", help="A folder or fsspec URL to serve through a local LlamaCloud for this command."),
]


@local_app.command("local-cloud")
def local_cloud(
    documents: Annotated[str, typer.Argument(help="A folder or fsspec URL of documents.", show_default=_NAMED)] = _SAMPLES,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = LOCAL_CLOUD_PORT,
) -> None:
    """Serve a folder of documents the way LlamaCloud would."""
    from pipeline.home import Home
    from pipeline.local_cloud.server import serve
    from pipeline.local_cloud.settings import LocalCloudSettings

    _check_folder(documents, "local-cloud")
    settings = LocalCloudSettings(documents=documents, state_dir=Home.from_environment().local_cloud, port=port)
    serve(settings, announce=lambda url: _to_be_copied(_variables(url)))


@local_app.command()
def demo(
    documents: Annotated[str | None, typer.Option("--documents", help="Your own folder instead of the samples.")] = None,
) -> None:
    """The whole journey on this machine, in a home of its own: sync, search with citations, edit, sync again.

    Exit code 1 when a sync left something behind."""
    from pipeline.demo import run_demo

    if not run_demo(out, err, documents):
        raise typer.Exit(1)


@local_app.command()
def dev(
    documents: Annotated[str, typer.Option("--documents", help="What the local cloud serves.", show_default=_NAMED)] = _SAMPLES,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the Dagster UI; 0 takes a free one.")] = 3000,
    cloud_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the local cloud; 0 takes a free one.")
    ] = LOCAL_CLOUD_PORT,
) -> None:
    """The Dagster UI and daemon with everything loaded, and a local cloud unless LLAMA_CLOUD_API_KEY is set.

    Over the home, lake, ledger and sinks that the environment names, as every command but demo."""
    from pipeline.orchestration.launcher import free_port, run_dagster_dev

    defined_exports()  # a mistake in one is told before anything begins, and in one line
    real = bool(read_key("LLAMA_CLOUD_API_KEY"))
    ui_port = free_port(port)
    with cloud_over(None if real else documents, port=cloud_port) as cloud:
        if cloud:
            hint = f"{_variables(cloud.base_url)} indexport index sync"
            _to_be_copied(f"A local LlamaCloud serves {without_secrets(documents)}. After an edit: {hint}")
        sys.exit(run_dagster_dev(ui_port))


@contextmanager
def cloud_over(documents: str | None, *, port: int = 0) -> Iterator[RunningLocalCloud | None]:
    """A local cloud over these documents, which it takes in at once, for the time of a command; nothing without them."""
    if documents is None:
        yield None
        return
    _check_folder(documents, "--documents")
    from pipeline.home import Home
    from pipeline.local_cloud.environment import local_cloud_environment

    with local_cloud_environment(documents, Home.from_environment().local_cloud, port=port) as cloud:
        yield cloud


def _check_folder(documents: str, given_to: str) -> None:
    """Raises ConfigError where that is no folder of this machine and no URL; what a URL names is known when it is listed."""
    is_url = "://" in documents or "::" in documents
    if not (documents and (is_url or Path(documents).expanduser().is_dir())):
        raise ConfigError(f"{given_to}: {documents!r} is no folder; give it a folder of documents or an fsspec URL")


def _variables(url: str) -> str:
    return f"LLAMA_CLOUD_BASE_URL={url} LLAMA_CLOUD_API_KEY={LOCAL_CLOUD_KEY}"


def _to_be_copied(line: str) -> None:
    err.print(line, soft_wrap=True, markup=False, highlight=False)
