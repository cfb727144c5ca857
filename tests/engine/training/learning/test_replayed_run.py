"""What an adapter was taught is repeated when it learns more, until it is erased."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from multiflora.engine.errors import RequestRejected
from multiflora.engine.training.data.file_registry import FileInUse
from multiflora.engine.training.jobs.job import JobWish
from multiflora.engine.training.jobs.training_jobs import JobOwner
from multiflora.engine.training.learning.policy import CanaryPolicy, LearningPolicy
from multiflora.engine.training.learning.traffic import Outcome

from .conftest import Loop, make_loop

pytestmark = pytest.mark.anyio
CANARY = CanaryPolicy(min_requests=1)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Loop]:
    """A loop whose database is a file."""
    loop = make_loop(tmp_path, is_on_disk=True)
    yield loop
    loop.registry.close()


async def begin(loop: Loop) -> JobWish:
    """Begin a run; returns what its job is to do."""
    job = await loop.learner.learn("poet")
    return job.wish


async def promote(loop: Loop) -> None:
    """Have the open run's version answer everybody."""
    job = await loop.run_job()
    await loop.learner.tick()
    await loop.learner.tick()
    live, canary = loop.publishing.digests("poet")
    assert canary == job.digest
    for digest in (live, job.digest):
        loop.learner.windows.add("poet", str(digest), Outcome(num_tokens=9))
    await loop.learner.tick()
    assert loop.run().status == "promoted"


def rows_of(loop: Loop, file: str | None) -> list[Any]:
    assert file is not None
    with loop.world.shop.files.open(file) as opened:
        return [orjson.loads(line) for line in opened]


def answers_of(loop: Loop, file: str | None) -> set[str]:
    return {row["messages"][-1]["content"] for row in rows_of(loop, file)}


def bytes_under(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


async def test_what_was_promoted_is_repeated_by_the_next_run(loop: Loop) -> None:
    await loop.opt_in(canary=CANARY, replay={"share": 0.2, "kl_weight": 0.1, "capacity": 50})
    loop.edit(3)
    first = await begin(loop)
    assert first.replay_file is None
    await promote(loop)
    loop.edit(2)
    second = await begin(loop)
    assert answers_of(loop, second.training_file) == {"mended 4", "mended 5"}
    assert answers_of(loop, second.replay_file) == {"mended 1", "mended 2", "mended 3"}
    assert dict(second.training["replay"]) == {
        "share": 0.2,
        "kl_weight": 0.1,
        "num_held_out": 0,
        "file": second.replay_file,
    }
    await promote(loop)
    loop.edit(1)
    third = await begin(loop)
    assert len(rows_of(loop, third.replay_file)) == 5
    await loop.run_job()
    await loop.learner.tick()
    assert loop.world.shop.files.internal() == []


async def test_the_trainer_is_ordered_to_repeat_them(loop: Loop) -> None:
    await loop.opt_in(canary=CANARY)
    for is_repeating in (False, True):
        loop.edit(3)
        await begin(loop)
        await loop.run_job()
        order = loop.world.engine.orders[-1]
        assert (order.replay is not None) is is_repeating
        assert order.settings.replay.share == 0.15
        assert order.settings.replay.adaptive
        await promote(loop)


async def test_what_was_not_promoted_is_not_repeated(loop: Loop) -> None:
    await loop.opt_in()
    loop.world.engine.ends = False
    loop.edit(3)
    await begin(loop)
    await loop.run_job()
    await loop.learner.tick()
    assert loop.run().status == "refused"
    loop.edit(3)
    assert (await begin(loop)).replay_file is None
    await loop.run_job()


async def test_a_question_that_is_answered_anew_is_not_held_to_the_old_answer(loop: Loop) -> None:
    await loop.opt_in(canary=CANARY)
    loop.edit(1, question="Who?")
    loop.edit(1, question="Where?")
    await begin(loop)
    await promote(loop)
    loop.edit(1, question="Who?")
    wish = await begin(loop)
    assert answers_of(loop, wish.replay_file) == {"mended 2"}
    await promote(loop)
    loop.edit(1)
    wish = await begin(loop)
    assert answers_of(loop, wish.replay_file) == {"mended 2", "mended 3"}
    await loop.run_job()


@pytest.mark.parametrize("settings", [{"share": 0}, {"share": 0.0, "capacity": 5}])
async def test_an_adapter_can_be_told_to_repeat_and_remember_nothing(
    loop: Loop, settings: Mapping[str, Any]
) -> None:
    await loop.opt_in(canary=CANARY, replay=settings)
    loop.edit(3)
    await begin(loop)
    await promote(loop)
    await loop.opt_in(canary=CANARY)
    loop.edit(3)
    assert (await begin(loop)).replay_file is None
    await loop.run_job()


def upload(loop: Loop, *rows: Any, tenant: str = "") -> str:
    files = loop.world.shop.files
    with files.staging() as folder:
        (folder / "rows").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
        stored = files.add(
            *(folder / "rows",),
            filename="x",
            purpose="fine-tune",
            status="processed",
            tenant=tenant,
        )
    return stored.id


async def test_rows_of_a_file_are_repeated_beside_them(loop: Loop) -> None:
    file = upload(loop, *({"question": f"{n}?", "answer": f"so {n}"} for n in range(9)))
    await loop.opt_in(canary=CANARY, replay={"file": file, "capacity": 6})
    with pytest.raises(FileInUse, match=r"replay\.file of 'poet'"):
        loop.world.shop.files.delete(file)
    loop.edit(3)
    first = await begin(loop)
    found = answers_of(loop, first.replay_file)
    assert len(found) == 6
    assert found < {f"so {n}" for n in range(9)}
    await promote(loop)
    loop.edit(1)
    # Both strata have the same room, and a row of the file is never remembered as feedback.
    found = answers_of(loop, (await begin(loop)).replay_file)
    assert {"mended 1", "mended 2", "mended 3"} < found
    assert len(found) == 6
    await loop.run_job()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shar": 0.1}, "share"),
        ({"share": 0, "shar": 0.1}, "share"),
        ({"share": 1.5}, "below 1"),
        ({"file": "file-0"}, "no file has the id"),
    ],
)
async def test_settings_of_replay_are_checked_at_once(
    loop: Loop, settings: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(RequestRejected, match=message):
        await loop.opt_in(replay=settings)


@pytest.mark.parametrize(
    "given",
    [
        {"replay": {"capacity": 0}},
        {"replay": {"capacity": True}},
        {"replay": {"file": 3}},
        {"hold_out": 0.6},
        {"seed": -1},
    ],
)
def test_values_that_mean_nothing_are_refused(given: Mapping[str, Any]) -> None:
    with pytest.raises(ValueError, match="it must be"):
        LearningPolicy(**given)


async def test_a_tenant_names_its_own_files_alone(loop: Loop) -> None:
    file = upload(loop, {"text": "red's"}, tenant="red")
    await loop.opt_in()
    loop.edit(3)
    internal = (await begin(loop)).training_file
    await loop.run_job()
    for place in ({"validation_file": 1}, {"replay": "file"}, {"gate": "recent"}):
        ((name, key),) = place.items()
        for hidden in (file, internal, "file-0"):
            given = {name: hidden if key == 1 else {key: hidden}}
            policy = LearningPolicy(enabled=True, **given)  # pyright: ignore[reportArgumentType]
            with pytest.raises(RequestRejected, match="no file has the id"):
                await loop.learner.set_policy("poet", policy, owner=JobOwner(view="blue"))
        given = {name: file if key == 1 else {key: file}}
        policy = LearningPolicy(enabled=True, **given)  # pyright: ignore[reportArgumentType]
        await loop.learner.set_policy("poet", policy, owner=JobOwner(view="red"))


async def test_some_questions_are_held_out_where_nothing_else_is_measured(loop: Loop) -> None:
    await loop.opt_in(hold_out=0.25)
    for number in range(8):
        loop.edit(2, question=f"question {number}")
    wish = await begin(loop)
    learnt, apart = (
        {row["messages"][0]["content"] for row in rows_of(loop, file)}
        for file in (wish.training_file, wish.validation_file)
    )
    assert (len(learnt), len(apart)) == (6, 2)
    assert not learnt & apart
    assert loop.run().num_rows == 12
    await loop.run_job()
    await loop.learner.tick()
    assert loop.world.shop.files.internal() == []


async def test_a_validation_file_leaves_all_questions_to_be_learned(loop: Loop) -> None:
    file = loop.world.add_file()
    await loop.opt_in(hold_out=0.25, validation_file=file)
    loop.edit(8)
    wish = await begin(loop)
    assert wish.validation_file == file
    assert len(rows_of(loop, wish.training_file)) == 8
    await loop.run_job()


async def test_erasing_reaches_what_is_remembered_and_every_file_made_of_it(
    disk: Loop, tmp_path: Path
) -> None:
    """A run that repeats a row of the user ends, though it learned from others."""
    await disk.opt_in(canary=CANARY, hold_out=0.5)
    disk.edit(4, user="ann")
    disk.edit(4, user="bob")
    await begin(disk)
    await promote(disk)
    # The answers themselves go for want of room; what was taught is remembered.
    disk.store.trim("poet", num_completions=1, oldest=0)
    assert disk.store.numbers("poet") == (1, 1)
    disk.edit(2, user="eve")
    disk.world.engine.is_alive = False
    job = await disk.learner.learn("poet")
    assert len(rows_of(disk, job.wish.replay_file)) == 8
    assert bytes_under(tmp_path).count(b"of ann") >= 8
    await disk.learner.erase(user="ann")
    assert disk.world.jobs.rows.get(job.id).status == "cancelled"
    assert disk.run().status == "cancelled"
    left = bytes_under(tmp_path)
    assert b"of ann" not in left
    assert b"of bob" in left
    disk.world.engine.is_alive = True
    wish = await begin(disk)
    assert len(rows_of(disk, wish.replay_file)) == 4
    await disk.run_job()


async def test_one_piece_of_feedback_is_erased_from_what_is_remembered(
    disk: Loop, tmp_path: Path
) -> None:
    await disk.opt_in(canary=CANARY)
    disk.edit(3, user="ann")
    await begin(disk)
    await promote(disk)
    (one, *_) = disk.store.page()[0]
    disk.edit(1, user="eve")
    disk.world.engine.is_alive = False
    job = await disk.learner.learn("poet")
    await disk.learner.delete(one.id)
    assert disk.world.jobs.rows.get(job.id).status == "cancelled"
    assert str(one.value).encode() not in bytes_under(tmp_path)
    assert b"mended 1" in bytes_under(tmp_path)


async def test_what_is_remembered_grows_old_and_goes(disk: Loop, tmp_path: Path) -> None:
    await disk.opt_in(canary=CANARY, keep_seconds=1000)
    disk.edit(3)
    await begin(disk)
    await promote(disk)
    disk.now += 1001
    await disk.learner.tick()
    assert b"mended" not in bytes_under(tmp_path)
