"""Training jobs as Prometheus sees them. No label takes what a client can choose."""

from collections.abc import Iterable

from prometheus_client.metrics_core import GaugeMetricFamily

from multiflora.engine.training.jobs.job_census import JobCensus


def training_families(jobs: JobCensus) -> Iterable[GaugeMetricFamily]:
    """Beside what the engine counts: states, verdicts, and the losses of what trains now."""
    statuses = GaugeMetricFamily(
        "multiflora_training_jobs", "Training jobs that are kept, by status.", labels=["status"]
    )
    for status, count in jobs.statuses.items():
        statuses.add_metric([status], count)
    yield statuses
    verdicts = GaugeMetricFamily(
        "multiflora_training_gate_verdicts",
        "Training jobs that are kept, by what the quality gate said.",
        labels=["outcome"],
    )
    for is_passed, count in jobs.verdicts.items():
        verdicts.add_metric(["passed" if is_passed else "refused"], count)
    yield verdicts
    losses = GaugeMetricFamily(
        "multiflora_training_loss", "Last loss of running jobs.", labels=["method", "split"]
    )
    for (method, split), loss in jobs.losses.items():
        losses.add_metric([method, split], loss)
    yield losses
