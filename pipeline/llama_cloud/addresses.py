"""Which network addresses a download may reach.

What belongs here: the guard against server-side request forgery. A presigned URL, or a redirect of the server behind it, comes
from outside; it must not make this process read a private network or a cloud's metadata service. The address is checked where
the connection is made, after name resolution and for the very address that is then connected to, so neither a redirect nor
a name that changes its answer between two look-ups gets past it.
"""

from __future__ import annotations

import ipaddress
import socket
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass

import anyio
import httpcore
import httpx

from pipeline.proxies import environment_proxies
from pipeline.tls import ssl_context

_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_CONNECTIONS = 2
"""The storage's host and one it redirects to."""
_KEEPALIVE_SECONDS = 5.0
_FALLBACK_SECONDS = 2.0
"""To connect to an address that is not a host's last: where IPv6 leads nowhere, its packets are dropped, not refused."""
_WITH_IPV4_AT_THE_END = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("::/96"))
"""NAT64 (RFC 6052) and the IPv4-compatible addresses of old; Python's ``ipaddress`` takes both for global."""
_NEVER_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "64:ff9b:1::/48",  # NAT64 inside a network (RFC 8215)
        "fec0::/10",  # site-local addresses
        "192.0.0.0/24",  # IETF protocol assignments (RFC 6890); one cloud's metadata service was among them
        # Every virtual machine's own host on Azure, with the platform's agent and DNS:
        # https://learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16
        "168.63.129.16/32",
    )
)
"""Global, says ``ipaddress``, in all or some versions. Metadata services of other clouds lie in ranges that it knows."""
SocketOption = tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]


class AddressRefused(Exception):
    """The host is, or resolves to, an address that is not public. The message names the host only."""


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """``trusted_host`` (the API's own host) is always allowed, under any of its names if it is this machine."""

    allow_private_addresses: bool = False
    trusted_host: str | None = None

    def trusts(self, host: str) -> bool:
        """Whether ``host`` may be connected to whatever its address is."""
        trusted = self.trusted_host
        return self.allow_private_addresses or host == trusted or (trusted in _LOOPBACK_NAMES and host in _LOOPBACK_NAMES)


def is_loopback(host: str) -> bool:
    """Whether a host of a URL is this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_public(address: str) -> bool:
    """Whether an IP address is globally reachable; an IPv4 address inside an IPv6 one counts as what it is."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        parsed = _ipv4_within(parsed) or parsed
    return parsed.is_global and not parsed.is_multicast and not any(parsed in network for network in _NEVER_PUBLIC)


def _ipv4_within(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if any(address in network for network in _WITH_IPV4_AT_THE_END):
        return ipaddress.IPv4Address(address.packed[-4:])
    return address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Opens TCP connections to allowed addresses only."""

    def __init__(self, policy: AddressPolicy) -> None:
        self._policy = policy
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the signature is httpcore's
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to ``host``; raises ``AddressRefused`` when any of its addresses is not allowed."""
        if self._policy.trusts(host):
            return await self._backend.connect_tcp(host, port, timeout, local_address, socket_options)
        addresses = await _resolve(host, port, timeout)
        if not all(is_public(address) for address in addresses):
            raise AddressRefused(f"its host {host!r} has a private address")
        failure: Exception = httpcore.ConnectError("the name has no address")
        for address in addresses:
            patience = timeout if address == addresses[-1] or timeout is None else min(timeout, _FALLBACK_SECONDS)
            try:
                return await self._backend.connect_tcp(address, port, patience, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def sleep(self, seconds: float) -> None:
        """As httpcore asks."""
        await self._backend.sleep(seconds)


async def _resolve(host: str, port: int, seconds: float | None) -> list[str]:
    try:
        with anyio.fail_after(seconds):
            found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except TimeoutError:
        raise httpcore.ConnectTimeout("name resolution took too long") from None
    except (OSError, UnicodeError):
        raise httpcore.ConnectError("the name cannot be resolved") from None
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class GuardedTransport(httpx.AsyncHTTPTransport):
    """httpx's own transport over ``GuardedBackend``, for one request at a time.

    Where the environment names a proxy for a URL, the proxy connects and its own egress rules apply: this process cannot see
    the address, so only hosts written as a private address are refused.
    """

    def __init__(self, policy: AddressPolicy) -> None:
        super().__init__(verify=ssl_context())
        self._policy = policy
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl_context(),
            max_connections=_CONNECTIONS,
            max_keepalive_connections=_CONNECTIONS,
            keepalive_expiry=_KEEPALIVE_SECONDS,
            network_backend=GuardedBackend(policy),
        )
        self._proxies = {
            scheme: httpx.AsyncHTTPTransport(verify=ssl_context(), proxy=proxy) for scheme, proxy in environment_proxies().items()
        }

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request, directly or through the environment's proxy."""
        host = request.url.host
        proxy = self._proxies.get(request.url.scheme, self._proxies.get("all"))
        if proxy is None or is_loopback(host) or urllib.request.proxy_bypass(host):
            return await super().handle_async_request(request)
        if _names_an_address(host) and not is_public(host) and not self._policy.trusts(host):
            raise AddressRefused(f"its host {host!r} is a private address")
        return await proxy.handle_async_request(request)

    async def aclose(self) -> None:
        """Close the connections, also those of the proxies."""
        await super().aclose()
        for proxy in self._proxies.values():
            await proxy.aclose()


def _names_an_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
