"""A version that could not be read is left alone for a second, then tried again."""

from multiflora.adapters.error import AdapterRejected
from multiflora.adapters.recent_failure import RecentFailures

ERROR = AdapterRejected("load_failed", "the disk is on fire")


def test_a_failure_is_remembered_for_a_second() -> None:
    now = [0.0]
    failures = RecentFailures(lambda: now[0])
    failures.add("a", ERROR)
    now[0] = 0.9
    assert failures.find("a") is ERROR
    assert failures.find("b") is None
    now[0] = 1.0
    assert failures.find("a") is None


def test_what_is_asked_for_anew_has_no_past() -> None:
    failures = RecentFailures(lambda: 0.0)
    failures.add("a", ERROR)
    failures.forget("a")
    failures.forget("never seen")
    assert failures.find("a") is None


def test_old_failures_take_no_memory() -> None:
    now = [0.0]
    failures = RecentFailures(lambda: now[0])
    for number in range(100):
        now[0] = 2.0 * number
        failures.add(str(number), ERROR)
    assert len(failures._failures) == 1
