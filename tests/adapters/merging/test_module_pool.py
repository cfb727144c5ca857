import threading
from collections.abc import Iterator

import pytest
import torch

from multiflora.adapters.merging.module_pool import one_by_one, side_by_side


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_as_many_items_run_at_a_time_as_torch_has_threads() -> None:
    # Breaks, instead of waiting for ever, if fewer than three arrive.
    barrier = threading.Barrier(3, timeout=10)

    def meet(item: int) -> int:
        barrier.wait()
        return item

    with side_by_side(meet, range(6)) as results:
        assert list(results) == list(range(6))


@pytest.mark.usefixtures("three_threads")
def test_an_item_sees_one_thread_and_the_caller_keeps_its_own() -> None:
    with side_by_side(lambda item: torch.get_num_threads(), range(4)) as results:
        assert list(results) == [1] * 4
    assert torch.get_num_threads() == 3
    in_new_thread: list[int] = []
    thread = threading.Thread(target=lambda: in_new_thread.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert in_new_thread == [3]


@pytest.mark.usefixtures("three_threads")
def test_a_failure_drops_what_was_not_begun() -> None:
    begun: list[int] = []

    def fail(item: int) -> None:
        begun.append(item)
        raise ValueError(item)

    with pytest.raises(ValueError, match=r"^0$"), side_by_side(fail, range(1000)) as results:
        list(results)
    assert len(begun) < 1000
    assert torch.get_num_threads() == 3


def test_one_by_one_runs_an_item_when_it_is_asked_for() -> None:
    begun: list[int] = []
    with one_by_one(begun.append, range(3)) as results:
        next(results)
        assert begun == [0]
