"""Jobs that train beside the requests, what they take, and what the gate says of them."""

from .panel import Board, Query, gauge, panel, rate

_JOBS = '{instance=~"$instance"}'

TRAINING = Board(
    uid="multiflora-training",
    title="multiflora / Training",
    about="Training jobs, their losses and verdicts, and their share of the device.",
    rows=(
        (
            "Jobs",
            (
                panel(
                    "Jobs by status",
                    "All that are kept.",
                    Query(gauge("multiflora_training_jobs", "status"), "{{status}}"),
                    kind="areas",
                ),
                panel(
                    "In the engine",
                    "Jobs that hold memory, are paused, or wait for their turn.",
                    *(
                        Query(gauge(f"multiflora_training_jobs_{state}"), state)
                        for state in ("running", "paused", "queued")
                    ),
                    kind="areas",
                ),
                panel(
                    "Gate verdicts",
                    "Jobs that are kept, by what the quality gate said.",
                    Query(gauge("multiflora_training_gate_verdicts", "outcome"), "{{outcome}}"),
                    kind="bars",
                ),
            ),
        ),
        (
            "Learning",
            (
                panel(
                    "Loss",
                    "Last loss of running jobs; the kind of a job is its method.",
                    Query(f"multiflora_training_loss{_JOBS}", "{{method}}, {{split}}"),
                    width=12,
                ),
                panel(
                    "Tokens trained on",
                    "Per second, of finished optimizer steps.",
                    rate("multiflora_training_tokens_total"),
                    width=6,
                ),
                panel(
                    "Optimizer steps",
                    "Per second.",
                    rate("multiflora_training_steps_total"),
                    width=6,
                ),
                panel(
                    "Runs of the continual loop",
                    "Ended runs in the last hour, by outcome.",
                    Query(
                        f"sum by (outcome) (increase(multiflora_learning_runs_total{_JOBS}[1h]))"
                        " or vector(0)",
                        "{{outcome}}",
                    ),
                    width=12,
                ),
                panel(
                    "Feedback",
                    "What users said about answers, per minute.",
                    Query(f"60 * {rate('multiflora_feedback_total', 'kind')}", "{{kind}}"),
                    width=12,
                ),
            ),
        ),
        (
            "What it takes",
            (
                panel(
                    "Time of the device",
                    "Seconds per second: steps of requests, and quanta of training.",
                    Query(rate("multiflora_engine_step_seconds_total"), "serving"),
                    Query(rate("multiflora_training_seconds_total"), "training"),
                    kind="areas",
                    unit="percentunit",
                ),
                panel(
                    "Share while there are requests",
                    "Training time per serving time, as the pace allows.",
                    f"multiflora_training_share{_JOBS}",
                    unit="percentunit",
                ),
                panel(
                    "Memory",
                    "What jobs have reserved, of what is set aside.",
                    Query(gauge("multiflora_training_bytes_used"), "reserved"),
                    Query(gauge("multiflora_training_bytes"), "set aside"),
                    unit="bytes",
                ),
                panel(
                    "Quanta",
                    "Pieces of training work per second.",
                    rate("multiflora_training_quanta_total"),
                ),
            ),
        ),
    ),
)
