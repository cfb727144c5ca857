"""From feedback to a version that answers, and back: whatever fails, the live version stays."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from multiflora.adapters.error import UnknownName
from multiflora.engine.errors import RequestRejected
from multiflora.engine.training.data.file_registry import FileInUse
from multiflora.engine.training.learning.error import LearningOff, LearningRuns
from multiflora.engine.training.learning.policy import CanaryPolicy, LearningPolicy
from multiflora.engine.training.learning.traffic import Outcome

from .conftest import LIVE, Loop

pytestmark = pytest.mark.anyio
CANARY = CanaryPolicy(min_requests=5, max_seconds=100)


def serve(loop: Loop, digest: str, num: int, **outcome: Any) -> None:
    for _ in range(num):
        given: dict[str, Any] = {"num_tokens": 9, "first_token": 0.1, "inter_token": 0.01}
        loop.learner.windows.add("poet", digest, Outcome(**{**given, **outcome}))


async def begin_canary(loop: Loop) -> str:
    """A run whose version passed its gate and is watched; returns the version."""
    await loop.opt_in(canary=CANARY)
    loop.edit()
    await loop.learner.tick()
    job = await loop.run_job()
    assert job.status == "succeeded", job.error
    await loop.learner.tick()
    await loop.learner.tick()
    assert loop.run().status == "canary"
    assert job.digest is not None
    return job.digest


async def test_enough_feedback_becomes_a_canary_and_then_the_live_version(loop: Loop) -> None:
    await loop.opt_in(canary=CANARY)
    loop.edit(2)
    await loop.learner.tick()
    assert loop.learner.runs.open_runs() == []
    digest = await begin_canary(loop)
    assert loop.publishing.digests("poet") == (LIVE, digest)
    job = loop.world.jobs.rows.get(str(loop.run().job))
    assert (job.start, job.name, job.wish.model) == (LIVE, "poet", "poet")
    assert loop.run().num_rows == 5
    serve(loop, LIVE, 5)
    serve(loop, digest, 5)
    await loop.learner.tick()
    assert loop.publishing.digests("poet") == (digest, None)
    assert [run.status for run in loop.ended] == ["promoted"]
    event = loop.registry.history("poet")[0]
    assert event.action == "promote"
    assert event.evidence is not None
    assert event.evidence["decision"] == "promote"
    assert event.evidence["run"] == loop.run().id
    assert loop.store.waiting("poet", ["edit"]).num_rows == 0


async def test_what_has_waited_for_long_is_learned_though_it_is_little(loop: Loop) -> None:
    await loop.opt_in()
    loop.edit(1)
    loop.now += 499
    await loop.learner.tick()
    assert loop.learner.runs.open_runs() == []
    loop.now += 1
    await loop.learner.tick()
    assert len(loop.learner.runs.open_runs()) == 1
    await loop.run_job()


async def test_a_canary_that_fails_is_rolled_back_with_its_evidence(loop: Loop) -> None:
    digest = await begin_canary(loop)
    serve(loop, LIVE, 30)
    serve(loop, digest, 30, is_error=True)
    await loop.learner.tick()
    assert loop.publishing.digests("poet") == (LIVE, None)
    run = loop.run()
    assert run.status == "rolled_back"
    assert run.verdict is not None
    event = loop.registry.history("poet")[0]
    assert (event.action, event.from_digest) == ("clear_canary", digest)
    assert event.evidence is not None
    assert "error_rate" in event.evidence["reason"]
    # What it learned from is not learned again.
    assert loop.store.waiting("poet", ["edit"]).num_rows == 0


async def test_a_gate_that_refuses_leaves_the_live_version(loop: Loop) -> None:
    loop.world.engine.ends = False
    await loop.opt_in()
    loop.edit()
    await loop.learner.tick()
    assert (await loop.run_job()).status == "failed"
    await loop.learner.tick()
    run = loop.run()
    assert run.status == "refused"
    assert run.verdict is not None
    assert not run.verdict["passed"]
    assert loop.publishing.digests("poet") == (LIVE, None)
    assert loop.store.waiting("poet", ["edit"]).num_rows == 0


async def test_a_run_that_failed_is_tried_again_later_with_the_same_rows(loop: Loop) -> None:
    loop.world.preparing.failure = RequestRejected("no room")
    await loop.opt_in()
    loop.edit()
    await loop.learner.tick()
    await loop.run_job()
    await loop.learner.tick()
    assert loop.run().status == "failed"
    loop.now += 599
    await loop.learner.tick()
    assert loop.learner.runs.open_runs() == []
    loop.now += 1
    loop.world.preparing.failure = None
    await loop.learner.tick()
    assert (await loop.run_job()).status == "succeeded"
    assert loop.run().num_rows == 3


async def test_runs_can_be_told_their_seed(loop: Loop) -> None:
    await loop.opt_in(seed=7)
    loop.edit()
    assert (await loop.learner.learn("poet")).wish.seed == 7
    await loop.run_job()


async def test_one_run_at_a_time(loop: Loop) -> None:
    await loop.opt_in()
    loop.edit()
    job = await loop.learner.learn("poet")
    loop.edit()
    with pytest.raises(LearningRuns, match="is under way"):
        await loop.learner.learn("poet")
    await loop.learner.tick()
    assert [run.job for run in loop.learner.runs.open_runs()] == [job.id]
    await loop.run_job()


async def test_a_run_can_only_be_asked_for_where_there_is_something_to_learn(loop: Loop) -> None:
    with pytest.raises(LearningOff):
        await loop.learner.learn("poet")
    await loop.opt_in(method="dpo")
    with pytest.raises(RequestRejected, match="edit or preferred"):
        await loop.learner.learn("poet")
    with pytest.raises(UnknownName):
        await loop.learner.learn("nobody")


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"training": {"lorra": {}}}, "lora"),
        ({"training": {"lora": {"rank": 7}}}, "keeps its rank"),
        ({"gate": {"num_promts": 3}}, "num_prompts"),
        ({"hyperparameters": {"n_epochs": 99}}, "between 1 and 50"),
        ({"validation_file": "file-0"}, "no file has the id"),
    ],
)
async def test_a_policy_that_no_job_could_follow_is_refused(
    loop: Loop, policy: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestRejected, match=message):
        await loop.opt_in(**policy)
    assert not loop.learner.is_keeping("poet")


async def test_the_file_that_versions_are_measured_on_cannot_be_deleted(loop: Loop) -> None:
    file = loop.world.add_file()
    await loop.opt_in(validation_file=file)
    with pytest.raises(FileInUse, match="validation_file of 'poet'"):
        loop.world.shop.files.delete(file)
    await loop.opt_in()
    loop.world.shop.files.delete(file)


async def test_rows_lie_in_a_hidden_file_only_while_the_job_needs_them(loop: Loop) -> None:
    await loop.opt_in()
    loop.edit()
    await loop.learner.tick()
    files = loop.world.shop.files
    (file,) = files.internal()
    assert files.path(file.id).read_bytes().count(b"mended") == 3
    assert files.page() == ([], False)
    await loop.run_job()
    await loop.learner.tick()
    assert files.internal() == []


async def begun(loop: Loop) -> None:
    """A server that dies before the job is made: only the run and its file are there."""
    create = loop.world.jobs.create

    async def die(*_: Any, **__: Any) -> Any:
        raise asyncio.CancelledError

    loop.world.jobs.create = die  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(asyncio.CancelledError):
        await loop.learner.learn("poet")
    loop.world.jobs.create = create


async def unnoted(loop: Loop) -> None:
    """A server that dies when the job is made and the run does not know it yet."""
    note = loop.learner.runs.set_job

    def die(*_: Any) -> bool:
        raise KeyboardInterrupt

    loop.learner.runs.set_job = die  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(KeyboardInterrupt):
        await loop.learner.learn("poet")
    loop.learner.runs.set_job = note


@pytest.mark.parametrize("death", [begun, unnoted])
async def test_a_death_while_a_run_begins_leaves_one_run_or_none(
    loop: Loop, death: Callable[[Loop], Any]
) -> None:
    await loop.opt_in()
    loop.edit()
    await death(loop)
    await loop.restart()
    await loop.learner.tick()
    if death is begun:
        assert loop.run().status == "cancelled"
        assert loop.world.shop.files.internal() == []
        loop.now += 600
        await loop.learner.tick()
    assert (await loop.run_job()).status == "succeeded"
    await loop.learner.tick()
    assert loop.run().status == "canary"
    assert len(loop.world.jobs.rows.page()[0]) == 1


async def test_a_canary_is_watched_on_after_a_restart(loop: Loop) -> None:
    digest = await begin_canary(loop)
    serve(loop, LIVE, 5)
    serve(loop, digest, 3)
    await loop.learner.tick()
    await loop.restart()
    await loop.learner.tick()
    assert loop.run().status == "canary"
    serve(loop, digest, 2)
    await loop.learner.tick()
    assert loop.run().status == "promoted"


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ("promote", "promoted"),
        ("clear_canary", "superseded"),
        ("point", "superseded"),
    ],
)
async def test_what_people_decide_meanwhile_counts(loop: Loop, change: str, status: str) -> None:
    digest = await begin_canary(loop)
    if change == "point":
        loop.registry.publish("poet", "c" * 64)
    else:
        getattr(loop.registry, change)("poet")
    await loop.learner.tick()
    assert loop.run().status == status
    assert loop.publishing.digests("poet")[1] is None
    live = {"promote": digest, "clear_canary": LIVE, "point": "c" * 64}[change]
    assert loop.publishing.digests("poet")[0] == live


async def test_a_name_that_moved_while_it_learned_is_left_alone(loop: Loop) -> None:
    await loop.opt_in()
    loop.edit()
    await loop.learner.tick()
    loop.registry.publish("poet", "c" * 64)
    assert (await loop.run_job()).status == "succeeded"
    await loop.learner.tick()
    assert loop.run().status == "superseded"
    assert loop.publishing.digests("poet") == ("c" * 64, None)


async def test_erasing_calls_off_the_run_that_learns_from_it(loop: Loop) -> None:
    await loop.opt_in()
    loop.edit(2, user="bob")
    loop.edit(2, user="ann")
    loop.world.engine.is_alive = False
    job = await loop.learner.learn("poet")
    assert await loop.learner.erase(user="ann") == (2, 2)
    assert loop.world.jobs.rows.get(job.id).status == "cancelled"
    assert loop.world.shop.files.internal() == []
    assert not (loop.world.shop.folders[job.id].training).exists()
    # What is left is learned by the next run.
    loop.world.engine.is_alive = True
    loop.now += 600
    await loop.learner.tick()
    assert (await loop.run_job()).status == "succeeded"
    assert loop.run().num_rows == 2


async def test_a_name_that_is_deleted_ends_its_run(loop: Loop) -> None:
    await loop.opt_in()
    loop.edit()
    loop.world.engine.is_alive = False
    job = await loop.learner.learn("poet")
    loop.registry.delete("poet")
    await loop.learner.tick()
    await loop.learner.tick()
    assert loop.world.jobs.rows.get(job.id).status == "cancelled"
    assert loop.world.shop.files.internal() == []


async def test_an_adapter_that_only_collects_does_not_learn(loop: Loop) -> None:
    await loop.learner.set_policy("poet", LearningPolicy(feedback=True, min_rows=1))
    assert loop.learner.is_keeping("poet")
    loop.edit()
    await loop.learner.tick()
    assert loop.learner.runs.open_runs() == []
