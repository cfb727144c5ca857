"""A load test of a real server on a loopback port, and of servers that are none."""

import asyncio
import json
import shlex
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from multiflora.engine.errors import EngineUnavailable, RequestFailed, RequestRejected
from multiflora.server import cli
from multiflora.server.load_test.measurement import Measurement, measure
from multiflora.server.load_test.openai_server import OpenAIServer
from multiflora.server.load_test.question import Question

pytestmark = pytest.mark.anyio


def settings(url: str, **changes) -> Measurement:
    kept = {"models": ("base", "json"), "num_requests": 12, "concurrency": 3, "output_tokens": 5}
    return Measurement(url=url, **{**kept, **changes})


async def test_every_request_counts_with_its_tokens(url, engine) -> None:
    report = await measure(settings(url, mix="0.5,0.5", prompt_tokens=40))
    total = report["total"]
    assert (total["requests"], total["failed"]) == (12, 0)
    asked = engine.requests[-12:]
    names = Counter("json" if request.adapters else "base" for request in asked)
    assert {name: found["requests"] for name, found in report["models"].items()} == names
    assert total["prompt_tokens"] == sum(len(request.prompt) for request in asked)
    mean = total["prompt_tokens"] / 12
    assert 30 <= mean <= 50
    assert all(request.sampling.ignore_eos for request in asked)
    assert {request.sampling.max_tokens for request in asked} == {5}
    assert total["tokens"] > 0
    assert 0 < total["first_token_ms"]["p50"] <= total["request_ms"]["max"]


async def test_the_same_seed_asks_the_same(url, engine) -> None:
    for _ in range(2):
        await measure(settings(url, prompt_words=6, concurrency=1, seed=3))
    first, again = engine.requests[:12], engine.requests[12:]
    assert [(r.prompt, r.adapters) for r in first] == [(r.prompt, r.adapters) for r in again]
    assert len({request.prompt for request in first}) == 12


async def test_warmups_do_not_count(url, engine) -> None:
    report = await measure(settings(url, prompt_words=6, warmup=4, api="completions"))
    assert len(engine.requests) == 16
    assert report["total"]["requests"] == 12


async def test_all_names_are_asked_unless_some_are_given(url) -> None:
    report = await measure(
        settings(url, models=(), prompt_words=6, request_rate=500.0, concurrency=None)
    )
    assert report["settings"]["models"] == ["base", "json", "loud:one"]
    assert report["total"]["failed"] == 0


async def test_refusals_and_broken_streams_are_failures_by_their_code(url, engine) -> None:
    engine.script = lambda request: [RequestFailed("it broke")]
    report = await measure(settings(url, prompt_words=6, models=("base", "nobody")))
    errors = report["total"]["errors"]
    assert report["total"]["failed"] == 12
    assert sum(errors.values()) == 12
    assert "404 model_not_found" in errors
    assert len(errors) == 2


async def test_nobody_at_home_is_one_clear_error() -> None:
    with pytest.raises(EngineUnavailable, match="does not answer"):
        await measure(settings("http://127.0.0.1:9", prompt_tokens=8))


class Odd(BaseHTTPRequestHandler):
    """Speaks HTTP, and of OpenAI's API only what the test says."""

    answers: dict[str, tuple[str, bytes]]
    keys: set[str | None]

    def do_POST(self) -> None:
        self.keys.add(self.headers["authorization"])
        self.rfile.read(int(self.headers["content-length"]))
        kind, content = self.answers[self.path]
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None: ...


@pytest.fixture
def odd() -> Iterator[str]:
    Odd.keys = set()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Odd)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def event(text: str, **further) -> bytes:
    return b"data: " + json.dumps({"choices": [{"text": text}], **further}).encode() + b"\n\n"


STREAM = "text/event-stream"


@pytest.mark.parametrize(
    ("answer", "error", "tokens"),
    [
        ((STREAM, event("a") + event("b") + b": hi\n\ndata: [DONE]\n\n"), "", 2),
        ((STREAM, event("a", usage={"completion_tokens": 7}) + b"data: [DONE]\n\n"), "", 7),
        ((STREAM, event("a")), "the stream ended early", 1),
        ((STREAM, b"data: {\n\n"), "the stream is not OpenAI's", 0),
        ((STREAM, b"data: [1]\n\n"), "the stream is not OpenAI's", 0),
        (
            (STREAM, b'data: {"error": {"message": "m", "code": "c"}}\n\ndata: [DONE]\n\n'),
            "c",
            0,
        ),
        (("application/json", b"{}"), "Expected response with content type", 0),
    ],
)
async def test_other_servers_streams(odd: str, answer, error: str, tokens: int) -> None:
    Odd.answers = {"/v1/completions": answer}
    async with OpenAIServer(odd, key=None, timeout_seconds=5) as server:
        outcome = await server.ask(Question(api="completions"), "x", 0)
    assert outcome.error.startswith(error)
    assert bool(outcome.error) == bool(error)
    assert outcome.num_tokens == tokens


async def test_a_server_that_does_not_count_needs_words(odd: str) -> None:
    Odd.answers = {"/v1/chat/completions": ("application/json", b'{"choices": []}')}
    with pytest.raises(RequestRejected, match="--prompt-words"):
        await measure(settings(odd))


async def run(*arguments: str) -> int:
    def main() -> int:
        with pytest.raises(SystemExit) as ended:
            cli.main(["bench", "serve", *arguments])
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return await asyncio.to_thread(main)


async def test_the_command_prints_a_table_and_writes_json(url, tmp_path, capsys) -> None:
    out = tmp_path / "figures.json"
    options = ("--url", url, "--num-requests", "9", "--output-tokens", "3", "-o", str(out))
    assert await run(*options, "--models", "base", "json", "--mix", "zipf") == 0
    printed = capsys.readouterr().out
    assert "9 requests" in printed
    assert "json" in printed
    report = json.loads(out.read_text())
    assert report["settings"]["mix"] == "zipf"
    assert report["total"]["requests"] == 9
    assert await run(*options) == cli.EXIT_USAGE


async def test_the_command_ends_with_1_if_a_request_failed(url, capsys) -> None:
    options = ("--url", url, "--prompt-words", "3", "--num-requests", "4")
    assert await run(*options, "--models", "nobody") == 1
    assert "4 failed: 404 model_not_found" in capsys.readouterr().err


async def test_the_key_of_the_environment_is_sent(odd: str, monkeypatch) -> None:
    Odd.answers = {"/v1/chat/completions": (STREAM, event("a") + b"data: [DONE]\n\n")}
    monkeypatch.setenv("MULTIFLORA_API_KEY", "sk-secret")
    options = ("--url", odd, "--models", "x", "--prompt-words", "3", "--num-requests", "3")
    assert await run(*options) == 0
    assert Odd.keys == {"Bearer sk-secret"}


async def test_the_documented_command_is_one(url, tmp_path, monkeypatch) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "operations.md").read_text()
    script = page.partition("## A load of your own")[2].split("```bash\n")[1].split("```")[0]
    words = shlex.split(script.replace("\\\n", " ").replace("http://127.0.0.1:8000", url))
    words[words.index("--models") + 1 : words.index("--mix")] = ["base", "json"]
    monkeypatch.chdir(tmp_path)
    assert words[:3] == ["multiflora", "bench", "serve"]
    assert await run(*words[3:]) == 0
    assert json.loads((tmp_path / "load.json").read_text())["total"]["requests"] == 20


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--mix", "normal"), "no mix of requests"),
        (("--num-requests", "0"), "num_requests is 0"),
        (("--output-tokens", "0"), "--output-tokens is 0"),
        (("--concurrency", "2", "--request-rate", "3"), "not allowed with"),
    ],
)
async def test_a_mistake_is_one_line(url, options, complaint, capsys) -> None:
    assert await run("--url", url, *options) == cli.EXIT_USAGE
    assert complaint in capsys.readouterr().err
