"""Which names a client can put in ``model``, and what each of them stands for."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from multiflora.adapters.entry import AdapterEntry
from multiflora.adapters.error import UnknownName, UnknownVersion
from multiflora.adapters.feature import why_unblendable
from multiflora.adapters.lease import Lease
from multiflora.adapters.registry import Registry
from multiflora.adapters.tier import Tier
from multiflora.engine.errors import RequestRejected
from multiflora.engine.request import AdapterShare

from .base_match import BaseMatch
from .errors import ModelNotFound


@dataclass(frozen=True, slots=True)
class Parent:
    """An adapter that takes part in an answer, and the version that was leased for it."""

    name: str
    digest: str
    weight: float = 1.0
    is_canary: bool = False


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What answers one request: the base, a version on it, or a blend of several."""

    name: str
    parents: tuple[Parent, ...] = ()

    @property
    def digests(self) -> tuple[str, ...]:
        return tuple(parent.digest for parent in self.parents)

    @property
    def is_canary(self) -> bool:
        """Whether any version is one that a name is trying out."""
        return any(parent.is_canary for parent in self.parents)

    def shares(self) -> tuple[AdapterShare, ...]:
        """What the engine runs; names that point at one version add up."""
        weights: dict[str, float] = {}
        for parent in self.parents:
            weights[parent.digest] = weights.get(parent.digest, 0.0) + parent.weight
        return tuple(AdapterShare(digest, weight) for digest, weight in weights.items())


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
    def lease(
        self,
        model: str,
        *,
        user: str | None = None,
        param: str = "model",
        view: str | None = None,
    ) -> Iterator[ServedModel]:
        """Resolve a name and hold its version, for ``user`` where a canary runs.

        ``view`` is the tenant whose names there are, here and below; None sees all.

        ``base:adapter`` is the adapter, unless an adapter has that very name. Raises
        ``ModelNotFound`` naming ``param``.
        """
        if model == self.base:
            yield ServedModel(model)
            return
        with self._lease(model, user, param, view) as lease:
            yield ServedModel(model, (Parent(lease.name, lease.digest, is_canary=lease.is_canary),))

    @contextmanager
    def lease_blend(
        self, weights: Mapping[str, float], *, user: str | None = None, view: str | None = None
    ) -> Iterator[ServedModel]:
        """Resolve and hold every parent of a blend; they are named by the base.

        Raises as ``lease`` does, and ``RequestRejected`` for a parent that only answers alone.
        """
        with ExitStack() as held:
            parents = [
                Parent(lease.name, lease.digest, weight, lease.is_canary)
                for index, (name, weight) in enumerate(weights.items())
                for lease in [held.enter_context(self._lease(name, user, _param(index), view))]
            ]
            model = ServedModel(self.base, tuple(parents))
            self._check_blend(model)
            yield model

    def _check_blend(self, model: ServedModel) -> None:
        if all(share.weight == 1.0 for share in model.shares()) and len(model.shares()) == 1:
            return
        for index, parent in enumerate(model.parents):
            if reason := why_unblendable(self._adapters.features(parent.digest)):
                raise RequestRejected(
                    f"{parent.name!r} cannot be blended: {reason}, which no weighted sum of "
                    "adapters expresses; use it alone, as model",
                    param=_param(index),
                )

    def _lease(self, model: str, user: str | None, param: str, view: str | None) -> Lease:
        for name in (model, self._behind_base(model)):
            with suppress(UnknownName):
                if name is not None:
                    return self._checked(self._adapters.lease(name, user, view=view), param)
        raise self.not_found(model, param)

    def tenant_of(self, model: str) -> str:
        """Whose model it is; the base is shared. Raises ``ModelNotFound``."""
        if model == self.base:
            return ""
        for name in (model, self._behind_base(model)):
            if name is not None and name in self._adapters:
                return self._adapters.entry(name).tenant
        raise self.not_found(model)

    def _behind_base(self, model: str) -> str | None:
        prefix = f"{self.base}:"
        return model.removeprefix(prefix) if model.startswith(prefix) else None

    def _checked(self, lease: Lease, param: str) -> Lease:
        if not self._match.accepts(lease.digest):
            lease.release()
            raise ModelNotFound(f"{lease.name!r}: {self._match.reason(lease.digest)}", param=param)
        return lease

    def cards(
        self,
        *,
        max_model_len: int,
        view: str | None = None,
        tiers: Mapping[str, Tier] | None = None,
    ) -> list[dict[str, Any]]:
        """Model objects of the API: the base first, then the adapters by name. Waits for the disk.

        ``tiers`` say where versions are, those that are left out on the disk; None is unknown.
        """
        return [
            self._card(self.base, self._created, max_model_len),
            *(
                self._card(
                    entry.name,
                    entry.created,
                    max_model_len,
                    adapter={
                        "version": entry.digest,
                        "rank": self._rank(entry.digest),
                        "state": None if tiers is None else tiers.get(entry.digest, Tier.DISK),
                    },
                )
                for entry in self._served(view)
            ),
        ]

    def card(
        self,
        model: str,
        *,
        max_model_len: int,
        view: str | None = None,
        tiers: Mapping[str, Tier] | None = None,
    ) -> dict[str, Any]:
        for card in self.cards(max_model_len=max_model_len, view=view, tiers=tiers):
            if card["id"] in (model, self._behind_base(model)):
                return card
        raise self.not_found(model)

    def _rank(self, digest: str) -> int | None:
        """None for a version that another thread has just collected."""
        with suppress(UnknownVersion):
            return self._adapters.version(digest).rank
        return None

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

    def _served(self, view: str | None = None) -> list[AdapterEntry]:
        entries = self._adapters.entries(view=view)
        return [entry for entry in entries if self.reason(entry) is None]

    def _card(
        self,
        name: str,
        created: int,
        max_model_len: int,
        *,
        adapter: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        card: dict[str, Any] = {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "multiflora",
            "root": self.base,
            "parent": None if adapter is None else self.base,
            "max_model_len": max_model_len,
        }
        if adapter is not None:
            card["adapter"] = adapter
        return card

    def not_found(self, model: str, param: str = "model") -> ModelNotFound:
        return ModelNotFound(
            f"the model {model[:100]!r} does not exist; GET /v1/models lists all names",
            param=param,
        )


def _param(index: int) -> str:
    return f"adapters.{index}.name"
