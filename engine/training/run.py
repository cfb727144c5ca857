"""A training run: a state machine whose every transition is one quantum."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from .checkpoint import VALUES, CheckpointFolder, CheckpointWriter, RunState, Snapshot, to_host
from .config import PreferenceSettings, SupervisedSettings, TrainingSettings
from .error import InvalidTrainingData, TrainingDiverged, TrainingError
from .evaluation import evaluate
from .example import Example, Preference, Rows
from .factors import TrainedFactors
from .network import TrainingNetwork
from .optimizer import Optimizer
from .preference import PreferenceTask
from .quantum import (
    CheckpointWritten,
    Evaluated,
    Quanta,
    QuantumReport,
    RunEnded,
    StepTaken,
)
from .randomness import tensor_stream
from .reference import score_reference
from .schedule import rate_factor
from .step_plan import StepPlan, fill_micro_batches
from .sweep import Noise, Sweep
from .tally import Tally
from .task import SupervisedTask, Task


class TrainingRun:
    """Trains ``factors`` on ``task``, from the last checkpoint in ``folder`` if there is one.

    Nothing is random but by the settings' seed: a run that was killed and resumed takes the same
    steps, bit for bit, as one that was not, and so does one that is suspended between quanta.
    ``start`` has factors to go on from, under PEFT's names; ``reference`` are the factors that
    preferences are measured against, the bare base by default. Raises ``InvalidTrainingData``,
    ``CheckpointMismatch``, ``TrainingError`` for a float16 base, ``ValueError`` for settings that
    do not suit the base, and ``OSError``.
    """

    def __init__(
        self,
        network: TrainingNetwork,
        task: Task,
        settings: TrainingSettings,
        *,
        folder: Path,
        validation: Task | None = None,
        start: Mapping[str, Tensor] | None = None,
        reference: TrainedFactors | None = None,
    ) -> None:
        self._network = network
        self._task = task
        self._validation = validation
        self._settings = settings
        self._reference = reference
        if network.dtype == torch.float16:
            raise TrainingError(
                "training in float16 would need loss scaling; use --dtype bfloat16 or float32"
            )
        for rows in (task, validation):
            if rows is not None:
                _check_rows(rows, settings, network)
        self._plan = StepPlan(task.num_rows, settings.batch, settings.seed)
        self.factors = TrainedFactors(
            network.config.projections(),
            settings.lora.modules(network.config),
            device=network.device,
        )
        self._optimizer = Optimizer(self.factors, settings.optimizer)
        self.state = RunState()
        self._checkpoints = CheckpointFolder(
            folder / "checkpoints", self._identity(start), keep=settings.checkpoint.keep
        )
        self._writer = CheckpointWriter(self._checkpoints)
        self._restore(start)
        self._waits = False
        self._has_ended = False
        self._quanta = self._work()

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run, if nothing stops it early."""
        return self._plan.num_steps

    @property
    def has_ended(self) -> bool:
        """Whether no quantum will ever follow, for better or worse."""
        return self._has_ended

    def checkpoints(self) -> list[tuple[int, Path]]:
        """Steps with a whole checkpoint and its folder, in order."""
        return [(step, self._checkpoints.folder(step)) for step in self._checkpoints.steps()]

    def ready(self) -> bool:
        """Whether a quantum can run at once; False at the end, and while the disk is waited for."""
        return not self._has_ended and not (self._waits and self._writer.is_busy)

    def run_quantum(self) -> QuantumReport:
        """Run the next quantum, waiting for the disk if it must.

        Raises ``TrainingDiverged`` or ``OSError``; the run has then ended, with its last checkpoint
        as it was.
        """
        assert not self._has_ended
        try:
            report = next(self._quanta)
        except BaseException:
            self.close()
            raise
        if isinstance(report.event, RunEnded):
            self.close()
        return report

    def close(self) -> None:
        """End the run where it is; its checkpoints stay. Waits for a write that was started."""
        self._has_ended = True
        self._quanta.close()
        self._writer.close()

    def _work(self) -> Quanta[None]:
        yield from self._score_references()
        while not self._is_over():
            yield from self._take_step()
            if not self._writer.is_busy:
                yield from self._end_write()
            is_best = False
            if self._is_due(self._settings.evaluation.every_steps):
                is_best = yield from self._evaluate()
            if is_best or self._is_due(self._settings.checkpoint.every_steps):
                yield from self._write_checkpoint()
        yield from self._end_write()
        self._choose_result()
        has_all = self.state.step >= self._plan.num_steps
        reason = "finished" if has_all else "stopped_early"
        yield QuantumReport(kind="summary", event=RunEnded(self.state.step, reason))

    def _score_references(self) -> Quanta[None]:
        for task in (self._task, self._validation):
            if isinstance(task, PreferenceTask):
                name = hashlib.sha256(f"{task.digest} {self._reference_digest}".encode())
                yield from score_reference(
                    self._network,
                    task,
                    self._reference,
                    micro_batch_tokens=self._settings.batch.micro_batch_tokens,
                    cache=self._checkpoints.path.parent
                    / f"reference-{name.hexdigest()[:16]}.safetensors",
                )

    def _take_step(self) -> Quanta[None]:
        step = self.state.step
        rows = self._plan.rows(step)
        loss, tally, num_tokens = self._task.step_loss(rows), Tally(), 0
        budget = self._settings.batch.micro_batch_tokens
        for number, part in enumerate(fill_micro_batches(rows, self._task.num_tokens, budget)):
            batch = self._task.pack(part, self._network.device)
            sweep = Sweep(self._network, batch, self.factors, self._noise(step, number))
            scores = yield from sweep.train(loss.of(batch))
            tally.merge(loss.tally(batch, scores))
            num_tokens += batch.num_tokens
        metrics = yield from self._move(dict(tally.means()))
        self.state = replace(
            self.state, step=step + 1, num_tokens=self.state.num_tokens + num_tokens
        )
        metrics["num_tokens"] = float(self.state.num_tokens)
        metrics["epoch"] = self.state.step / self._plan.steps_per_epoch
        yield QuantumReport(kind="optimizer", event=StepTaken(self.state.step, metrics))

    def _move(self, metrics: dict[str, float]) -> Quanta[dict[str, float]]:
        """Take the optimizer's step; returns ``metrics`` with the norm and the rate."""
        step = self.state.step
        if not math.isfinite(metrics["loss"]):
            raise TrainingDiverged(
                f"the loss of step {step + 1} is {metrics['loss']}; lower the learning rate "
                f"({self._settings.optimizer.learning_rate}) or look for broken rows"
            )
        factor = rate_factor(self._settings.schedule, step, self._plan.num_steps)
        rate = self._settings.optimizer.learning_rate * factor
        metrics["grad_norm"] = yield from self._optimizer.step(step + 1, rate)
        metrics["learning_rate"] = rate
        return metrics

    def _evaluate(self) -> Quanta[bool]:
        """Score the validation rows, if there are any; True if they were never better."""
        if self._validation is None:
            return False
        metrics = yield from evaluate(
            self._network,
            self.factors,
            self._validation,
            micro_batch_tokens=self._settings.batch.micro_batch_tokens,
        )
        loss, best = metrics["eval_loss"], self.state.best_loss
        is_best = math.isfinite(loss) and (best is None or loss < best)
        self.state = (
            replace(self.state, best_step=self.state.step, best_loss=loss, num_worse=0)
            if is_best
            else replace(self.state, num_worse=self.state.num_worse + 1)
        )
        event = Evaluated(self.state.step, metrics, is_best)
        yield QuantumReport(kind="summary", event=event)
        return is_best

    def _write_checkpoint(self) -> Quanta[None]:
        yield from self._end_write()
        if not self.factors.values.isfinite().all():
            raise TrainingDiverged(
                f"the factors are not finite after step {self.state.step}; lower the learning rate "
                f"({self._settings.optimizer.learning_rate})"
            )
        copies = {}
        for name, tensor in self._tensors().items():
            copies[name] = to_host(tensor)
            yield QuantumReport(kind="checkpoint")
        self._writer.start(Snapshot(self.state, copies))

    def _end_write(self) -> Quanta[None]:
        """Report the write that was started last, after waiting for it."""
        if self._writer.is_pending:
            self._waits = True
            yield QuantumReport(kind="checkpoint")
            folder = self._writer.finish()
            self._waits = False
            step = int(folder.name.rpartition("-")[2])
            yield QuantumReport(kind="checkpoint", event=CheckpointWritten(step, folder))

    def _tensors(self) -> Mapping[str, Tensor]:
        """What a snapshot holds."""
        return {VALUES: self.factors.values, **self._optimizer.tensors()}

    def _restore(self, start: Mapping[str, Tensor] | None) -> None:
        steps = self._checkpoints.steps()
        if steps:
            self._adopt(self._checkpoints.read(steps[-1]))
        elif start is not None:
            self.factors.load(start)
        else:
            seed = self._settings.seed
            self.factors.initialize(
                self._settings.lora.init,
                lambda path: tensor_stream(seed, "init", path),
                self._network.row_norms,
            )

    def _adopt(self, snapshot: Snapshot) -> None:
        self.state = snapshot.state
        for name, tensor in self._tensors().items():
            tensor.data.copy_(snapshot.tensors[name])

    def _choose_result(self) -> None:
        """Leave the factors of the lowest validation loss, if that is wanted."""
        best = self.state.best_step
        if self._settings.evaluation.load_best and best not in (None, self.state.step):
            self.factors.values.data.copy_(self._checkpoints.read(best).tensors[VALUES])

    def _is_over(self) -> bool:
        patience = self._settings.evaluation.patience
        is_stuck = patience is not None and self.state.num_worse >= patience
        return is_stuck or self.state.step >= self._plan.num_steps

    def _is_due(self, every_steps: int | None) -> bool:
        every = every_steps or self._plan.steps_per_epoch
        return self.state.step % every == 0 or self.state.step == self._plan.num_steps

    def _noise(self, step: int, number: int) -> Noise:
        method = self._settings.method
        is_supervised = isinstance(method, SupervisedSettings)
        return Noise(
            dropout=self._settings.lora.dropout,
            neftune_alpha=method.neftune_alpha if is_supervised else 0.0,
            seed=self._settings.seed,
            place=(step, number),
        )

    @property
    def _reference_digest(self) -> str:
        factors = self._reference.tensors() if self._reference else {}
        return f"{self._network.digest} {digest_tensors(factors)}"

    def _identity(self, start: Mapping[str, Tensor] | None) -> Mapping[str, object]:
        return {
            "settings": asdict(self._settings),
            "base": self._network.digest,
            "data": self._task.digest,
            "validation data": self._validation.digest if self._validation else None,
            "start": digest_tensors(start) if start is not None else None,
            "reference": self._reference_digest,
        }


def make_task(
    rows: Rows[Example] | Rows[Preference],
    method: SupervisedSettings | PreferenceSettings,
) -> Task:
    """The task that ``method`` makes of rows of one kind, which it keeps and reads as it goes.

    Raises ``InvalidTrainingData`` for the wrong kind.
    """
    first = next(iter(rows), None)
    if isinstance(method, PreferenceSettings):
        if isinstance(first, Example):
            raise InvalidTrainingData("learning preferences needs pairs; these rows are examples")
        return PreferenceTask(cast("Rows[Preference]", rows), method)
    if isinstance(first, Preference):
        raise InvalidTrainingData("supervised learning needs examples; these rows are pairs")
    return SupervisedTask(cast("Rows[Example]", rows))


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of named tensors."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(f"{name}\0{tuple(tensors[name].shape)}\0".encode())
        total.update(tensors[name].detach().float().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def _check_rows(task: Task, settings: TrainingSettings, network: TrainingNetwork) -> None:
    """Refuse rows that fit no micro-batch or no position of the base, naming the first."""
    if not task.num_rows:
        raise InvalidTrainingData("there are no rows; give at least one")
    budget = settings.batch.micro_batch_tokens
    for row in range(task.num_rows):
        if task.num_tokens(row) > budget:
            raise InvalidTrainingData(
                f"line {task.line(row)} has {task.num_tokens(row)} tokens, over micro_batch_tokens "
                f"{budget}; shorten it or raise micro_batch_tokens"
            )
        if task.num_positions(row) > network.max_positions:
            raise InvalidTrainingData(
                f"line {task.line(row)} has {task.num_positions(row)} tokens, over the "
                f"{network.max_positions} positions of the base; shorten it"
            )
