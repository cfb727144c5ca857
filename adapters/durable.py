"""Writes that are on the disk when they return. A failing sync raises: it must never be retried,
since the kernel may have dropped the pages and would report success.
"""

import os
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
