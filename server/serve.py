"""`multiflora serve`: from settings to a server that drains when it is told to stop."""

import asyncio
import logging
import os
import socket
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import uvloop

from multiflora.adapters.error import AdapterRejected
from multiflora.adapters.intake import import_adapter
from multiflora.adapters.registry import Registry
from multiflora.adapters.store import AdapterStore
from multiflora.engine.client import EngineClient
from multiflora.engine.config import EngineConfig
from multiflora.engine.errors import StartupError
from multiflora.engine.memory_plan import plan_memory

from .announcement import Announcement, loading_progress
from .app import create_app
from .base_model import BaseModel, adapter_sources, read_base_model
from .catalog import Catalog
from .http_server import HttpServer
from .listener import bind, url_of
from .metrics import Metrics
from .service import Service
from .settings import AdapterSource, ServeSettings


def serve(settings: ServeSettings) -> int:
    """Serve until a signal; returns the exit code. Raises ``StartupError``, ``ValueError``."""
    _configure_logging(settings.log_level)
    if settings.dry_run:
        return _print_plan(settings)
    # What fails at once comes first: a taken port must not show after a download.
    listener = bind(settings.host, settings.port)
    try:
        check_writable(settings.data_dir)
        base = read_base_model(settings)
        config = settings.engine_config(base.folder)
        with closing(Registry(reserved={base.name})) as registry:
            publish_adapters(adapter_sources(settings), base, registry, data_dir=settings.data_dir)
            uvloop.run(_run(settings, base, config, registry, listener))
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


def publish_adapters(
    sources: Sequence[AdapterSource], base: BaseModel, registry: Registry, *, data_dir: Path
) -> None:
    """Check, store and publish all adapters. Raises ``StartupError`` for the first bad one."""
    store = AdapterStore(data_dir)
    projections = base.config.projections()
    for source in sources:
        if source.name == base.name:
            raise StartupError(
                f"an adapter cannot have the base's name {base.name!r}; rename it, "
                "or the base with --served-model-name"
            )
        try:
            digest = import_adapter(source.path, projections=projections, store=store)
        except (AdapterRejected, OSError) as error:
            raise StartupError(f"adapter {source.name!r} from {source.path}: {error}") from None
        registry.publish(source.name, digest)


def _print_plan(settings: ServeSettings) -> int:
    base = read_base_model(settings)
    config = settings.engine_config(base.folder)
    print(plan_memory(config, base.config, checkpoint=base.folder).render())
    return 0


async def _run(
    settings: ServeSettings,
    base: BaseModel,
    config: EngineConfig,
    registry: Registry,
    listener: socket.socket,
) -> None:
    client = EngineClient.in_process_of_its_own(config)
    service = _service(client, base, registry)
    server = HttpServer(
        create_app(service),
        drain=service.drain,
        drain_timeout_seconds=settings.drain_timeout,
        stop_engine=client.stop,
    )
    announcement = Announcement(
        url=url_of(listener),
        base=base.name,
        adapters=service.catalog.names()[1:],
        data_dir=settings.data_dir,
        has_chat_template=base.chat_template.is_available,
    )
    starting = asyncio.create_task(_start(client, server, announcement))
    try:
        await server.serve(sockets=[listener])
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await client.stop()
    if not starting.cancelled():
        starting.result()


async def _start(client: EngineClient, server: HttpServer, announcement: Announcement) -> None:
    """Load the engine while probes are answered; a failure ends the server."""
    try:
        with loading_progress() as show:
            client.on_progress = show
            info = await client.start()
    except BaseException:
        server.should_exit = True
        raise
    print(announcement.text(info), flush=True)


def _service(client: EngineClient, base: BaseModel, registry: Registry) -> Service:
    return Service(
        client=client,
        tokenizer=base.tokenizer,
        chat_template=base.chat_template,
        catalog=Catalog(base.name, registry, created=int(time.time())),
        metrics=Metrics(client),
        end_tokens=frozenset(base.config.eos_token_ids),
    )


def _configure_logging(level: str) -> None:
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # The engine process reads its level from the environment that it inherits.
    os.environ["MULTIFLORA_LOG_LEVEL"] = level
