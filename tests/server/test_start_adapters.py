"""What the command line and a watched folder publish, and what they must leave alone."""

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from multiflora.adapters.registry import Registry
from multiflora.adapters.target import Projection
from multiflora.engine.errors import StartupError
from multiflora.server.adapter_source import AdapterSource
from multiflora.server.base_match import BaseMatch
from multiflora.server.catalog import Catalog
from multiflora.server.errors import ModelNotFound
from multiflora.server.publishing import Publisher, Terms
from multiflora.server.start_adapters import publish_at_start
from multiflora.server.watched_folder import WatchedFolder

WriteAdapter = Callable[..., Path]


@pytest.fixture
def opened(tmp_path: Path, projections: tuple[Projection, ...]) -> Callable[..., object]:
    """``with opened(base="...") as (registry, publisher)``: as a server has them."""

    @contextmanager
    def open_all(base: str = "base-1") -> Iterator[tuple[Registry, Publisher]]:
        with closing(Registry.open(tmp_path / "data")) as registry:
            match = BaseMatch(base, registry.bases())
            with closing(Publisher(registry, projections, match=match)) as publisher:
                yield registry, publisher

    return open_all


def digests(registry: Registry) -> dict[str, str]:
    return {entry.name: entry.digest for entry in registry.entries()}


def test_names_outlive_the_server_and_flags_add_to_them(opened, write_adapter) -> None:
    first, second = write_adapter("first"), write_adapter("second", seed=2)
    with opened() as (registry, publisher):
        publish_at_start([AdapterSource("a", first)], registry, publisher)
        before = digests(registry)
    with opened() as (registry, publisher):
        assert digests(registry) == before
        publish_at_start([AdapterSource("b", second)], registry, publisher)
        assert set(digests(registry)) == {"a", "b"}


def test_a_flag_follows_its_folder(opened, write_adapter) -> None:
    moved = []
    for seed in (1, 2, 1):
        with opened() as (registry, publisher):
            publish_at_start(
                [AdapterSource("a", write_adapter("a", seed=seed))], registry, publisher
            )
            moved.append(registry.entry("a").digest)
    assert moved[0] == moved[2] != moved[1]


def test_a_flag_does_not_undo_what_was_decided_while_the_server_ran(opened, write_adapter) -> None:
    flags = [AdapterSource("a", write_adapter("a", seed=1))]
    with opened() as (registry, publisher):
        publish_at_start(flags, registry, publisher)
        for seed in range(2, 7):
            uploaded = write_adapter("b", seed=seed)
            publisher.publish(uploaded, "a", source="upload", terms=Terms())
        before = digests(registry)
    with opened() as (registry, publisher):
        publish_at_start(flags, registry, publisher)
        assert digests(registry) == before
        registry.rollback("a")
        rolled_back = digests(registry)
    with opened() as (registry, publisher):
        publish_at_start(flags, registry, publisher)
        assert digests(registry) == rolled_back
        registry.collect()
        kept = registry.entry("a").kept
        assert registry.store
        assert set(registry.store.digests()) == set(kept), "what was taken in for nothing goes"


def test_a_flag_with_new_content_wins_over_an_upload(opened, write_adapter) -> None:
    with opened() as (registry, publisher):
        publish_at_start([AdapterSource("a", write_adapter("a"))], registry, publisher)
        publisher.publish(write_adapter("b", seed=2), "a", source="upload", terms=Terms())
        uploaded = digests(registry)
        publish_at_start([AdapterSource("a", write_adapter("a", seed=3))], registry, publisher)
        assert digests(registry) != uploaded


def test_a_bad_adapter_stops_the_start_and_names_itself(opened, write_adapter) -> None:
    good = AdapterSource("good", write_adapter("good"))
    bad = AdapterSource("bad", write_adapter("bad", use_qalora=True))
    with opened() as (registry, publisher):
        with pytest.raises(StartupError, match=r"'bad'.*QA-LoRA"):
            publish_at_start([good, bad], registry, publisher)
        assert registry.entries() == ()


def test_versions_of_another_base_are_kept_and_not_served(opened, write_adapter) -> None:
    folder = write_adapter()
    with opened("base-1") as (registry, publisher):
        publisher.publish(folder, "a", source="", terms=Terms())
    with opened("base-2") as (registry, publisher):
        catalog = Catalog("base", registry, created=0, match=publisher.match)
        assert catalog.names() == ["base"]
        assert "another base" in catalog.unserved()["a"]
        with pytest.raises(ModelNotFound, match="another base"), catalog.lease("a"):
            pass
        assert registry.leases_by_digest() == {}
        publisher.publish(folder, "a", source="", terms=Terms())
        assert catalog.names() == ["base", "a"]
    with opened("base-1") as (registry, publisher):
        assert not publisher.match.accepts(registry.entry("a").digest)


@pytest.fixture
def watched_root(tmp_path: Path) -> Path:
    root = tmp_path / "watched"
    root.mkdir()
    return root


def test_a_watched_folder_publishes_what_comes_and_changes(
    opened, write_adapter, watched_root
) -> None:
    shutil.copytree(write_adapter("a"), watched_root / "a")
    with opened() as (registry, publisher):
        watched = WatchedFolder(watched_root, registry, publisher)
        watched.scan()
        first = digests(registry)
        assert set(first) == {"a"}
        shutil.copytree(write_adapter("x", seed=2), watched_root / "b")
        shutil.copytree(write_adapter("y", seed=3), watched_root / "a", dirs_exist_ok=True)
        watched.scan()
        assert digests(registry) == first, "a copy may be under way"
        watched.scan()
        assert set(digests(registry)) == {"a", "b"}
        assert digests(registry)["a"] != first["a"]


def test_an_unchanged_folder_is_not_checked_again(
    opened, write_adapter, watched_root, monkeypatch
) -> None:
    shutil.copytree(write_adapter("a"), watched_root / "a")
    with opened() as (registry, publisher):
        watched = WatchedFolder(watched_root, registry, publisher)
        watched.scan()
        monkeypatch.setattr(publisher, "take_in", None)
        watched.scan()
        watched.scan()


def test_half_a_copy_is_tried_again_and_a_bad_one_is_named_once(
    opened, write_adapter, watched_root, caplog
) -> None:
    whole = write_adapter("a")
    weights = (whole / "adapter_model.safetensors").read_bytes()
    shutil.copytree(whole, watched_root / "a")
    (watched_root / "a" / "adapter_model.safetensors").write_bytes(weights[:-9])
    (watched_root / "empty").mkdir()
    (watched_root / "no:such name").mkdir()
    with opened() as (registry, publisher), caplog.at_level(logging.ERROR):
        watched = WatchedFolder(watched_root, registry, publisher)
        watched.scan()
        assert not caplog.records
        for _ in range(3):
            watched.scan()
        (record,) = caplog.records
        assert "truncated" in record.getMessage()
        (watched_root / "a" / "adapter_model.safetensors").write_bytes(weights)
        watched.scan()
        watched.scan()
        assert set(digests(registry)) == {"a"}


def test_an_upload_outlives_a_restart_beside_an_unchanged_watched_folder(
    opened, write_adapter, watched_root
) -> None:
    shutil.copytree(write_adapter("a"), watched_root / "a")
    with opened() as (registry, publisher):
        WatchedFolder(watched_root, registry, publisher).scan()
        publisher.publish(write_adapter("b", seed=2), "a", source="upload", terms=Terms())
        uploaded = digests(registry)
    with opened() as (registry, publisher):
        WatchedFolder(watched_root, registry, publisher).scan()
        assert digests(registry) == uploaded
