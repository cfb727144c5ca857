"""Any interleaving of changes, leases, collections and restarts equals a model of plain dicts."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    rule,
    run_state_machine_as_test,
)

from multiflora.adapters.error import PreconditionFailed, RegistryError
from multiflora.adapters.folder import AdapterFolder
from multiflora.adapters.lease import Lease
from multiflora.adapters.registry import Registry
from multiflora.adapters.version import Version

KEEP_LAST = 3
DIGESTS = tuple(f"{number:064x}" for number in range(7))
digests = st.sampled_from(DIGESTS)
names = st.sampled_from(("a", "b"))


@dataclass
class NameModel:
    """``stack`` ends with the active version; ``kept`` begins with the one used last."""

    stack: list[str]
    kept: list[str] = field(default_factory=list)
    canary: tuple[str, float] | None = None

    @property
    def in_use(self) -> set[str]:
        return {self.stack[-1]} | ({self.canary[0]} if self.canary else set())

    def touch(self, digest: str) -> None:
        self.kept = [digest, *(kept for kept in self.kept if kept != digest)]
        self.trim(digest)

    def trim(self, latest: str) -> None:
        """Drop the last one that may go, until few enough are left or none may go."""
        spared = self.in_use | {latest}
        while len(self.kept) > KEEP_LAST and set(self.kept) - spared:
            self.forget([digest for digest in self.kept if digest not in spared][-1])

    def forget(self, digest: str) -> None:
        self.kept.remove(digest)
        self.stack = [other for other in self.stack if other != digest]

    def activate(self, digest: str, *, pops: bool = False) -> None:
        if pops and digest in self.stack:
            self.stack = self.stack[: self.stack.index(digest) + 1]
        else:
            self.stack = [*(other for other in self.stack if other != digest), digest]
        if self.canary and self.canary[0] == digest:
            self.canary = None
        self.touch(digest)


class RegistryMachine(RuleBasedStateMachine):
    """``folder`` is any adapter: here the bytes' own digest does not matter."""

    folder: AdapterFolder
    memory: Path
    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.data = Path(tempfile.mkdtemp(dir=self.memory))
        self.registry = Registry.open(self.data, keep_last=KEEP_LAST)
        self.names: dict[str, NameModel] = {}
        self.candidates: set[str] = set()
        self.known: set[str] = set()
        self.held: list[Lease] = []

    def teardown(self) -> None:
        self.registry.close()
        shutil.rmtree(self.data)

    def attempt(self, act: Callable[[], object], *, is_allowed: bool) -> bool:
        """The registry refuses exactly what the model does not allow."""
        try:
            act()
        except RegistryError:
            assert not is_allowed
            return False
        assert is_allowed
        return True

    def is_kept(self, digest: str) -> bool:
        return any(digest in model.kept for model in self.names.values())

    @rule(digest=digests)
    def publish(self, digest: str) -> None:
        assert self.registry.store is not None
        self.registry.store.put_copy(digest, self.folder)
        self.registry.publish_version(Version(digest))
        self.known.add(digest)
        if not self.is_kept(digest):
            self.candidates.add(digest)

    @rule(digest=digests)
    def abandon_an_import(self, digest: str) -> None:
        assert self.registry.store is not None
        self.registry.store.put_copy(digest, self.folder)
        self.registry.store.release(digest)

    @rule(name=names, digest=digests)
    def point(self, name: str, digest: str) -> None:
        allowed = digest in self.known
        if self.attempt(partial(self.registry.point, name, digest), is_allowed=allowed):
            model = self.names.setdefault(name, NameModel([digest]))
            if not model.kept or model.stack[-1] != digest:
                model.activate(digest)
            self.candidates.discard(digest)

    @rule(name=names, digest=digests, expected=digests)
    def swap_if_unchanged(self, name: str, digest: str, expected: str) -> None:
        model = self.names.get(name)
        if model is None or model.stack[-1] != expected:
            with pytest.raises(PreconditionFailed):
                self.registry.point(name, digest, if_match=expected)
        else:
            self.point(name, digest)

    @rule(name=names, digest=digests)
    def keep(self, name: str, digest: str) -> None:
        allowed = name in self.names and digest in self.known
        act = partial(self.registry.point, name, digest, activate=False)
        if self.attempt(act, is_allowed=allowed) and digest not in self.names[name].kept:
            self.names[name].touch(digest)
            self.candidates.discard(digest)

    @rule(name=names)
    def roll_back(self, name: str) -> None:
        allowed = name in self.names and len(self.names[name].stack) > 1
        if self.attempt(partial(self.registry.rollback, name), is_allowed=allowed):
            self.names[name].activate(self.names[name].stack[-2], pops=True)

    @rule(name=names, digest=digests)
    def roll_back_to(self, name: str, digest: str) -> None:
        allowed = name in self.names and digest in self.names[name].kept
        act = partial(self.registry.rollback, name, digest)
        if self.attempt(act, is_allowed=allowed) and self.names[name].stack[-1] != digest:
            self.names[name].activate(digest, pops=True)

    @rule(name=names, digest=digests, weight=st.sampled_from((0.2, 0.5, 1.0)))
    def set_canary(self, name: str, digest: str, weight: float) -> None:
        model = self.names.get(name)
        allowed = model is not None and digest in self.known and model.stack[-1] != digest
        act = partial(self.registry.set_canary, name, digest, weight)
        if self.attempt(act, is_allowed=allowed) and model and model.canary != (digest, weight):
            model.canary = (digest, weight)
            model.touch(digest)
            self.candidates.discard(digest)

    @rule(name=names)
    def clear_canary(self, name: str) -> None:
        allowed = name in self.names
        if self.attempt(partial(self.registry.clear_canary, name), is_allowed=allowed):
            model = self.names[name]
            canary, model.canary = model.canary, None
            if canary:
                model.trim(canary[0])

    @rule(name=names)
    def promote(self, name: str) -> None:
        model = self.names.get(name)
        canary = model.canary if model else None
        allowed = canary is not None
        if self.attempt(partial(self.registry.promote, name), is_allowed=allowed):
            assert model is not None
            assert canary is not None
            model.activate(canary[0])

    @rule(name=names)
    def delete(self, name: str) -> None:
        if self.attempt(partial(self.registry.delete, name), is_allowed=name in self.names):
            del self.names[name]

    @rule(digest=digests)
    def retire(self, digest: str) -> None:
        in_use = any(digest in model.in_use for model in self.names.values())
        allowed = digest in self.known and not in_use
        if self.attempt(partial(self.registry.retire, digest), is_allowed=allowed):
            self.candidates.discard(digest)
            for model in self.names.values():
                if digest in model.kept:
                    model.forget(digest)

    @rule(target=leases, name=names, user=st.sampled_from((None, "u", "v")))
    def lease(self, name: str, user: str | None) -> Lease | None:
        if name not in self.names:
            with pytest.raises(KeyError):
                self.registry.lease(name, user)
            return None
        model = self.names[name]
        lease = self.registry.lease(name, user)
        expected = model.canary[0] if lease.is_canary and model.canary else model.stack[-1]
        assert lease.digest == expected
        assert lease.is_canary or not model.canary or model.canary[1] < 1
        if user is not None:
            with self.registry.lease(name, user) as again:
                assert again.digest == lease.digest
        self.held.append(lease)
        return lease

    @rule(lease=consumes(leases))
    def release(self, lease: Lease | None) -> None:
        """Leases from before a restart mean nothing to the registry that is open."""
        if lease is not None:
            lease.release()
            lease.release()
            self.held = [other for other in self.held if other is not lease]

    @rule()
    def collect(self) -> None:
        in_need = self.candidates | {lease.digest for lease in self.held}
        expected = {d for d in self.known - in_need if not self.is_kept(d)}
        assert set(self.registry.collect()) == expected
        self.known -= expected
        assert self.registry.store is not None
        assert set(self.registry.store.digests()) == self.known
        assert not list((self.data / "adapters").glob(".*"))

    @rule()
    def reopen(self) -> None:
        self.registry.close()
        self.registry = Registry.open(self.data, keep_last=KEEP_LAST)
        self.held = []

    @invariant()
    def pointers_and_canaries_are_the_models(self) -> None:
        found = {
            entry.name: (
                entry.digest,
                list(entry.kept),
                (entry.canary.digest, entry.canary.weight) if entry.canary else None,
            )
            for entry in self.registry.entries()
        }
        assert found == {
            name: (model.stack[-1], model.kept, model.canary) for name, model in self.names.items()
        }

    @invariant()
    def every_known_version_has_its_bytes(self) -> None:
        assert self.registry.store is not None
        for digest in self.known:
            assert digest in self.registry.store
            assert self.registry.version(digest).digest == digest
        assert set(self.registry.candidates()) == self.candidates

    @invariant()
    def leases_are_counted(self) -> None:
        held = Counter(lease.digest for lease in self.held)
        assert self.registry.leases_by_digest() == held


@pytest.mark.parametrize(
    "num_runs", [60, pytest.param(400, marks=pytest.mark.full)], ids=["few", "many"]
)
def test_the_registry_equals_its_model(
    tiny_folder: AdapterFolder, memory_folder: Path, num_runs: int
) -> None:
    RegistryMachine.folder, RegistryMachine.memory = tiny_folder, memory_folder
    run_state_machine_as_test(
        RegistryMachine,
        settings=settings(max_examples=num_runs, stateful_step_count=40, deadline=None),
    )
