"""What is printed when the server is ready can be pasted as it is."""

import ast
import json
import shlex
from pathlib import Path

import pytest

from multiflora.server.announcement import Announcement


@pytest.fixture
def announce(engine):
    def announce(**facts):
        defaults = {
            "url": "http://127.0.0.1:8000",
            "base": "base",
            "adapters": ["json", "it's"],
            "data_dir": Path("/data"),
            "has_chat_template": True,
        }
        return Announcement(**{**defaults, **facts}).text(engine.info)

    return announce


@pytest.mark.parametrize("has_chat_template", [True, False])
def test_the_curl_line_is_a_valid_request(announce, has_chat_template):
    text = announce(has_chat_template=has_chat_template, adapters=["it's"])

    command = text[text.index("curl") : text.index("from openai")].replace("\\\n", " ")
    words = shlex.split(command)
    body = json.loads(words[-1])
    assert words[1].startswith("http://127.0.0.1:8000/v1/")
    assert body["model"] == "it's"
    assert ("messages" in body) == words[1].endswith("/chat/completions")


@pytest.mark.parametrize("adapters", [[], ["one"], ["one", "two", "three"]])
def test_the_python_snippet_compiles_and_names_two_models(announce, adapters):
    text = announce(adapters=adapters)

    snippet = text[text.index("from openai") :]
    ast.parse(snippet)
    assert repr(adapters[:2] or ["base"]) in snippet


def test_the_facts_are_there(announce):
    text = announce()

    facts = ("http://127.0.0.1:8000/console", "json, it's", "cpu", "torch", "float32")
    for fact in (*facts, "/data", "nf4"):
        assert fact in text
