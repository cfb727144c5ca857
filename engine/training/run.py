"""A training run: a state machine whose every transition is one quantum."""

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from .beside import Beside
from .checkpoint import VALUES, CheckpointFolder, CheckpointWriter, RunState, Snapshot, to_host
from .config import (
    SupervisedSettings,
    TrainingSettings,
)
from .error import TrainingDiverged, TrainingError
from .evaluation import evaluate, open_step_loss
from .factors import TrainedFactors
from .grown_factors import FrozenRanks, grown_lora
from .network import TrainingNetwork
from .optimizer import Optimizer
from .quantum import (
    CheckpointWritten,
    Evaluated,
    Quanta,
    QuantumReport,
    RunEnded,
    StepTaken,
)
from .randomness import Place, tensor_stream
from .reference import reference_digest, score_references
from .replay.mix import ReplayShare
from .replay.step import train_replay
from .row_scores import VersionScores
from .schedule import rate_factor
from .step_plan import StepPlan, fill_micro_batches
from .stored_factors import digest_tensors, held_factors
from .sweep import Noise, Sweep
from .tally import Tally
from .task import Task
from .task_kind import check_rows
from .thin_delta import average
from .version_scores import Scorer


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
        beside: Beside | None = None,
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
                check_rows(rows, settings, network)
        self._beside = beside or Beside()
        self._beside.check(settings, network)
        self._mix = self._beside.mix(settings)
        self._plan = StepPlan(task.num_rows, settings.batch, settings.seed)
        self.lora = grown_lora(settings, network.config)
        self.factors = self.result = TrainedFactors(
            network.config.projections(),
            self.lora.modules(network.config),
            device=network.device,
        )
        self.scores: VersionScores | None = None
        self._frozen = self._freeze(start)
        self._start = start
        has_anchor = settings.replay.kl_weight and settings.replay.kl_to == "start"
        self._anchor = self._start_factors() if has_anchor and self._mix else None
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
        yield from score_references(
            self._network,
            (self._task, self._validation),
            self._reference,
            micro_batch_tokens=self._settings.batch.micro_batch_tokens,
            folder=self._checkpoints.path.parent,
        )
        if self._mix is not None and self.state.replay_loss is None:
            yield from self._measure_replay()
        while not self._is_over():
            yield from self._take_step()
            if not self._writer.is_busy:
                yield from self._end_write()
            is_best = False
            if self._is_due(self._settings.evaluation.every_steps):
                yield from self._measure_replay()
                is_best = yield from self._evaluate()
            if is_best or self._is_due(self._settings.checkpoint.every_steps):
                yield from self._write_checkpoint()
        yield from self._end_write()
        self._choose_result()
        yield from self._compare()
        has_all = self.state.step >= self._plan.num_steps
        reason = "finished" if has_all else "stopped_early"
        yield QuantumReport(kind="summary", event=RunEnded(self.state.step, reason))

    def _take_step(self) -> Quanta[None]:
        step = self.state.step
        rows = self._plan.rows(step)
        after, again = self.state, ReplayShare((), 0.0)
        if self._mix is not None:
            after, again = self._mix.take(self.state, len(rows))
        tally, num_tokens = yield from self._train(step, rows, weight=1 - again.share)
        if self._mix is not None:
            tally.merge((yield from self._train_replay(step, again)))
        metrics = yield from self._move(dict(tally.means()))
        self.state = replace(after, step=step + 1, num_tokens=self.state.num_tokens + num_tokens)
        metrics["num_tokens"] = float(self.state.num_tokens)
        metrics["epoch"] = self.state.step / self._plan.steps_per_epoch
        if self._mix is not None:
            metrics |= self._mix.metrics(self.state)
        yield QuantumReport(kind="optimizer", event=StepTaken(self.state.step, metrics))

    def _train(self, step: int, rows: list[int], *, weight: float) -> Quanta[tuple[Tally, int]]:
        """Add the gradient of ``weight`` times the loss; returns metrics and the tokens seen."""
        tally, num_tokens = Tally(), 0
        budget = self._settings.batch.micro_batch_tokens
        loss = yield from open_step_loss(
            *(self._network, self._task, rows, self.factors, self._reference),
            micro_batch_tokens=budget,
        )
        for number, part in enumerate(fill_micro_batches(rows, self._task.num_tokens, budget)):
            batch = self._task.pack(part, self._network.device)
            value = loss.of(batch)
            if weight != 1:
                whole = value
                value = lambda log_probs, whole=whole: weight * whole(log_probs)  # noqa: E731
            sweep = Sweep(self._network, batch, self.factors, self._noise(step, number))
            scores = yield from sweep.train(value)
            tally.merge(loss.tally(batch, scores))
            num_tokens += batch.num_tokens
        return tally, num_tokens

    def _train_replay(self, step: int, taken: ReplayShare) -> Quanta[Tally]:
        assert self._mix is not None
        settings = self._settings.replay
        return (
            yield from train_replay(
                *(self._network, self._mix.task, taken, self.factors, settings),
                anchor=self._anchor,
                noise=partial(self._noise, f"replay {step}"),
                micro_batch_tokens=self._settings.batch.micro_batch_tokens,
            )
        )

    def _measure_replay(self) -> Quanta[None]:
        if self._mix is not None:
            self.state = yield from self._mix.measure(
                *(self._network, self.factors, self.state),
                micro_batch_tokens=self._settings.batch.micro_batch_tokens,
            )

    def _move(self, metrics: dict[str, float]) -> Quanta[dict[str, float]]:
        """Take the optimizer's step; returns ``metrics`` with the norm and the rate."""
        step = self.state.step
        if not math.isfinite(metrics["loss"]):
            raise TrainingDiverged(
                f"the loss of step {step + 1} is {metrics['loss']}; lower the learning rate "
                f"({self._settings.optimizer.learning_rate}) or look for broken rows"
            )
        if self._frozen is not None:
            penalty = self._frozen.guard(self._settings.continual.orthogonality)
            metrics["orthogonality"] = penalty
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
            reference=self._reference,
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
        elif start is not None and self._frozen is None:
            self.factors.load(start)
        else:
            seed = self._settings.seed
            self.factors.initialize(
                self._settings.lora.init,
                lambda path: tensor_stream(seed, "init", path),
                self._network.row_norms,
            )
            if self._frozen is not None and start is not None:
                self._frozen.load(start)

    def _adopt(self, snapshot: Snapshot) -> None:
        self.state = snapshot.state
        for name, tensor in self._tensors().items():
            tensor.data.copy_(snapshot.tensors[name])

    def _choose_result(self) -> None:
        """Leave the mean of the last checkpoints or the factors of the lowest validation loss, if
        that is wanted, and merge what was frozen and what is fresh."""
        best, continual = self.state.best_step, self._settings.continual
        if continual.soup:
            steps = self._checkpoints.steps()[-continual.soup :]
            average(self.factors, [self._checkpoints.read(step).tensors[VALUES] for step in steps])
        elif self._settings.evaluation.load_best and best not in (None, self.state.step):
            self.factors.values.data.copy_(self._checkpoints.read(best).tensors[VALUES])
        if self._frozen is not None:
            self.result = self._frozen.merged(
                self._settings.lora, self._network.config, continual.merge_weight
            )

    def _compare(self) -> Quanta[None]:
        """Score the result and what it is to replace, for whoever decides."""
        scorer = Scorer(
            network=self._network,
            reference=self._reference,
            micro_batch_tokens=self._settings.batch.micro_batch_tokens,
            seed=self._settings.seed,
        )
        self.scores = yield from scorer.compare(
            *(self.result, self._beside, self._start_factors()),
            validation=self._validation,
            held_out=self._mix.held_out if self._mix else (),
        )

    def _start_factors(self) -> TrainedFactors | None:
        """What the run went on from, as it was."""
        if self._start is None:
            return None
        return held_factors(self._network, self._settings.lora, self._start)

    def _freeze(self, start: Mapping[str, Tensor] | None) -> FrozenRanks | None:
        if self._settings.continual.mode == "continue":
            return None
        if start is None:
            raise ValueError("continual.mode merge needs a version to go on from; name one")
        return FrozenRanks(self.factors, start)

    def _is_over(self) -> bool:
        patience = self._settings.evaluation.patience
        is_stuck = patience is not None and self.state.num_worse >= patience
        return is_stuck or self.state.step >= self._plan.num_steps

    def _is_due(self, every_steps: int | None) -> bool:
        every = every_steps or self._plan.steps_per_epoch
        return self.state.step % every == 0 or self.state.step == self._plan.num_steps

    def _noise(self, step: Place, number: int) -> Noise:
        method = self._settings.method
        is_supervised = isinstance(method, SupervisedSettings)
        return Noise(
            dropout=self._settings.lora.dropout,
            neftune_alpha=method.neftune_alpha if is_supervised else 0.0,
            seed=self._settings.seed,
            place=(step, number),
        )

    def _identity(self, start: Mapping[str, Tensor] | None) -> Mapping[str, object]:
        return {
            "settings": asdict(self._settings),
            "base": self._network.digest,
            "data": self._task.digest,
            "validation data": self._validation.digest if self._validation else None,
            "start": digest_tensors(start) if start is not None else None,
            "reference": reference_digest(self._network, self._reference),
            "replay": self._beside.replay.digest if self._beside.replay else None,
        }
