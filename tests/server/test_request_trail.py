"""A line about every request where it is wanted: ids, names, counts and times, but no texts."""

import json
import logging
from dataclasses import replace

import pytest

from multiflora.engine.errors import RequestFailed
from multiflora.engine.log_line import JsonFormatter, LogFormatter, request_id

pytestmark = pytest.mark.anyio


@pytest.fixture
def service(service):
    return replace(service, logs_requests=True)


def lines(caplog, formatter) -> list[str]:
    return [formatter.format(r) for r in caplog.records if r.name.endswith("request_trail")]


async def test_a_request_leaves_one_line_in_either_form(chat, caplog):
    caplog.set_level(logging.INFO)
    answer = await chat(model="json", messages=[{"role": "user", "content": "my secret"}])

    (line,) = lines(caplog, JsonFormatter())
    found, usage = json.loads(line), answer.json()["usage"]
    assert found["message"] == "request ended"
    assert (found["level"], found["outcome"]) == ("info", "ok")
    assert (found["id"], found["model"]) == (answer.json()["id"], "json")
    assert found["prompt_tokens"] == usage["prompt_tokens"]
    assert found["generated_tokens"] == usage["completion_tokens"]
    assert 0 < found["first_token_seconds"] <= found["seconds"]
    (text,) = lines(caplog, LogFormatter())
    assert f"request ended id={found['id']} operation=chat model=json" in text
    assert not {"secret", "hello"} & {*line.split(), *text.split()}
    assert "secret" not in line + text


async def test_the_line_of_a_failure_has_its_code(engine, complete, caplog):
    caplog.set_level(logging.INFO)
    engine.script = lambda request: [RequestFailed("at /some/path", code="engine_died")]
    await complete()

    (line,) = lines(caplog, JsonFormatter())
    assert json.loads(line)["outcome"] == "engine_died"
    assert "/some/path" not in line


def record(message: str, error: Exception | None = None) -> logging.LogRecord:
    info = (type(error), error, error.__traceback__) if error else None
    return logging.LogRecord("place", logging.ERROR, __file__, 1, message, None, info)


def test_json_lines_hold_the_requests_id_and_neither_keys_nor_values():
    key = "mf-0123456789ab-abcdefghijklmnopqrstuvwxyz"
    token = request_id.set("r-1")
    try:
        try:
            raise ValueError("what the client sent")
        except ValueError as error:
            line = JsonFormatter().format(record(f"with {key}\nand \x1b[31m", error))
    finally:
        request_id.reset(token)

    found = json.loads(line)
    assert "\n" not in line
    assert found["request_id"] == "r-1"
    assert found["message"] == "with mf-0123456789ab-*** | and \\x1b[31m"
    assert found["exception"].startswith("ValueError at test_request_trail.py:")
    assert "what the client sent" not in line


def test_at_debug_values_are_shown_but_never_keys():
    key = "mf-0123456789ab-abcdefghijklmnopqrstuvwxyz"
    try:
        raise ValueError(f"sent with {key}")
    except ValueError as error:
        line = JsonFormatter(shows_values=True).format(record("failed", error))
    assert "sent with mf-0123456789ab-***" in line
    assert "abcdefghijklm" not in line
