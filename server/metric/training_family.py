"""Training jobs as Prometheus sees them. No label takes what a client can choose."""

from typing import Final, get_args

from multiflora.engine.request import TrainingStats
from multiflora.engine.training.jobs.job import Status
from multiflora.engine.training.jobs.job_census import JobCensus

from .exposition import Exposition, labels

_GAUGES: Final = {
    "jobs_running": ("num_running", "Training jobs that hold memory and are not paused."),
    "jobs_paused": ("num_paused", "Training jobs that are paused."),
    "jobs_queued": ("num_queued", "Training jobs that wait for their turn."),
    "share": ("share", "Training time per serving time while there are requests."),
    "bytes_used": ("bytes_used", "Device memory reserved by training jobs."),
    "bytes": ("bytes_total", "Device memory set aside for training."),
}
_COUNTERS: Final = {
    "quanta": ("quanta", "Pieces of training work."),
    "steps": ("steps", "Optimizer steps of all training jobs."),
    "tokens": ("tokens", "Tokens trained on."),
    "seconds": ("seconds", "Time spent in training."),
}


def write_training(page: Exposition, stats: TrainingStats) -> None:
    """What the engine counts."""
    for name, (attribute, text) in _GAUGES.items():
        page.gauge(f"multiflora_training_{name}", text, [("", getattr(stats, attribute))])
    for name, (attribute, text) in _COUNTERS.items():
        page.counter(f"multiflora_training_{name}", text, [("", getattr(stats, attribute))])


def write_jobs(page: Exposition, jobs: JobCensus) -> None:
    """Beside what the engine counts: states, verdicts, and the losses of what trains now."""
    page.gauge(
        "multiflora_training_jobs",
        "Training jobs that are kept, by status.",
        [(labels(status=status), jobs.statuses.get(status, 0)) for status in get_args(Status)],
    )
    page.gauge(
        "multiflora_training_gate_verdicts",
        "Training jobs that are kept, by what the quality gate said.",
        [
            (labels(outcome="passed" if is_passed else "refused"), jobs.verdicts.get(is_passed, 0))
            for is_passed in (True, False)
        ],
    )
    page.gauge(
        "multiflora_training_loss",
        "Last loss of running jobs.",
        [
            (labels(method=method, split=split), loss)
            for (method, split), loss in jobs.losses.items()
        ],
    )
