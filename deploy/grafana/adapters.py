"""Every adapter: its traffic, its times, where it is and what moves it."""

from .panel import Board, Panel, Query, panel, quantile, rate

_CHOSEN = 'adapter=~"$adapter"'
_SELECTED = f'{{instance=~"$instance",{_CHOSEN}}}'


def _top(expr: str) -> str:
    return f"topk(15, {expr})"


def _now(title: str, about: str, metric: str, **options: object) -> Panel:
    """A gauge of every chosen adapter."""
    expr = _top(f"max by (adapter) (multiflora_adapter_{metric}{_SELECTED})")
    return panel(title, about, Query(expr, "{{adapter}}"), **options)


ADAPTERS = Board(
    uid="multiflora-adapters",
    title="multiflora / Adapters",
    about="Traffic, latency, residency and changes of every adapter.",
    picks_adapters=True,
    rows=(
        (
            "Traffic",
            (
                panel(
                    "Requests",
                    "The adapters with most requests.",
                    Query(
                        _top(rate("multiflora_adapter_requests_total", "adapter", where=_CHOSEN)),
                        "{{adapter}}",
                    ),
                    kind="areas",
                    unit="reqps",
                ),
                panel(
                    "Generated tokens",
                    "Per second.",
                    Query(
                        _top(
                            rate(
                                "multiflora_adapter_tokens_total",
                                "adapter",
                                where=f'{_CHOSEN},kind="generated"',
                            )
                        ),
                        "{{adapter}}",
                    ),
                    kind="areas",
                ),
                panel(
                    "Outcomes other than ok",
                    "By code; disconnected clients left by themselves.",
                    Query(
                        rate(
                            "multiflora_adapter_requests_total",
                            "adapter, outcome",
                            where=f'{_CHOSEN},outcome!="ok"',
                        ),
                        "{{adapter}}: {{outcome}}",
                    ),
                    unit="reqps",
                ),
            ),
        ),
        (
            "Time",
            (
                *(
                    panel(
                        title,
                        about,
                        Query(
                            _top(
                                quantile(
                                    0.95, f"multiflora_adapter_{name}", "adapter", where=_CHOSEN
                                )
                            ),
                            "{{adapter}}",
                        ),
                        unit="s",
                        width=6,
                    )
                    for title, about, name in (
                        (
                            "First token, p95",
                            "From the request to its first token.",
                            "first_token_seconds",
                        ),
                        ("Between tokens, p95", "Of an answer.", "inter_token_seconds"),
                        ("Queue, p95", "Until the scheduler took the request.", "queue_seconds"),
                        (
                            "Wait for the version, p95",
                            "Part of the queue: until the version was on the device.",
                            "load_wait_seconds",
                        ),
                    )
                ),
                _now(
                    "Starvation",
                    "How long the request that waits longest has waited.",
                    "starvation_seconds",
                    unit="s",
                ),
                _now("Waiting", "Requests that wait.", "waiting"),
                panel(
                    "Prefix cache hits",
                    "Share of prompt tokens found in the cache.",
                    Query(
                        _top(
                            rate(
                                "multiflora_adapter_tokens_total",
                                "adapter",
                                where=f'{_CHOSEN},kind="cached"',
                            )
                            + " / "
                            + rate(
                                "multiflora_adapter_tokens_total",
                                "adapter",
                                where=f'{_CHOSEN},kind="prompt"',
                            )
                        ),
                        "{{adapter}}",
                    ),
                    unit="percentunit",
                ),
            ),
        ),
        (
            "Where they are",
            (
                panel(
                    "Adapters by memory",
                    "The fastest memory that holds the version of a name.",
                    Query(f"count by (tier) (multiflora_adapter_tier{_SELECTED})", "{{tier}}"),
                    kind="areas",
                ),
                _now("Device memory", "Of all versions of a name.", "device_bytes", unit="bytes"),
                _now("Open requests", "Leases that requests hold.", "held_leases"),
                panel(
                    "Rank",
                    "Highest rank of the version.",
                    Query(_top(f"multiflora_adapter_rank{_SELECTED}"), "{{adapter}}"),
                    kind="bars",
                ),
                panel(
                    "Weights file",
                    "Its size.",
                    Query(_top(f"multiflora_adapter_file_bytes{_SELECTED}"), "{{adapter}}"),
                    kind="bars",
                    unit="bytes",
                ),
                panel(
                    "Versions",
                    "What a name points at, and the version that it tries out.",
                    f"multiflora_adapter_info{_SELECTED}",
                    kind="table",
                ),
            ),
        ),
        (
            "Changes",
            (
                panel(
                    "Swaps, rollbacks, canaries",
                    "Changes to names, per minute.",
                    Query(
                        f"60 * {rate('multiflora_adapter_changes_total', 'action')}", "{{action}}"
                    ),
                ),
                panel(
                    "Canary, as asked",
                    "The share of new requests that the canary is to get.",
                    Query(
                        f"multiflora_adapter_canary_weight{_SELECTED}",
                        "{{adapter}}",
                    ),
                    unit="percentunit",
                ),
                panel(
                    "Requests by role",
                    "What the active versions and the canaries answered.",
                    Query(
                        rate(
                            "multiflora_adapter_version_requests_total",
                            "adapter, role",
                            where=_CHOSEN,
                        ),
                        "{{adapter}}: {{role}}",
                    ),
                    unit="reqps",
                ),
            ),
        ),
    ),
)
