"""A stored version as the start or the reference of a run."""

import hashlib
from collections.abc import Mapping, Sequence

from safetensors import safe_open
from torch import Tensor

from multiflora.adapters.error import AdapterRejected
from multiflora.adapters.folder import WEIGHTS_NAME
from multiflora.adapters.inspection import inspect_adapter
from multiflora.adapters.module_spec import ModuleSpec
from multiflora.adapters.store import AdapterStore

from .config import LoraSettings
from .factors import TrainedFactors
from .network import TrainingNetwork


def read_start(
    store: AdapterStore, digest: str, settings: LoraSettings, network: TrainingNetwork
) -> Mapping[str, Tensor]:
    """The version's A [R, K] and B [N, R] in float32 by PEFT's names, to go on from.

    Raises ``AdapterRejected`` and ``OSError``, and ``ValueError`` unless the settings describe the
    very modules, ranks and scales that the version has.
    """
    modules, tensors = _read(store, digest, network)
    wanted = {module.path: module for module in settings.modules(network.config)}
    found = {module.path: module for module in modules}
    for path in sorted(wanted.keys() | found.keys()):
        if wanted.get(path) != found.get(path):
            raise ValueError(
                f"version {digest[:12]} has {_form(found.get(path))} at {path}, the settings say "
                f"{_form(wanted.get(path))}; train with the settings of the version"
            )
    return tensors


def read_reference(store: AdapterStore, digest: str, network: TrainingNetwork) -> TrainedFactors:
    """The version on the network's device, without a gradient.

    Raises ``AdapterRejected`` and ``OSError``.
    """
    modules, tensors = _read(store, digest, network)
    factors = TrainedFactors(
        network.config.projections(), modules, device=network.device, trainable=False
    )
    factors.load(tensors)
    return factors


def held_factors(
    network: TrainingNetwork, settings: LoraSettings, tensors: Mapping[str, Tensor]
) -> TrainedFactors:
    """Tensors under PEFT's names on the network's device, without a gradient."""
    factors = TrainedFactors(
        *(network.config.projections(), settings.modules(network.config)),
        device=network.device,
        trainable=False,
    )
    factors.load(tensors)
    return factors


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of named tensors."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(f"{name}\0{tuple(tensors[name].shape)}\0".encode())
        total.update(tensors[name].detach().float().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def _read(
    store: AdapterStore, digest: str, network: TrainingNetwork
) -> tuple[Sequence[ModuleSpec], Mapping[str, Tensor]]:
    folder = store.open(digest)
    modules = inspect_adapter(folder, network.config.adapter_projections())
    linears = {target.path for p in network.config.projections() for target in p.slices}
    for module in modules:
        plain = ModuleSpec(module.path, module.rank, module.scale, module.a_name, module.b_name)
        if module != plain or not module.has_lora or module.path not in linears:
            raise AdapterRejected(
                "not_trainable",
                f"version {digest[:12]} has more than LoRA at {module.path}; only LoRA on the "
                "layers' linears can be trained further or be a reference",
            )
    with safe_open(folder.path / WEIGHTS_NAME, framework="pt") as file:
        names = [name for module in modules for name in (module.a_name, module.b_name)]
        return modules, {name: file.get_tensor(name).float() for name in names}


def _form(module: ModuleSpec | None) -> str:
    return f"rank {module.rank} and scale {module.scale:g}" if module else "nothing"
