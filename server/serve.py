"""`multiflora serve`: from settings to a server that drains when it is told to stop."""

import asyncio
import logging
import socket
import tempfile
import time
from contextlib import closing
from pathlib import Path

import uvloop

from multiflora.adapters.error import RegistryError
from multiflora.adapters.registry import Registry
from multiflora.engine.client import EngineClient
from multiflora.engine.config import EngineConfig
from multiflora.engine.errors import StartupError
from multiflora.engine.log_line import configure_logging
from multiflora.engine.memory_plan import plan_memory
from multiflora.engine.text.template_renderer import TemplateRenderer
from multiflora.engine.training.data.file_registry import FileRegistry
from multiflora.engine.training.gate.text_side import TextSide
from multiflora.engine.watchdog import watch

from .access.key_file import KeyFile
from .access.key_registry import KeyRegistry
from .access.keyring import Keyring
from .access.origin import OriginCheck, is_loopback
from .adapter_template import AdapterTemplates
from .admission import Admission
from .announcement import Announcement, loading_progress
from .app import create_app
from .base_match import BaseMatch
from .base_model import BaseModel, adapter_sources, read_base_model
from .batch_call import caller
from .batch_store import BatchStore
from .catalog import Catalog
from .file_checker import FileChecker
from .housekeeping import Housekeeping
from .http_server import HttpServer
from .hub_door import HubDoor
from .job_publishing import JobPublishing
from .learning import keep_learning, make_learner
from .listener import bind, url_of
from .merging import Merger
from .metrics import Metrics
from .pinning import Pinning
from .publishing import Publisher
from .service import Service
from .settings import ServeSettings
from .start_adapters import publish_at_start
from .tracing import make_tracing
from .training import TrainedBase, make_training_jobs
from .watched_folder import WatchedFolder

logger = logging.getLogger(__name__)


def serve(settings: ServeSettings) -> int:
    """Serve until a signal; returns the exit code. Raises ``StartupError``, ``ValueError``."""
    configure_logging(settings.log_level, settings.log_format)
    if settings.dry_run:
        return _print_plan(settings)
    # What fails at once comes first: a taken port must not show after a download.
    listener = bind(settings.host, settings.port)
    try:
        check_writable(settings.data_dir)
        base = read_base_model(settings)
        config = settings.engine_config(base.folder)
        with closing(open_registry(settings.data_dir, base)) as registry:
            match = BaseMatch(base.fingerprint, registry.bases())
            projections = base.config.adapter_projections()
            keyring = open_keyring(settings, registry)
            publisher = Publisher(
                registry, projections, match=match, with_templates=settings.allow_adapter_templates
            )
            files = open_files(settings.data_dir, registry)
            with closing(publisher), closing(FileChecker(files)) as checker:
                publish_at_start(adapter_sources(settings), registry, publisher)
                checker.resume()
                uvloop.run(
                    _run(settings, base, config, publisher, registry, checker, keyring, listener)
                )
    finally:
        listener.close()
    return 0


def check_writable(folder: Path) -> None:
    """Make the data directory. Raises ``StartupError`` if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise StartupError(
            f"the data directory {folder} cannot be written ({error.strerror}); "
            "choose another with --data-dir"
        ) from None


def open_registry(data_dir: Path, base: BaseModel) -> Registry:
    """What earlier servers left in ``data_dir``. Raises ``StartupError``."""
    try:
        registry = Registry.open(data_dir, reserved={base.name})
        registry.collect()
    except (RegistryError, OSError) as error:
        raise StartupError(str(error)) from error
    return registry


def open_keyring(settings: ServeSettings, registry: Registry) -> Keyring:
    """All API keys. Raises ``StartupError`` if others could reach a server that has none."""
    try:
        file = None if settings.api_key_file is None else KeyFile.open(settings.api_key_file)
    except ValueError as error:
        raise StartupError(str(error)) from None
    keyring = Keyring(KeyRegistry(registry.database), file)
    if keyring.is_open and not is_loopback(settings.host):
        if not settings.insecure:
            raise StartupError(
                f"--host {settings.host} lets others in, but there are no API keys; make one with "
                "multiflora keys create, or say --insecure to let everybody do everything"
            )
        logger.warning("everybody who reaches %s may do everything: no API keys", settings.host)
    return keyring


def open_files(data_dir: Path, registry: Registry) -> FileRegistry:
    """The files that earlier servers left in ``data_dir``. Raises ``StartupError``."""
    files = FileRegistry(registry.database, data_dir)
    try:
        files.sweep()
    except (RegistryError, OSError) as error:
        raise StartupError(str(error)) from error
    return files


def _print_plan(settings: ServeSettings) -> int:
    base = read_base_model(settings)
    config = settings.engine_config(base.folder)
    print(plan_memory(config, base.config, checkpoint=base.folder).render())
    return 0


async def _run(
    settings: ServeSettings,
    base: BaseModel,
    config: EngineConfig,
    publisher: Publisher,
    registry: Registry,
    checker: FileChecker,
    keyring: Keyring,
    listener: socket.socket,
) -> None:
    client = EngineClient.in_process_of_its_own(config)
    renderer = TemplateRenderer(base.chat_template)
    watched = None
    if settings.adapters_dir:
        watched = WatchedFolder(settings.adapters_dir, registry, publisher)
        await publisher.run(watched.scan)
    service = make_service(
        settings, client, base, config, registry, publisher, checker, keyring, renderer
    )
    _warn_of_unserved(service.catalog)
    housekeeping = Housekeeping(registry, publisher, client, service.pinning, watched=watched)
    keeping = asyncio.create_task(housekeeping.run())
    app = create_app(service)
    # Now, as whoever asks for it first would make all others wait.
    app.openapi()
    server = HttpServer(
        app,
        drain=service.drain,
        drain_timeout_seconds=settings.drain_timeout,
        drain_notice_seconds=settings.drain_notice,
        stop_engine=client.stop,
        limits=service.limits,
    )
    announcement = Announcement(
        url=url_of(listener),
        base=base.name,
        adapters=service.catalog.names()[1:],
        data_dir=settings.data_dir,
        has_chat_template=base.chat_template.is_available,
        needs_key=not keyring.is_open,
    )
    await renderer.start()
    service.metrics.loop_lag.start()
    starting = asyncio.create_task(_start(service, server, announcement))
    watching = asyncio.create_task(
        watch(client.stats, client.kill, patience_seconds=settings.step_timeout)
    )
    try:
        await server.serve(sockets=[listener])
    finally:
        for task in (starting, keeping, watching):
            task.cancel()
        await asyncio.gather(starting, keeping, watching, return_exceptions=True)
        await _stop(service, renderer)
    if not starting.cancelled():
        starting.result()


async def _stop(service: Service, renderer: TemplateRenderer) -> None:
    service.metrics.loop_lag.stop()
    await service.batches.stop()
    await service.jobs.stop()
    await service.client.stop()
    await renderer.stop()
    await service.adapter_templates.stop()
    service.merger.close()
    await asyncio.to_thread(service.tracing.close)


async def _start(service: Service, server: HttpServer, announcement: Announcement) -> None:
    """Load the engine while probes are answered; a failure ends the server. Then keep learning."""
    try:
        with loading_progress() as show:
            service.client.on_progress = show
            info = await service.client.start()
    except BaseException:
        server.should_exit = True
        raise
    print(announcement.text(info), flush=True)
    await service.jobs.start()
    service.batches.start(BatchStore(service.registry.database), service.files, caller(service))
    await service.pinning.reconcile()
    await keep_learning(service.learner)


def _warn_of_unserved(catalog: Catalog) -> None:
    for name, reason in catalog.unserved().items():
        logger.warning("adapter %r is kept, but not served: %s", name, reason)


def make_service(
    settings: ServeSettings,
    client: EngineClient,
    base: BaseModel,
    config: EngineConfig,
    registry: Registry,
    publisher: Publisher,
    checker: FileChecker,
    keyring: Keyring,
    renderer: TemplateRenderer,
) -> Service:
    """Everything that the routes work with; nothing is started."""
    metrics = Metrics(client, registry, base=base.name, data_dir=settings.data_dir)
    pinning = Pinning(registry, client, publisher.match)
    end_tokens = frozenset(base.config.eos_token_ids)
    jobs = make_training_jobs(
        settings.data_dir,
        TrainedBase(name=base.name, path=config.base.model, folder=base.folder, config=base.config),
        client=client,
        registry=registry,
        files=checker.files,
        publishing=JobPublishing(registry, publisher, pinning, metrics),
        end_tokens=end_tokens,
        tracking=settings.tracking,
        text=TextSide(base.tokenizer, base.chat_template),
        judges=dict(settings.gate_judges),
    )
    metrics.census = jobs.census
    return Service(
        client=client,
        tokenizer=base.tokenizer,
        chat_template=renderer,
        adapter_templates=AdapterTemplates(
            registry.store if settings.allow_adapter_templates else None,
            TemplateRenderer(base.chat_template),
        ),
        catalog=Catalog(base.name, registry, created=int(time.time()), match=publisher.match),
        metrics=metrics,
        registry=registry,
        publisher=publisher,
        pinning=pinning,
        merger=Merger(registry, publisher),
        file_checker=checker,
        keyring=keyring,
        origin=OriginCheck(None if settings.insecure else {settings.host.lower()}),
        jobs=jobs,
        learner=make_learner(
            registry, files=checker.files, jobs=jobs, pinning=pinning, metrics=metrics
        ),
        adapters_root=settings.adapters_root,
        hub=HubDoor(settings.adapters_hub),
        limits=settings.limits(),
        end_tokens=end_tokens,
        admission=Admission(settings.admission_limits()),
        request_timeout_seconds=settings.request_timeout,
        tracing=make_tracing(settings.otlp_endpoint),
        logs_requests=settings.log_requests,
        open_metrics=settings.open_metrics,
    )
