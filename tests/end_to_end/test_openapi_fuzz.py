"""schemathesis believes /openapi.json and tries to prove it wrong, with a key and without."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from ..clients.tool import CouldNotInstall, python_of
from .conftest import Server, command

CHECKS: Final = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "ignored_auth",
    "use_after_free",
    "object_level_authorization",
)
ROW: Final = {
    "messages": [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": "jumps"}]
}
CALL: Final = {"model": "rank-1", "prompt": "the fox", "max_tokens": 3}


@pytest.mark.full
@pytest.mark.timeout(2400)
def test_every_answer_is_as_documented(
    start_server: Callable[..., Server], tiny_arguments: list[str], tmp_path: Path
) -> None:
    try:
        python = python_of("schemathesis")
    except CouldNotInstall as error:
        pytest.skip(str(error))
    # A key of a file: one of the database would sooner or later be revoked by the requests.
    keys = tmp_path / "keys.jsonl"
    made = subprocess.run(
        command("keys", "create", "root", "--scopes", "admin", "--api-key-file", str(keys)),
        check=True,
        capture_output=True,
        text=True,
    )
    key = made.stdout.split()[-1]
    limits = ("--max-model-len", "64", "--api-key-file", str(keys))
    server = start_server(*tiny_arguments, *limits)

    ended = subprocess.run(
        [
            *(str(python.parent / "schemathesis"), "run", f"{server.url}/openapi.json"),
            *("--header", f"Authorization: Bearer {key}", "--checks", ",".join(CHECKS)),
            *("--phases", "examples,coverage,fuzzing,stateful", "--max-examples", "50"),
            *("--generation-deterministic", "--workers", "2", "--request-timeout", "60"),
        ],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parent.parent / "clients"),
            "SCHEMATHESIS_HOOKS": "known_values",
            "KNOWN_VALUES": json.dumps(_known_values(server, key)),
        },
        capture_output=True,
        text=True,
    )

    assert ended.returncode == 0, ended.stdout[-20_000:] + ended.stderr
    assert server.process.poll() is None


def _known_values(server: Server, key: str) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {key}"}
    with httpx.Client(base_url=server.url, headers=headers) as client:
        rows = "\n".join([json.dumps(ROW)] * 8)
        line = {"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": CALL}
        training = _file(client, "fine-tune", rows)
        batch = _file(client, "batch", json.dumps(line))
        return {
            "model": ["base", "rank-1", "rank-3"],
            "name": ["rank-1", "rank-3", "new"],
            "adapter": ["rank-1", "rank-3"],
            "training_file": [training],
            "prompts_file": [training],
            "input_file_id": [batch],
            "file_id": [training, batch],
        }


def _file(client: httpx.Client, purpose: str, content: str) -> str:
    answer = client.post("/v1/files", data={"purpose": purpose}, files={"file": content.encode()})
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]
