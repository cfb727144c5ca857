"""Which names a client can put in ``model``, and what each of them stands for."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from multiflora.adapters.entry import AdapterEntry
from multiflora.adapters.registry import Registry

from .base_match import BaseMatch
from .errors import ModelNotFound


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What answers one request: the base, or a version on it."""

    name: str
    digest: str | None = None

    @property
    def digests(self) -> tuple[str, ...]:
        """Of every version that takes part in the answer."""
        return () if self.digest is None else (self.digest,)


class Catalog:
    """The base and its adapters by name. An unknown name is an error, never the base."""

    def __init__(
        self, base: str, adapters: Registry, *, created: int, match: BaseMatch | None = None
    ) -> None:
        self.base = base
        self._match = match or BaseMatch()
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
            self._check_served(model, lease.digest)
            yield ServedModel(model, lease.digest)

    def cards(self, *, max_model_len: int) -> list[dict[str, Any]]:
        """Model objects of the API: the base first, then the adapters by name."""
        return [
            self._card(self.base, self._created, max_model_len),
            *(
                self._card(entry.name, entry.created, max_model_len, digest=entry.digest)
                for entry in self._served()
            ),
        ]

    def card(self, model: str, *, max_model_len: int) -> dict[str, Any]:
        for card in self.cards(max_model_len=max_model_len):
            if card["id"] == model:
                return card
        raise self._not_found(model)

    def names(self) -> list[str]:
        return [self.base, *(entry.name for entry in self._served())]

    def unserved(self) -> dict[str, str]:
        """Names that are kept but cannot run on this base, and why."""
        reasons = {entry.name: self.reason(entry) for entry in self._adapters.entries()}
        return {name: reason for name, reason in reasons.items() if reason is not None}

    def reason(self, entry: AdapterEntry) -> str | None:
        """Why the adapter is not served; None if it is."""
        if entry.name == self.base:
            return "the base has this name; rename the base with --served-model-name"
        return None if self._match.accepts(entry.digest) else self._match.reason(entry.digest)

    def _served(self) -> list[AdapterEntry]:
        return [entry for entry in self._adapters.entries() if self.reason(entry) is None]

    def _check_served(self, model: str, digest: str) -> None:
        if not self._match.accepts(digest):
            raise ModelNotFound(f"{model!r}: {self._match.reason(digest)}", param="model")

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
            card["adapter"] = {"version": digest}
        return card

    def _not_found(self, model: str) -> ModelNotFound:
        return ModelNotFound(
            f"the model {model[:100]!r} does not exist; GET /v1/models lists all names",
            param="model",
        )
