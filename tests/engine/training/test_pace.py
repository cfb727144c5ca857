"""Neither side starves, whatever the other does, and a share is kept or follows a target."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiflora.engine.background import ServingLoad
from multiflora.engine.config import TrainingConfig, TrainingPace
from multiflora.engine.training.pace import (
    BALANCED_SHARE,
    CEILING_SHARE,
    FLOOR_SHARE,
    PATIENCE,
    Pace,
)

IDLE = ServingLoad(step_seconds=0, num_requests=0, awaits_first_token=False)
LOADING = ServingLoad(step_seconds=0, num_requests=1, awaits_first_token=True)
SECONDS = st.floats(1e-3, 0.1)
PACES = st.sampled_from(["balanced", "throughput"])


def busy(seconds: float, *, awaits_first_token: bool = False) -> ServingLoad:
    return ServingLoad(step_seconds=seconds, num_requests=2, awaits_first_token=awaits_first_token)


class Machine:
    """A device that serves and trains by a pace, on a clock of its own."""

    def __init__(self, pace: TrainingPace = "balanced", **settings: float) -> None:
        self.now = 0.0
        self.served = self.trained = self.longest = 0.0
        self.pace = Pace(TrainingConfig(pace=pace, **settings), lambda: self.now)  # type: ignore[arg-type]

    def turn(self, load: ServingLoad, quantum: float, *, overhead: float = 0.0) -> bool:
        """A step, then a quantum of this length if it may start; returns whether it did."""
        self.now += load.step_seconds + overhead
        self.served += load.step_seconds
        self.pace.serve(load)
        if not self.pace.allows(load):
            return False
        self.now += quantum
        self.trained += quantum
        self.longest = max(self.longest, quantum)
        self.pace.spend("backward", 64, quantum, load)
        return True


@given(PACES, st.lists(st.tuples(SECONDS, SECONDS, st.booleans()), max_size=200))
def test_serving_keeps_its_share_of_the_time_whatever_quanta_take(
    pace: TrainingPace, turns: list[tuple[float, float, bool]]
) -> None:
    machine = Machine(pace)
    for step, quantum, awaits in turns:
        machine.turn(busy(step, awaits_first_token=awaits), quantum)
        assert FLOOR_SHARE <= machine.pace.share <= CEILING_SHARE
        assert machine.trained <= CEILING_SHARE * machine.served + machine.longest


@given(PACES, SECONDS, SECONDS, st.booleans())
def test_training_keeps_its_floor_under_any_load(
    pace: TrainingPace, step: float, quantum: float, awaits: bool
) -> None:
    machine = Machine(pace, token_gap_seconds=1e-9)
    while machine.served < 3 * quantum / FLOOR_SHARE:
        machine.turn(busy(step, awaits_first_token=awaits), quantum)
    least = FLOOR_SHARE * machine.served
    # The first quantum may wait for as many prompts as there is patience for.
    assert machine.trained >= least - quantum - FLOOR_SHARE * (PATIENCE + 1) * step


@given(st.lists(SECONDS, min_size=1, max_size=20))
def test_a_device_without_requests_trains_all_the_time(quanta: list[float]) -> None:
    for pace in ("idle-only", "balanced", "throughput"):
        machine = Machine(pace)
        assert all(machine.turn(IDLE, quantum) for quantum in quanta)


def test_idle_only_never_trains_beside_a_request() -> None:
    machine = Machine("idle-only")
    assert not any(machine.turn(busy(0.01), 0.001) for _ in range(100))
    assert not machine.turn(LOADING, 0.001)


def test_a_request_that_waits_for_its_adapter_does_not_hold_training_back() -> None:
    machine = Machine("balanced")
    assert all(machine.turn(LOADING, 0.01) for _ in range(10))


def test_a_first_token_waits_for_no_quantum_that_is_not_paid_in_full() -> None:
    machine = Machine("balanced", token_gap_seconds=10)
    machine.turn(busy(0.01), 0.02)
    turns = 0
    while not machine.turn(busy(0.01, awaits_first_token=True), 0.02):
        turns += 1
    # The credit went to -0.02 + 0.0005 and had to come back to 0.02, at a share of 0.05 and rising.
    assert 15 < turns < 80
    machine.pace._credit = 0.001
    assert machine.pace.allows(busy(0.01))
    assert not machine.pace.allows(busy(0.01, awaits_first_token=True))


# What a quantum leaves of a credit that had to be saved up for it is lost while prompts wait.
@pytest.mark.parametrize(("awaits", "kept"), [(False, 0.99), (True, 0.65)])
def test_balanced_training_takes_its_share_of_what_serving_takes(awaits: bool, kept: float) -> None:
    machine = Machine("balanced")
    for _ in range(3000):
        machine.turn(busy(0.01, awaits_first_token=awaits), 0.007)
    share = machine.trained / machine.served
    assert kept * BALANCED_SHARE < share < BALANCED_SHARE + 0.001


def test_the_share_settles_where_tokens_come_as_late_as_they_may() -> None:
    machine = Machine("balanced", token_gap_seconds=0.0125)
    for _ in range(3000):
        machine.turn(busy(0.01), 0.002)
    served, trained = machine.served, machine.trained
    for _ in range(3000):
        machine.turn(busy(0.01), 0.002)
    # A quarter above what a step takes; halving on every miss keeps the mean below it.
    assert 0.12 < (machine.trained - trained) / (machine.served - served) < 0.27


def test_a_prompt_of_one_step_or_two_waits_for_no_quantum() -> None:
    machine = Machine("balanced")
    for _ in range(50):
        for _ in range(9):
            machine.turn(busy(0.01), 0.007)
        for _ in range(PATIENCE - 1):
            assert not machine.turn(busy(0.03, awaits_first_token=True), 0.007)
    assert machine.trained > 0.25 * machine.served


def test_a_step_in_which_prompts_wait_does_not_use_up_the_patience() -> None:
    machine = Machine("balanced")
    for _ in range(50):
        for _ in range(9):
            machine.turn(busy(0.01), 0.007)
        brief = replace(busy(0.01, awaits_first_token=True), is_brief=True)
        assert not machine.turn(brief, 0.007)
        for _ in range(PATIENCE - 1):
            assert not machine.turn(busy(0.03, awaits_first_token=True), 0.007)


def test_a_target_out_of_reach_leaves_the_floor_and_a_generous_one_the_ceiling() -> None:
    strict, generous = Machine(token_gap_seconds=1e-6), Machine(token_gap_seconds=9)
    for _ in range(300):
        strict.turn(busy(0.01), 0.002)
        generous.turn(busy(0.01), 0.002)
    assert strict.pace.share == FLOOR_SHARE
    assert generous.pace.share == CEILING_SHARE


@pytest.mark.parametrize("pace", ["balanced", "throughput"])
def test_a_long_spell_of_serving_earns_one_quantum_at_a_time(pace: TrainingPace) -> None:
    machine = Machine(pace)
    machine.turn(IDLE, 0.01)
    for _ in range(1000):
        machine.pace.serve(busy(0.01))
    assert machine.pace._credit <= 0.01 + 1e-12
