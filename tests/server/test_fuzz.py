"""Made-up requests, conversations and answers: each is refused or taken, and never an accident."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multiflora.server.schemas.body import RequestBody
from multiflora.server.schemas.chat import ChatBody

from ..clients.tool import CouldNotInstall, python_of
from ..tool_environment import ROOT
from .fuzz_target import GOOD_BODIES, TARGETS, stream_target, template_target, with_body

# What has gone wrong in parsers: limits of integers, floats that are none, marks and tokens.
EDGES = st.sampled_from(
    [0, -1, 2**31, 2**63, -(2**63) - 1, 1e308, 5e-324, "", "\0", "</s>", "<|user|>", "\U000f0000"]
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8), EDGES
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
SECONDS = 120


def names_of(kind: type[RequestBody]) -> st.SearchStrategy[str]:
    return st.sampled_from([*kind.model_fields, *kind.IGNORED, *kind.UNSUPPORTED, "stranger"])


def written(fields: Any) -> bytes:
    return json.dumps(fields).encode()


@pytest.mark.parametrize("kind", GOOD_BODIES, ids=lambda kind: kind.__name__)
def test_a_changed_body_is_taken_or_refused(kind: type[RequestBody]) -> None:
    assert with_body(kind, written(GOOD_BODIES[kind])) is not None

    @settings(max_examples=30)
    @given(changes=st.dictionaries(names_of(kind), VALUES, max_size=3))
    def check(changes: dict[str, Any]) -> None:
        with_body(kind, written({**GOOD_BODIES[kind], **changes}))

    check()


@settings(max_examples=60)
@given(
    message=st.dictionaries(st.sampled_from(["content", "tool_calls", "name"]), VALUES), more=VALUES
)
def test_a_made_up_conversation_is_rendered_or_refused(message: dict[str, Any], more: Any) -> None:
    calls = [{"id": "1", "function": {"name": "f", "arguments": json.dumps({"</s>": more})}}]
    said = {"role": "assistant", "tool_calls": calls, **message}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"<|user|>": more}}}]
    body = {**GOOD_BODIES[ChatBody], "messages": [said], "tools": tools}

    template_target(written(body))


@settings(max_examples=60)
@given(head=st.binary(min_size=9, max_size=9), text=st.text(max_size=40))
def test_a_stream_is_put_together_again(head: bytes, text: str) -> None:
    stream_target(head + text.encode())


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("target", TARGETS)
def test_what_atheris_finds(target: str, tmp_path: Path) -> None:
    """Guided by coverage, from the good bodies on."""
    try:
        python = python_of("atheris")
    except CouldNotInstall as error:
        pytest.skip(str(error))
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for place, good in enumerate(GOOD_BODIES.values()):
        prefix = bytes([place]) if target == "body" else b""
        (corpus / str(place)).write_bytes(prefix + written(good))
    # The targets' libraries are ours; atheris alone comes from its environment.
    paths = [str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))]
    ended = subprocess.run(
        [
            *(python, "-m", "tests.server.fuzz", target, corpus),
            *(f"-max_total_time={SECONDS}", "-timeout=20", "-rss_limit_mb=4096"),
            *("-max_len=4096", f"-artifact_prefix={tmp_path}/"),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )

    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-6000:]
