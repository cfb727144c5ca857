"""A name resolves and is leased in one step; leases are returned exactly once."""

import threading

import pytest

from multiflora.adapters.registry import Registry


def test_a_lease_keeps_the_version_it_was_taken_on() -> None:
    registry = Registry()
    registry.publish("tone", "old")
    lease = registry.lease("tone")
    registry.publish("tone", "new")
    assert lease.digest == "old"
    assert registry.lease("tone").digest == "new"
    assert registry.num_leases("old") == 1


def test_unknown_names_are_key_errors() -> None:
    with pytest.raises(KeyError):
        Registry().lease("nobody")


def test_releasing_twice_releases_once() -> None:
    registry = Registry()
    registry.publish("tone", "digest")
    with registry.lease("tone"), registry.lease("tone") as lease:
        lease.release()
        assert registry.num_leases("digest") == 1
    assert registry.num_leases("digest") == 0


def test_entries_are_sorted_by_name() -> None:
    registry = Registry()
    for name in ("b", "a", "c"):
        registry.publish(name, name * 64)
    assert [entry.name for entry in registry.entries()] == ["a", "b", "c"]


def test_leases_from_many_threads_balance() -> None:
    registry = Registry()
    registry.publish("tone", "digest")

    def work() -> None:
        for _ in range(300):
            registry.lease("tone").release()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert registry.num_leases("digest") == 0
