"""What is said of a server whose certificate or protocol is not what was expected, over real sockets."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from pydantic import SecretStr

from pipeline.errors import ConfigError, PayloadOutOfReach, SourceUnavailable
from pipeline.llama_cloud.addresses import AddressPolicy
from pipeline.llama_cloud.download import PayloadDownloader
from pipeline.llama_cloud.models import DirectoryFile
from pipeline.llama_cloud.settings import LlamaCloudSettings
from pipeline.llama_cloud.source import LlamaCloudSource
from pipeline.llama_cloud.wire import PresignedUrl
from pipeline.tls import ssl_context
from pipeline_tests.emulators.certificate import write_certificate
from pipeline_tests.llama_cloud.fake_cloud import AT_ONCE
from pipeline_tests.llama_cloud.samples import FILE

REFUSED = r"its certificate is refused \(self.signed certificate\): .*SSL_CERT_FILE"


@pytest.fixture(autouse=True)
def _trust_is_not_remembered() -> Iterator[None]:
    ssl_context.cache_clear()
    yield
    ssl_context.cache_clear()


@contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[str]:
    """Host and port of a server that has no answer (HTTP 501)."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    write_certificate(tmp_path)
    return tmp_path / "certificate.pem"


@pytest.fixture
def signed_by_itself(certificate: Path) -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    with serving(context) as address:
        yield f"https://{address}"


async def ask(url: str) -> None:
    async with LlamaCloudSource(LlamaCloudSettings(), api_key=SecretStr("key"), base_url=url, max_retries=0) as source:
        await source.get_index()


async def test_an_api_whose_certificate_is_refused_is_told_from_one_that_is_down(signed_by_itself: str) -> None:
    with pytest.raises(SourceUnavailable, match=REFUSED):
        await ask(signed_by_itself)


async def test_a_certificate_in_ssl_cert_file_is_trusted(
    signed_by_itself: str, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with pytest.raises(SourceUnavailable, match="HTTP 501"):
        await ask(signed_by_itself)


@pytest.mark.parametrize("name", ["a missing file", "a folder", "no certificate", "a broken one"])
async def test_a_bundle_that_cannot_be_read_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a folder").mkdir()
    (tmp_path / "no certificate").write_text("none")
    (tmp_path / "a broken one").write_text("-----BEGIN CERTIFICATE-----\nnone\n-----END CERTIFICATE-----\n")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / name))
    with pytest.raises(ConfigError, match=f"SSL_CERT_FILE names {tmp_path / name}, which is no bundle"):
        await ask("https://127.0.0.1:9")


async def test_a_server_without_tls_is_named() -> None:
    with serving() as address, pytest.raises(SourceUnavailable, match=r"no TLS can be agreed on \(\w+\).*LLAMA_CLOUD_BASE_URL"):
        await ask(f"https://{address}")


async def test_a_storage_whose_certificate_is_refused_is_told_from_one_that_is_down(signed_by_itself: str) -> None:
    async def never(file: DirectoryFile) -> PresignedUrl:
        raise AssertionError("no fresh URL is needed")

    async with PayloadDownloader(never, addresses=AddressPolicy(True), retries=AT_ONCE) as downloads:
        with pytest.raises(PayloadOutOfReach, match=REFUSED) as refused:
            await downloads.download(FILE, PresignedUrl(f"{signed_by_itself}/a?sig=secret", None))
    assert "secret" not in str(refused.value)
