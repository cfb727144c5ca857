"""Jobs from their files to a name, with an engine that does as it is told."""

import asyncio
import errno
from typing import Any

import pytest

from multiflora.adapters.error import AdapterRejected, RegistryUnavailable
from multiflora.engine.errors import RequestRejected
from multiflora.engine.training.data.file_registry import FileInUse
from multiflora.engine.training.job import JobFailed
from multiflora.engine.training.jobs.error import JobNotFound, JobOver, JobRuns
from multiflora.engine.training.jobs.job import Hyperparameters
from multiflora.engine.training.jobs.preparation import PreparationFailed
from multiflora.engine.training.jobs.training_jobs import JobOwner

from .conftest import World

pytestmark = pytest.mark.anyio


async def until(condition: Any) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("the condition never came true")


async def test_a_job_ends_as_a_name_with_its_provenance(world: World) -> None:
    job = await world.jobs.create(world.wish(suffix="fancy"))
    assert job.status == "validating_files"
    done = await world.jobs.wait(job.id)
    assert done.status == "succeeded"
    assert done.step == done.num_steps == 6
    assert done.trained_tokens == 60
    assert world.publishing.names["fancy"] == done.digest
    assert done.verdict is not None
    assert done.verdict["passed"]
    assert world.publishing.versions[str(done.digest)]["metrics"]["job"] == job.id
    log = world.messages(job.id)
    assert log[0] == "Created fine-tuning job on base"
    assert log[-1] == "The job has successfully completed; fancy is live"


async def test_without_a_suffix_the_name_is_made_of_the_base_and_the_job(world: World) -> None:
    job = await world.jobs.create(world.wish(model="org/base 8B"))
    assert job.name == f"ft:org-base-8B:{job.id.removeprefix('ftjob-')[:8]}"
    await world.jobs.wait(job.id)
    assert job.name in world.publishing.names


async def test_the_last_checkpoints_and_the_best_are_served(world: World) -> None:
    world.engine.num_steps = 10
    world.engine.eval_losses = {2: 1.0, 4: 0.5}
    job = await world.jobs.create(world.wish(suffix="fancy"))
    await world.jobs.wait(job.id)
    found, _ = world.jobs.rows.checkpoints(job.id)
    assert [one.step for one in found] == [10, 8, 6, 2]
    assert found[-1].is_best
    assert found[-1].metrics["full_valid_loss"] == 1.0
    assert {one.name for one in found} == {n for n in world.publishing.names if "ckpt" in n}
    assert found[0].name == f"fancy:{job.id.removeprefix('ftjob-')[:8]}:ckpt-step-10"


async def test_bad_files_fail_the_job_with_their_lines(world: World) -> None:
    world.preparing.failure = PreparationFailed("line 3: no answer", param="training_file")
    done = await world.jobs.wait((await world.jobs.create(world.wish())).id)
    assert done.status == "failed"
    assert done.error is not None
    assert done.error.code == "invalid_training_file"
    assert done.error.message == "line 3: no answer"
    assert done.error.param == "training_file"
    assert not world.engine.orders


async def test_a_file_that_is_known_to_be_bad_makes_no_job(world: World) -> None:
    bad = world.add_file("error", "line 2: not JSON")
    with pytest.raises(RequestRejected, match="line 2: not JSON") as refused:
        await world.jobs.create(world.wish(training_file=bad))
    assert refused.value.param == "training_file"
    assert world.jobs.rows.page() == ([], False)


async def test_settings_that_make_no_sense_make_no_job(world: World) -> None:
    wish = world.wish(training={"lora": {"rnak": 8}})
    with pytest.raises(RequestRejected, match="did you mean 'rank'") as refused:
        await world.jobs.create(wish)
    assert refused.value.param == "training.lora.rnak"


async def test_a_refused_version_stays_and_no_name_moves(world: World) -> None:
    world.engine.ends = False
    world.publishing.names["fancy"] = "before"
    job = await world.jobs.create(world.wish(suffix="fancy"))
    done = await world.jobs.wait(job.id)
    assert done.status == "failed"
    assert done.error is not None
    assert done.error.code == "gate_failed"
    assert done.digest in world.publishing.versions
    assert world.publishing.names["fancy"] == "before"
    assert done.verdict is not None
    failed = {check["name"] for check in done.verdict["checks"] if not check["passed"]}
    assert failed == {"end_rate", "loop_rate"}


async def test_a_version_that_is_no_adapter_fails_the_gate(world: World) -> None:
    world.engine.num_steps = 1
    world.publishing.failure = AdapterRejected("not_finite", "NaN in layer 3")
    job = await world.jobs.create(world.wish(suffix="fancy"))
    done = await world.jobs.wait(job.id)
    assert done.error is not None
    assert done.error.code == "gate_failed"
    assert "NaN in layer 3" in done.error.message
    assert not world.publishing.names


async def test_a_full_disk_delays_a_job_and_does_not_fail_it(world: World) -> None:
    world.publishing.failure = OSError(errno.ENOSPC, "no space left")
    done = await world.jobs.wait((await world.jobs.create(world.wish(suffix="fancy"))).id)
    assert done.status == "succeeded"
    assert world.publishing.names["fancy"] == done.digest


async def test_a_failure_is_written_down_once_the_disk_has_room(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.preparing.failure = PreparationFailed("line 3: no answer", param="training_file")
    fail, refusals = world.shop.jobs.fail, [RegistryUnavailable("the disk is full")] * 3

    def fail_later(*given: Any, **named: Any) -> bool:
        if refusals:
            raise refusals.pop()
        return fail(*given, **named)

    monkeypatch.setattr(world.shop.jobs, "fail", fail_later)
    done = await world.jobs.wait((await world.jobs.create(world.wish())).id)
    assert done.error is not None
    assert (done.status, done.error.code) == ("failed", "invalid_training_file")
    told = [text for text in world.messages(done.id) if "stands still" in text]
    assert told == ["The job stands still and is tried again: the disk is full"]


async def test_what_fails_in_the_engine_fails_the_job_with_its_code(world: World) -> None:
    world.engine.failure = JobFailed("training_diverged", "the loss is nan")
    done = await world.jobs.wait((await world.jobs.create(world.wish())).id)
    assert done.error is not None
    assert (done.status, done.error.code) == ("failed", "training_diverged")


async def test_a_cancelled_job_stays_cancelled_and_frees_its_space(world: World) -> None:
    world.engine.num_steps = 10_000
    job = await world.jobs.create(world.wish(suffix="fancy"))
    await until(lambda: world.engine.orders)
    done = await world.jobs.cancel(job.id)
    assert done.status == "cancelled"
    assert world.engine.cancelled == [job.id]
    assert "fancy" not in world.publishing.names
    assert not world.shop.folders[job.id].run.exists()
    for again in (world.jobs.cancel, world.jobs.pause, world.jobs.resume):
        with pytest.raises(JobOver, match="is cancelled"):
            await again(job.id)


async def test_a_paused_job_stands_and_goes_on(world: World) -> None:
    world.engine.num_steps = 200
    job = await world.jobs.create(world.wish())
    await until(lambda: world.engine.done)
    paused = await world.jobs.pause(job.id)
    assert paused.is_paused
    assert paused.status == "running"
    await asyncio.sleep(0.05)
    before = dict(world.engine.done)
    await asyncio.sleep(0.05)
    assert world.engine.done == before
    assert not (await world.jobs.resume(job.id)).is_paused
    assert (await world.jobs.wait(job.id)).status == "succeeded"
    assert [m for m in world.messages(job.id) if m.endswith(("job paused", "job resumed"))] == [
        "Fine-tuning job paused",
        "Fine-tuning job resumed",
    ]


async def test_a_job_survives_the_engine(world: World) -> None:
    world.engine.num_steps = 100
    job = await world.jobs.create(world.wish())
    await until(lambda: world.engine.done)
    world.engine.die()
    await until(lambda: world.jobs.rows.get(job.id).status == "queued")
    world.engine.is_alive = True
    assert (await world.jobs.wait(job.id)).status == "succeeded"
    assert any("goes on from the checkpoint" in text for text in world.messages(job.id))


async def test_a_job_survives_the_server(world: World) -> None:
    world.engine.num_steps = 100
    job = await world.jobs.create(world.wish(suffix="fancy"))
    await until(lambda: world.engine.done)
    await world.jobs.stop()
    world.restart()
    await world.jobs.start()
    done = await world.jobs.wait(job.id)
    assert done.status == "succeeded"
    assert world.publishing.names["fancy"] == done.digest
    assert len(world.engine.orders) == 2


async def test_a_job_that_kills_the_engine_is_given_up(world: World) -> None:
    world.engine.num_steps = 100

    async def kill() -> None:
        while True:
            await until(lambda: world.engine.orders)
            world.engine.orders.clear()
            world.engine.done.clear()
            world.engine.num_deaths += 1

    killing = asyncio.create_task(kill())
    done = await world.jobs.wait((await world.jobs.create(world.wish())).id)
    killing.cancel()
    assert done.status == "failed"
    assert done.error is not None
    assert done.error.code == "engine_died"


async def test_a_file_is_kept_while_a_job_needs_it(world: World) -> None:
    wish = world.wish()
    job = await world.jobs.create(wish)
    with pytest.raises(FileInUse, match=job.id):
        world.shop.files.delete(wish.training_file)
    await world.jobs.wait(job.id)
    world.shop.files.delete(wish.training_file)


async def test_a_deleted_job_takes_its_checkpoints_along_and_leaves_the_name(world: World) -> None:
    job = await world.jobs.create(world.wish(suffix="fancy"))
    with pytest.raises(JobRuns):
        await world.jobs.delete(job.id)
    await world.jobs.wait(job.id)
    await world.jobs.delete(job.id)
    assert set(world.publishing.names) == {"fancy"}
    with pytest.raises(JobNotFound):
        world.jobs.rows.get(job.id)
    assert not world.shop.folders[job.id].path.exists()


async def test_the_census_counts_jobs_and_knows_the_losses_of_running_ones(world: World) -> None:
    await world.jobs.wait((await world.jobs.create(world.wish())).id)
    world.engine.ends = False
    await world.jobs.wait((await world.jobs.create(world.wish())).id)
    world.engine.num_steps = 10_000
    world.engine.eval_losses = {2: 0.25}
    running = await world.jobs.create(world.wish())
    await until(lambda: len(world.jobs.census().losses) == 2)
    census = world.jobs.census()
    ended = {"succeeded": 1, "failed": 1, "running": 1}
    assert {status: n for status, n in census.statuses.items() if n} == ended
    assert census.verdicts == {True: 1, False: 1}
    assert 0 < census.losses[("supervised", "train")] < 1
    assert census.losses[("supervised", "validation")] == 0.25
    await world.jobs.cancel(running.id)
    assert world.jobs.census().losses == {}


async def test_auto_values_are_those_of_the_data(world: World) -> None:
    given = Hyperparameters(n_epochs=2, learning_rate_multiplier=0.5)
    job = await world.jobs.create(world.wish(hyperparameters=given, method="dpo"))
    done = await world.jobs.wait(job.id)
    assert done.settings is not None
    assert done.settings["batch"]["num_epochs"] == 2
    assert done.settings["batch"]["batch_size"] == 1
    assert done.settings["method"]["beta"] == 0.1
    assert done.settings["lora"]["alpha"] == 2 * done.settings["lora"]["rank"]


async def test_what_is_repeated_and_replaced_goes_to_the_engine(world: World) -> None:
    first = await world.jobs.wait((await world.jobs.create(world.wish(suffix="fancy"))).id)
    files = {
        "replay": {"file": world.add_file(), "share": 0.3},
        "gate": {"recent": world.add_file()},
    }
    job = await world.jobs.create(world.wish(suffix="fancy", training=files))
    with pytest.raises(FileInUse, match=job.id):
        world.shop.files.delete(files["replay"]["file"])
    with pytest.raises(FileInUse, match=job.id):
        world.shop.files.delete(files["gate"]["recent"])
    done = await world.jobs.wait(job.id)
    assert done.status == "succeeded"
    order = world.engine.orders[-1]
    assert order.live == first.digest
    assert order.settings.replay.share == 0.3
    assert str(order.replay).endswith("/replay")
    assert str(order.recent).endswith("/recent")
    assert world.engine.orders[0].live is None


@pytest.mark.parametrize(
    ("training", "param", "words"),
    [
        ({"replay": {"share": 0.2}}, "training.replay.file", "name the file"),
        ({"replay": {"file": 7}}, "training.replay.file", "id of a file"),
        ({"replay": {"file": "file-9"}}, "training.replay.file", "no file"),
        ({"replay": {"file": "file-9", "shear": 1}}, "training.replay.shear", "'share'"),
        ({"replay": {"file": "file-9", "share": 2}}, "training.replay", "share is 2"),
        ({"continual": {"mode": "merge"}}, "training.continual.mode", "go on from"),
        ({"continual": {"soup": 9}}, "training", "soup is 9"),
        ({"gate": {"judge": "nobody"}}, "training.gate.judge", "nobody"),
        ({"gate": {"recent": "file-9"}}, "training.gate.recent", "no file"),
        ({"gate": {"suite": [{"prompt": "x"}]}}, "training.gate.suite", "exact or pattern"),
        ({"gate": {"max_divergense": 1}}, "training.gate.max_divergense", "'max_divergence'"),
    ],
)
async def test_settings_of_learning_on_are_checked_at_once(
    world: World, training: Any, param: str, words: str
) -> None:
    with pytest.raises(RequestRejected, match=words) as refused:
        await world.jobs.create(world.wish(training=training))
    assert str(refused.value.param).startswith(param)


async def test_a_judge_is_what_the_tenant_of_the_job_sees(world: World) -> None:
    publishing = world.publishing
    publishing.names["critic"], publishing.tenants["critic"] = "d" * 64, "red"
    wish = world.wish(training={"gate": {"judge": "critic"}})
    with pytest.raises(RequestRejected) as hidden:
        await world.jobs.create(wish, owner=JobOwner("blue", "blue"))
    absent = world.wish(training={"gate": {"judge": "nobody"}})
    with pytest.raises(RequestRejected) as unknown:
        await world.jobs.create(absent, owner=JobOwner("blue", "blue"))
    assert str(hidden.value) == str(unknown.value).replace("nobody", "critic")

    job = await world.jobs.create(wish, owner=JobOwner("red", "red"))
    # The name went to another tenant while the job ran.
    publishing.tenants["critic"] = "blue"
    done = await world.jobs.wait(job.id)
    assert done.error is not None
    assert "critic" in done.error.message
    assert "is not here" in done.error.message


async def test_a_verdict_says_what_was_not_run(world: World) -> None:
    done = await world.jobs.wait((await world.jobs.create(world.wish(suffix="fancy"))).id)
    assert done.verdict is not None
    missing = {one["name"]: one["reason"] for one in done.verdict["not_run"]}
    assert missing["validation_loss"] == "no validation rows were scored"
    assert done.verdict["policy"]["sha256"]
    strict = {"gate": {"required": ["validation_loss"]}}
    refused = await world.jobs.wait((await world.jobs.create(world.wish(training=strict))).id)
    assert refused.error is not None
    assert refused.error.code == "gate_failed"
    assert "validation_loss was not run" in refused.error.message


async def test_ratings_are_measured_against_what_the_job_goes_on_from(world: World) -> None:
    done = await world.jobs.wait((await world.jobs.create(world.wish(method="kto"))).id)
    assert done.status == "succeeded"
    assert done.settings is not None
    assert done.settings["method"]["kind"] == "kto"
    assert done.settings["batch"]["batch_size"] == 4
    with pytest.raises(RequestRejected, match="at least 2 for kto"):
        await world.jobs.create(
            world.wish(method="kto", hyperparameters=Hyperparameters(batch_size=1))
        )
