"""One question over HTTP to a place that the operator named, and to nowhere else.

The name is resolved once and the address that was checked is the one that is asked, so that a name
cannot come to mean another place in between. No proxy is used and no redirect is followed.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias
from urllib.parse import SplitResult, urlsplit

import h11

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
# The addresses of a host's name.
Resolve: TypeAlias = Callable[[str], Awaitable[Sequence[Address]]]

_READ_BYTES: Final = 1 << 16
_MAX_HEADER_BYTES: Final = 1 << 16
_PORTS: Final = {"http": 80, "https": 443}
# Where clouds tell a machine its secrets, as far as these are not link-local.
_METADATA: Final = frozenset(map(ipaddress.ip_address, ("100.100.100.200", "fd00:ec2::254")))


class NoAnswer(OSError):
    """The endpoint gave none; the message names no address, since others may read it."""


def check_url(url: str) -> str:
    """Return ``url`` if it is a plain http or https URL. Raises ``ValueError``."""
    parts = urlsplit(url)
    is_plain = not (parts.username or parts.password or parts.query or parts.fragment)
    if parts.scheme not in _PORTS or not parts.hostname or not is_plain or parts.port == 0:
        raise ValueError(f"{url!r} is no http or https URL of a host, without user and query")
    return url


async def resolve(host: str) -> list[Address]:
    """Raises ``OSError``."""
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [ipaddress.ip_address(str(address[0]).partition("%")[0]) for *_, address in found]


async def post(
    url: str, body: bytes, *, seconds: float, max_bytes: int, resolve: Resolve = resolve
) -> bytes:
    """The answer to JSON, which has status 200. Raises ``NoAnswer``, other ``OSError``."""
    parts = urlsplit(check_url(url))
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await _connected(parts, resolve)
            try:
                return await _asked(reader, writer, _head(parts, len(body)), body, max_bytes)
            finally:
                writer.close()
    except TimeoutError:
        raise NoAnswer(f"it took longer than {seconds:g} s") from None
    except h11.RemoteProtocolError:
        raise NoAnswer("it does not speak HTTP/1.1") from None


def is_forbidden(address: Address) -> bool:
    """Whether no name may lead there: what is there trusts whoever can reach it."""
    embedded = _embedded(address)
    if embedded is not None:
        return is_forbidden(embedded)
    return (
        address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or (address.is_reserved and not address.is_loopback)
        or address in _METADATA
    )


def _embedded(address: Address) -> Address | None:
    if isinstance(address, ipaddress.IPv4Address):
        return None
    tunnel = address.teredo
    return address.ipv4_mapped or address.sixtofour or (tunnel[1] if tunnel else None)


async def _connected(
    parts: SplitResult, resolve: Resolve
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host = parts.hostname or ""
    address = await _address(host, resolve)
    is_secure = parts.scheme == "https"
    return await asyncio.open_connection(
        str(address),
        parts.port or _PORTS[parts.scheme],
        ssl=ssl.create_default_context() if is_secure else None,
        server_hostname=host if is_secure else None,
    )


async def _address(host: str, resolve: Resolve) -> Address:
    try:
        # Written as a number it is what the operator meant.
        return ipaddress.ip_address(host)
    except ValueError:
        found = await resolve(host)
    if not found or any(map(is_forbidden, found)):
        raise NoAnswer("its name leads to an address that may not be asked")
    return found[0]


def _head(parts: SplitResult, num_bytes: int) -> h11.Request:
    return h11.Request(
        method="POST",
        target=parts.path or "/",
        headers=[
            ("host", parts.netloc),
            ("content-type", "application/json"),
            ("content-length", str(num_bytes)),
            ("accept-encoding", "identity"),
            ("connection", "close"),
        ],
    )


async def _asked(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    head: h11.Request,
    body: bytes,
    max_bytes: int,
) -> bytes:
    connection = h11.Connection(h11.CLIENT, _MAX_HEADER_BYTES)
    for event in (head, h11.Data(data=body), h11.EndOfMessage()):
        writer.write(connection.send(event) or b"")
    await writer.drain()
    answer = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_READ_BYTES))
        elif isinstance(event, h11.Response) and event.status_code != 200:
            raise NoAnswer(f"it answered with status {event.status_code}")
        elif isinstance(event, h11.Data):
            answer += event.data
            if len(answer) > max_bytes:
                raise NoAnswer(f"it answered with more than {max_bytes} bytes")
        elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
            return bytes(answer)
