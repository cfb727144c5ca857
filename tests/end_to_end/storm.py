"""Many requests over many names at once, each answer held to the version that it says gave it."""

import itertools
import json
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from email.message import Message
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

QUESTIONS = ("Is 4821 even or odd?", "Count these words: boat cheese", "Even or odd: 310")
NUM_CLIENTS = 64


def ask_body(model: str, question: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"model": model, "messages": messages, "temperature": 0, "max_tokens": 24, **fields}


@dataclass
class Storm:
    """Requests at a fixed rate, whoever waits, over all names; each is checked when it ends."""

    url: str
    names: list[str]
    expected: dict[tuple[str, str], str]
    rate: float
    answered: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    num_asked: int = 0
    _own: threading.local = field(default_factory=threading.local)
    _closing: ExitStack = field(default_factory=ExitStack)

    def run(self, is_over: threading.Event) -> None:
        begun = time.monotonic()
        with self._closing, ThreadPoolExecutor(NUM_CLIENTS) as clients:
            for number in itertools.count():
                if is_over.is_set():
                    return
                clients.submit(self._ask, number)
                self.num_asked += 1
                time.sleep(max(0.0, begun + (number + 1) / self.rate - time.monotonic()))

    def _ask(self, number: int) -> None:
        question = QUESTIONS[number % len(QUESTIONS)]
        name = self.names[number % len(self.names)]
        stream = number % 2 == 0
        body = ask_body(name, question, stream=stream, user=f"user-{number % 7}")
        try:
            status, headers, answer = self._post(json.dumps(body))
            assert status == 200, answer[:200]
            assert headers["x-adapter-id"] == name
            version = headers["x-adapter-version"]
            text = _streamed(answer) if stream else _whole(answer)
            assert text == self.expected[version, question], f"{text!r} from {version[:12]}"
        except Exception as error:  # a thread's outer edge
            self.wrong.append(f"{name}: {error!r}")
        else:
            self.answered[version] += 1

    def _post(self, body: str) -> tuple[int, Message, str]:
        """Each thread has a connection of its own, and as little of a client as there can be."""
        if not hasattr(self._own, "connection"):
            connection = HTTPConnection(urlsplit(self.url).netloc, timeout=60)
            self._own.connection = self._closing.enter_context(closing(connection))
        headers = {"content-type": "application/json"}
        self._own.connection.request("POST", "/v1/chat/completions", body, headers)
        response = self._own.connection.getresponse()
        return response.status, response.headers, response.read().decode()


def _whole(answer: str) -> str:
    return json.loads(answer)["choices"][0]["message"]["content"]


def _streamed(answer: str) -> str:
    lines = [line[6:] for line in answer.splitlines() if line.startswith("data: {")]
    chunks = [json.loads(line) for line in lines]
    return "".join(c["delta"].get("content", "") for chunk in chunks for c in chunk["choices"])
