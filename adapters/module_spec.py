"""What an adapter does to one module of the base, and the tensors that it does it with."""

from collections.abc import Mapping
from dataclasses import dataclass

from .error import AdapterRejected
from .target import TargetModule

PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class ModuleSpec:
    """One module's adapter; tensors are given by name, None where the adapter has none.

    LoRA is ``scale * B @ A`` with A [rank, K] and B [N, rank]; without it ``rank`` is 0 and both
    names are empty. ``magnitude`` [N] is DoRA's, ``lora_bias`` [N] is added to B's output,
    ``bias`` [N] stands in for the base's, ``output_scale`` [N, 1] and ``input_scale`` [1, K] are
    those of (IA)^3, and ``weight`` stands in for the base's. ``base_copy`` is the base's own
    weight, which PEFT saves beside adapters on the embedding and the head.
    """

    path: str
    rank: int
    scale: float
    a_name: str
    b_name: str
    magnitude: str | None = None
    lora_bias: str | None = None
    bias: str | None = None
    output_scale: str | None = None
    input_scale: str | None = None
    weight: str | None = None
    base_copy: str | None = None

    @property
    def has_lora(self) -> bool:
        return self.rank > 0

    @property
    def has_output_vector(self) -> bool:
        """Whether outputs are scaled or shifted beside the delta."""
        names = (self.magnitude, self.lora_bias, self.bias, self.output_scale)
        return any(name is not None for name in names)


class TensorShapes:
    """The tensors of an adapter that no module has claimed yet."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = dict(shapes)

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    @property
    def names(self) -> list[str]:
        return sorted(self._shapes)

    def take(self, name: str, expected: tuple[int, ...], path: str) -> str:
        """Claim a tensor for the module at ``path``.

        Raises ``AdapterRejected`` if it is missing or not of the ``expected`` shape.
        """
        found = self._shapes.pop(name, None)
        if found is None:
            raise AdapterRejected(
                "missing_tensor",
                f"{name} is missing although adapter_config.json targets {path}",
            )
        if found != expected:
            raise AdapterRejected(
                "wrong_shape",
                f"{name} is {list(found)}, this base and config need {list(expected)}; "
                "was the adapter trained on another base?",
            )
        return name

    def take_base_copy(self, target: TargetModule) -> str | None:
        """Claim the copy of the base's weight that PEFT saves for some modules, if it is there."""
        name = f"{PREFIX}{target.path}.base_layer.weight"
        if target.kind == "linear" or name not in self:
            return None
        return self.take(name, target.weight_shape, target.path)
