"""The file system that holds the data directory, and the database on it."""

import shutil
from pathlib import Path

from .exposition import Exposition


def write_disk(page: Exposition, data_dir: Path, database: Path) -> None:
    """Room on the disk, and what of the database's log waits to be written back."""
    usage = shutil.disk_usage(data_dir)
    page.gauge("multiflora_data_free_bytes", "Free room of the data directory.", [("", usage.free)])
    page.gauge("multiflora_data_bytes", "Size of its file system.", [("", usage.total)])
    log = database.with_name(f"{database.name}-wal")
    size = log.stat().st_size if log.exists() else 0
    page.gauge("multiflora_database_log_bytes", "Write-ahead log.", [("", size)])
