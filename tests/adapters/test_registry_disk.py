"""A registry on disk: it remembers, it stands by its bytes, and many threads may use it."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from multiflora.adapters.database import Database
from multiflora.adapters.error import AdapterRejected, RegistryError
from multiflora.adapters.folder import AdapterFolder
from multiflora.adapters.intake import import_version
from multiflora.adapters.registry import Registry
from multiflora.adapters.registry_schema import MIGRATIONS
from multiflora.adapters.store import AdapterStore
from multiflora.adapters.target import Projection
from multiflora.adapters.version import Version

DIGESTS = tuple(f"{number:064x}" for number in range(6))


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    registry = Registry.open(tmp_path, keep_last=2)
    yield registry
    registry.close()


@pytest.fixture
def store(registry: Registry) -> AdapterStore:
    assert registry.store is not None
    return registry.store


def test_everything_but_leases_outlives_a_restart(
    registry: Registry, store: AdapterStore, tiny_folder: AdapterFolder, tmp_path: Path
) -> None:
    for digest in DIGESTS[:3]:
        store.put_copy(digest, tiny_folder)
        registry.publish_version(Version(digest, "upload", metrics={"loss": 1.5}, rank=8))
    registry.point("tone", DIGESTS[0])
    registry.point("tone", DIGESTS[1])
    registry.set_canary("tone", DIGESTS[2], 0.3)
    registry.pin("tone")
    registry.lease("tone")
    users = [str(index) for index in range(50)]
    before = (
        registry.entries(),
        registry.versions("tone"),
        registry.history("tone"),
        [registry.lease("tone", user).digest for user in users],
    )
    registry.close()
    again = Registry.open(tmp_path, keep_last=2)
    assert again.leases_by_digest() == {}
    after = (
        again.entries(),
        again.versions("tone"),
        again.history("tone"),
        [again.lease("tone", user).digest for user in users],
    )
    again.close()
    assert after == before


def test_features_are_remembered_until_the_version_is_collected(
    registry: Registry, store: AdapterStore, tiny_folder: AdapterFolder, tmp_path: Path
) -> None:
    digest = DIGESTS[0]
    store.put_copy(digest, tiny_folder)
    registry.publish_version(Version(digest, features=("bias", "dora")))
    registry.close()
    again = Registry.open(tmp_path)
    assert again.features(digest) == again.version(digest).features == ("bias", "dora")
    again.retire(digest)
    assert again.collect() == (digest,)
    assert again.features(digest) == ()
    again.close()


def test_versions_of_the_schema_without_features_have_none(
    registry: Registry, store: AdapterStore, tiny_folder: AdapterFolder, tmp_path: Path
) -> None:
    registry.close()
    (tmp_path / "multiflora.db").unlink()
    old = Database.open(tmp_path / "multiflora.db", MIGRATIONS[:2])
    store.put_copy(DIGESTS[0], tiny_folder)
    with old.transaction() as connection:
        connection.execute(
            "INSERT INTO version (digest, source, parents, metrics, num_bytes, rank, base, created)"
            " VALUES (?, 'upload', '[]', '{}', 9, 4, 'base', 7)",
            (DIGESTS[0],),
        )
    old.close()
    migrated = Registry.open(tmp_path)
    assert migrated.version(DIGESTS[0]) == Version(
        DIGESTS[0], "upload", num_bytes=9, rank=4, base="base", created=7
    )
    assert migrated.features(DIGESTS[0]) == ()
    assert (tmp_path / "multiflora.db.schema-2").exists()
    migrated.close()


def test_a_version_without_bytes_is_not_published(registry: Registry) -> None:
    with pytest.raises(AdapterRejected, match="not in the store; import it again"):
        registry.publish("tone", DIGESTS[0])
    assert registry.entries() == ()


def test_lost_bytes_are_reported_at_the_start(
    registry: Registry,
    store: AdapterStore,
    tiny_folder: AdapterFolder,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store.put_copy(DIGESTS[3], tiny_folder)
    registry.publish("tone", DIGESTS[3])
    registry.close()
    assert store.remove(DIGESTS[3])
    Registry.open(tmp_path).close()
    assert f"version {DIGESTS[3][:12]} has lost its bytes" in caplog.text


def test_an_imported_adapter_knows_where_it_comes_from(
    registry: Registry,
    store: AdapterStore,
    write_adapter: Callable[..., Path],
    projections: tuple[Projection, ...],
) -> None:
    version = import_version(
        write_adapter(rank=4),
        projections=projections,
        store=store,
        source="training job 7",
        parents=(DIGESTS[0],),
        metrics={"loss": 0.25},
        base="b" * 64,
    )
    assert registry.collect() == ()
    assert version.digest in store, "an import is held until it is published"
    registry.publish_version(version)
    found = registry.version(version.digest)
    assert found == version
    assert (found.rank, found.source, found.base) == (4, "training job 7", "b" * 64)
    # Two layers: q_proj is [64, 64], down_proj is [64, 96]; rank 4; four bytes a value.
    tensors = 2 * 4 * (64 + 64 + 64 + 96) * 4
    assert tensors < found.num_bytes < tensors + 2048, "the weights file with its header"


def test_rows_go_before_bytes(
    registry: Registry,
    store: AdapterStore,
    tiny_folder: AdapterFolder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store.put_copy(DIGESTS[0], tiny_folder)
    registry.publish("tone", DIGESTS[0])
    registry.delete("tone")
    remove = store.remove

    def check_then_remove(digest: str) -> bool:
        with pytest.raises(RegistryError):
            registry.version(digest)
        assert not registry.database._connection.in_transaction
        return remove(digest)

    monkeypatch.setattr(store, "remove", check_then_remove)
    assert registry.collect() == (DIGESTS[0],)
    assert store.digests() == ()


def test_a_lease_waits_for_no_disk(
    registry: Registry, store: AdapterStore, tiny_folder: AdapterFolder
) -> None:
    store.put_copy(DIGESTS[0], tiny_folder)
    registry.publish("tone", DIGESTS[0])
    answered = threading.Event()

    def ask() -> None:
        registry.lease("tone").release()
        registry.entry("tone")
        answered.set()

    with registry.database.transaction():
        threading.Thread(target=ask).start()
        assert answered.wait(5)


def test_threads_never_see_a_version_that_is_going(
    registry: Registry, store: AdapterStore, tiny_folder: AdapterFolder
) -> None:
    """Importers, movers, readers and a collector at once; every lease is on whole bytes."""
    errors: list[BaseException] = []
    deadline = time.monotonic() + 1.5
    store.put_copy(DIGESTS[0], tiny_folder)
    registry.publish("tone", DIGESTS[0])

    def publish(rng: random.Random) -> None:
        digest = rng.choice(DIGESTS)
        store.put_copy(digest, tiny_folder)
        registry.publish("tone", digest)

    def move(rng: random.Random) -> None:
        act = rng.choice((registry.rollback, registry.promote, registry.clear_canary))
        try:
            registry.set_canary("tone", rng.choice(DIGESTS), 0.5)
            act("tone")
        except RegistryError:
            registry.collect()

    def read(rng: random.Random) -> None:
        with registry.lease("tone", rng.choice((None, "u", "v"))) as lease:
            for _ in range(5):
                assert store.open(lease.digest).digest("") == tiny_folder.digest("")
                assert registry.version(lease.digest).digest == lease.digest

    def repeat(work: Callable[[random.Random], None], seed: int) -> None:
        rng = random.Random(seed)
        try:
            while time.monotonic() < deadline and not errors:
                work(rng)
        except BaseException as error:
            errors.append(error)

    works = [publish, publish, move, move, read, read]
    threads = [threading.Thread(target=repeat, args=(work, i)) for i, work in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert registry.leases_by_digest() == {}
    registry.collect()
    kept = set(registry.entry("tone").kept) | set(registry.candidates())
    assert set(store.digests()) == kept
