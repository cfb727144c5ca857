"""What a request asks to be answered by: one name in one of several fields, or a blend."""

from contextlib import AbstractContextManager

from multiflora.engine.errors import RequestRejected

from .catalog import Catalog, ServedModel
from .schemas.sampling import TargetBody

# LoRAX and SGLang name the adapter beside the base.
_ALIASES = ("adapter_id", "lora_path")


def lease_selected(
    catalog: Catalog, body: TargetBody, *, view: str | None = None
) -> AbstractContextManager[ServedModel]:
    """Resolve and hold what ``body`` asks for, among what a tenant's ``view`` holds.

    Raises ``RequestRejected``, ``ModelNotFound``.
    """
    param, name = _named(catalog.base, body)
    if not body.adapters:
        return catalog.lease(name, user=body.user, param=param, view=view)
    if name != catalog.base:
        raise RequestRejected(
            f"adapters is a blend on the base; with it, {param} must be {catalog.base!r} or the "
            "blend must be left out",
            param="adapters",
        )
    return catalog.lease_blend(_weights(body), user=body.user, view=view)


def _named(base: str, body: TargetBody) -> tuple[str, str]:
    """The field that decides, and the name in it."""
    named = [(alias, value) for alias in _ALIASES if (value := getattr(body, alias))]
    if not named:
        return "model", body.model
    param, name = named[0]
    for other, value in (*named[1:], ("model", body.model)):
        if value not in (name, f"{base}:{name}") and not (other == "model" and value == base):
            raise RequestRejected(
                f"{param} is {name[:100]!r} but {other} is {value[:100]!r}; name one adapter",
                param=param,
            )
    return param, name


def _weights(body: TargetBody) -> dict[str, float]:
    weights: dict[str, float] = {}
    for index, share in enumerate(body.adapters):
        if share.name in weights:
            raise RequestRejected(
                f"{share.name[:100]!r} comes twice in the blend; give it one weight",
                param=f"adapters.{index}.name",
            )
        weights[share.name] = share.weight
    return weights
