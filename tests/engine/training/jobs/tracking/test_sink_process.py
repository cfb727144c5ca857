"""A sink may fail, hang or die: only its own metrics are lost by it."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from multiflora.engine.training.jobs.tracking.message import Begun, Ended, Measured
from multiflora.engine.training.jobs.tracking.sink_process import SinkProcess

Start = Callable[..., SinkProcess]
COPY = "import sys; open({!r}, 'wb').write(sys.stdin.buffer.read())"
HANG = "import time; time.sleep(600)"


@pytest.mark.parametrize("succeeded", [True, False, None])
def test_messages_arrive_in_order_and_the_end_last(
    start: Start, tmp_path: Path, failures: list[str], succeeded: bool | None
) -> None:
    sink = start(COPY.format(str(tmp_path / "copy")))
    sink.put(Begun(0))
    sink.put(Measured(1, {"train/loss": 0.5}))
    sink.close(succeeded)
    sink.put(Measured(2, {}))
    sink.wait(20)
    first, *rest = (tmp_path / "copy").read_bytes().splitlines()
    assert b'"id":"ftjob-1"' in first
    ends = [] if succeeded is None else [b'"Ended"']
    for line, word in zip(rest, [b'"Begun"', b'"train/loss":0.5', *ends], strict=True):
        assert word in line
    assert failures == []


def test_a_process_that_fails_is_told_of_once_with_its_reason(
    start: Start, failures: list[str]
) -> None:
    sink = start("import sys; print('noise'); print('no key', file=sys.stderr); sys.exit(1)")
    sink.put(Begun(0))
    sink.close(True)
    sink.wait(20)
    sink.close(False)
    assert failures == ["no key"]


def test_a_process_that_dies_silently_is_told_of_too(start: Start, failures: list[str]) -> None:
    sink = start("import os; os.kill(os.getpid(), 9)")
    sink.close(True)
    sink.wait(20)
    assert failures == ["its process ended with status -9"]


def test_a_process_that_hangs_makes_nobody_wait_and_is_killed(
    start: Start, failures: list[str]
) -> None:
    sink = start(HANG, patience_seconds=0.3)
    began = time.monotonic()
    for step in range(20_000):
        sink.put(Measured(step, {"train/loss": 1.0}))
    sink.close(True)
    assert time.monotonic() - began < 5
    sink.wait(20)
    assert failures == ["it took nothing for 0.3 s"]


def test_a_process_that_does_not_end_is_killed(start: Start, failures: list[str]) -> None:
    sink = start(f"import sys; sys.stdin.read(); {HANG}", patience_seconds=0.3)
    sink.close(True)
    sink.wait(20)
    assert failures == ["it was not done after 0.3 s"]


def test_only_the_first_end_counts(start: Start, tmp_path: Path) -> None:
    sink = start(COPY.format(str(tmp_path / "copy")))
    sink.close(True)
    sink.close(False)
    sink.wait(20)
    assert Ended(True).succeeded
    assert b'"succeeded":true' in (tmp_path / "copy").read_bytes()
