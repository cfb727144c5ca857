"""Order of the rows and filling of micro-batches."""

import math

from hypothesis import given
from hypothesis import strategies as st

from multiflora.engine.training.config import BatchSettings
from multiflora.engine.training.step_plan import StepPlan, fill_micro_batches


@given(st.lists(st.integers(1, 100), max_size=60), st.integers(100, 300))
def test_micro_batches_hold_every_row_once_within_the_budget(sizes: list[int], budget: int) -> None:
    rows = range(len(sizes))
    filled = fill_micro_batches(rows, sizes.__getitem__, budget)
    assert sorted(row for part in filled for row in part) == list(rows)
    loads = [sum(sizes[row] for row in part) for part in filled]
    assert all(load <= budget for load in loads)
    # No two of them would fit together: what any-fit packing guarantees.
    assert all(a + b > budget for i, a in enumerate(loads) for b in loads[:i])
    assert filled == fill_micro_batches(rows, sizes.__getitem__, budget)


@given(
    st.integers(1, 50), st.integers(1, 9), st.integers(1, 4), st.booleans(), st.integers(0, 1000)
)
def test_every_epoch_takes_every_row_once(
    num_rows: int, batch_size: int, num_epochs: int, shuffle: bool, seed: int
) -> None:
    batch = BatchSettings(batch_size=batch_size, num_epochs=num_epochs, shuffle=shuffle)
    plan = StepPlan(num_rows, batch, seed)
    steps = [plan.rows(step) for step in range(plan.num_steps)]
    assert len(steps) == math.ceil(num_rows / batch_size) * num_epochs
    for epoch in range(num_epochs):
        taken = steps[epoch * plan.steps_per_epoch : (epoch + 1) * plan.steps_per_epoch]
        assert all(len(rows) == batch_size for rows in taken[:-1])
        assert sorted(row for rows in taken for row in rows) == list(range(num_rows))
    assert steps == [plan.rows(step) for step in range(plan.num_steps)]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    batch = BatchSettings(batch_size=40, num_epochs=2)
    orders = [StepPlan(40, batch, seed).rows(step) for seed in (0, 1) for step in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_max_steps_cuts_the_last_epoch_short() -> None:
    plan = StepPlan(10, BatchSettings(batch_size=4, num_epochs=5, max_steps=7), 0)
    assert (plan.steps_per_epoch, plan.num_steps) == (3, 7)
