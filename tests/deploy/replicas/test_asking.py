"""What becomes of a request when replicas go away while they answer it."""

import json
from collections.abc import AsyncGenerator, Sequence

import pytest
from fastapi import Response
from fastapi.responses import StreamingResponse

from deploy.replicas import asking
from deploy.replicas.asking import Asker
from deploy.replicas.call import Call, Head

pytestmark = pytest.mark.anyio
CALL = Call(method="POST", path="/v1/completions", headers=())
JSON = Head(status=200, headers=(("content-type", "application/json"), ("x-own", "kept")))
STREAM = Head(status=200, headers=(("content-type", "text/event-stream"),))
BUSY = Head(status=503, headers=(("retry-after", "7"),))


class Gone(Exception):
    """A replica's end."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_PAUSE_SECONDS", 0)


class Replicas:
    """Give one script after the other; an exception ends an answer."""

    def __init__(self, *scripts: Sequence[Head | bytes | Exception]) -> None:
        self.scripts = list(scripts)
        self.num_open = 0

    async def ask(self, call: Call) -> AsyncGenerator[Head | bytes]:
        assert call is CALL
        self.num_open += 1
        try:
            for part in self.scripts.pop(0):
                if isinstance(part, Exception):
                    raise part
                yield part
        finally:
            self.num_open -= 1

    async def answer(self) -> Response:
        return await Asker(self.ask, lost=(Gone,)).answer(CALL)


async def text_of(response: Response) -> str:
    if not isinstance(response, StreamingResponse):
        return bytes(response.body).decode()
    return b"".join([bytes(part) async for part in response.body_iterator]).decode()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "cut", [(Gone(),), (JSON, Gone()), (JSON, b'{"half', Gone()), (BUSY,), (STREAM, Gone())]
)
async def test_a_request_goes_on_elsewhere_while_its_client_has_seen_nothing(cut):
    replicas = Replicas(cut, (JSON, b'{"whole": ', b"1}"))
    response = await replicas.answer()
    assert (response.status_code, await text_of(response)) == (200, '{"whole": 1}')
    assert response.headers["x-own"] == "kept"
    assert replicas.scripts == []
    assert replicas.num_open == 0


async def test_a_stream_that_has_begun_ends_with_an_error_event():
    replicas = Replicas((STREAM, b"data: 1\n\n", b"data: 2\n\n", Gone()))
    events = (await text_of(await replicas.answer())).split("\n\n")
    assert events[:2] == ["data: 1", "data: 2"]
    assert json.loads(events[2].removeprefix("data: "))["error"]["code"] == "replica_lost"
    assert events[3:] == [""]
    assert replicas.num_open == 0


async def test_a_whole_stream_passes_as_it_is():
    response = await Replicas((STREAM, b"data: 1\n\n", b"data: [DONE]\n\n")).answer()
    assert await text_of(response) == "data: 1\n\ndata: [DONE]\n\n"


async def test_errors_of_the_request_are_not_asked_again():
    refused = Head(status=400, headers=())
    response = await Replicas((refused, b"no")).answer()
    assert (response.status_code, await text_of(response)) == (400, "no")
    with pytest.raises(ZeroDivisionError):
        await Replicas((ZeroDivisionError(),)).answer()


async def test_it_gives_up_in_the_end():
    response = await Replicas(*[(Gone(),)] * 4).answer()
    assert response.status_code == 503
    assert json.loads(await text_of(response))["error"]["code"] == "replica_lost"
    busy = await Replicas(*[(BUSY, b"full")] * 4).answer()
    assert (busy.status_code, busy.headers["retry-after"]) == (503, "7")


async def test_an_empty_stream_is_a_stream():
    assert await text_of(await Replicas((STREAM,)).answer()) == ""
