"""Puts routes, limits and error mapping together around a `Service`."""

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.routing import Route

import multiflora

from .access.authorization import AuthorizationMiddleware
from .access.ownership import Ownership
from .access.rule import OPEN_METRICS_RULES, RULES
from .batch_store import BatchStore
from .edge import EdgeMiddleware
from .errors import add_error_handlers
from .limits import RequestLimitMiddleware
from .openapi import DocumentedApp
from .routes import (
    adapter_actions,
    adapter_import,
    adapter_merge,
    adapters,
    batches,
    chat,
    completions,
    console,
    datasets,
    embeddings,
    feedback,
    files,
    fine_tuning,
    health,
    keys,
    learning,
    models,
    responses,
    sglang_door,
    tokenizing,
    vllm_door,
)
from .schemas.adapter import CanaryBody, ImportBody, RollbackBody
from .schemas.batch import BatchBody
from .schemas.chat import ChatBody
from .schemas.completion import CompletionBody
from .schemas.dataset_sampling import SampleBody
from .schemas.embedding import EmbeddingBody
from .schemas.feedback import FeedbackBody
from .schemas.fine_tuning import JobBody
from .schemas.key import KeyBody
from .schemas.learning import LearningBody
from .schemas.merge import MergeBody
from .schemas.response import ResponseBody
from .schemas.tokenizing import DetokenizeBody, TokenizeBody
from .service import Service

_ROUTES = (
    chat,
    completions,
    embeddings,
    responses,
    tokenizing,
    models,
    adapters,
    adapter_actions,
    adapter_import,
    adapter_merge,
    files,
    batches,
    fine_tuning,
    feedback,
    learning,
    datasets,
    vllm_door,
    sglang_door,
    keys,
    health,
    console,
)
_BODIES = (
    JobBody,
    ChatBody,
    CompletionBody,
    EmbeddingBody,
    BatchBody,
    ResponseBody,
    TokenizeBody,
    DetokenizeBody,
    RollbackBody,
    CanaryBody,
    ImportBody,
    MergeBody,
    FeedbackBody,
    LearningBody,
    SampleBody,
    KeyBody,
)


def create_app(service: Service) -> FastAPI:
    """The ASGI app; the engine is started and stopped by whoever made the service."""
    routes: list[Route] = []
    app = DocumentedApp(
        title="multiflora",
        version=multiflora.__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        middleware=[
            Middleware(EdgeMiddleware),
            Middleware(RequestLimitMiddleware, limits=service.limits),
            Middleware(
                AuthorizationMiddleware,
                routes=routes,
                keyring=service.keyring,
                ownership=_ownership(service),
                origin=service.origin,
                rules=OPEN_METRICS_RULES if service.open_metrics else RULES,
            ),
        ],
    )
    app.state.service = service
    routes += [route for route in app.router.routes if isinstance(route, Route)]
    for module in _ROUTES:
        app.include_router(module.router)
        routes += [route for route in module.router.routes if isinstance(route, Route)]
    app.bodies = _BODIES
    add_error_handlers(app)
    return app


def _ownership(service: Service) -> Ownership:
    return Ownership(
        registry=service.registry,
        catalog=service.catalog,
        files=service.files,
        jobs=service.jobs.rows,
        batches=BatchStore(service.registry.database),
        background=service.background,
    )
