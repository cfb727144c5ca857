"""The soak finds a leak where there is one, and none in this server."""

import pytest

from benchmarks.serving.soak import leaks, soak

QUIET = {
    **dict.fromkeys(
        (
            "multiflora_requests_running",
            "multiflora_requests_waiting",
            "multiflora_kv_blocks_used",
            "multiflora_adapter_leases",
            "multiflora_open_streams",
        ),
        0.0,
    ),
    "multiflora_event_loop_tasks": 6.0,
    "api_mib": 80.0,
    "api_open_files": 20.0,
    "engine_mib": 500.0,
}


@pytest.mark.parametrize(
    ("name", "value", "is_leak"),
    [
        ("multiflora_kv_blocks_used", 1.0, True),
        ("multiflora_adapter_leases", 1.0, True),
        ("multiflora_event_loop_tasks", 8.0, False),
        ("multiflora_event_loop_tasks", 9.0, True),
        ("api_open_files", 23.0, True),
        ("api_mib", 127.0, False),
        ("api_mib", 129.0, True),
        ("engine_mib", 633.0, True),
    ],
)
def test_what_is_not_back_is_a_leak(name: str, value: float, is_leak: bool) -> None:
    assert leaks(QUIET, {**QUIET, name: value}) == [name] * is_leak


@pytest.mark.full
@pytest.mark.timeout(2400)
def test_twenty_bad_minutes_leave_nothing_behind() -> None:
    record = soak(minutes=20, workers=12, seed=1)

    assert record["leaks"] == [], record
    assert record["outcomes"]["ask 200"] > 100
    assert not any(name.startswith("ask 5") for name in record["outcomes"])
