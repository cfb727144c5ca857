"""From what a client may say about training to the trainer's settings.

A section is one of the trainer's dataclasses under its own name; what is left out has that class's
default, or what ``auto`` chooses by the size of the data.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final, TypeVar

import msgspec

from multiflora.adapters.error import AdapterRejected
from multiflora.adapters.folder import AdapterFolder

from ...errors import RequestRejected
from ...models.config import ModelConfig
from ..auto import AutoValues, choose_auto_values
from ..config import (
    BatchSettings,
    CheckpointSettings,
    EvaluationSettings,
    LoraSettings,
    OptimizerSettings,
    PreferenceSettings,
    ScheduleSettings,
    SupervisedSettings,
    TrainingSettings,
)
from ..data.config import DataConfig
from .gate_settings import GateSettings
from .job import Hyperparameters, JobWish
from .publish_settings import PublishSettings

Kind = TypeVar("Kind")
PARAM: Final = "training"
_KEPT_CHECKPOINTS: Final = 3
# Of a section, what has its place elsewhere in the request.
_ELSEWHERE: Final[Mapping[str, Mapping[str, str]]] = {
    "batch": {"batch_size": "method", "num_epochs": "method"},
    "loss": {"beta": "method"},
    "data": {"method": "method.type"},
}
_MESSAGE: Final = re.compile(r"(.*) - at `\$\.?(.*)`", re.DOTALL)


class UnknownSetting(RequestRejected):
    """A setting that nobody knows."""

    code = "unknown_parameter"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSize:
    """What ``auto`` looks at: items of the prepared data set, and their trained tokens."""

    num_rows: int
    num_tokens: int


def check_wish(wish: JobWish, *, start: LoraSettings | None = None) -> None:
    """Raise ``RequestRejected`` for settings that no data can make right."""
    data_config(wish)
    gate_settings(wish)
    publish_settings(wish)
    _check_rate(wish)
    guess = AutoValues(
        batch_size=8,
        num_epochs=3,
        rank=16,
        alpha=32.0,
        learning_rate=2e-4,
        lora_plus_ratio=1.0,
    )
    _settings(wish, guess, start)


def training_settings(
    wish: JobWish, model: ModelConfig, size: DataSize, *, start: LoraSettings | None = None
) -> TrainingSettings:
    """The settings of the run. ``start`` are those of the adapter that it goes on from.

    Raises ``RequestRejected``.
    """
    auto = choose_auto_values(
        model,
        num_rows=size.num_rows,
        num_tokens=size.num_tokens,
        is_preference=wish.method == "dpo",
    )
    settings = _settings(wish, auto, start)
    try:
        settings.lora.modules(model)
    except ValueError as error:
        raise RequestRejected(str(error), param=f"{PARAM}.lora") from None
    return settings


def data_config(wish: JobWish) -> DataConfig:
    """Raises ``RequestRejected``."""
    return _section(wish, "data", DataConfig, method=wish.method)


def gate_settings(wish: JobWish) -> GateSettings:
    """Raises ``RequestRejected``."""
    return _section(wish, "gate", GateSettings)


def publish_settings(wish: JobWish) -> PublishSettings:
    """Raises ``RequestRejected``."""
    return _section(wish, "publish", PublishSettings)


def read_hyperparameters(
    given: Mapping[str, Any], path: str, *, is_dpo: bool = False
) -> Hyperparameters:
    """OpenAI's hyperparameters from a request. Raises ``RequestRejected``."""
    known = [field.name for field in fields(Hyperparameters) if is_dpo or field.name != "beta"]
    for key in given:
        if key not in known:
            raise _unknown(key, known, path)
    values = {name: None if value == "auto" else value for name, value in given.items()}
    try:
        return msgspec.convert(values, Hyperparameters)
    except msgspec.ValidationError as error:
        raise _misfit(str(error), path) from None


def kept_checkpoints(wish: JobWish) -> int:
    """How many of the last checkpoints are served."""
    return _section(wish, "checkpoint", CheckpointSettings, keep=_KEPT_CHECKPOINTS).keep


def lora_settings_of(folder: AdapterFolder) -> LoraSettings:
    """The settings by which a PEFT folder was made, to go on from it.

    Raises ``AdapterRejected`` for one that cannot be trained on as it is.
    """
    config = folder.config
    targets = config.get("target_modules")
    given = {
        "rank": config.get("r", 8),
        "alpha": config.get("lora_alpha", 8),
        "use_rslora": bool(config.get("use_rslora")),
        "use_dora": bool(config.get("use_dora")),
        "target_modules": targets if isinstance(targets, str) else tuple(targets or ()),
        "exclude_modules": tuple(config.get("exclude_modules") or ()),
        "rank_pattern": config.get("rank_pattern") or {},
        "alpha_pattern": config.get("alpha_pattern") or {},
        "layers_to_transform": config.get("layers_to_transform"),
    }
    if isinstance(given["layers_to_transform"], int):
        given["layers_to_transform"] = (given["layers_to_transform"],)
    try:
        return msgspec.convert(given, LoraSettings)
    except msgspec.ValidationError as error:
        raise AdapterRejected(
            "not_trainable", f"training cannot go on from this adapter: {error}"
        ) from None


def _settings(wish: JobWish, auto: AutoValues, start: LoraSettings | None) -> TrainingSettings:
    given = wish.hyperparameters
    _check_sections(wish)
    method: SupervisedSettings | PreferenceSettings
    if wish.method == "dpo":
        beta = {} if given.beta is None else {"beta": given.beta}
        method = _section(wish, "loss", PreferenceSettings, **beta)
    else:
        method = _section(wish, "loss", SupervisedSettings)
    rate = auto.learning_rate * (given.learning_rate_multiplier or 1.0)
    return TrainingSettings(
        method=method,
        lora=_lora(wish, auto, start),
        optimizer=_section(
            *(wish, "optimizer", OptimizerSettings),
            learning_rate=min(rate, 1.0),
            # It belongs to the rate that was chosen with it.
            lora_plus_ratio=1.0 if _has_rate(wish) else auto.lora_plus_ratio,
        ),
        schedule=_section(wish, "schedule", ScheduleSettings),
        batch=_section(
            *(wish, "batch", BatchSettings),
            batch_size=given.batch_size or auto.batch_size,
            num_epochs=given.n_epochs or auto.num_epochs,
        ),
        evaluation=_section(wish, "evaluation", EvaluationSettings),
        checkpoint=_section(wish, "checkpoint", CheckpointSettings, keep=_KEPT_CHECKPOINTS),
        seed=wish.seed,
    )


def _lora(wish: JobWish, auto: AutoValues, start: LoraSettings | None) -> LoraSettings:
    if start is None:
        rank = wish.training.get("lora", {}).get("rank", auto.rank)
        # At every rank the scale is that of ``auto``, so that a rate means the same.
        scale = auto.alpha / auto.rank
        alpha = scale * rank if isinstance(rank, int) else auto.alpha
        return _section(wish, "lora", LoraSettings, rank=rank, alpha=alpha)
    own = {field.name: getattr(start, field.name) for field in fields(start)}
    settings = _section(wish, "lora", LoraSettings, **own)
    if replace(settings, dropout=start.dropout) != start:
        raise RequestRejected(
            "a job that goes on from an adapter keeps its rank, alpha and modules; leave out all "
            f"of {PARAM}.lora but dropout, or start from the base",
            param=f"{PARAM}.lora",
        )
    return settings


def _has_rate(wish: JobWish) -> bool:
    return "learning_rate" in wish.training.get("optimizer", {})


def _check_rate(wish: JobWish) -> None:
    if _has_rate(wish) and wish.hyperparameters.learning_rate_multiplier is not None:
        raise RequestRejected(
            "learning_rate_multiplier and learning_rate exclude each other; give one",
            param=f"{PARAM}.optimizer.learning_rate",
        )


def _check_sections(wish: JobWish) -> None:
    known = ("lora", "optimizer", "schedule", "batch", "evaluation", "checkpoint", "loss")
    for name in wish.training:
        if name not in (*known, "data", "gate", "publish"):
            raise _unknown(name, (*known, "data", "gate", "publish"), PARAM)


def _section(wish: JobWish, name: str, kind: type[Kind], **defaults: Any) -> Kind:
    """``kind`` of what was given in the section, with ``defaults`` below it."""
    given, path = wish.training.get(name, {}), f"{PARAM}.{name}"
    elsewhere = _ELSEWHERE.get(name, {})
    known = [field.name for field in fields(kind) if field.name not in elsewhere]  # pyright: ignore[reportArgumentType]
    for key in given:
        if key in elsewhere:
            raise UnknownSetting(
                f"{path}.{key} belongs into {elsewhere[key]}", param=f"{path}.{key}"
            )
        if key not in known:
            raise _unknown(key, known, path)
    try:
        return msgspec.convert({**defaults, **given}, kind)
    except msgspec.ValidationError as error:
        raise _misfit(str(error), path) from None


def _unknown(key: str, known: Any, path: str) -> UnknownSetting:
    shown = key[:64]
    near = difflib.get_close_matches(shown, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"it knows {', '.join(known)}"
    return UnknownSetting(f"{path} has no setting {shown!r}; {hint}", param=f"{path}.{shown}")


def _misfit(message: str, path: str) -> RequestRejected:
    """msgspec names the place at the end; a value's own check names its field by itself."""
    if found := _MESSAGE.fullmatch(message):
        message, place = found.groups()
        path = f"{path}.{place}" if place else path
    return RequestRejected(f"{path}: {message}"[:500], param=path)
