"""Writes that are on the disk when they return. A failing sync raises: it must never be retried,
since the kernel may have dropped the pages and would report success.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def sync(path: Path) -> None:
    """Wait until the file's content, or the folder's list of names, is on the disk.

    Raises ``OSError``.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write(path: Path, content: bytes) -> None:
    """Write a file and sync it; its name is durable once its folder is synced too."""
    path.write_bytes(content)
    sync(path)


def make_folder(path: Path) -> None:
    """Make a folder and its parents, each of them durable before it is used."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside ``path`` that becomes ``path``, durably, when the block ends.

    Whoever fills it syncs its files. If the block raises, nothing is left; a process that is killed
    leaves the hidden one. Raises ``FileExistsError`` if there is something at ``path``.
    """
    _refuse_existing(path)
    make_folder(path.parent)
    staged = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield staged
        staged.chmod(0o755)
        sync(staged)
        _refuse_existing(path)
        os.rename(staged, path)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    sync(path.parent)


def remove_folder(path: Path) -> None:
    """Delete a folder so that it is whole or gone under its name, whatever happens meanwhile.

    A process that is killed leaves a hidden folder beside it, as ``new_folder`` does. Without
    effect if there is none. Raises ``OSError``.
    """
    if not path.is_dir():
        return
    outgoing = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    os.rename(path, outgoing / path.name)
    sync(path.parent)
    shutil.rmtree(outgoing)


def _refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        raise FileExistsError(f"{path} exists; choose another folder, or remove it first")
