"""A residency without threads: reads and copies end when the test says so."""

import math
from concurrent.futures import Future
from typing import Any

import torch

from multiflora.adapters.error import AdapterRejected
from multiflora.adapters.folder import AdapterFolder
from multiflora.adapters.known_outlines import Recipe
from multiflora.adapters.layout import FlatLayout
from multiflora.adapters.loader import Loader
from multiflora.adapters.residency import LoadResult, Residency
from multiflora.adapters.slots import Readiness
from multiflora.adapters.transfer import Arrival
from multiflora.adapters.version_reader import HostVersion, PlannedVersion
from multiflora.kernels.lora_tables import ListTables
from multiflora.kernels.matrix_copy import MatrixCopies
from tests.adapters.fake_lender import FakeLender

SIZES = {"a": 8, "b": 16, "c": 24, "d": 40, "e": 4, "f": 56}
BROKEN = "broken"
DEVICE_BYTES, HOST_BYTES = 80, 64


class Reader:
    """Versions of ``SIZES`` bytes; ``BROKEN`` cannot be read."""

    def plan(self, digest: str) -> PlannedVersion:
        size = SIZES.get(digest, 8)
        return PlannedVersion(
            digest, folder=_FOLDER, recipe=_RECIPE, num_bytes=size, host_bytes=size
        )

    def read(self, planned: PlannedVersion) -> HostVersion:
        if planned.digest == BROKEN:
            raise OSError(5, "the disk is on fire", "/a/secret/path")
        buffer = torch.zeros(planned.num_bytes, dtype=torch.uint8)
        return HostVersion(planned.layout, buffer, planned.host_bytes)


_FOLDER: AdapterFolder = None  # type: ignore[assignment]
_RECIPE = Recipe((), FlatLayout((), 0), MatrixCopies([]))


class Lane:
    """An executor whose work is done when the test says so."""

    def __init__(self) -> None:
        self.work: list[tuple[Future[Any], Any, tuple[Any, ...]]] = []

    def submit(self, function: Any, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.work.append((future, function, arguments))
        return future

    def finish(self, index: int) -> None:
        future, function, arguments = self.work.pop(index % len(self.work))
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)

    def shutdown(self, **_: object) -> None: ...


class Transfer:
    """Copies that are complete when the test says so, or memory that is shared."""

    def __init__(self, *, shares_memory: bool) -> None:
        self.shares_memory = shares_memory
        self.under_way: list[Copy] = []

    def start(self, buffer: torch.Tensor, *, into: torch.Tensor | None = None) -> Arrival:
        if self.shares_memory and into is None:
            return Arrival(buffer)
        self.under_way.append(Copy())
        return Arrival(buffer.clone() if into is None else into, self.under_way[-1])


class Copy:
    is_done = False

    def query(self) -> bool:
        return self.is_done


class World:
    """A residency without threads, and the requests around it."""

    def __init__(
        self, *, shares_memory: bool, large_bytes: int = 30, lends: tuple[int, int] = (0, 0)
    ) -> None:
        self.lane = Lane()
        self.lender = FakeLender(*lends)
        self.transfer = Transfer(shares_memory=shares_memory)
        self.seconds = 0.0
        self.budget_seconds = math.inf
        loader = Loader(Reader(), large_bytes=large_bytes)
        loader.close()
        loader._small_lane = loader._large_lane = self.lane  # type: ignore[assignment]
        self.residency = Residency(
            loader,
            ListTables(1),
            self.transfer,
            device_bytes=DEVICE_BYTES,
            host_bytes=HOST_BYTES,
            lender=self.lender,
            clock=lambda: self.seconds,
        )
        self.waiting: list[tuple[str, ...]] = []
        self.running: list[tuple[str, ...]] = []
        self.pinned: set[str] = set()
        self.asked_pins: set[str] = set()
        self.rejected: list[tuple[str, ...]] = []

    def take(self, results: list[LoadResult]) -> None:
        for result in results:
            if result.is_pin:
                self.asked_pins.discard(result.digest)
                if result.error is None:
                    self.pinned.add(result.digest)

    def step(self) -> None:
        """One turn of the loop: poll, say who waits, admit whoever is ready."""
        self.take(self.residency.poll(self.budget_seconds))
        self.residency.prefetch(self.waiting)
        for group in list(self.waiting):
            try:
                readiness = self.residency.prepare(group)
            except AdapterRejected:
                self.waiting.remove(group)
                self.rejected.append(group)
                continue
            if readiness is Readiness.READY:
                self.residency.lease(group)
                self.waiting.remove(group)
                self.running.append(group)
            elif readiness is Readiness.NO_ROOM:
                return

    def end(self, index: int) -> None:
        self.residency.release(self.running.pop(index % len(self.running)))

    def advance(self) -> None:
        """Everything under way ends, and every request that runs."""
        self.seconds += 10
        while self.lane.work:
            self.lane.finish(0)
        for copy in self.transfer.under_way:
            copy.is_done = True
        self.transfer.under_way.clear()
        self.step()
        while self.running:
            self.end(0)
