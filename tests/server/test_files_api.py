"""The files API through the unmodified openai client: stored, checked, listed, read, deleted."""

import asyncio
import io
import json
import resource
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from multiflora.adapters.registry import Registry
from multiflora.engine.training.data.file_registry import FileRegistry
from multiflora.server.file_checker import FileChecker
from multiflora.server.limits import Limits
from multiflora.server.schemas.file import file_name
from multiflora.server.service import Service

pytestmark = pytest.mark.anyio
MIB = 1 << 20
GOOD = b"".join(
    json.dumps(
        {
            "messages": [
                {"role": "user", "content": f"{number} + 1?"},
                {"role": "assistant", "content": str(number + 1)},
            ]
        }
    ).encode()
    + b"\n"
    for number in range(12)
)


@pytest.fixture
def registry(stored_registry: Registry) -> Registry:
    return stored_registry


@pytest.fixture
def files(file_checker: FileChecker) -> FileRegistry:
    return file_checker.files


@pytest.fixture
async def openai_client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def stored(tmp_path: Path) -> Callable[[], list[str]]:
    """Names of all that lies in the folder of files."""
    return lambda: sorted(path.name for path in (tmp_path / "data" / "files").glob("*"))


async def upload(client: openai.AsyncOpenAI, content: bytes = GOOD, **more: Any) -> Any:
    return await client.files.create(file=("train.jsonl", content), purpose="fine-tune", **more)


async def settled(client: openai.AsyncOpenAI, file_id: str) -> Any:
    return await client.files.wait_for_processing(file_id, poll_interval=0.02, max_wait_seconds=30)


async def test_a_file_is_stored_checked_read_and_deleted(openai_client, stored):
    made = await upload(openai_client)

    assert (made.object, made.filename, made.purpose) == ("file", "train.jsonl", "fine-tune")
    assert (made.status, made.bytes, made.expires_at) == ("uploaded", len(GOOD), None)
    assert made.id.startswith("file-")
    assert stored() == [made.id]
    shown = await settled(openai_client, made.id)
    assert (shown.status, shown.status_details) == ("processed", None)
    assert (await openai_client.files.content(made.id)).read() == GOOD
    deleted = await openai_client.files.delete(made.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (made.id, True, "file")
    assert stored() == []
    for call in (openai_client.files.retrieve, openai_client.files.content):
        with pytest.raises(openai.NotFoundError) as caught:
            await call(made.id)
        assert caught.value.code == "file_not_found"


async def test_bad_rows_are_accepted_and_named(openai_client):
    content = GOOD + b'{"messages": []}\nnot json\n'

    made = await upload(openai_client, content)
    shown = await settled(openai_client, made.id)

    assert made.status == "uploaded"
    assert shown.status == "error"
    assert shown.status_details.startswith("line 13: messages: a list of messages was expected")
    assert "line 14: not valid JSON" in shown.status_details


@pytest.mark.parametrize("content", [b"", b"\n", b"\x00\xff", b"[1]", b"\x1f\x8b"])
async def test_whatever_is_no_jsonl_is_an_error_of_the_file(openai_client, content):
    made = await upload(openai_client, content)

    assert (await settled(openai_client, made.id)).status == "error"


async def test_lists_come_in_pages_in_either_order(openai_client):
    ids = [(await upload(openai_client)).id for _ in range(5)]

    assert [file.id async for file in openai_client.files.list()] == ids[::-1]
    assert [file.id async for file in openai_client.files.list(limit=2, order="asc")] == ids
    page = await openai_client.files.list(after=ids[3], limit=2)
    assert ([file.id for file in page.data], page.has_more) == (ids[2:0:-1], True)
    assert (await openai_client.files.list(purpose="batch")).data == []
    assert len((await openai_client.files.list(purpose="fine-tune")).data) == 5
    for wrong in ({"after": "file-0"}, {"limit": 0}, {"limit": 10_001}, {"order": "up"}):
        with pytest.raises(openai.BadRequestError) as caught:
            await openai_client.files.list(**wrong)
        assert caught.value.param in wrong


@pytest.mark.parametrize("purpose", ["assistants", "fine-tune-results", "", "x" * 100])
async def test_other_purposes_are_refused(openai_client, stored, purpose):
    with pytest.raises(openai.BadRequestError, match="files are kept for fine-tune") as caught:
        await openai_client.files.create(file=GOOD, purpose=purpose)

    assert caught.value.param == "purpose"
    assert stored() == []


async def test_a_form_needs_its_file_and_nothing_else(client, stored):
    for fields, code in (
        ({"data": {"purpose": "fine-tune"}, "files": {"other": b"x"}}, "unknown_parameter"),
        ({"data": {"purpose": "fine-tune", "file": "no-file"}}, "invalid_upload"),
        ({"files": {"purpose": b"fine-tune"}}, "invalid_upload"),
        ({"json": {"purpose": "fine-tune"}}, "invalid_upload"),
    ):
        response = await client.post("/v1/files", **fields)
        assert (response.status_code, response.json()["error"]["code"]) == (400, code)
    assert stored() == []


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("a.jsonl", "a.jsonl"),
        ("../../etc/passwd", "passwd"),
        ("C:\\data\\a.jsonl", "a.jsonl"),
        ("a\r\nb\x1b.jsonl", "ab.jsonl"),
        ("größe.jsonl", "größe.jsonl"),
        ("", "file"),
        ("x" * 300, "x" * 255),
    ],
)
def test_names_of_files_are_only_names(given, shown):
    assert file_name(given) == shown


async def test_files_go_by_themselves_when_they_should(openai_client, files, stored):
    terms = {"anchor": "created_at", "seconds": 3600}
    made = await upload(openai_client, expires_after=terms)

    assert made.expires_at == made.created_at + 3600
    await settled(openai_client, made.id)
    files._clock = lambda: made.expires_at
    assert (await openai_client.files.list()).data == []
    with pytest.raises(openai.NotFoundError):
        await openai_client.files.retrieve(made.id)
    assert stored() == [made.id]
    other = await upload(openai_client)
    assert stored() == [other.id]


@pytest.mark.parametrize(
    ("terms", "param"),
    [
        ({"anchor": "created_at", "seconds": 5}, "expires_after.seconds"),
        ({"anchor": "created_at", "seconds": 10**9}, "expires_after.seconds"),
        ({"anchor": "now", "seconds": 3600}, "expires_after.anchor"),
    ],
)
async def test_other_terms_of_expiry_are_refused(openai_client, terms, param):
    with pytest.raises(openai.BadRequestError) as caught:
        await upload(openai_client, expires_after=terms)

    assert caught.value.param == param


async def test_a_file_that_a_job_needs_stays(openai_client, files, stored):
    made = await upload(openai_client)
    needed = {made.id: "job ftjob-1 reads it"}
    files.guard(needed.get)

    with pytest.raises(openai.ConflictError, match="job ftjob-1 reads it") as caught:
        await openai_client.files.delete(made.id)
    assert caught.value.code == "file_in_use"
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert stored() == [made.id]
    needed.clear()
    assert (await openai_client.files.delete(made.id)).deleted


async def test_who_reads_a_file_gets_all_of_it_whoever_deletes_it(openai_client, files):
    content = b'{"text": "%s"}\n' % (b"x" * 4 * MIB)
    made = await upload(openai_client, content)

    async with openai_client.files.with_streaming_response.content(made.id) as response:
        pieces = response.iter_bytes(1 << 16)
        got = await anext(pieces)
        await openai_client.files.delete(made.id)
        got += b"".join([piece async for piece in pieces])

    assert got == content


async def test_many_deletions_of_one_file_are_one(openai_client):
    made = await upload(openai_client)

    ends = await asyncio.gather(
        *(openai_client.files.delete(made.id) for _ in range(6)), return_exceptions=True
    )

    assert sum(isinstance(end, openai.NotFoundError) for end in ends) == 5


async def test_a_repeated_upload_with_a_key_is_one_file(openai_client, stored):
    made = [
        await upload(openai_client, extra_headers={"Idempotency-Key": "once"}) for _ in range(2)
    ]

    assert made[0].id == made[1].id
    assert stored() == [made[0].id]


@pytest.fixture
def small_limits(service: Service) -> None:
    object.__setattr__(service, "limits", Limits(max_file_bytes=MIB))


@pytest.mark.usefixtures("small_limits")
async def test_a_file_above_the_limit_is_413(url, stored):
    async with httpx.AsyncClient(base_url=url) as client:
        files = {"file": ("a", io.BytesIO(b"x" * 2 * MIB))}
        response = await client.post("/v1/files", data={"purpose": "fine-tune"}, files=files)

    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")
    assert stored() == []


async def test_a_large_file_takes_no_memory_and_stops_nobody(openai_client, url):
    """64 MiB of rows, the last of which is wrong."""
    row = b'{"text": "%s"}\n' % (b"all work and no play " * 49)
    content = row * (64 * MIB // len(row)) + b"{}\n"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    slowest = 0.0

    async def whole() -> Any:
        return await settled(openai_client, (await upload(openai_client, content)).id)

    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        work = asyncio.create_task(whole())
        while not work.done():
            began = asyncio.get_running_loop().time()
            assert (await client.get("/live")).status_code == 200
            slowest = max(slowest, asyncio.get_running_loop().time() - began)
            await asyncio.sleep(0.02)

    shown = work.result()
    assert shown.status == "error"
    assert f"line {len(content.splitlines())}: a row with" in shown.status_details
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    # The client, which is in this process, holds the body.
    assert grown < 160, f"{grown} MiB more"
    assert slowest < 0.5
