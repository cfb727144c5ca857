"""Versions come into memory, make room for each other, and fail by name."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from multiflora.adapters.error import AdapterRejected
from multiflora.adapters.intake import import_adapter
from multiflora.adapters.loader import Loader
from multiflora.adapters.residency import Residency
from multiflora.adapters.slots import Readiness
from multiflora.adapters.store import AdapterStore
from multiflora.adapters.target import Projection
from multiflora.adapters.transfer import SharedTransfer
from multiflora.adapters.version_reader import VersionReader
from multiflora.kernels.lora_tables import ListTables
from multiflora.kernels.ops import LoraFactors


@pytest.fixture
def digests(
    write_adapter: Callable[..., Path], projections: tuple[Projection, ...], tmp_path: Path
) -> list[str]:
    store = AdapterStore(tmp_path)
    return [
        import_adapter(write_adapter(f"a{r}", rank=r), projections=projections, store=store)
        for r in (4, 4 + 1, 8)
    ]


@pytest.fixture
def make_residency(
    projections: tuple[Projection, ...], tmp_path: Path
) -> Iterator[Callable[..., Residency]]:
    made: list[Residency] = []

    def make(
        capacity_bytes: int,
        host_bytes: int = 1 << 20,
    ) -> Residency:
        reader = VersionReader(
            AdapterStore(tmp_path),
            projections,
            dtype=torch.float32,
            max_rank=None,
            is_pinned=False,
        )
        made.append(
            Residency(
                Loader(reader),
                ListTables(len(projections)),
                SharedTransfer(),
                device_bytes=capacity_bytes,
                host_bytes=host_bytes,
            )
        )
        return made[-1]

    yield make
    for residency in made:
        residency.close()


def in_slot(residency: Residency, slot: int) -> list[LoraFactors | None]:
    """What each of the eight projections holds in ``slot``."""
    return [residency.tables.projection(index)[slot] for index in range(8)]


def settle(residency: Residency, *digests: str) -> Readiness:
    """Prepare for the only waiting request until nothing loads any more."""
    residency.prefetch([digests])
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        residency.poll()
        readiness = residency.prepare(digests)
        if readiness is not Readiness.LOADING:
            return readiness
        time.sleep(0.002)
    raise AssertionError("the load never ended")


def test_a_version_is_loading_first_and_ready_later(
    make_residency: Callable[..., Residency], digests: list[str]
) -> None:
    residency = make_residency(1 << 20)
    assert residency.prepare(digests[:1]) is Readiness.LOADING
    assert settle(residency, digests[0]) is Readiness.READY
    slot = residency.slots.slot_of(digests[0])
    touched = [factors is not None for factors in in_slot(residency, slot)]
    assert touched == [True, False, False, True] * 2


def test_what_the_budget_has_no_time_for_is_taken_in_later(
    make_residency: Callable[..., Residency], digests: list[str]
) -> None:
    residency = make_residency(1 << 20)
    for digest in digests:
        residency.start_load(digest)
    arrived: list[int] = []
    for _ in range(100):
        time.sleep(0.05)  # long enough for all of them to be read
        arrived.append(len(residency.poll(0)))
        if sum(arrived) == len(digests):
            break
    assert sum(arrived) == len(digests)
    assert max(arrived) == 1
    assert all(residency.slots.is_ready(digest) for digest in digests)


def test_idle_versions_make_room_and_leased_ones_stay(
    make_residency: Callable[..., Residency], digests: list[str]
) -> None:
    probe = make_residency(1 << 20)
    settle(probe, digests[0])
    residency = make_residency(int(probe.slots.used_bytes * 1.5))
    assert settle(residency, digests[0]) is Readiness.READY
    residency.lease(digests[:1])
    assert settle(residency, digests[1]) is Readiness.NO_ROOM
    assert digests[0] in residency.slots
    residency.release(digests[:1])
    assert settle(residency, digests[1]) is Readiness.READY
    assert digests[0] not in residency.slots


def test_two_versions_of_one_request_do_not_evict_each_other(
    make_residency: Callable[..., Residency], digests: list[str]
) -> None:
    probe = make_residency(1 << 20)
    settle(probe, *digests[:2])
    residency = make_residency(probe.slots.used_bytes)
    settle(residency, digests[0])
    assert settle(residency, *digests[:2]) is Readiness.READY
    assert set(residency.slots.digests()) == set(digests[:2])


def test_a_version_larger_than_the_memory_is_refused_with_both_numbers(
    make_residency: Callable[..., Residency], digests: list[str]
) -> None:
    residency = make_residency(64)
    with pytest.raises(AdapterRejected, match="--adapter-memory is 64"):
        settle(residency, digests[0])


def test_a_blend_that_never_fits_together_is_refused(
    make_residency: Callable[..., Residency], digests: list[str]
) -> None:
    probe = make_residency(1 << 20)
    settle(probe, *digests[:2])
    residency = make_residency(probe.slots.used_bytes - 1)
    with pytest.raises(AdapterRejected, match="the blend's versions need"):
        settle(residency, *digests[:2])


def test_a_version_that_is_not_stored_fails_and_can_be_tried_again(
    make_residency: Callable[..., Residency],
) -> None:
    residency = make_residency(1 << 20)
    with pytest.raises(AdapterRejected, match="not in the store"):
        settle(residency, "0" * 64)
    residency.start_load("0" * 64)
    assert residency.is_loading


def test_unloading_waits_for_the_last_lease(
    make_residency: Callable[..., Residency], digests: list[str]
) -> None:
    residency = make_residency(1 << 20)
    settle(residency, digests[0])
    slot = residency.slots.slot_of(digests[0])
    residency.lease(digests[:1])
    assert not residency.unload(digests[0])
    residency.release(digests[:1])
    assert residency.unload(digests[0])
    assert not any(in_slot(residency, slot))
    assert residency.slots.used_bytes == 0


def test_loads_ahead_of_room_are_held_within_the_budget(
    make_residency: Callable[..., Residency], digests: list[str]
) -> None:
    probe = make_residency(1 << 20)
    settle(probe, digests[2])
    largest = probe.slots.used_bytes
    residency = make_residency(largest, largest)
    for digest in digests:
        residency.start_load(digest)
        while residency.is_loading:
            residency.poll()
    assert residency.slots.digests() == (digests[0],)
    assert residency.host.digests() == (digests[2],)
    assert residency.host.used_bytes <= largest
    for digest in (*digests, *digests):
        assert settle(residency, digest) is Readiness.READY


def test_a_version_that_is_held_needs_no_second_load(
    make_residency: Callable[..., Residency], digests: list[str]
) -> None:
    residency = make_residency(1 << 20)
    assert residency.start_load(digests[0])
    settle(residency, digests[0])
    assert not residency.start_load(digests[0])


def test_unloading_during_a_load_waits_for_its_end(
    make_residency: Callable[..., Residency], digests: list[str]
) -> None:
    residency = make_residency(1 << 20)
    residency.start_load(digests[0])
    assert not residency.unload(digests[0])
    while residency.is_loading:
        residency.poll()
    assert residency.unload(digests[0])
