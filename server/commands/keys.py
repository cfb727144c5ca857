"""`multiflora keys`: make, list and revoke API keys, of a running server or a stopped one."""

import argparse
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import msgspec
from rich.console import Console
from rich.table import Table

from multiflora.adapters.database import Database
from multiflora.adapters.error import RegistryUnavailable
from multiflora.adapters.registry import DATABASE_NAME
from multiflora.adapters.registry_schema import MIGRATIONS

from ..access.api_key import ApiKey, KeyWish, parse_scopes
from ..access.caller import Scope
from ..access.key_file import KeyFile
from ..access.key_registry import KeyRegistry
from ..rate_limit import RateLimits, parse_limits
from ..setting_value import parse_path
from ..settings_source import KEY_VARIABLE
from .argument import DATA_DIR, typed

_DAY_SECONDS: Final = 24 * 3600
_TIMEOUT_SECONDS: Final = 30
_EPILOG: Final = (
    "A server that runs is the only writer of its database: use --server URL then, with an "
    f"administrator's key in {KEY_VARIABLE}. A key file can be changed at any time."
)
_Result = TypeVar("_Result")


class Keys(Protocol):
    """Where keys are kept."""

    def keys(self) -> tuple[ApiKey, ...]: ...

    def create(self, wish: KeyWish) -> tuple[ApiKey, str]: ...

    def revoke(self, key_id: str) -> ApiKey: ...


def add_to(commands: "argparse._SubParsersAction[Any]") -> None:
    """Register the command."""
    parser = commands.add_parser(
        "keys", help="make, list and revoke API keys", epilog=_EPILOG, allow_abbrev=False
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="make a key and print it, once", allow_abbrev=False)
    create.set_defaults(run=run_create)
    create.add_argument("name", help="what the key is for")
    create.add_argument(
        "--scopes",
        type=typed(parse_scopes),
        default=frozenset({Scope.INFERENCE}),
        metavar="SCOPE,...",
        help=f"what it may do: {', '.join(Scope)}; default: inference",
    )
    create.add_argument("--tenant", default="", help="whose things it sees and makes")
    create.add_argument(
        "--limits",
        type=typed(parse_limits),
        default=RateLimits(),
        metavar="LIMIT=N,...",
        help="such as requests=60,tokens=100000,concurrent=8; the first two are per minute",
    )
    create.add_argument("--expires-days", type=typed(_days), metavar="N", help="default: never")
    listing = actions.add_parser("list", help="show all keys but their text", allow_abbrev=False)
    listing.set_defaults(run=run_list)
    revoke = actions.add_parser("revoke", help="refuse a key from now on", allow_abbrev=False)
    revoke.set_defaults(run=run_revoke)
    revoke.add_argument("id", metavar="ID", help="the id that list shows")
    for action in (create, listing, revoke):
        place = action.add_mutually_exclusive_group()
        place.add_argument("--server", metavar="URL", help="a server that runs")
        place.add_argument("--api-key-file", type=parse_path, metavar="FILE", help="a key file")
        place.add_argument(
            "--data-dir", type=parse_path, default=DATA_DIR, metavar="DIR", help="a stopped server"
        )


def run_create(
    *,
    name: str,
    scopes: frozenset[Scope],
    tenant: str,
    limits: RateLimits,
    expires_days: int | None,
    **place: Any,
) -> int:
    """Print the key, alone on its line, so that a script can take it."""
    expires = None if expires_days is None else int(time.time()) + expires_days * _DAY_SECONDS
    wish = KeyWish(name=name, scopes=scopes, tenant=tenant, limits=limits, expires=expires)
    key, text = _with_keys(lambda keys: keys.create(wish), **place)
    Console(stderr=True).print(f"key {key.id}; it is not shown again", highlight=False)
    print(text)
    return 0


def run_list(**place: Any) -> int:
    table = Table("id", "name", "scopes", "tenant", "limits", "state")
    for key in _with_keys(lambda keys: keys.keys(), **place):
        limits = ", ".join(f"{n} {v}" for n, v in asdict(key.limits).items() if v is not None)
        table.add_row(
            key.id, key.name, " ".join(sorted(key.scopes)), key.tenant, limits, _state(key)
        )
    Console().print(table)
    return 0


def run_revoke(*, id: str, **place: Any) -> int:
    key = _with_keys(lambda keys: keys.revoke(id), **place)
    print(f"{key.id} ({key.name}) is revoked")
    return 0


def _with_keys(
    work: Callable[[Keys], _Result],
    *,
    action: str,
    server: str | None,
    api_key_file: Path | None,
    data_dir: Path,
) -> _Result:
    if server is not None:
        return work(_ServerKeys(server, os.environ.get(KEY_VARIABLE)))
    if api_key_file is not None:
        return work(KeyFile(api_key_file))
    with _database(data_dir) as database:
        return work(KeyRegistry(database))


@contextmanager
def _database(data_dir: Path) -> Iterator[Database]:
    path = data_dir / DATABASE_NAME
    try:
        database = Database.open(path, MIGRATIONS)
    except RegistryUnavailable as error:
        raise RegistryUnavailable(f"{error}; a server that runs is asked with --server") from None
    try:
        yield database
    finally:
        database.close()


class _ServerKeys:
    """Keys of a running server, over its own API."""

    def __init__(self, url: str, key: str | None) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"--server is {url!r}; it must begin with http:// or https://")
        self._url = f"{url.rstrip('/')}/v1/keys"
        self._headers = {"authorization": f"Bearer {key}"} if key else {}

    def keys(self) -> tuple[ApiKey, ...]:
        return tuple(_shown(item) for item in self._ask("GET")["data"])

    def create(self, wish: KeyWish) -> tuple[ApiKey, str]:
        body = {
            "name": wish.name,
            "scopes": sorted(wish.scopes),
            "tenant": wish.tenant,
            "limits": asdict(wish.limits),
            "expires_at": wish.expires,
        }
        answer = self._ask("POST", body=body)
        return _shown(answer), answer["key"]

    def revoke(self, key_id: str) -> ApiKey:
        return _shown(self._ask("DELETE", f"/{key_id}"))

    def _ask(self, method: str, path: str = "", *, body: object = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._url + path, data=data, headers=self._headers, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                raise ValueError(_complaint(error)) from None
        except urllib.error.URLError as error:
            raise OSError(f"{self._url} does not answer: {error.reason}") from None


def _complaint(error: urllib.error.HTTPError) -> str:
    try:
        return f"the server refused: {json.load(error)['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"the server answered {error.code}"


def _shown(item: dict[str, Any]) -> ApiKey:
    """A key as the API shows it; its hash stays with the server."""
    names = {"created": "created_at", "expires": "expires_at", "revoked": "revoked_at"}
    fields = {**item, "hash": "", **{name: item[shown] for name, shown in names.items()}}
    return msgspec.convert(fields, ApiKey)


def _state(key: ApiKey) -> str:
    if key.revoked is not None:
        return "revoked"
    if key.expires is None:
        return "valid"
    day = time.strftime("%Y-%m-%d", time.gmtime(key.expires))
    return f"valid until {day}" if key.is_valid(time.time()) else f"expired {day}"


def _days(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{text!r} is not a number of days")
    return int(text)
