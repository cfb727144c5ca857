"""Where every version is, and its way between disk, host memory and the device.

                 plan, read (threads)        copy (a stream)
        disk  ------------------------> host -------------> device
                  reserved before          kept, if there is room, when it leaves the device

On CUDA the host tier keeps its copy of a version that is on the device, so that leaving costs
nothing. On a CPU both tiers are the same memory: a version moves between them and counts once, but
for one in borrowed memory, which is a copy there too.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from multiflora.kernels.ops import LoraTables

from .device_tier import DeviceTier
from .error import AdapterRejected
from .host_tier import HostTier
from .loader import Loader
from .loan import Lender, NoLender
from .recent_failure import RecentFailures
from .slots import Readiness
from .tier import Tier
from .transfer import Transfer
from .version_reader import HostVersion, PlannedVersion
from .wish import WishList

# Small versions on their way to host memory at one time, and all that were looked at.
_MAX_SMALL_LOADS: Final = 8
_MAX_LOADS: Final = 64
# How often small loads may take host memory that an earlier one waits for.
_MAX_OVERTAKES: Final = 32


@dataclass(frozen=True, slots=True)
class LoadResult:
    """The end of a load or, with ``is_pin``, of a pin; ``error`` is None if it succeeded."""

    digest: str
    error: AdapterRejected | None
    is_pin: bool = False


@dataclass(slots=True)
class _WaitingLoad:
    """A planned load that host memory has no room for yet."""

    planned: PlannedVersion
    num_overtakes: int = 0


class Residency:
    """Decides what is loaded, placed, kept and evicted. Only the engine's loop calls it."""

    def __init__(
        self,
        loader: Loader,
        tables: LoraTables,
        transfer: Transfer,
        *,
        device_bytes: int,
        host_bytes: int,
        lender: Lender | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.num_loads = 0
        self.num_copies = 0
        self.arrivals: Counter[Tier] = Counter()
        self.tables = tables
        self._loader = loader
        self._device = DeviceTier(tables, transfer, device_bytes, lender or NoLender())
        self.slots = self._device.slots
        self.adjustments, self.ranks = self._device.adjustments, self._device.ranks
        self.load_seconds = {**loader.seconds, "copy": self._device.copy_seconds}
        self.load_failures: Counter[str] = Counter()
        self.host: HostTier[HostVersion] = HostTier(host_bytes)
        self._clock = clock
        self._wishes = WishList()
        self._waiting: dict[str, _WaitingLoad] = {}
        self._failures = RecentFailures(clock)

    def close(self) -> None:
        self._loader.close()

    # What the scheduler asks.

    def prefetch(self, groups: Iterable[Sequence[str]]) -> None:
        """Say which versions waiting requests need, the next to be admitted first.

        Replaces what was said before: versions that nobody waits for any more are not read. Places
        the first ones in device memory, at the cost of nobody who comes before them.
        """
        self._wishes.replace(groups)
        self._start_loads()
        for digest in self._wishes.first():
            if digest in self.host and digest not in self.slots:
                self._place(digest)

    def prepare(self, digests: Iterable[str], *, is_blend: bool = False) -> Readiness:
        """Start whatever is needed.

        Raises ``AdapterRejected`` if one of the loads failed, or if a blend cannot have one of the
        versions.
        """
        wanted = tuple(dict.fromkeys(digests))
        for digest in wanted:
            if failure := self._failures.find(digest):
                raise failure
            if self.tier_of(digest) is Tier.DISK and self._wishes.add(digest):
                self._start_loads()
        missing = [digest for digest in wanted if digest not in self.slots]
        placed = [self._place(d, mates=wanted) for d in missing if d in self.host]
        if not all(placed):
            self._check_fit(wanted)
            return Readiness.NO_ROOM
        if not all(self.slots.is_ready(digest) for digest in wanted):
            return Readiness.LOADING
        if is_blend:
            self._check_blend(wanted)
        return Readiness.READY

    def lease(self, digests: Iterable[str]) -> None:
        for digest in digests:
            self.slots.lease(digest)
            self._wishes.serve(digest)
            self.host.touch(digest)

    def release(self, digests: Iterable[str]) -> None:
        for digest in digests:
            self.slots.release(digest)

    def call_in(self, *, keep: Sequence[str] = ()) -> bool:
        """Give the borrowed memory of one idle version back; False if there is none.

        Versions in ``keep`` stay.
        """
        return self._device.call_in(keep=keep) is not None

    def count_arrival(self, digests: Iterable[str]) -> None:
        """Note where a new request finds its versions."""
        for digest in digests:
            self.arrivals[self.tier_of(digest)] += 1

    # What commands ask.

    def start_load(self, digest: str) -> bool:
        """Begin loading, or report that there is nothing to load; forgets an earlier failure."""
        self._failures.forget(digest)
        if self.tier_of(digest) is not Tier.DISK:
            return False
        self._wishes.loads[digest] = None
        self._start_loads()
        return True

    def pin(self, digest: str) -> None:
        """Bring ``digest`` to the device and keep it there; ``poll`` tells how that ended."""
        self._failures.forget(digest)
        self._wishes.pins[digest] = None
        self._start_loads()

    def unpin(self, digest: str) -> None:
        """Let a version be evicted again; a pin that still waits is given up without a result."""
        self._wishes.pins.pop(digest, None)
        self.slots.unpin(digest)

    def unload(self, digest: str) -> bool:
        """Free an idle version's memory in both tiers; False while it is in use or on its way."""
        self._failures.forget(digest)
        if digest in self._loader or digest in self._waiting or digest in self._wishes.pins:
            return False
        if digest in self.slots:
            if not self.slots.can_leave(digest):
                return False
            self._device.remove(digest)
        self.host.drop(digest)
        return True

    def poll(self, budget_seconds: float = math.inf) -> list[LoadResult]:
        """Take in finished reads and copies; called between steps.

        A version of hundreds of matrices takes a millisecond or two to become usable. Once
        ``budget_seconds`` are spent, the others stay for the next call, which takes one at least.
        """
        deadline = self._clock() + budget_seconds
        results = [*self._take_plans(), *self._take_reads(deadline)]
        for digest in self._device.take_arrivals():
            self.host.hold(digest, False)
            if self._clock() >= deadline:
                break
        results += self._settle_pins()
        self._start_loads()
        return results

    @property
    def is_loading(self) -> bool:
        return bool(len(self._loader) or self._waiting or self._device.is_copying)

    def tier_of(self, digest: str) -> Tier:
        if self.slots.is_ready(digest):
            return Tier.DEVICE
        # While it is copied its bytes are still in host memory.
        return Tier.HOST if digest in self.host or digest in self.slots else Tier.DISK

    def tiers(self) -> dict[str, Tier]:
        """The tier of every version that is in memory; all others are on disk."""
        return {d: self.tier_of(d) for d in (*self.host.digests(), *self.slots.digests())}

    # Disk to host.

    def _start_loads(self) -> None:
        """Read what is wished for, most urgent first, as far as memory and threads go."""
        for digest in [d for d in self._waiting if not self._wishes.has(d)]:
            del self._waiting[digest]
        overtaken: list[_WaitingLoad] = []
        for digest in [d for d in self._wishes.ordered() if d in self._waiting]:
            load = self._waiting[digest]
            if not self._loader.has_lane_for(load.planned):
                continue
            if self._start_read(load.planned):
                for other in overtaken:
                    other.num_overtakes += 1
            elif load.num_overtakes >= _MAX_OVERTAKES:
                return
            else:
                overtaken.append(load)
        self._start_plans()

    def _start_plans(self) -> None:
        for digest in self._wishes.ordered():
            is_full = self._loader.num_small >= _MAX_SMALL_LOADS
            if is_full or len(self._loader) + len(self._waiting) >= _MAX_LOADS:
                return
            if self._is_missing(digest):
                self._loader.plan(digest)

    def _is_missing(self, digest: str) -> bool:
        is_under_way = digest in self._loader or digest in self._waiting
        is_missing = self.tier_of(digest) is Tier.DISK and not is_under_way
        return is_missing and not self._failures.find(digest)

    def _start_read(self, planned: PlannedVersion) -> bool:
        keep = self._wishes.keep(planned.digest, apart_from=self.slots.digests())
        if not self.host.reserve(planned.digest, planned.host_bytes, keep=keep):
            return False
        del self._waiting[planned.digest]
        self._loader.read(planned)
        self.num_loads += 1
        return True

    def _take_plans(self) -> Iterator[LoadResult]:
        for finished in self._loader.take_plans():
            try:
                if isinstance(finished.outcome, AdapterRejected):
                    raise finished.outcome
                self._check_size(finished.outcome)
            except AdapterRejected as error:
                yield from self._fail(finished.digest, error)
            else:
                self._waiting[finished.digest] = _WaitingLoad(finished.outcome)

    def _check_size(self, planned: PlannedVersion) -> None:
        for needed, flag, limit in (
            (planned.num_bytes, "--adapter-memory", self.slots.capacity_bytes),
            (planned.host_bytes, "--adapter-host-memory", self.host.capacity_bytes),
        ):
            if needed > limit:
                raise AdapterRejected(
                    "adapter_too_large",
                    f"version {planned.digest[:12]} needs {needed} bytes, {flag} is {limit}",
                )

    def _take_reads(self, deadline: float) -> Iterator[LoadResult]:
        for finished in self._loader.take_reads():
            digest = finished.digest
            if isinstance(finished.outcome, AdapterRejected):
                self.host.drop(digest)
                yield from self._fail(digest, finished.outcome)
                continue
            self.host.fill(digest, finished.outcome)
            # Evict nobody for it yet: the request that needs it knows which others must stay.
            self._place(digest, mates=self.slots.digests())
            if digest in self._wishes.loads:
                del self._wishes.loads[digest]
                yield LoadResult(digest, None)
            if self._clock() >= deadline:
                return

    def _fail(self, digest: str, error: AdapterRejected) -> Iterator[LoadResult]:
        self._failures.add(digest, error)
        self.load_failures[error.code] += 1
        if digest in self._wishes.loads:
            del self._wishes.loads[digest]
            yield LoadResult(digest, error)
        if digest in self._wishes.pins:
            del self._wishes.pins[digest]
            self.slots.unpin(digest)
            yield LoadResult(digest, error, is_pin=True)

    # Host to device.

    def _place(self, digest: str, *, mates: Sequence[str] = (), is_first: bool = False) -> bool:
        """Begin to bring a host version to the device; False without room.

        Versions that waiting requests wish for make room only for one that ``is_first``.
        """
        version = self.host.get(digest)
        assert version is not None
        keep = {*mates, *(() if is_first else self._wishes.keep(digest))}
        is_pinned = digest in self._wishes.pins or digest in self.slots.pinned
        arriving = self._device.place(digest, version, keep=keep, may_borrow=not is_pinned)
        if arriving is None:
            return False
        if not arriving.is_copy:
            self.host.drop(digest)
        elif not self.slots.is_ready(digest):
            self.host.hold(digest, True)
        self.num_copies += 1
        for victim, given_back in arriving.evicted.items():
            if given_back and self.host.reserve(
                victim, given_back.host_bytes, keep=self._wishes.keep(victim)
            ):
                self.host.fill(victim, given_back)
        return True

    def _check_fit(self, wanted: Sequence[str]) -> None:
        """Refuse versions that can never be resident together beside the pinned ones."""
        sizes = {d: self._bytes_of(d) for d in wanted}
        if (needed := sum(sizes.values())) > self.slots.capacity_bytes:
            raise AdapterRejected(
                "adapter_too_large",
                f"the blend's versions need {needed} bytes together, --adapter-memory is "
                f"{self.slots.capacity_bytes}",
            )
        pinned, free = self.slots.pinned, self.slots.capacity_bytes - self.slots.pinned_bytes
        if (needed := sum(size for d, size in sizes.items() if d not in pinned)) > free:
            raise AdapterRejected(
                "no_room_beside_pinned",
                f"{needed} bytes of adapters are needed, {free} are not pinned; unpin a version "
                "or raise --adapter-memory",
            )

    def _check_blend(self, wanted: Sequence[str]) -> None:
        for digest in wanted:
            if not self.adjustments.is_additive(self.slots.slot_of(digest)):
                raise AdapterRejected(
                    "not_blendable",
                    f"version {digest[:12]} scales or replaces what the base computes and cannot "
                    "be blended; use it alone",
                )

    def _bytes_of(self, digest: str) -> int:
        """Bytes on the device; 0 while nobody has looked at the version yet."""
        if digest in self.slots:
            return self.slots.bytes_of(digest)
        if digest in self._waiting:
            return self._waiting[digest].planned.num_bytes
        version = self.host.get(digest)
        return version.num_bytes if version else 0

    # Pins.

    def _settle_pins(self) -> Iterator[LoadResult]:
        for digest in tuple(self._wishes.pins):
            if digest in self.slots and self.slots.is_borrowed(digest):
                self._leave_loan(digest)
                continue
            if self.tier_of(digest) is Tier.DISK:
                continue
            if not self.slots.pin(digest, self._bytes_of(digest)):
                del self._wishes.pins[digest]
                yield LoadResult(digest, self._pin_refusal(digest), is_pin=True)
                continue
            if digest not in self.slots:
                # Before those who wait: one of them may wait for host memory that this one holds.
                self._place(digest, is_first=True)
            if self.slots.is_ready(digest):
                del self._wishes.pins[digest]
                yield LoadResult(digest, None, is_pin=True)

    def _leave_loan(self, digest: str) -> None:
        """A pin promises memory of its own: the version is placed anew once nobody uses it."""
        if self.slots.can_leave(digest):
            self._device.remove(digest)

    def _pin_refusal(self, digest: str) -> AdapterRejected:
        return AdapterRejected(
            "pin_too_large",
            f"version {digest[:12]} needs {self._bytes_of(digest)} bytes, "
            f"{self.slots.pinned_bytes} of {self.slots.capacity_bytes} are pinned already; unpin "
            "another one or raise --adapter-memory",
        )
