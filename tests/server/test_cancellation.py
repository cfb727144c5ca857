from unittest.mock import Mock

import pytest

from multiflora.adapters.merging.child import MergeChild
from multiflora.server.cancellation import Cancellation, Cancelled


def test_a_child_ends_with_its_merge() -> None:
    cancellation, child = Cancellation(), Mock(MergeChild)
    cancellation.watch(child)
    cancellation.check()
    assert cancellation.set()
    child.kill.assert_called_once_with()
    with pytest.raises(Cancelled):
        cancellation.seal()


def test_a_merge_that_was_cancelled_before_it_began_starts_no_child() -> None:
    cancellation, child = Cancellation(), Mock(MergeChild)
    assert cancellation.set()
    with pytest.raises(Cancelled):
        cancellation.watch(child)
    child.kill.assert_not_called()


def test_a_sealed_merge_is_out_of_reach() -> None:
    cancellation, child = Cancellation(), Mock(MergeChild)
    cancellation.watch(child)
    cancellation.seal()
    assert not cancellation.set()
    cancellation.check()
    child.kill.assert_not_called()
