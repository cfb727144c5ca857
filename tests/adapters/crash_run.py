"""A torch-free process that forks workers, lets each die at a crash point, and judges the remains.

Reads one JSON job per line, ``{"data": folder, "seed": int}`` with ``"fault": point`` or
``"seconds": float``, and answers each with ``{"problems": [...], "killed": bool}``.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from multiflora.adapters import fault
from multiflora.adapters.error import RegistryError
from multiflora.adapters.folder import CONFIG_NAME, WEIGHTS_NAME, AdapterFolder
from multiflora.adapters.registry import Registry
from multiflora.adapters.store import AdapterStore
from multiflora.adapters.version import Version

Operation = Sequence[Any]
NAMES = ("a", "b")
NUM_VERSIONS = 8


def write_folders(root: Path) -> list[tuple[Path, str]]:
    """Tiny adapters, and their digests."""
    made = []
    for number in range(NUM_VERSIONS):
        folder = root / str(number)
        folder.mkdir(parents=True)
        header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
        content = len(header).to_bytes(8, "little") + header + number.to_bytes(4, "little")
        (folder / CONFIG_NAME).write_text("{}")
        (folder / WEIGHTS_NAME).write_bytes(content)
        made.append((folder, AdapterFolder(folder).digest("")))
    return made


class World:
    """Applies operations to a registry on disk, or to one in memory as the model of it."""

    def __init__(self, folders: list[tuple[Path, str]], data: Path | None = None) -> None:
        self.folders = folders
        if data is None:
            self.registry = Registry(keep_last=2, clock=lambda: 0)
        else:
            self.registry = Registry.open(data, keep_last=2, clock=lambda: 0)

    def apply(self, operation: Operation) -> None:
        """An operation that the registry's rules refuse changes nothing, here as there."""
        action, *rest = operation
        with contextlib.suppress(RegistryError):
            getattr(self, action)(*rest)

    def publish(self, number: int) -> None:
        self._put(number)
        self.registry.publish_version(Version(self.folders[number][1], created=0))

    def abandon(self, number: int) -> None:
        """An import that ends before it is published."""
        self._put(number)
        if self.registry.store is not None:
            self.registry.store.release(self.folders[number][1])

    def _put(self, number: int) -> None:
        folder, digest = self.folders[number]
        if self.registry.store is not None:
            self.registry.store.put_copy(digest, AdapterFolder(folder))

    def point(self, name: str, number: int) -> None:
        self.registry.point(name, self.folders[number][1])

    def rollback(self, name: str) -> None:
        self.registry.rollback(name)

    def retire(self, number: int) -> None:
        self.registry.retire(self.folders[number][1])

    def delete(self, name: str) -> None:
        self.registry.delete(name)

    def pin(self, name: str) -> None:
        self.registry.pin(name)

    def unpin(self, name: str) -> None:
        self.registry.unpin(name)

    def set_canary(self, name: str, number: int) -> None:
        self.registry.set_canary(name, self.folders[number][1], 0.5)

    def clear_canary(self, name: str) -> None:
        self.registry.clear_canary(name)

    def promote(self, name: str) -> None:
        self.registry.promote(name)

    def collect(self) -> None:
        self.registry.collect()

    def known(self) -> list[str]:
        """Digests of all versions that the registry knows."""
        found = []
        for _, digest in self.folders:
            with contextlib.suppress(RegistryError):
                found.append(self.registry.version(digest).digest)
        return found

    def state(self) -> object:
        history = [self.registry.history(name) for name in NAMES]
        return self.registry.entries(), self.known(), self.registry.candidates(), history


def random_operation(rng: random.Random) -> Operation:
    name, number = rng.choice(NAMES), rng.randrange(NUM_VERSIONS)
    choices: list[Operation] = [
        *[("publish", number), ("point", name, number)] * 4,
        *[("rollback", name), ("set_canary", name, number), ("promote", name)] * 2,
        *[("abandon", number), ("retire", number), ("collect",), ("delete", name)],
        *[("pin", name), ("unpin", name), ("clear_canary", name)],
    ]
    return rng.choice(choices)


def plan(job: dict[str, Any]) -> tuple[list[Operation], int]:
    """Operations, and the index of the one that passes the crash point."""
    rng = random.Random(job["seed"])
    operations = [random_operation(rng) for _ in range(rng.randrange(4, 16))]
    if "seconds" in job:
        return operations * 12, -1
    operation = job["fault"].partition(".")[0]
    # Whatever happened before, each of these leaves the last one something to do.
    operations += [("publish", 0), ("publish", 1), ("publish", 2)]
    operations += [("delete", "a"), ("point", "a", 0), ("point", "a", 1), ("clear_canary", "a")]
    operations += {
        "put": [("delete", "b"), ("retire", 3), ("collect",), ("publish", 3)],
        "publish": [("publish", 3)],
        "retire": [("delete", "b"), ("retire", 2)],
        "unpin": [("pin", "a"), ("unpin", "a")],
        "clear_canary": [("set_canary", "a", 2), ("clear_canary", "a")],
        "set_canary": [("set_canary", "a", 2)],
        "promote": [("set_canary", "a", 2), ("promote", "a")],
        "point": [("point", "a", 2)],
        "collect": [("abandon", 4), ("abandon", 5), ("delete", "b"), ("retire", 2), ("collect",)],
    }.get(operation, [(operation, "a")])
    return operations, len(operations) - 1


def work(job: dict[str, Any], folders: list[tuple[Path, str]], acks: int) -> None:
    """Run the plan; each operation is acknowledged after it returned."""
    operations, fatal = plan(job)
    world = World(folders, Path(job["data"]))
    if "seconds" in job:
        signal.setitimer(signal.ITIMER_REAL, job["seconds"])
    for index, operation in enumerate(operations):
        if index == fatal:
            os.environ[fault.VARIABLE] = job["fault"]
        world.apply(operation)
        os.write(acks, b"+")


def crash(job: dict[str, Any], folders: list[tuple[Path, str]]) -> tuple[int, bool]:
    """Fork a worker; returns how many operations it acknowledged, and whether it was killed."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        work(job, folders, writer)
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        num_acks = len(pipe.read())
    _, status = os.waitpid(child, 0)
    return num_acks, os.WIFSIGNALED(status)


def judge(job: dict[str, Any], folders: list[tuple[Path, str]], num_acks: int) -> list[str]:
    operations, _ = plan(job)
    before, after = World(folders), World(folders)
    for operation in operations[:num_acks]:
        before.apply(operation)
    for operation in operations[: num_acks + 1]:
        after.apply(operation)
    data = Path(job["data"])
    world = World(folders, data)
    problems = check_bytes(world, data)
    if world.state() not in (before.state(), after.state()):
        problems.append(f"{world.state()} is neither {before.state()} nor {after.state()}")
    elif world.state() == before.state() and num_acks < len(operations):
        world.apply(operations[num_acks])
        if world.state() != after.state():
            problems.append(f"trying again gave {world.state()}, not {after.state()}")
    problems += check_collection(world, data)
    for each in (world, before, after):
        each.registry.close()
    return problems


def check_bytes(world: World, data: Path) -> list[str]:
    """Whatever can be seen is whole."""
    store = AdapterStore(data)
    known = world.known()
    problems = [f"{digest} is damaged" for digest in store.digests() if not is_whole(store, digest)]
    problems += [f"{digest} has no bytes" for digest in known if digest not in store]
    for entry in world.registry.entries():
        with world.registry.lease(entry.name) as lease:
            if lease.digest not in known:
                problems.append(f"{entry.name} points at nothing")
    return problems


def check_collection(world: World, data: Path) -> list[str]:
    """What nothing vouches for can be collected, all of it and no more."""
    world.registry.collect()
    store = AdapterStore(data)
    problems = [f"{path.name} was left" for path in (data / "adapters").glob(".*")]
    if sorted(store.digests()) != sorted(world.known()):
        problems.append("orphans were not collected, or versions were lost")
    return problems


def is_whole(store: AdapterStore, digest: str) -> bool:
    return store.open(digest).digest("") == digest


def main() -> None:
    heavy = {"torch", "transformers"} & set(sys.modules)
    assert not heavy, f"imports {heavy}"
    folders = write_folders(Path(sys.argv[1]))
    for line in sys.stdin:
        job = json.loads(line)
        num_acks, is_killed = crash(job, folders)
        print(json.dumps({"problems": judge(job, folders, num_acks), "killed": is_killed}))
        shutil.rmtree(job["data"])


if __name__ == "__main__":
    main()
