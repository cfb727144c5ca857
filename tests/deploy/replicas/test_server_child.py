"""Data folders of servers that run on one machine at a time."""

import os
from pathlib import Path

from deploy.replicas.server_child import _take_slot


def test_a_folder_belongs_to_one_server_and_then_to_the_next(tmp_path: Path) -> None:
    first, first_lock = _take_slot(tmp_path)
    second, second_lock = _take_slot(tmp_path)
    assert first != second
    os.close(first_lock)
    again, lock = _take_slot(tmp_path)
    assert again == first
    os.close(lock)
    os.close(second_lock)


def test_a_folder_is_taken_while_a_child_holds_its_lock(tmp_path: Path) -> None:
    folder, lock = _take_slot(tmp_path)
    inherited = os.dup(lock)
    os.close(lock)
    other, other_lock = _take_slot(tmp_path)
    assert other != folder
    os.close(other_lock)
    os.close(inherited)
