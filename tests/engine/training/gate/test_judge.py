"""An endpoint is asked as OpenAI's clients ask, and nowhere but where the operator said."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest

from multiflora.engine.training.gate.judge import HttpJudge, NoJudge, comparison, win

pytestmark = pytest.mark.anyio


class Endpoint(BaseHTTPRequestHandler):
    """Votes for the answer that is called good; says nonsense or sends elsewhere by path."""

    seen: list[Any] = []  # noqa: RUF012

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.seen.append((self.path, body))
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("location", "/v1/chat/completions")
            self.end_headers()
            return
        text = body["messages"][0]["content"]
        vote = "A" if text.index("good") < text.index("Answer B") else "B"
        found = {"choices": [{"message": {"content": vote}}]} if "/v1" in self.path else []
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(found).encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Endpoint) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


async def test_an_endpoint_votes(url: str) -> None:
    questions = [comparison("q", "good", "bad"), comparison("q", "bad", "good")]
    assert await HttpJudge(f"{url}/v1/").ask(questions) == ["A", "B"]
    path, body = Endpoint.seen[-1]
    assert path == "/v1/chat/completions"
    assert body["temperature"] == 0


async def test_an_endpoint_that_is_no_judge_is_an_error(url: str) -> None:
    with pytest.raises(NoJudge, match="no completion"):
        await HttpJudge(f"{url}/other").ask([comparison("q", "good", "bad")])
    with pytest.raises(OSError, match="302"):
        await HttpJudge(f"{url}/moved").ask([comparison("q", "good", "bad")])


@pytest.mark.parametrize(
    ("forward", "backward", "expected"),
    [
        ("A", "B", 1.0),
        ("B", "A", 0.0),
        ("A", "A", 0.5),
        ("Answer B.", "It is A", 0.0),
        ("neither", "B", 0.5),
        ("", "", 0.5),
    ],
)
def test_a_win_is_one_in_both_orders(forward: str, backward: str, expected: float) -> None:
    assert win(forward, backward) == expected
