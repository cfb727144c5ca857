"""A PEFT folder as deltas by module path, read without a base model."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..error import AdapterRejected
from ..folder import WEIGHTS_NAME, AdapterFolder, TensorEntry
from ..peft_format import PREFIX, LoraSettings, parse_settings
from ..tensor_file import DTYPES
from .delta import Delta, is_finite

_A_ENDING, _B_ENDING = ".lora_A.weight", ".lora_B.weight"
# What is no product of two factors, or not on the shared base, and why it cannot be merged.
_NOT_A_DELTA: Mapping[str, str] = {
    "use_dora": "DoRA rescales whole rows of the base, which no sum of deltas can express",
    "lora_bias": "biases on lora_B are no part of a delta",
    "modules_to_save": "fully trained modules replace weights of the base",
    "trainable_token_indices": "trained embeddings replace rows of the base",
    "ensure_weight_tying": "a tied head's adapter changes the embedding too",
    "layer_replication": "replicated layers need another base",
    "target_parameters": "LoRA on bare parameters is not on a linear",
    "alora_invocation_tokens": "activated LoRA applies to some tokens only",
}


@dataclass(frozen=True, slots=True)
class ParentModule:
    """One adapted linear: its shape [N, K], its rank and the scale of ``B @ A``."""

    path: str
    shape: tuple[int, int]
    rank: int
    scale: float


class Parent:
    """One adapter to be merged or exported; a context manager that holds its weights file open.

    ``modules`` are its adapted linears by path, sorted; ``dtype`` is the widest of its tensors;
    ``base_name`` is what its config calls its base, if anything. Raises ``AdapterRejected`` for an
    adapter that is more than plain LoRA on linears.
    """

    def __init__(self, path: Path, *, name: str | None = None) -> None:
        self.name = name or path.name
        folder = AdapterFolder(path)
        self.config = folder.config
        _refuse_config(self.name, folder.config)
        self.base_name: str | None = folder.config.get("base_model_name_or_path")
        entries = {entry.name: entry for entry in folder.entries}
        self.modules: Mapping[str, ParentModule] = _find_modules(
            entries, parse_settings(folder.config)
        )
        self.dtype = widest(DTYPES[entry.dtype] for entry in entries.values())
        self._tensors = safe_open(path / WEIGHTS_NAME, framework="pt")

    def factors(self, path: str) -> tuple[Tensor, Tensor]:
        """B [N, R] and A [R, K] in float32, without the scale. Raises ``AdapterRejected`` if they
        are not finite.
        """
        b = self._tensors.get_tensor(f"{PREFIX}{path}{_B_ENDING}")
        a = self._tensors.get_tensor(f"{PREFIX}{path}{_A_ENDING}")
        if not (is_finite(a) and is_finite(b)):
            raise AdapterRejected(
                "not_finite", f"{self.name}: {path} holds NaN or infinity; did training diverge?"
            )
        return b.float(), a.float()

    def delta(self, path: str) -> Delta:
        """The module's delta; raises as ``factors``."""
        b, a = self.factors(path)
        return Delta(b * self.modules[path].scale, a)

    def __enter__(self) -> "Parent":
        self._tensors.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._tensors.__exit__(kind, error, trace)


def widest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The smallest type that holds all values of all of them."""
    first, *others = set(dtypes)
    return torch.float32 if others else first


def _refuse_config(name: str, config: Mapping[str, Any]) -> None:
    """Refuse what is more than plain LoRA, whatever the engine may be able to serve."""
    if config.get("peft_type") != "LORA":
        raise AdapterRejected(
            "unsupported_type",
            f"{name}: peft_type is {config.get('peft_type')!r}; only LORA can be merged",
        )
    if config.get("bias", "none") != "none":
        raise AdapterRejected(
            "unsupported_feature",
            f"{name}: bias={config['bias']!r}: trained biases are no part of a delta",
        )
    for key, reason in _NOT_A_DELTA.items():
        if config.get(key):
            raise AdapterRejected(
                "unsupported_feature", f"{name}: {key} is set: {reason}; it cannot be merged"
            )


def _find_modules(
    entries: Mapping[str, TensorEntry], settings: LoraSettings
) -> dict[str, ParentModule]:
    modules: dict[str, ParentModule] = {}
    for name, entry in entries.items():
        if name.startswith(PREFIX) and name.endswith(_A_ENDING):
            path = name.removeprefix(PREFIX).removesuffix(_A_ENDING)
            modules[path] = _module(path, entry, entries, settings)
        elif not name.endswith(_B_ENDING):
            raise AdapterRejected(
                "unsupported_feature", f"tensor {name}: only plain LoRA on linears can be merged"
            )
    if 2 * len(modules) != len(entries):
        raise AdapterRejected("missing_tensor", "some lora_B has no lora_A")
    return modules


def _module(
    path: str, a: TensorEntry, entries: Mapping[str, TensorEntry], settings: LoraSettings
) -> ParentModule:
    b = entries.get(f"{PREFIX}{path}{_B_ENDING}")
    if b is None:
        raise AdapterRejected("missing_tensor", f"{path} has a lora_A without its lora_B")
    rank = settings.rank_of(path)
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != rank or b.shape[1] != rank:
        raise AdapterRejected(
            "wrong_shape",
            f"{path}: lora_A is {list(a.shape)} and lora_B {list(b.shape)}, the config says rank "
            f"{rank}",
        )
    return ParentModule(path, (b.shape[0], a.shape[1]), rank, settings.scale_of(path))
