"""A stored version as the start or the reference of a run."""

import hashlib
from collections.abc import Mapping, Sequence

from torch import Tensor

from multiflora.adapters.error import AdapterRejected
from multiflora.adapters.inspection import inspect_adapter
from multiflora.adapters.mapped_tensors import MappedTensors
from multiflora.adapters.module_spec import ModuleSpec
from multiflora.adapters.store import AdapterStore

from .config import LoraSettings
from .factors import TrainedFactors
from .network import TrainingNetwork


def read_start(
    store: AdapterStore, digest: str, settings: LoraSettings, network: TrainingNetwork
) -> Mapping[str, Tensor]:
    """The version's A [R, K], B [N, R] and magnitude [N] in float32 by PEFT's names, to go on from.

    Raises ``AdapterRejected`` and ``OSError``, and ``ValueError`` unless the settings describe the
    very modules, ranks and scales that the version has.
    """
    modules, tensors = _read(store, digest, network)
    wanted = {module.path: module for module in settings.modules(network.config)}
    found = {module.path: module for module in modules}
    for path in sorted(wanted.keys() | found.keys()):
        if _essence(wanted.get(path)) != _essence(found.get(path)):
            raise ValueError(
                f"version {digest[:12]} has {_form(found.get(path))} at {path}, the settings say "
                f"{_form(wanted.get(path))}; train with the settings of the version"
            )
    return {
        own: tensors[stored]
        for path, module in wanted.items()
        for own, stored in zip(_names(module), _names(found[path]), strict=True)
    }


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
        plain = ModuleSpec(
            *(module.path, module.rank, module.scale, module.a_name, module.b_name),
            magnitude=module.magnitude,
        )
        if module != plain or not module.has_lora or module.path not in linears:
            raise AdapterRejected(
                "not_trainable",
                f"version {digest[:12]} has more than LoRA or DoRA at {module.path}; only these on "
                "the layers' linears can be trained further or be a reference",
            )
    stored = MappedTensors(folder)
    names = [name for module in modules for name in _names(module)]
    return modules, {name: stored.get(name).float() for name in names}


def _names(module: ModuleSpec) -> tuple[str, ...]:
    return (module.a_name, module.b_name, *([module.magnitude] if module.magnitude else []))


def _essence(module: ModuleSpec | None) -> object:
    """What must agree: tensors may have other names."""
    return module and (module.rank, module.scale, bool(module.magnitude))


def _form(module: ModuleSpec | None) -> str:
    if module is None:
        return "nothing"
    kind = " with DoRA" if module.magnitude else ""
    return f"rank {module.rank} and scale {module.scale:g}{kind}"
