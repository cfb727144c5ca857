"""The first page: is it well, and if not, where does it hurt."""

from .panel import Board, Query, gauge, panel, quantile, rate

_FAULTS = 'outcome=~"engine.*|internal_error|adapter_unavailable|load_failed|deadline_exceeded"'
_SHARE = (
    f"({rate('multiflora_requests_total', where=_FAULTS)} or vector(0)) / "
    f"({rate('multiflora_requests_total')} > 0 or vector(1))"
)


def _quantiles(metric: str) -> tuple[Query, ...]:
    return tuple(Query(quantile(q, metric), f"p{q * 100:g}") for q in (0.5, 0.95, 0.99))


OVERVIEW = Board(
    uid="multiflora-overview",
    title="multiflora / Overview",
    about="Whether requests are answered, how fast, and what they wait for.",
    rows=(
        (
            "Now",
            (
                panel(
                    "Engines up",
                    "Servers whose engine takes requests.",
                    gauge("multiflora_engine_up"),
                    kind="number",
                    width=4,
                    height=4,
                    warn=1,
                    alarm=0.5,
                ),
                panel(
                    "Requests",
                    "Answered per second, whatever the outcome.",
                    rate("multiflora_requests_total"),
                    kind="number",
                    unit="reqps",
                    width=4,
                    height=4,
                ),
                panel(
                    "Failed by the server",
                    "Share of requests that failed through no fault of the client.",
                    _SHARE,
                    kind="number",
                    unit="percentunit",
                    width=4,
                    height=4,
                    warn=0.01,
                    alarm=0.05,
                ),
                panel(
                    "First token, p95",
                    "From the request to its first token.",
                    quantile(0.95, "multiflora_time_to_first_token_seconds"),
                    kind="number",
                    unit="s",
                    width=4,
                    height=4,
                    warn=2,
                    alarm=10,
                ),
                panel(
                    "Generated tokens",
                    "Per second, of all answers.",
                    rate("multiflora_generated_tokens_total"),
                    kind="number",
                    unit="short",
                    width=4,
                    height=4,
                ),
                panel(
                    "Longest wait",
                    "How long the request that waits longest has waited.",
                    'max (multiflora_queue_oldest_seconds{instance=~"$instance"})',
                    kind="number",
                    unit="s",
                    width=4,
                    height=4,
                    warn=10,
                    alarm=30,
                ),
            ),
        ),
        (
            "Requests",
            (
                panel(
                    "Requests by outcome",
                    "A code other than ok is an error; disconnected clients left by themselves.",
                    Query(rate("multiflora_requests_total", "outcome"), "{{outcome}}"),
                    kind="areas",
                    unit="reqps",
                ),
                panel(
                    "In the engine",
                    "Requests that share the batch, and those that wait for a place in it.",
                    Query(gauge("multiflora_requests_running"), "running"),
                    Query(gauge("multiflora_requests_waiting"), "waiting"),
                    kind="areas",
                ),
                panel(
                    "Turned away",
                    "By reason: a full queue, a limit.",
                    Query(rate("multiflora_admission_refusals_total", "reason"), "{{reason}}"),
                    unit="reqps",
                ),
            ),
        ),
        (
            "Time",
            (
                panel(
                    "First token",
                    "From the request to its first token.",
                    *_quantiles("multiflora_time_to_first_token_seconds"),
                    unit="s",
                ),
                panel(
                    "Between tokens",
                    "Time between two tokens of an answer.",
                    *_quantiles("multiflora_inter_token_seconds"),
                    unit="s",
                ),
                panel(
                    "Where requests spend it",
                    "Mean seconds per request: in the queue, reading the prompt, writing.",
                    *(
                        Query(
                            f"{rate(f'vllm:request_{stage}_time_seconds_sum')} / "
                            f"{rate(f'vllm:request_{stage}_time_seconds_count')}",
                            stage,
                        )
                        for stage in ("queue", "prefill", "decode")
                    ),
                    kind="areas",
                    unit="s",
                ),
            ),
        ),
        (
            "Work",
            (
                panel(
                    "Tokens by phase",
                    "What steps compute; prompt tokens from the prefix cache are not among them.",
                    Query(rate("multiflora_step_tokens_total", "phase"), "{{phase}}"),
                    kind="areas",
                ),
                panel(
                    "Steps, p95",
                    "Time of a forward pass, by what it held.",
                    Query(quantile(0.95, "multiflora_step_seconds", "phase"), "{{phase}}"),
                    unit="s",
                ),
                panel(
                    "Prefix cache hits",
                    "Share of prompt tokens that were not computed again.",
                    f"{rate('multiflora_cached_prompt_tokens_total')} / "
                    f"({rate('multiflora_cached_prompt_tokens_total')} + "
                    f"{rate('multiflora_prompt_tokens_total')})",
                    unit="percentunit",
                ),
            ),
        ),
    ),
)
