"""A store with two adapters: ``poet`` keeps its answers, ``mute`` does not."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from multiflora.adapters.registry import Registry
from multiflora.engine.training.feedback.completion import Completion
from multiflora.engine.training.feedback.feedback_store import FeedbackStore
from multiflora.engine.training.learning.policy import LearningPolicy
from multiflora.engine.training.learning.run_registry import RunRegistry

DIGESTS = {"poet": "a" * 64, "mute": "b" * 64}


def opted_in(registry: Registry) -> Registry:
    """With the two names, of which one keeps its answers."""
    for name, digest in DIGESTS.items():
        registry.publish(name, digest)
    runs = RunRegistry(registry.database)
    assert runs.set_policy("poet", LearningPolicy(feedback=True))
    assert runs.set_policy("mute", LearningPolicy())
    return registry


def on_disk(data_dir: Path) -> Registry:
    """The same without adapters' bytes."""
    registry = Registry.open(data_dir)
    registry.store = None
    return opted_in(registry)


@pytest.fixture
def registry() -> Iterator[Registry]:
    registry = opted_in(Registry())
    yield registry
    registry.close()


@pytest.fixture
def store(registry: Registry) -> FeedbackStore:
    return FeedbackStore(registry.database, clock=lambda: 1000)


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[Registry]:
    registry = on_disk(tmp_path)
    yield registry
    registry.close()


@pytest.fixture
def make() -> Callable[..., Completion]:
    """``make("one", answer="hi")`` -> a completion of ``poet``."""

    def build(completion_id: str = "one", **changes: Any) -> Completion:
        given: dict[str, Any] = {
            "id": completion_id,
            "choice": 0,
            "adapter": "poet",
            "digest": DIGESTS["poet"],
            "prompt": [{"role": "user", "content": "Hi!"}],
            "answer": "Hello.",
            "created": 1000,
        }
        return Completion(**{**given, **changes})

    return build
