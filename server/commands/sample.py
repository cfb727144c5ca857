"""`multiflora sample`: a running server answers the questions of a file; what passes is kept."""

import argparse
import json
import os
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any, Final

from multiflora.engine.errors import EngineUnavailable, RequestRejected

from ..setting_value import parse_path
from ..settings_source import KEY_VARIABLE

_POLL_SECONDS: Final = 0.5
_TIMEOUT_SECONDS: Final = 600


def add_to(commands: "argparse._SubParsersAction[Any]") -> None:
    """Register the command."""
    parser = commands.add_parser(
        "sample",
        help="make a training file of a model's answers that pass",
        description=f"The server's API key, if it needs one, is read from {KEY_VARIABLE}.",
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    option = parser.add_argument
    option("data", type=parse_path, metavar="DATA", help="JSONL: questions and expected answers")
    option("-o", "--output", required=True, type=parse_path, metavar="FILE", help="a file to make")
    option("--model", required=True, metavar="NAME", help="the base or adapter that answers")
    option("--url", default="http://127.0.0.1:8000", help="the server; default: %(default)s")
    option("--n", type=int, default=8, metavar="N", help="answers per prompt; default: 8")
    option("--keep", type=int, default=4, metavar="N", help="rows per prompt; default: 4")
    option("--temperature", type=float, default=1.0, metavar="T", help="default: 1")
    option("--max-tokens", type=int, default=256, metavar="N", help="per answer; default: 256")
    option("--seed", type=int, default=0, metavar="N", help="of every draw; default: 0")
    graders = parser.add_mutually_exclusive_group()
    grader = graders.add_argument
    grader("--extract", metavar="REGEX", help="compare its first group with the expected answer")
    grader("--regex", metavar="REGEX", help="what must occur in the answer")
    grader("--json-schema", type=parse_path, metavar="FILE", help="what the answer must satisfy")
    grader("--judge", metavar="NAME", help="an adapter that answers --question with yes or no")
    option(
        "--question",
        default="Is this a good answer to {prompt}? {answer}",
        metavar="TEXT",
        help="for --judge; {prompt}, {answer} and {expected} are filled in",
    )


def run(*, data: Path, output: Path, url: str, **choices: Any) -> int:
    """Sample, write the rows, and print pass rates."""
    if output.exists():
        raise ValueError(f"{output} exists; choose another --output, or remove it")
    server = _Server(url.rstrip("/"), os.environ.get(KEY_VARIABLE))
    file_id = server.upload(data)
    try:
        report = _sample(server, file_id, choices)
    finally:
        server.call("DELETE", f"/v1/files/{file_id}")
    if report["file"] is None:
        print(f"no answer passed: nothing is written\n{_rates(report)}")
        return 1
    output.write_bytes(server.call("GET", f"/v1/files/{report['file']}/content"))
    print(f"{output}: {report['rows']} rows\n{_rates(report)}\n\nmultiflora train {output} -o DIR")
    return 0


def _sample(server: "_Server", file_id: str, choices: dict[str, Any]) -> dict[str, Any]:
    names = ("model", "n", "keep", "temperature", "max_tokens", "seed")
    body = {
        **{name: choices[name] for name in names},
        "prompts_file": file_id,
        "grader": _grader(choices),
        "background": True,
    }
    job = server.post("/v1/datasets/sample", body)
    while job["status"] in ("queued", "running"):
        time.sleep(_POLL_SECONDS)
        job = json.loads(server.call("GET", f"/v1/datasets/sample/{job['id']}"))
    if job["error"] is not None:
        raise RequestRejected(job["error"]["message"])
    return job["report"]


def _grader(choices: dict[str, Any]) -> dict[str, Any]:
    if choices["regex"] is not None:
        return {"type": "regex", "pattern": choices["regex"]}
    if choices["json_schema"] is not None:
        return {"type": "json_schema", "schema": json.loads(choices["json_schema"].read_text())}
    if choices["judge"] is not None:
        return {"type": "judge", "model": choices["judge"], "question": choices["question"]}
    return {"type": "exact", "extract": choices["extract"]}


def _rates(report: dict[str, Any]) -> str:
    rates = "  ".join(f"{name} {rate:.3f}" for name, rate in report["pass_rates"].items())
    return (
        f"  {report['passed']} of {report['answers']} answers passed, "
        f"{report['unsolved_prompts']} of {report['prompts']} prompts have none\n  {rates}"
    )


class _Server:
    """The few calls that are needed. Raises ``EngineUnavailable`` and ``RequestRejected``."""

    def __init__(self, url: str, key: str | None) -> None:
        self._url = url
        self._headers = {"authorization": f"Bearer {key}"} if key else {}

    def upload(self, path: Path) -> str:
        boundary = uuid.uuid4().hex
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; '
            'filename="prompts.jsonl"\r\n\r\n'
        )
        content = head.encode() + path.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        kind = f"multipart/form-data; boundary={boundary}"
        return json.loads(self.call("POST", "/v1/files", content, kind))["id"]

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return json.loads(self.call("POST", path, json.dumps(body).encode(), "application/json"))

    def call(self, method: str, path: str, content: bytes | None = None, kind: str = "") -> bytes:
        headers = dict(self._headers)
        if kind:
            headers["content-type"] = kind
        request = urllib.request.Request(
            self._url + path, data=content, headers=headers, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise RequestRejected(_message(error)) from None
        except (urllib.error.URLError, OSError) as error:
            raise EngineUnavailable(
                f"{self._url} does not answer ({error}); start `multiflora serve`, or name another "
                "server with --url"
            ) from None


def _message(error: urllib.error.HTTPError) -> str:
    try:
        return json.loads(error.read())["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return f"the server answered {error.code}"
