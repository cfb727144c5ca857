"""Answers batches while nobody else wants the engine: of each tenant, one after the other."""

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import Final

import orjson

from multiflora.adapters.error import RegistryError
from multiflora.engine.training.data.file_registry import FileRegistry, UnknownFile

from .batch_input import BatchLine, problems_of, read_lines
from .batch_store import Batch, BatchStore
from .schemas.file import BATCH_OUTPUT

logger = logging.getLogger(__name__)

# Behind every priority that a client can ask for.
IDLE_PRIORITY: Final = 2**31 - 1
_MAX_RUNNING: Final = 16
_TRANSIENT: Final = frozenset({429, 503})
_FIRST_PAUSE_SECONDS: Final = 0.5
_LAST_PAUSE_SECONDS: Final = 30.0
# How long a cancelled or expired batch may go on.
_LOOK_SECONDS: Final = 1.0
# Answers the body of one line as if the batch's maker had sent it: status and body of the answer.
Call = Callable[[Batch, bytes], Awaitable[tuple[int, bytes]]]


class BatchRunner:
    """A task for each tenant that has an open batch, so that none waits for another's.

    A server that is started again goes on behind the last result.
    """

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        # Fair between batches: who waits longest is next.
        self._room = asyncio.Semaphore(_MAX_RUNNING)
        self._tenants: set[str] = set()

    def start(self, store: BatchStore, files: FileRegistry, call: Call) -> None:
        files.guard(store.why_needed)
        self._task = asyncio.create_task(self._run(store, files, call))

    def wake(self) -> None:
        """There is a new batch, or one was cancelled."""
        self._wake.set()

    async def stop(self) -> None:
        """Leave running batches to the next start."""
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self, store: BatchStore, files: FileRegistry, call: Call) -> None:
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._wake.clear()
                for batch in await asyncio.to_thread(store.next_open):
                    if batch.tenant not in self._tenants:
                        self._tenants.add(batch.tenant)
                        run = _BatchRun(store, files, self._bounded(call), batch)
                        tasks.create_task(self._run_one(run, batch))
                await self._wake.wait()

    async def _run_one(self, run: "_BatchRun", batch: Batch) -> None:
        try:
            await run.run()
        except (RegistryError, OSError):
            logger.exception("batch %s stands still; it is tried again", batch.id)
            await asyncio.sleep(_LAST_PAUSE_SECONDS)
        finally:
            self._tenants.discard(batch.tenant)
            self._wake.set()

    def _bounded(self, call: Call) -> Call:
        async def answer(batch: Batch, body: bytes) -> tuple[int, bytes]:
            async with self._room:
                return await call(batch, body)

        return answer


class _BatchRun:
    """One batch, from wherever it is to its end."""

    def __init__(self, store: BatchStore, files: FileRegistry, call: Call, batch: Batch) -> None:
        self._store = store
        self._files = files
        self._call = call
        self._batch = batch

    async def run(self) -> None:
        if self._batch.status == "validating" and not await asyncio.to_thread(self._validate):
            return
        await self._answer()
        await asyncio.to_thread(self._finish)

    def _validate(self) -> bool:
        batch = self._batch
        try:
            with self._files.open(batch.input_file) as content:
                total, problems = problems_of(content, endpoint=batch.endpoint)
        except UnknownFile as error:
            found = {"code": error.code, "line": None, "message": str(error), "param": None}
            total, problems = 0, [found]
        if problems:
            self._store.fail(batch.id, problems)
            return False
        self._store.begin(batch.id, total=total)
        return True

    async def _answer(self) -> None:
        answered = await asyncio.to_thread(self._store.answered, self._batch.id)
        lines = _lines(self._files, self._batch, answered)
        running: set[asyncio.Task[None]] = set()
        try:
            while await asyncio.to_thread(self._goes_on):
                while len(running) < _MAX_RUNNING and (line := next(lines, None)):
                    running.add(asyncio.create_task(self._answer_line(line)))
                if not running:
                    return
                done, running = await asyncio.wait(
                    running, timeout=_LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    task.result()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            lines.close()

    def _goes_on(self) -> bool:
        batch = self._store.get(self._batch.id)
        return batch.status == "in_progress" and not self._store.is_expired(batch)

    async def _answer_line(self, line: BatchLine) -> None:
        body = orjson.dumps({**line.body, "priority": IDLE_PRIORITY})
        pause = _FIRST_PAUSE_SECONDS
        while (found := await self._call(self._batch, body))[0] in _TRANSIENT:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LAST_PAUSE_SECONDS)
        status, content = found
        result = {
            "id": f"batch_req_{uuid.uuid4().hex}",
            "custom_id": line.custom_id,
            "response": {
                "status_code": status,
                "request_id": uuid.uuid4().hex,
                "body": orjson.loads(content),
            },
            "error": None,
        }
        await asyncio.to_thread(
            self._store.add_result,
            self._batch.id,
            line.number,
            orjson.dumps(result).decode(),
            is_error=status >= 400,
        )

    def _finish(self) -> None:
        batch = self._store.get(self._batch.id)
        count, errors = self._store.counts(batch.id)
        status = "completed" if count == batch.total else "expired"
        if batch.status == "cancelling":
            status = "cancelled"
        self._store.finish(
            batch.id,
            status=status,
            output_file=self._write("output", is_error=False) if count > errors else None,
            error_file=self._write("errors", is_error=True) if errors else None,
        )

    def _write(self, word: str, *, is_error: bool) -> str:
        with self._files.staging() as folder:
            path = Path(folder) / word
            with path.open("w", encoding="utf-8") as out:
                for result in self._store.results(self._batch.id, is_error=is_error):
                    out.write(result + "\n")
            name = f"{self._batch.id}_{word}.jsonl"
            return self._files.add(
                path,
                filename=name,
                purpose=BATCH_OUTPUT,
                status="processed",
                tenant=self._batch.tenant,
            ).id


def _lines(files: FileRegistry, batch: Batch, answered: set[int]) -> Generator[BatchLine]:
    with files.open(batch.input_file) as content:
        yield from (line for line in read_lines(content) if line.number not in answered)
