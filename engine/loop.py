"""The engine's heartbeat: take commands, schedule, run, commit, report. One thread owns it all."""

import logging
import math
import queue
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from multiflora.adapters.residency import LoadResult, Residency

from .active_request import ActiveRequest
from .background import NO_WORK, Background, ServingLoad
from .constraint import Constraint, GrammarFailed
from .constraint_desk import ConstraintDesk
from .engine_stats import engine_stats
from .kv_blocks import BlockPool
from .machine import Machine
from .messages import (
    Abort,
    Adapters,
    CancelTraining,
    Command,
    Events,
    GetAdapters,
    GetStats,
    LoadVersion,
    PauseTraining,
    Pin,
    PinFailed,
    Report,
    ResumeTraining,
    Shutdown,
    StartTraining,
    Stats,
    Submit,
    UnloadVersion,
    Unpin,
    VersionFailed,
    VersionLoaded,
    VersionPinned,
)
from .outcome import Outcome
from .request import EngineInfo, EngineStats, FinishReason, GenerationRequest, TokenEvent
from .runner import Runner
from .sampler import Draw
from .scheduler import ScheduledRequest, Scheduler, StepPlan
from .step_meter import StepMeter

logger = logging.getLogger(__name__)

_IDLE_SECONDS = 0.5
_LOADING_SECONDS = 0.002
# Versions become usable between two steps for so long, or for this share of the last step.
_TAKING_SECONDS, _TAKING_SHARE = 0.001, 0.1


class EngineLoop:
    """Commands go in through ``inbox`` from any thread; reports come out on the loop's own."""

    def __init__(
        self,
        *,
        info: EngineInfo,
        eos_token_ids: Sequence[int],
        scheduler: Scheduler,
        pool: BlockPool,
        residency: Residency,
        runner: Runner,
        background: Background,
        constraints: ConstraintDesk,
        machine: Machine,
        report: Callable[[Report], None],
    ) -> None:
        self.inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self.info = info
        self._eos_token_ids = tuple(eos_token_ids)
        self._scheduler = scheduler
        self._pool = pool
        self._residency = residency
        self._runner = runner
        self._background = background
        self._constraints = constraints
        self._machine = machine
        self._meter = StepMeter(residency.ranks, tile_rows=residency.tables.tile[0])
        self._background_seconds = NO_WORK
        self._last_step_seconds = 0.0
        self._report = report
        self._events: list[TokenEvent] = []
        self._unloads: set[str] = set()
        self._is_stopping = False
        self._counts: Counter[str] = Counter()
        self._finished: Counter[str] = Counter()
        self._step_seconds = 0.0

    def run(self) -> None:
        """Turn until ``Shutdown`` arrives."""
        try:
            while not self._is_stopping:
                self.turn()
        finally:
            self.close()

    def close(self) -> None:
        """Stop all threads; requests and jobs are left where they are."""
        self._background.close()
        self._constraints.close()
        self._residency.close()

    def turn(self) -> None:
        """Take all waiting commands, then run one step, then one quantum of training, if any."""
        self._take_commands()
        self._take_loads()
        self._take_constraints()
        step_seconds = 0.0
        if self._scheduler.has_requests:
            step_seconds = self._step()
        else:
            self._residency.prefetch(())
        self._flush()
        self._background_seconds = self._background.turn(
            ServingLoad(
                step_seconds=step_seconds,
                num_requests=self._scheduler.num_running + self._scheduler.num_waiting,
                awaits_first_token=self._scheduler.awaits_first_token,
                is_brief=self._scheduler.is_brief,
            )
        )

    def _take_commands(self) -> None:
        try:
            self._handle(self.inbox.get(timeout=self._patience()))
            while True:
                self._handle(self.inbox.get_nowait())
        except queue.Empty:
            return

    def _patience(self) -> float:
        if self._scheduler.num_running:
            return 0
        is_loading = self._residency.is_loading or self._constraints.is_busy
        is_loading = is_loading or self._scheduler.has_requests
        return min(_LOADING_SECONDS if is_loading else _IDLE_SECONDS, self._background_seconds)

    def _handle(self, command: Command) -> None:
        match command:
            case Submit(request):
                self._submit(request)
            case Abort(request_id):
                self._abort(request_id)
            case LoadVersion(digest):
                self._load(digest)
            case UnloadVersion(digest):
                self._unloads.add(digest)
            case Pin(digest):
                self._unloads.discard(digest)
                self._residency.pin(digest)
            case Unpin(digest):
                self._residency.unpin(digest)
            case GetAdapters():
                self._report(Adapters(self._residency.tiers()))
            case GetStats():
                self._report(Stats(self.stats()))
            case StartTraining() | PauseTraining() | ResumeTraining() | CancelTraining():
                self._background.handle(command)
                # It may have work at once.
                self._background_seconds = 0
            case Shutdown():
                self._is_stopping = True
            case _:
                logger.error("unexpected command %s", type(command).__name__)

    def _submit(self, request: GenerationRequest) -> None:
        problem = self._problem(request)
        if problem:
            code, message = problem
            self._fail(request.id, code, message)
            return
        if not request.sampling.ignore_eos:
            stops = dict.fromkeys((*request.sampling.stop_token_ids, *self._eos_token_ids))
            sampling = replace(request.sampling, stop_token_ids=tuple(stops))
            request = replace(request, sampling=sampling)
        self._residency.count_arrival(share.digest for share in request.adapters)
        if request.sampling.grammar:
            self._constraints.start(request)
        else:
            self._queue(request)

    def _queue(self, request: GenerationRequest, constraint: Constraint | None = None) -> None:
        active = self._scheduler.submit(request)
        active.constraint = constraint
        self._meter.submit(active)

    def _problem(self, request: GenerationRequest) -> tuple[str, str] | None:
        """Why a request cannot be taken. The API checks it all first; the engine trusts nobody."""
        total = len(request.prompt) + request.sampling.max_tokens
        if not request.prompt:
            return "invalid_request", "the prompt is empty"
        if request.wants_embedding and request.sampling.max_tokens:
            return "invalid_request", "an embedding comes without an answer: max_tokens must be 0"
        if total > self.info.max_model_len:
            return (
                "context_length_exceeded",
                f"{len(request.prompt)} prompt tokens and {request.sampling.max_tokens} new ones "
                f"exceed the context window of {self.info.max_model_len}",
            )
        named = request.sampling.named_tokens
        if not all(0 <= token < self.info.vocab_size for token in (*request.prompt, *named)):
            return "invalid_token", f"token ids must lie in [0, {self.info.vocab_size})"
        if self._scheduler.get(request.id) or request.id in self._constraints:
            return "invalid_request", f"request id {request.id} is in use"
        if self._scheduler.is_full or self._constraints.is_full:
            return "queue_full", "the queue is full; try again later"
        return None

    def _abort(self, request_id: str) -> None:
        request = self._scheduler.get(request_id)
        if request:
            self._finish(request)
        if request or self._constraints.cancel(request_id):
            self._counts["aborts"] += 1
            self._end(request_id, FinishReason.ABORT)

    def _load(self, digest: str) -> None:
        self._unloads.discard(digest)
        if not self._residency.start_load(digest):
            self._report(VersionLoaded(digest))

    def _take_loads(self) -> None:
        for result in self._residency.poll(self._taking_seconds()):
            self._report(_outcome(result))
        self._unloads = {digest for digest in self._unloads if not self._residency.unload(digest)}
        self._meter.note_loads(self._residency.slots.is_ready)

    def _taking_seconds(self) -> float:
        """How long the next step may wait for versions that were read."""
        if not self._scheduler.num_running:
            return math.inf
        return max(_TAKING_SECONDS, _TAKING_SHARE * self._last_step_seconds)

    def _take_constraints(self) -> None:
        for request, outcome in self._constraints.poll():
            if isinstance(outcome, Exception):
                self._fail(request.id, *_public_failure(outcome))
            else:
                self._queue(request, outcome)

    def _step(self) -> float:
        """Run one step; returns its seconds, 0 if there was nothing to run."""
        started = time.perf_counter()
        # A gap between two tokens holds a quantum or a prompt, both only where quanta go on and on.
        plan = self._scheduler.schedule(is_late=self._background_seconds == 0)
        for rejection in self._scheduler.take_rejections():
            self._meter.forget(rejection.request)
            self._fail(rejection.request.id, rejection.error.code, str(rejection.error))
        if not plan.items:
            return 0.0
        self._meter.begin(plan)
        self._commit(plan, self._run(plan))
        seconds = time.perf_counter() - started
        self._meter.end(plan, seconds)
        self._counts["steps"] += 1
        self._step_seconds += seconds
        self._last_step_seconds = seconds
        return seconds

    def _run(self, plan: StepPlan) -> list[Outcome]:
        """What each item brings. Never raises."""
        try:
            return self._runner.run(plan)
        except Exception:  # the step's outer edge: find the request that breaks it
            logger.exception("step failed; running its %d requests one by one", len(plan.items))
        return [self._run_alone(item, plan.fresh_blocks) for item in plan.items]

    def _run_alone(self, item: ScheduledRequest, fresh_blocks: tuple[int, ...]) -> Outcome:
        own = tuple(block for block in fresh_blocks if block in item.request.blocks)
        try:
            return self._runner.run(StepPlan((item,), own))[0]
        except Exception as error:  # the request's outer edge
            logger.exception("request %s fails alone too", item.request.id)
            return Outcome(Draw(None, error))

    def _commit(self, plan: StepPlan, outcomes: list[Outcome]) -> None:
        for item, outcome in zip(plan.items, outcomes, strict=True):
            request, draw = item.request, outcome.draw
            if draw is not None and draw.error is not None:
                self._drop(request, draw.error)
                continue
            token = draw.token if draw else None
            is_first = request.num_generated == 0
            reason = self._scheduler.commit(item, token)
            self._count(item, token)
            if token is not None or reason or outcome.prompt_scores:
                self._emit(request, outcome, reason, is_first=is_first)
            if reason:
                self._finish(request)
            elif token is not None and request.constraint:
                self._follow(request, request.constraint, token)

    def _follow(self, request: ActiveRequest, constraint: Constraint, token: int) -> None:
        try:
            constraint.advance(token)
        except GrammarFailed as error:
            self._drop(request, error)

    def _drop(self, request: ActiveRequest, error: Exception) -> None:
        if not isinstance(error, ArithmeticError):
            logger.error("request %s failed", request.id, exc_info=error)
        self._finish(request)
        self._fail(request.id, *_public_failure(error))

    def _finish(self, request: ActiveRequest) -> None:
        self._meter.forget(request)
        self._scheduler.finish(request)

    def _count(self, item: ScheduledRequest, token: int | None) -> None:
        request = item.request
        self._counts["generated_tokens"] += token is not None
        if not request.num_counted:
            self._counts["cached_prompt_tokens"] += request.num_cached or 0
            request.num_counted = request.num_cached or 0
        reached = min(item.start + item.count, request.num_prompt)
        self._counts["prompt_tokens"] += max(0, reached - request.num_counted)
        request.num_counted = max(reached, request.num_counted)

    def _emit(
        self,
        request: ActiveRequest,
        outcome: Outcome,
        reason: FinishReason | None,
        *,
        is_first: bool,
    ) -> None:
        token = outcome.draw.token if outcome.draw else None
        begins = is_first and (token is not None or reason is not None)
        event = TokenEvent(
            request_id=request.id,
            tokens=() if token is None else (token,),
            finish_reason=reason,
            cached_tokens=(request.num_cached or 0) if is_first else 0,
            scores=() if outcome.score is None else (outcome.score,),
            prompt_scores=outcome.prompt_scores,
            embedding=outcome.embedding,
            stages=self._meter.stages(request) if begins else None,
        )
        self._events.append(event)
        if reason:
            self._finished[reason.value] += 1

    def _end(self, request_id: str, reason: FinishReason) -> None:
        self._finished[reason.value] += 1
        self._events.append(TokenEvent(request_id=request_id, finish_reason=reason))

    def _fail(self, request_id: str, code: str, message: str) -> None:
        self._finished[FinishReason.ERROR.value] += 1
        event = TokenEvent(
            request_id=request_id,
            finish_reason=FinishReason.ERROR,
            error=message,
            error_code=code,
        )
        self._events.append(event)

    def _flush(self) -> None:
        if self._events:
            events, self._events = tuple(self._events), []
            self._report(Events(events))

    def stats(self) -> EngineStats:
        graphs = self._runner.graphs
        return engine_stats(
            counts=self._counts,
            finished=self._finished,
            step_seconds=self._step_seconds,
            scheduler=self._scheduler,
            pool=self._pool,
            residency=self._residency,
            step=self._meter.stats(
                graph_replays=graphs.num_replays if graphs else 0,
                padding_rows=graphs.num_padding_rows if graphs else 0,
            ),
            machine=self._machine.stats(),
            training=self._background.stats(),
        )


def _outcome(result: LoadResult) -> Report:
    if result.error:
        failure = PinFailed if result.is_pin else VersionFailed
        return failure(result.digest, result.error.code, str(result.error))
    return VersionPinned(result.digest) if result.is_pin else VersionLoaded(result.digest)


def _public_failure(error: Exception) -> tuple[str, str]:
    """Code and message. Arithmetic is explained; anything else may hold paths or addresses."""
    if isinstance(error, ArithmeticError):
        return getattr(error, "code", "engine_error"), str(error)
    return "engine_error", "the engine failed on this request"
