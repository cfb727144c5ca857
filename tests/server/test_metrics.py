"""Metrics stay small and tell the outcomes apart."""

import pytest

from multiflora.engine.errors import RequestFailed
from multiflora.server.errors import ClientDisconnectedError

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (RequestFailed("x", code="engine_died"), "engine_died"),
        (ZeroDivisionError(), "internal_error"),
        (ClientDisconnectedError(), "disconnected"),
    ],
)
async def test_a_request_that_fails_is_counted_by_its_code(service, error, outcome):
    with pytest.raises(type(error)), service.metrics.request("a"):
        raise error

    text = (await service.metrics.render()).decode()
    assert f'multiflora_requests_total{{adapter="a",outcome="{outcome}"}} 1.0' in text


async def test_many_adapters_share_one_label(service):
    for number in range(300):
        with service.metrics.request(f"adapter-{number}") as record:
            record.succeed()

    text = (await service.metrics.render()).decode()
    assert 'multiflora_requests_total{adapter="other",outcome="ok"} 44.0' in text
    assert "adapter-256" not in text


async def test_the_first_token_is_timed_once(service):
    with service.metrics.request("a") as record:
        record.first_token()
        record.first_token()

    text = (await service.metrics.render()).decode()
    assert 'multiflora_time_to_first_token_seconds_count{adapter="a"} 1.0' in text
