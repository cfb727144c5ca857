"""Adapters that replicas on any machine share: versions by their content, names that point at them.

A version is written once under its digest, its config last, so that what has a config is whole.
Whoever fetches it has it checked again and compares digests: the store is not trusted.
"""

from pathlib import Path, PurePosixPath
from typing import Final
from urllib.parse import urlsplit
from urllib.request import url2pathname

import obstore
from obstore.store import LocalStore, ObjectStore, from_url

from multiflora.adapters.folder import CONFIG_NAME
from multiflora.adapters.name import check_name
from multiflora.adapters.version import is_digest

_NAMES: Final = "names"
_VERSIONS: Final = "versions"


class CommonStore:
    """``url`` is ``file:///folder``, ``s3://bucket/prefix`` or another that obstore opens.

    Credentials are those of the environment. Methods block, and raise ``OSError`` or obstore's
    errors where the store cannot be reached.
    """

    def __init__(self, url: str) -> None:
        self._store = _open(url)

    def names(self) -> list[str]:
        found = obstore.list(self._store, _NAMES).collect()
        return sorted(PurePosixPath(item["path"]).name for item in found)

    def digest_of(self, name: str) -> str | None:
        """The version that ``name`` points at; None is no such name."""
        try:
            check_name(name)
            content = bytes(obstore.get(self._store, f"{_NAMES}/{name}").bytes())
        except (FileNotFoundError, ValueError):
            return None
        digest = content.decode("ascii", "replace")
        if not is_digest(digest):
            raise OSError(f"the common store says that {name!r} is {digest[:80]!r}, no digest")
        return digest

    def point(self, name: str, digest: str) -> None:
        """Have ``name`` point at a version that was ``put``. Raises ``InvalidName``."""
        check_name(name)
        obstore.put(self._store, f"{_NAMES}/{name}", digest.encode())

    def forget(self, name: str) -> None:
        """Remove a name; its versions stay."""
        check_name(name)
        obstore.delete(self._store, f"{_NAMES}/{name}")

    def put(self, digest: str, folder: Path) -> None:
        """Store the version in ``folder``, which was checked, unless it is there."""
        if f"{_VERSIONS}/{digest}/{CONFIG_NAME}" in self._files(digest):
            return
        for path in sorted(folder.iterdir(), key=lambda path: path.name == CONFIG_NAME):
            obstore.put(self._store, f"{_VERSIONS}/{digest}/{path.name}", path)

    def fetch(self, digest: str, folder: Path) -> None:
        """Copy a version into the empty ``folder``. Raises ``OSError`` if there is no such one."""
        files = self._files(digest)
        if f"{_VERSIONS}/{digest}/{CONFIG_NAME}" not in files:
            raise OSError(f"the common store has no version {digest[:12]}; publish it again")
        for file in files:
            with (folder / PurePosixPath(file).name).open("wb") as target:
                for chunk in obstore.get(self._store, file).stream():
                    target.write(chunk)

    def _files(self, digest: str) -> list[str]:
        found = obstore.list(self._store, f"{_VERSIONS}/{digest}").collect()
        return [item["path"] for item in found]


def _open(url: str) -> ObjectStore:
    parts = urlsplit(url)
    if parts.scheme == "file":
        return LocalStore(url2pathname(parts.path), mkdir=True)
    if not parts.scheme:
        raise ValueError(f"{url!r} is no URL of a store; give file:///folder or s3://bucket/prefix")
    return from_url(url)
