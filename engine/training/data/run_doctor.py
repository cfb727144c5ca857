"""Reads the metrics of a run and says in plain words what is wrong with it, and what to change.

All judgements are about medians of a few steps: a single loss is mostly noise.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any, Final

from .finding import Finding, Severity, percent

_MIN_STEPS: Final = 8
# The loss of a group of steps stands for a stretch of the run.
_NUM_GROUPS: Final = 10
_DIVERGED: Final = 1.2
_SPIKE: Final = 2.0
_SPIKE_WINDOW: Final = 15
_MANY_SPIKES: Final = 0.02
_LARGE_NORM: Final = 10.0
_LEARNT: Final = 0.02
_STILL_FALLING: Final = 0.3
_SLOW: Final = 0.15
_OVERFIT: Final = 0.02
_MEMORISED: Final = 0.05


@dataclass(frozen=True, slots=True)
class _Point:
    step: int
    value: float
    epoch: float | None


def diagnose(history: Sequence[Mapping[str, Any]]) -> tuple[Finding, ...]:
    """What a run's metrics say; ``lines`` of the findings are steps.

    Rows have ``step`` and any of ``loss``, ``eval_loss``, ``grad_norm``, ``learning_rate`` and
    ``epoch``. A run of fewer than eight losses gets no judgement but for losses that are no
    numbers.
    """
    losses, evals = _series(history, "loss"), _series(history, "eval_loss")
    if (broken := _not_finite(history)) is not None:
        return (broken,)
    if len(losses) < _MIN_STEPS:
        return ()
    diverged = _divergence(losses)
    candidates = (
        diverged,
        None if diverged else _spikes(losses, _series(history, "grad_norm")),
        _overfitting(losses, evals),
        None if diverged else _progress(losses, history),
        _memorisation(losses, evals),
    )
    return tuple(found for found in candidates if found is not None)


def _series(history: Sequence[Mapping[str, Any]], name: str) -> list[_Point]:
    return [
        _Point(int(row["step"]), float(row[name]), row.get("epoch"))
        for row in history
        if row.get(name) is not None
    ]


def _not_finite(history: Sequence[Mapping[str, Any]]) -> Finding | None:
    for name in ("loss", "grad_norm", "eval_loss"):
        for point in _series(history, name):
            if not math.isfinite(point.value):
                return Finding(
                    "error",
                    "not_finite",
                    f"{name} is {point.value} from step {point.step} on: the run is lost; use a "
                    "tenth of the learning rate and a warm-up, and look at the rows of that step",
                    (point.step,),
                )
    return None


def _divergence(losses: Sequence[_Point]) -> Finding | None:
    groups = _groups(losses)
    lowest = min(range(len(groups)), key=lambda place: groups[place])
    start, end = groups[0], groups[-1]
    has_lost_half = end - groups[lowest] > 0.5 * (start - groups[lowest])
    if end <= _DIVERGED * groups[lowest] or not has_lost_half:
        return None
    turn = losses[(2 * lowest + 1) * len(losses) // (2 * len(groups))]
    return Finding(
        "error",
        "diverged",
        f"the loss fell to {groups[lowest]:.3g} and then rose to {end:.3g} (it began at "
        f"{start:.3g}): the learning rate is too high; use a third of it, or a longer warm-up",
        (turn.step,),
    )


def _spikes(losses: Sequence[_Point], norms: Sequence[_Point]) -> Finding | None:
    loss_spikes = _jumps(losses, _SPIKE)
    norm_spikes = _jumps(norms, _LARGE_NORM)
    steps = sorted({*loss_spikes, *norm_spikes})
    if len(steps) < max(3, _MANY_SPIKES * len(losses)):
        return None
    return Finding(
        "warning",
        "spikes",
        f"at {len(steps)} of {len(losses)} steps ({percent(len(steps), len(losses))}) the loss "
        f"jumped to over {_SPIKE:g} times, or the gradient to over {_LARGE_NORM:g} times, of what "
        "it was around: the learning rate is near its limit, or some rows are odd; use half of it, "
        "and look at the rows of those steps",
        tuple(steps[:5]),
    )


def _jumps(points: Sequence[_Point], factor: float) -> list[int]:
    """Steps far above the median of the steps before them."""
    found = []
    for place in range(_MIN_STEPS, len(points)):
        around = median(p.value for p in points[max(0, place - _SPIKE_WINDOW) : place])
        if points[place].value > factor * around > 0:
            found.append(points[place].step)
    return found


def _overfitting(losses: Sequence[_Point], evals: Sequence[_Point]) -> Finding | None:
    if len(evals) < 3:
        return None
    best = min(evals, key=lambda point: point.value)
    last = evals[-1]
    has_risen = last.value > (1 + _OVERFIT) * best.value
    before = [point.value for point in losses if point.step <= best.step]
    after = [point.value for point in losses if point.step > best.step]
    if not has_risen or not before or not after:
        return None
    size = max(1, min(len(before), len(after)) // 3)
    then, now = median(before[-size:]), median(after[-size:])
    if now >= then:
        return None
    where = f"step {best.step}" + ("" if best.epoch is None else f" (epoch {best.epoch:.2g})")
    return Finding(
        "warning",
        "overfitting",
        f"since {where} the validation loss rose from {best.value:.3g} to {last.value:.3g}, while "
        f"the training loss fell from {then:.3g} to {now:.3g}: the rows are learnt by heart; use "
        "the checkpoint of that step, or fewer epochs, or more rows",
        (best.step,),
    )


def _progress(losses: Sequence[_Point], history: Sequence[Mapping[str, Any]]) -> Finding | None:
    groups = _groups(losses)
    start, end = groups[0], groups[-1]
    fallen = (start - end) / start if start > 0 else 0.0
    if fallen < _LEARNT:
        return _nothing_learnt(start, end, history)
    middle = groups[len(groups) // 2]
    late = (middle - end) / (start - end)
    if fallen < _SLOW and late > _STILL_FALLING:
        return Finding(
            "warning",
            "too_slow",
            f"the loss fell from {start:.3g} to {end:.3g} ({percent(start - end, start)}), "
            f"{percent(late, 1)} of it in the second half: it is still falling; use two to five "
            "times the learning rate, or more epochs",
        )
    return None


def _nothing_learnt(start: float, end: float, history: Sequence[Mapping[str, Any]]) -> Finding:
    norms = [point.value for point in _series(history, "grad_norm")]
    rates = [point.value for point in _series(history, "learning_rate")]
    severity: Severity = "warning"
    advice = "use five to ten times the learning rate; if that changes nothing, look at the rows"
    if norms and max(norms) == 0.0:
        severity, advice = "error", "every gradient is zero: no parameter is trained"
    elif rates and max(rates) == 0.0:
        severity, advice = "error", "the learning rate is zero throughout"
    elif rates:
        advice = f"the learning rate is {max(rates):.2g} at most; {advice}"
    return Finding(
        severity,
        "nothing_learnt",
        f"the loss went from {start:.3g} to {end:.3g}, which is no change: {advice}",
    )


def _memorisation(losses: Sequence[_Point], evals: Sequence[_Point]) -> Finding | None:
    """Without a validation file, a loss near zero is all there is to see of over-fitting."""
    end = _groups(losses)[-1]
    if evals or end > _MEMORISED or not losses[0].value > 4 * _MEMORISED:
        return None
    epoch = losses[-1].epoch
    after = "" if epoch is None else f" after {epoch:.2g} epochs"
    return Finding(
        "warning",
        "memorised",
        f"the training loss is {end:.2g}{after}, so the rows are known by heart, and there is no "
        "validation file to say whether anything else was learnt; use one, and fewer epochs",
    )


def _groups(points: Sequence[_Point]) -> list[float]:
    """Medians of up to ten stretches of equal length, in order."""
    count = min(_NUM_GROUPS, len(points) // 4)
    edges = [place * len(points) // count for place in range(count + 1)]
    return [median(point.value for point in points[start:end]) for start, end in pairwise(edges)]
