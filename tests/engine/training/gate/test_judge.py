"""An endpoint is asked as OpenAI's clients ask, and nowhere but where the operator said."""

import json
import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import ip_address
from threading import Thread
from typing import Any

import pytest

from multiflora.engine.training.gate.endpoint import NoAnswer, check_url, is_forbidden, post
from multiflora.engine.training.gate.judge import HttpJudge, comparison, win

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
        if self.path.startswith("/slow"):
            time.sleep(0.3)
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
        thread = Thread(target=server.serve_forever, args=(0.01,))
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
    with pytest.raises(NoAnswer, match="no completion"):
        await HttpJudge(f"{url}/other").ask([comparison("q", "good", "bad")])
    with pytest.raises(NoAnswer, match="302"):
        await HttpJudge(f"{url}/moved").ask([comparison("q", "good", "bad")])


async def test_who_reads_of_a_failure_learns_no_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    with pytest.raises(NoAnswer) as caught:
        await HttpJudge(url).ask([comparison("q", "good", "bad")] * 9)
    assert str(caught.value) == "it cannot be reached"


async def test_a_name_is_resolved_once_and_its_address_is_the_one_asked(url: str) -> None:
    port = url.rpartition(":")[2]
    answers = [["127.0.0.1"], ["169.254.169.254"]]

    async def rebinding(host: str) -> list[Any]:
        assert host == "judge.example"
        return [ip_address(text) for text in answers.pop(0)]

    question = json.dumps({"messages": [{"content": "good Answer B"}]}).encode()
    target = f"http://judge.example:{port}/v1/chat/completions"
    found = await post(target, question, seconds=5, max_bytes=1000, resolve=rebinding)
    assert json.loads(found)["choices"]
    with pytest.raises(NoAnswer, match="may not be asked"):
        await post(target, question, seconds=5, max_bytes=1000, resolve=rebinding)


@pytest.mark.parametrize(
    ("path", "limits", "message"),
    [("/v1", {"max_bytes": 10}, "more than 10"), ("/slow", {"seconds": 0.1}, "longer than 0.1")],
    ids=["size", "time"],
)
async def test_an_answer_is_bounded(
    url: str, path: str, limits: dict[str, Any], message: str
) -> None:
    body = json.dumps({"messages": [{"content": "good Answer B"}]}).encode()
    with pytest.raises(NoAnswer, match=message):
        await post(f"{url}{path}", body, **{"seconds": 5, "max_bytes": 1000, **limits})


@pytest.mark.parametrize(
    "text",
    [
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "2002:a9fe:a9fe::1",
        "64:ff9b::a9fe:a9fe",
        "fe80::1",
        "fd00:ec2::254",
        "100.100.100.200",
        "0.0.0.0",
        "::",
        "224.0.0.1",
        "255.255.255.255",
    ],
)
def test_no_name_leads_to_what_trusts_whoever_asks(text: str) -> None:
    assert is_forbidden(ip_address(text))


@pytest.mark.parametrize("text", ["127.0.0.1", "::1", "10.0.0.7", "fd12::1", "8.8.8.8"])
def test_a_name_may_lead_to_a_machine_of_the_operators(text: str) -> None:
    assert not is_forbidden(ip_address(text))


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "http://", "http://a:b@host/v1", "http://host/v1?x=1", "http://h:0/"],
)
def test_an_endpoint_is_a_plain_url(url: str) -> None:
    with pytest.raises(ValueError, match="no http or https URL"):
        check_url(url)


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
