"""Which names a client can put in ``model``, and what each of them stands for."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from multiflora.adapters.registry import Registry

from .errors import ModelNotFound


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What answers one request: the base, or a version on it."""

    name: str
    digest: str | None = None


class Catalog:
    """The base and its adapters by name. An unknown name is an error, never the base."""

    def __init__(self, base: str, adapters: Registry, *, created: int) -> None:
        self.base = base
        self._adapters = adapters
        self._created = created

    @contextmanager
    def lease(self, model: str) -> Iterator[ServedModel]:
        """Resolve a name and hold its version. Raises ``ModelNotFound``."""
        if model == self.base:
            yield ServedModel(model)
            return
        try:
            lease = self._adapters.lease(model)
        except KeyError:
            raise self._not_found(model) from None
        with lease:
            yield ServedModel(model, lease.digest)

    def cards(self, *, max_model_len: int) -> list[dict[str, Any]]:
        """Model objects of the API: the base first, then the adapters by name."""
        return [
            self._card(self.base, self._created, max_model_len),
            *(
                self._card(entry.name, entry.created, max_model_len, digest=entry.digest)
                for entry in self._adapters.entries()
            ),
        ]

    def card(self, model: str, *, max_model_len: int) -> dict[str, Any]:
        for card in self.cards(max_model_len=max_model_len):
            if card["id"] == model:
                return card
        raise self._not_found(model)

    def names(self) -> list[str]:
        return [self.base, *(entry.name for entry in self._adapters.entries())]

    def _card(
        self, name: str, created: int, max_model_len: int, *, digest: str | None = None
    ) -> dict[str, Any]:
        card: dict[str, Any] = {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "multiflora",
            "root": self.base,
            "parent": None if digest is None else self.base,
            "max_model_len": max_model_len,
        }
        if digest is not None:
            card["adapter"] = {"revision": digest[:12]}
        return card

    def _not_found(self, model: str) -> ModelNotFound:
        return ModelNotFound(
            f"the model {model[:100]!r} does not exist; GET /v1/models lists all names",
            param="model",
        )
