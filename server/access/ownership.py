"""Whether what a path names is there for a caller: what is hidden and what is absent look alike."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from multiflora.adapters.error import ForeignName, RegistryError, UnknownName
from multiflora.adapters.registry import Registry
from multiflora.engine.errors import RequestRejected
from multiflora.engine.training.data.file_registry import FileRegistry, UnknownFile
from multiflora.engine.training.jobs.error import JobNotFound
from multiflora.engine.training.jobs.job_registry import JobRegistry

from ..background_job import BackgroundJobs
from ..batch_store import BatchStore, UnknownBatch
from ..catalog import Catalog
from ..schemas.dataset_sampling import KIND as SAMPLING
from ..schemas.file import BATCH_PURPOSES
from .caller import Caller
from .error import NotYours
from .rule import Kind, Rule

_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class _Things:
    """``tenant_of`` raises what ``absent`` makes, or its like, for an id that nothing has.

    ``is_partial`` tells whether a rule's ``partial`` scope is enough for one of them.
    """

    tenant_of: Callable[[str], str]
    absent: Callable[[str], Exception]
    waits_for_disk: bool = False
    is_partial: Callable[[str], bool] = lambda name: False


class Ownership:
    """The check comes before the route looks at anything else of a request.

    So a malformed request for what is hidden is answered as one for what is not there.
    """

    def __init__(
        self,
        *,
        registry: Registry,
        catalog: Catalog,
        files: FileRegistry,
        jobs: JobRegistry,
        batches: BatchStore,
        background: BackgroundJobs,
    ) -> None:
        self._things: Mapping[Kind, _Things] = {
            Kind.ADAPTER: _Things(lambda name: registry.entry(name).tenant, UnknownName),
            Kind.MODEL: _Things(catalog.tenant_of, catalog.not_found),
            Kind.FILE: _Things(
                lambda file_id: _tenant_of_file(files, file_id),
                UnknownFile,
                waits_for_disk=True,
                is_partial=lambda file_id: files.get(file_id).purpose in BATCH_PURPOSES,
            ),
            Kind.JOB: _Things(lambda job_id: jobs.get(job_id).tenant, JobNotFound, True),
            Kind.BATCH: _Things(lambda batch_id: batches.get(batch_id).tenant, UnknownBatch, True),
            Kind.MERGE: _in_background(background, "merge"),
            Kind.SAMPLING: _in_background(background, SAMPLING),
        }

    async def check(self, caller: Caller, rule: Rule, params: Mapping[str, Any]) -> None:
        """Raise as the route would for what is absent, also for what is hidden.

        ``params`` hold what the path names. Raises ``NotYours``, ``ForeignName`` for changes.
        """
        if rule.kind is None:
            return
        things, name = self._things[rule.kind], params[rule.param]
        try:
            tenant = await _asked(things, things.tenant_of, name)
        except (RegistryError, RequestRejected):
            if rule.makes:
                return
            raise
        if not caller.sees(tenant):
            raise ForeignName(name) if rule.makes else things.absent(name)
        assert rule.scope is not None, "what a public route names belongs to nobody"
        if not caller.has(rule.scope) and not await _asked(things, things.is_partial, name):
            raise things.absent(name)
        if rule.changes and not caller.owns(tenant):
            raise NotYours(f"{name!r} is shared: all tenants may use it, and none may change it")


def _tenant_of_file(files: FileRegistry, file_id: str) -> str:
    """The server's own files hold what users of all tenants said, and are nobody's to read."""
    file = files.get(file_id)
    if file.is_internal:
        raise UnknownFile(file_id)
    return file.tenant


def owner_of(caller: Caller, registry: Registry, name: str) -> str:
    """Whose ``name`` is, or would be if ``caller`` made it; for changes on the caller's behalf."""
    if not caller.is_admin or name not in registry:
        return caller.tenant
    return registry.entry(name).tenant


def _in_background(jobs: BackgroundJobs, kind: str) -> _Things:
    return _Things(
        lambda job_id: jobs.find(job_id, kind).tenant, lambda job_id: jobs.not_found(job_id, kind)
    )


async def _asked(things: _Things, question: Callable[[str], _Found], name: str) -> _Found:
    if things.waits_for_disk:
        return await asyncio.to_thread(question, name)
    return question(name)
