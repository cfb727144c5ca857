"""Keeps web pages away from a server without keys, whose only lock is the loopback address.

A browser reaches that address for every page that it shows. Such a request names the page's own
host, because the attacker's DNS points it here (rebinding), or carries the page's origin.
"""

import ipaddress
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from .error import ForeignOrigin

_SAFE_METHODS = frozenset({"GET", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class OriginCheck:
    """``hosts`` None accepts every ``Host``: for servers that were opened on purpose."""

    hosts: Collection[str] | None = None

    def check(self, method: str, headers: Headers) -> None:
        """Raise ``ForeignOrigin`` for a request that a web page of another origin caused."""
        host = _host_of(headers.get("host", ""))
        if self.hosts is not None and host not in self.hosts and not is_loopback(host):
            raise ForeignOrigin("the Host header names another host than this server listens on")
        is_foreign = headers.get("sec-fetch-site") in ("cross-site", "same-site")
        origin = headers.get("origin")
        if origin is not None:
            is_foreign = is_foreign or urlsplit(origin).netloc != headers.get("host", "")
        if is_foreign and method not in _SAFE_METHODS:
            raise ForeignOrigin("web pages of other origins may not use a server without API keys")


def _host_of(header: str) -> str:
    """Without the port, and without an IPv6 address's brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].lower()


def is_loopback(host: str) -> bool:
    """Whether only this machine can mean itself by ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
