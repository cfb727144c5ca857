"""Frozen settings of a training run, validated where they are made. Imports no torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from multiflora.adapters.error import AdapterRejected
from multiflora.adapters.peft_format import PREFIX, ModuleSpec, parse_lora

from ..models.config import ModelConfig

EVERY_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MAX_RANK = 1024
# The name under which PEFT saves DoRA's vector.
MAGNITUDE = "lora_magnitude_vector"

OptimizerKind = Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"]
OPTIMIZERS: tuple[OptimizerKind, ...] = ("adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit")
PreferenceLossKind = Literal[
    "sigmoid", "ipo", "hinge", "robust", "sigmoid_norm", "apo_zero", "apo_down"
]
PREFERENCE_LOSSES: tuple[PreferenceLossKind, ...] = (
    "sigmoid",
    "ipo",
    "hinge",
    "robust",
    "sigmoid_norm",
    "apo_zero",
    "apo_down",
)


def _need(condition: bool, name: str, value: object, limit: str, remedy: str = "") -> None:
    if not condition:
        raise ValueError(f"{name} is {value}; it must be {limit}{'; ' if remedy else ''}{remedy}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings:
    """Which linears get factors, and of what rank; names and meaning are PEFT's.

    ``target_modules`` are module names, ``"all-linear"``, or a regular expression over paths.
    ``use_dora`` trains the length of every output's row of the base too (arXiv 2402.09353).
    """

    rank: int = 16
    alpha: float = 32.0
    use_rslora: bool = False
    use_dora: bool = False
    dropout: float = 0.0
    target_modules: str | tuple[str, ...] = EVERY_LINEAR
    exclude_modules: tuple[str, ...] = ()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    layers_to_transform: tuple[int, ...] | None = None
    init: Literal["kaiming", "gaussian"] = "kaiming"

    def __post_init__(self) -> None:
        _need(1 <= self.rank <= MAX_RANK, "rank", self.rank, f"1 to {MAX_RANK}")
        _need(math.isfinite(self.alpha) and self.alpha > 0, "alpha", self.alpha, "above 0")
        _need(0 <= self.dropout < 1, "dropout", self.dropout, "at least 0 and below 1")
        _need(self.init in ("kaiming", "gaussian"), "init", self.init, "kaiming or gaussian")
        is_regex = isinstance(self.target_modules, str) and self.target_modules != "all-linear"
        _need(
            not (is_regex and self.layers_to_transform),
            "layers_to_transform",
            self.layers_to_transform,
            "left out with a regular expression",
            "name the layers in target_modules",
        )
        for pattern, rank in self.rank_pattern.items():
            _need(1 <= rank <= MAX_RANK, f"rank_pattern[{pattern!r}]", rank, f"1 to {MAX_RANK}")

    def adapter_config(self, base_name: str) -> dict[str, Any]:
        """The content of PEFT's ``adapter_config.json``."""
        targets = self.target_modules
        if targets == "all-linear":
            targets = EVERY_LINEAR
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_name,
            "inference_mode": True,
            "r": self.rank,
            # Some loaders want a whole number where it is one.
            "lora_alpha": int(self.alpha) if self.alpha == int(self.alpha) else self.alpha,
            "use_rslora": self.use_rslora,
            "use_dora": self.use_dora,
            "lora_dropout": self.dropout,
            "bias": "none",
            "target_modules": targets if isinstance(targets, str) else sorted(targets),
            "exclude_modules": sorted(self.exclude_modules) or None,
            "rank_pattern": dict(self.rank_pattern),
            "alpha_pattern": dict(self.alpha_pattern),
            "layers_to_transform": (
                None if self.layers_to_transform is None else list(self.layers_to_transform)
            ),
            "init_lora_weights": True if self.init == "kaiming" else "gaussian",
            "modules_to_save": None,
        }

    def modules(self, model: ModelConfig) -> tuple[ModuleSpec, ...]:
        """The adapted modules of a base, as whoever loads the exported adapter will find them.

        Raises ``ValueError`` if a setting is not served or matches no module.
        """
        try:
            settings = parse_lora(self.adapter_config(""))
        except AdapterRejected as error:
            raise ValueError(str(error)) from error
        found = tuple(
            ModuleSpec(
                target.path,
                settings.rank_of(target.path),
                settings.scale_of(target.path),
                f"{PREFIX}{target.path}.lora_A.weight",
                f"{PREFIX}{target.path}.lora_B.weight",
                magnitude=f"{PREFIX}{target.path}.{MAGNITUDE}" if self.use_dora else None,
            )
            for projection in model.projections()
            for target in projection.slices
            if settings.is_target(target.path)
        )
        _need(bool(found), "target_modules", self.target_modules, "names of this base's linears")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSettings:
    """AdamW; ``lora_plus_ratio`` multiplies the rate of B (LoRA+, arXiv 2402.12354).

    ``kind`` says where its moments are: in float32 or in 8 bits (arXiv 2110.02861), on the device
    or, paged, in pinned memory of the host. On a CPU these are one memory.
    """

    kind: OptimizerKind = "adamw"
    learning_rate: float = 2e-4
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    lora_plus_ratio: float = 1.0

    @property
    def is_8bit(self) -> bool:
        return self.kind.endswith("8bit")

    @property
    def is_paged(self) -> bool:
        return self.kind.startswith("paged")

    def __post_init__(self) -> None:
        _need(self.kind in OPTIMIZERS, "kind", self.kind, ", ".join(OPTIMIZERS))
        _need(0 < self.learning_rate <= 1, "learning_rate", self.learning_rate, "above 0, up to 1")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            _need(0 <= value < 1, name, value, "at least 0 and below 1")
        for name in ("epsilon", "max_grad_norm", "lora_plus_ratio"):
            value = getattr(self, name)
            _need(math.isfinite(value) and value > 0, name, value, "above 0")
        _need(0 <= self.weight_decay < 1, "weight_decay", self.weight_decay, "0 to below 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleSettings:
    """The learning rate over the steps, as in transformers: warm-up from 0, then ``kind``.

    ``warmup_steps`` overrides ``warmup_ratio``.
    """

    kind: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: float = 0.1
    warmup_steps: int | None = None

    def __post_init__(self) -> None:
        kinds = ("linear", "cosine", "constant")
        _need(self.kind in kinds, "kind", self.kind, ", ".join(kinds))
        _need(0 <= self.warmup_ratio <= 1, "warmup_ratio", self.warmup_ratio, "0 to 1")
        _need((self.warmup_steps or 0) >= 0, "warmup_steps", self.warmup_steps, "at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSettings:
    """``batch_size`` counts rows per optimizer step, however many micro-batches they fill.

    A micro-batch holds up to ``micro_batch_tokens``; it changes speed and memory, not the result.
    """

    batch_size: int = 8
    num_epochs: int = 3
    max_steps: int | None = None
    micro_batch_tokens: int = 4096
    shuffle: bool = True

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_epochs", "micro_batch_tokens"):
            _need(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _need(self.max_steps is None or self.max_steps >= 1, "max_steps", self.max_steps, "above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisedSettings:
    """Learning answers; ``neftune_alpha`` 0 adds no noise to embeddings."""

    neftune_alpha: float = 0.0

    def __post_init__(self) -> None:
        alpha = self.neftune_alpha
        _need(math.isfinite(alpha) and alpha >= 0, "neftune_alpha", alpha, "at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceSettings:
    """Learning preferences (DPO, arXiv 2305.18290, and its relatives as TRL defines them).

    ``label_smoothing`` is the share of flipped labels: on ``sigmoid`` it gives conservative DPO, on
    ``robust`` the unbiased estimate of arXiv 2403.00409; other losses have no use for it.
    ``sft_weight`` adds that much of the mean negative log-likelihood of the chosen tokens.
    """

    loss: PreferenceLossKind = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    sft_weight: float = 0.0

    def __post_init__(self) -> None:
        _need(self.loss in PREFERENCE_LOSSES, "loss", self.loss, ", ".join(PREFERENCE_LOSSES))
        _need(math.isfinite(self.beta) and self.beta > 0, "beta", self.beta, "above 0")
        weight = self.sft_weight
        _need(math.isfinite(weight) and weight >= 0, "sft_weight", weight, "at least 0")
        smoothing = self.label_smoothing
        _need(0 <= smoothing < 0.5, "label_smoothing", smoothing, "at least 0 and below 0.5")
        _need(
            not smoothing or self.loss in ("sigmoid", "robust"),
            "label_smoothing",
            smoothing,
            f"0 with the loss {self.loss}",
            "use sigmoid or robust",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSettings:
    """When validation data is scored: ``every_steps``, or once an epoch, and after the last step.

    ``patience`` evaluations in a row without a lower loss end the run; None never ends it early.
    ``load_best`` makes the result the factors of the lowest loss, not the last ones.
    """

    every_steps: int | None = None
    patience: int | None = None
    load_best: bool = True

    def __post_init__(self) -> None:
        for name in ("every_steps", "patience"):
            value = getattr(self, name)
            _need(value is None or value >= 1, name, value, "at least 1, or left out")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSettings:
    """A checkpoint ``every_steps`` or once an epoch; the last ``keep`` and the best one stay."""

    every_steps: int | None = None
    keep: int = 2

    def __post_init__(self) -> None:
        every = self.every_steps
        _need(every is None or every >= 1, "every_steps", every, "at least 1, or left out")
        _need(self.keep >= 1, "keep", self.keep, "at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """All settings of one run; every random draw follows from ``seed``."""

    method: SupervisedSettings | PreferenceSettings = field(default_factory=SupervisedSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    batch: BatchSettings = field(default_factory=BatchSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    seed: int = 0
