"""The guard, over real sockets: what it lets through, and that neither names nor redirects get around it."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpcore
import pytest
from pydantic import SecretStr

from pipeline.errors import ConfigError, PayloadError, SourceUnavailable
from pipeline.llama_cloud.addresses import AddressPolicy, GuardedBackend, is_public
from pipeline.llama_cloud.download import PayloadDownloader, RetryPolicy
from pipeline.llama_cloud.models import DirectoryFile
from pipeline.llama_cloud.settings import LlamaCloudSettings
from pipeline.llama_cloud.source import LlamaCloudSource
from pipeline.llama_cloud.wire import PresignedUrl
from pipeline_tests.llama_cloud.samples import FILE

ANY_ADDRESS = "0.0.0.0"  # noqa: S104 - connected to, not bound


class Server:
    """Answers every request with ``answer`` and counts connections."""

    def __init__(self) -> None:
        self.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        self.connections = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(self.answer)
        await writer.drain()
        writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    state = Server()
    listener = await asyncio.start_server(state.serve, "127.0.0.1", 0)
    state.port = listener.sockets[0].getsockname()[1]
    async with listener:
        yield state


@asynccontextmanager
async def downloading(policy: AddressPolicy) -> AsyncIterator[PayloadDownloader]:
    async def never(file: DirectoryFile) -> PresignedUrl:
        raise AssertionError("no fresh URL is needed")

    async with PayloadDownloader(never, addresses=policy, retries=RetryPolicy(attempts=1)) as downloads:
        yield downloads


async def get(policy: AddressPolicy, url: str) -> bytes:
    async with downloading(policy) as downloads:
        return await downloads.download(FILE, PresignedUrl(url, None))


def resolving(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> None:
    """Make every name resolve to ``answers``, one a look-up, the last one for ever."""
    looked_up = 0

    async def getaddrinfo(host: Any, port: Any, **_: Any) -> list[Any]:
        nonlocal looked_up
        looked_up += 1
        found = answers[min(looked_up, len(answers)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr("pipeline.llama_cloud.addresses.anyio.getaddrinfo", getaddrinfo)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "2130706433", "[::ffff:127.0.0.1]", ANY_ADDRESS])
async def test_private_targets_are_refused_however_they_are_written(server: Server, host: str) -> None:
    with pytest.raises(PayloadError, match="private address; set allow_private_addresses"):
        await get(AddressPolicy(), f"http://{host}:{server.port}/")
    assert server.connections == 0


async def test_a_name_with_any_private_address_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, ["93.184.216.34", "127.0.0.1"])
    with pytest.raises(PayloadError, match=r"'rebind\.example' has a private address"):
        await get(AddressPolicy(), f"http://rebind.example:{server.port}/")
    assert server.connections == 0


async def test_the_address_that_was_checked_is_the_one_connected_to(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, ["93.184.216.34"], ["127.0.0.1"])
    connected: list[str] = []

    async def connect(remote_host: str, remote_port: int, **_: Any) -> Any:
        connected.append(remote_host)
        raise OSError("no route")

    monkeypatch.setattr("httpcore._backends.anyio.anyio.connect_tcp", connect)
    with pytest.raises(Exception, match="does not answer"):
        await get(AddressPolicy(), f"http://rebind.example:{server.port}/")
    assert connected == ["93.184.216.34"]


async def test_an_address_that_does_not_answer_leaves_time_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, ["2607:f8b0::1", "2607:f8b0::2", "142.250.189.176"])
    given: list[tuple[str, float | None]] = []

    async def connect(self: httpcore.AnyIOBackend, host: str, port: int, seconds: float | None, *_: Any) -> Any:
        given.append((host, seconds))
        if ":" in host:
            raise httpcore.ConnectTimeout("dropped")
        return "connected"

    monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", connect)
    stream: Any = await GuardedBackend(AddressPolicy()).connect_tcp("storage.example", 443, timeout=10.0)
    assert stream == "connected"
    assert given == [("2607:f8b0::1", 2.0), ("2607:f8b0::2", 2.0), ("142.250.189.176", 10.0)]


async def test_a_redirect_into_the_private_network_is_refused_and_not_logged(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.answer = b"HTTP/1.1 302 Found\r\nLocation: http://10.0.0.1/latest/secret-path\r\nContent-Length: 0\r\n\r\n"
    with pytest.raises(PayloadError, match=r"'10\.0\.0\.1' has a private address"):
        await get(AddressPolicy(trusted_host="127.0.0.1"), f"http://127.0.0.1:{server.port}/")
    assert server.connections == 1
    assert "secret-path" not in caplog.text


@pytest.mark.parametrize(
    "policy",
    [
        AddressPolicy(allow_private_addresses=True),
        AddressPolicy(trusted_host="127.0.0.1"),
        AddressPolicy(trusted_host="localhost"),
    ],
)
async def test_the_apis_own_host_and_allowed_networks_are_reached(server: Server, policy: AddressPolicy) -> None:
    assert await get(policy, f"http://127.0.0.1:{server.port}/") == b"ok"


async def test_public_hosts_go_through_the_environments_proxy_and_private_ones_do_not(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.port}")
    monkeypatch.setenv("no_proxy", "10.0.0.2")
    assert await get(AddressPolicy(), "http://storage.example/x") == b"ok"
    for host in ("10.0.0.1", "localhost", "10.0.0.2"):
        with pytest.raises(PayloadError, match="private address"):
            await get(AddressPolicy(), f"http://{host}/x")
    assert server.connections == 1


@pytest.mark.parametrize("variable", ["http_proxy", "all_proxy"])
async def test_a_proxy_may_be_named_without_a_scheme_and_for_every_url(
    server: Server, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, f"user:hunter2@127.0.0.1:{server.port}")
    assert await get(AddressPolicy(), "http://storage.example/x") == b"ok"


async def test_no_proxy_is_asked_for_this_machine(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert await get(AddressPolicy(trusted_host="127.0.0.1"), f"http://127.0.0.1:{server.port}/") == b"ok"
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.port}")
    source = LlamaCloudSource(
        LlamaCloudSettings(index_id="idx"), api_key=SecretStr("k"), base_url="http://127.0.0.1:9", max_retries=0
    )
    async with source:
        with pytest.raises(SourceUnavailable, match="ConnectError"):
            await source.get_index()
    assert server.connections == 1


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HTTPS_PROXY", "ftp://user:hunter2@proxy.example"),
        ("HTTP_PROXY", "user:hunter2@proxy.example:port"),
        ("ALL_PROXY", "socks5://user:hunter2@proxy.example:1080"),
    ],
)
def test_a_proxy_that_cannot_be_used_names_the_variable_and_nothing_else(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.proxies.find_spec", lambda _package: None)
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=variable) as refused:
        LlamaCloudSource(LlamaCloudSettings(index_id="idx"), api_key=SecretStr("k"))
    assert refused.value.__context__ is None
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        (ANY_ADDRESS, False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:10.0.0.1", False),
        ("2002:0a00:0001::", False),
        ("64:ff9b::169.254.169.254", False),
        ("64:ff9b::93.184.216.34", True),
        ("64:ff9b:1::93.184.216.34", False),
        ("::10.0.0.1", False),
        ("::93.184.216.34", True),
        ("fec0::1", False),
        ("168.63.129.16", False),
        ("::ffff:168.63.129.16", False),
        ("168.63.129.17", True),
        ("100.100.100.200", False),
        ("192.0.0.192", False),
        ("fd00:ec2::254", False),
        ("not an address", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(address) is public
