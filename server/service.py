"""Everything that the routes work with, put together once by whoever starts the server."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from fastapi import Request

from multiflora.adapters.registry import Registry
from multiflora.engine.client import EngineClient
from multiflora.engine.text.template_renderer import Renderer
from multiflora.engine.text.tokenizer import Tokenizer
from multiflora.engine.training.data.file_registry import FileRegistry
from multiflora.engine.training.jobs.training_jobs import TrainingJobs
from multiflora.engine.training.learning.learner import Learner

from .access.keyring import Keyring
from .access.origin import OriginCheck
from .adapter_template import AdapterTemplates
from .admission import Admission
from .background_job import BackgroundJobs
from .batch_runner import BatchRunner
from .catalog import Catalog, ServedModel
from .drain import Drain
from .file_checker import FileChecker
from .grammar_check import GrammarCheck
from .hub_door import HubDoor
from .limits import Limits
from .merging import Merger
from .metrics import Metrics
from .pinning import Pinning
from .publishing import Publisher
from .text_work import TextWork
from .tracing import NoTracing, Tracing


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """``end_tokens`` are the base's end-of-turn ids, whose text is never part of an answer."""

    client: EngineClient
    tokenizer: Tokenizer
    chat_template: Renderer
    catalog: Catalog
    metrics: Metrics
    registry: Registry
    publisher: Publisher
    file_checker: FileChecker
    jobs: TrainingJobs
    learner: Learner
    pinning: Pinning
    merger: Merger
    keyring: Keyring
    adapter_templates: AdapterTemplates = field(default_factory=AdapterTemplates)
    admission: Admission = field(default_factory=Admission)
    # How long any answer may take; None is for ever.
    request_timeout_seconds: float | None = None
    origin: OriginCheck = field(default_factory=OriginCheck)
    background: BackgroundJobs = field(default_factory=BackgroundJobs)
    # Where paths that clients name may lie; None closes the routes that take such paths.
    adapters_root: Path | None = None
    hub: HubDoor = field(default_factory=HubDoor)
    end_tokens: frozenset[int] = frozenset()
    limits: Limits = field(default_factory=Limits)
    text_work: TextWork = field(default_factory=TextWork)
    drain: Drain = field(default_factory=Drain)
    grammar_check: GrammarCheck = field(default_factory=GrammarCheck)
    batches: BatchRunner = field(default_factory=BatchRunner)
    tracing: Tracing = field(default_factory=NoTracing)
    logs_requests: bool = False
    # Whether /metrics, though not the page of all adapters, needs no key.
    open_metrics: bool = False
    # Idempotency keys of running requests.
    keys_in_use: set[str] = field(default_factory=set)

    def renderer(self, model: ServedModel) -> Renderer:
        """What renders the chats that ``model`` answers."""
        return self.adapter_templates.renderer(self.chat_template, model)

    @property
    def files(self) -> FileRegistry:
        return self.file_checker.files


def service_of(request: Request) -> Service:
    return cast(Service, request.app.state.service)
