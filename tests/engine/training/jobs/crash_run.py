"""A torch-free process that forks servers, lets each die at one durable step of a job, starts the
next on the same disk, and judges what came of the job.

Reads one JSON case per line, ``{"data": folder, "call": int, "moment": word}``: death ``before``
or ``after`` that call, or a disk that is ``full`` from it on for a while; -1 is no call. Answers
with ``{"problems": [...], "calls": [...]}``.
"""

import asyncio
import dataclasses
import errno
import json
import os
import shutil
import signal
import struct
import sys
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from conftest import ScriptedEngine, World, make_world
from msgspec.structs import replace

from multiflora.adapters.error import RegistryError, RegistryUnavailable
from multiflora.adapters.folder import CONFIG_NAME, WEIGHTS_NAME, AdapterFolder
from multiflora.adapters.registry import Registry
from multiflora.adapters.version import Version
from multiflora.engine.training.data.file_registry import FileRegistry
from multiflora.engine.training.job import (
    CheckpointExported,
    JobEvent,
    JobStarted,
    TrainingJob,
)
from multiflora.engine.training.jobs.job_folder import JobFolder
from multiflora.engine.training.jobs.job_registry import JobRegistry
from multiflora.engine.training.jobs.training_jobs import TrainingJobs

NAME, NUM_STEPS, NUM_KEPT = "fancy", 8, 2
# Whatever a job makes durable; each call of these is a place to die before and after.
STEPS: dict[str, tuple[str, ...]] = {
    "jobs": (
        *("create", "plan", "begin", "progress", "note", "add_checkpoint", "remove_checkpoint"),
        *("take_candidate", "seal", "succeed"),
    ),
    "publishing": ("take_in", "point", "remove"),
    "preparing": ("prepare",),
}
# How often in a row a full disk refuses what is tried again.
NUM_REFUSALS = 3


class StepsOnDisk(dict[str, int]):
    """What the engine has checkpoints of, by the folder of the job."""

    def get(self, folder: str, default: Any = 0) -> Any:
        with suppress(FileNotFoundError):
            return int((Path(folder) / "done").read_text())
        return default

    def __setitem__(self, folder: str, step: int) -> None:
        (Path(folder) / "done").write_text(str(step))


class EngineOnDisk(ScriptedEngine):
    """Tells again of the checkpoints that it has, as an engine does; the first is the best."""

    async def _events(self, job: TrainingJob, life: int) -> AsyncGenerator[JobEvent]:
        whole = range(2, self.done.get(job.folder, 0) + 1, 2)
        async for event in super()._events(job, life):
            if not isinstance(event, JobStarted):
                yield event
                continue
            yield replace(event, best_step=2 if whole else None)
            for step in sorted({*whole[:1], *whole[-NUM_KEPT:]}):
                exported = Path(job.folder) / f"step-{step}"
                exported.mkdir(exist_ok=True)
                yield CheckpointExported(step, str(exported))


class StoredPublishing:
    """Versions and names in a registry on the disk, in the order in which a server makes them."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def take_in(
        self, folder: Path, *, source: str, parents: tuple[str, ...], metrics: Mapping[str, Any]
    ) -> str:
        adapter = AdapterFolder(write_adapter(folder))
        digest, store = adapter.digest(""), self._registry.store
        assert store is not None
        store.put_copy(digest, adapter)
        self._registry.publish_version(Version(digest, created=0))
        return digest

    async def live(self, name: str, *, view: str | None = None) -> str | None:
        return self._registry.entry(name).digest if name in self._registry else None

    async def point(self, name: str, digest: str, *, tenant: str = "") -> None:
        self._registry.point(name, digest)

    async def discard(self, digest: str) -> None:
        if digest in self._registry.candidates():
            self._registry.retire(digest)

    async def remove(self, name: str, *, tenant: str = "") -> None:
        with suppress(RegistryError):
            self._registry.delete(name)


def write_adapter(folder: Path) -> Path:
    """A tiny adapter whose content is the name of the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    content = struct.pack(f"<{len(folder.name)}f", *folder.name.encode())
    tensor = {"dtype": "F32", "shape": [len(folder.name)], "data_offsets": [0, len(content)]}
    header = json.dumps({"x": tensor}).encode()
    (folder / CONFIG_NAME).write_text("{}")
    (folder / WEIGHTS_NAME).write_bytes(len(header).to_bytes(8, "little") + header + content)
    return folder


def open_world(data: Path) -> tuple[World, Registry]:
    registry = Registry.open(data, keep_last=2, clock=lambda: 0)
    world, store = make_world(data), registry.store
    assert store is not None
    engine = EngineOnDisk(num_steps=NUM_STEPS, eval_losses={2: 0.5, 8: 0.5}, done=StepsOnDisk())
    shop = dataclasses.replace(
        world.shop,
        jobs=JobRegistry(registry.database),
        files=FileRegistry(registry.database, data),
        engine=engine,
        publishing=StoredPublishing(registry),
        store=store,
    )
    return World(shop, TrainingJobs(shop), engine, world.publishing, world.preparing), registry


def watch(world: World, calls: list[str], meet: Callable[[str], None]) -> None:
    """Call ``meet`` with ``before`` and ``after`` around each durable step, which is noted."""
    append = JobFolder.add_metrics
    setattr(JobFolder, "add_metrics", watched(append, "folder.add_metrics", calls, meet))  # noqa: B010
    for owner, names in STEPS.items():
        subject = getattr(world.shop, owner)
        for name in names:
            setattr(subject, name, watched(getattr(subject, name), f"{owner}.{name}", calls, meet))


def watched(
    step: Callable[..., Any], name: str, calls: list[str], meet: Callable[[str], None]
) -> Callable[..., Any]:
    def run(*given: Any, **named: Any) -> Any:
        calls.append(name)
        meet("before")
        result = step(*given, **named)
        meet("after")
        return result

    async def run_async(*given: Any, **named: Any) -> Any:
        calls.append(name)
        meet("before")
        result = await step(*given, **named)
        meet("after")
        return result

    return run_async if asyncio.iscoroutinefunction(step) else run


async def first_life(world: World) -> None:
    wish = world.wish(suffix=NAME, training={"checkpoint": {"keep": NUM_KEPT}})
    # A client whose job could not be written down is told so.
    with suppress(RegistryError):
        job = await world.jobs.create(wish)
        await asyncio.wait_for(world.jobs.wait(job.id), 20)


def live(case: dict[str, Any], answer: int) -> None:
    """A server that makes a job, and dies or meets a full disk where the case says."""
    world, _ = open_world(Path(case["data"]))
    calls: list[str] = []

    def meet(moment: str) -> None:
        if case["moment"] == "full":
            refuse(calls, case["call"], moment)
        elif (len(calls) - 1, moment) == (case["call"], case["moment"]):
            os.kill(os.getpid(), signal.SIGKILL)

    watch(world, calls, meet)
    asyncio.run(first_life(world))
    os.write(answer, json.dumps(calls).encode())


def refuse(calls: list[str], first: int, moment: str) -> None:
    """Nothing can be written for a while from the call ``first`` on."""
    if moment == "before" and first <= len(calls) - 1 < first + NUM_REFUSALS:
        if calls[-1].startswith("jobs."):
            raise RegistryUnavailable("the database or disk is full")
        raise OSError(errno.ENOSPC, "No space left on device")


async def second_life(world: World) -> list[str]:
    await world.jobs.start()
    problems: list[str] = []
    for job in world.jobs.rows.page()[0]:
        await asyncio.wait_for(world.jobs.wait(job.id), 20)
        problems += judge_job(world, job.id)
    return problems


def judge_job(world: World, job_id: str) -> list[str]:
    job, log = world.jobs.rows.get(job_id), world.messages(job_id)
    rows = world.jobs.rows.metrics(job_id)
    steps, validated = [row["step"] for row in rows], [row for row in rows if "eval_loss" in row]
    facts = {
        "it succeeded": job.status == "succeeded",
        "it ended once": sum("successfully completed" in text for text in log) == 1,
        "it shows all steps": job.step == NUM_STEPS,
        "no step was told twice": len(steps) == len(set(steps)) + len(validated),
        "nothing of the run is left": not world.shop.folders[job_id].run.exists(),
    }
    return [f"not so: {fact}; {log}" for fact, is_so in facts.items() if not is_so]


def judge(case: dict[str, Any], answer: int) -> None:
    """The next server on the same disk, and what it made of the job."""
    world, registry = open_world(Path(case["data"]))
    registry.collect()
    problems = asyncio.run(second_life(world))
    (jobs, _), names = world.jobs.rows.page(), {one.name for one in registry.entries()}
    wanted = set[str]()
    for job in jobs:
        found, _ = world.jobs.rows.checkpoints(job.id)
        wanted |= {NAME} | {one.name for one in found}
        if [one.step for one in found] != [8, 6, 2]:
            problems.append(f"checkpoints of {[one.step for one in found]}")
        if [one.digest for one in registry.entries() if one.name == NAME] != [job.digest]:
            problems.append("the name does not point at the job's version")
    if names != wanted:
        problems.append(f"names are {names}, not {wanted}")
    if jobs and registry.candidates():
        problems.append(f"versions without a name are left: {registry.candidates()}")
    registry.collect()
    assert registry.store is not None
    for digest in registry.store.digests():
        if registry.store.open(digest).digest("") != digest:
            problems.append(f"{digest} is damaged")
    os.write(answer, json.dumps(problems).encode())


def in_child(work: Callable[[int], None]) -> Any:
    """What ``work`` wrote, or None if it was killed."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        work(writer)
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        content = pipe.read()
    _, status = os.waitpid(child, 0)
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0
    return json.loads(content) if content else None


def main() -> None:
    heavy = {"torch", "transformers"} & set(sys.modules)
    assert not heavy, f"imports {heavy}"
    for line in sys.stdin:
        case = json.loads(line)
        calls = in_child(partial(live, case))
        problems = in_child(partial(judge, case))
        print(json.dumps({"problems": problems, "calls": calls}), flush=True)
        shutil.rmtree(case["data"])


if __name__ == "__main__":
    main()
