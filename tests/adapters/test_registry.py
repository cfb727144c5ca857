"""A name resolves and is leased in one step; pointers move only as the rules say."""

import threading
from collections.abc import Iterator

import pytest

from multiflora.adapters.error import (
    InvalidCanary,
    InvalidName,
    PreconditionFailed,
    UnknownName,
    UnknownVersion,
    VersionInUse,
)
from multiflora.adapters.registry import Registry
from multiflora.adapters.version import Version

V1, V2, V3, V4, V5 = (letter * 64 for letter in "12345")


@pytest.fixture
def registry() -> Iterator[Registry]:
    """The versions V1 to V5 are published, and ``tone`` points at V1."""
    seconds = iter(range(1000, 9999))
    registry = Registry(reserved={"base"}, clock=lambda: next(seconds))
    for digest in (V1, V2, V3, V4, V5):
        registry.publish_version(Version(digest, created=7))
    registry.point("tone", V1)
    yield registry
    registry.close()


def leased(registry: Registry, name: str = "tone", user: str | None = None) -> str:
    with registry.lease(name, user) as lease:
        return lease.digest


def test_a_lease_keeps_the_version_it_was_taken_on(registry: Registry) -> None:
    lease = registry.lease("tone")
    registry.point("tone", V2)
    assert lease.digest == V1
    assert leased(registry) == V2
    assert registry.leases_by_digest() == {V1: 1}


def test_unknown_names_are_key_errors(registry: Registry) -> None:
    with pytest.raises(KeyError, match="no adapter is named 'nobody'"):
        registry.lease("nobody")
    for act in (registry.entry, registry.versions, registry.rollback, registry.delete):
        with pytest.raises(UnknownName):
            act("nobody")
    for act in (registry.pin, registry.unpin, registry.promote, registry.clear_canary):
        with pytest.raises(UnknownName):
            act("nobody")
    with pytest.raises(UnknownName):
        registry.point("nobody", V1, activate=False)


def test_releasing_twice_releases_once(registry: Registry) -> None:
    with registry.lease("tone"), registry.lease("tone") as lease:
        lease.release()
        assert registry.num_leases(V1) == 1
    assert registry.num_leases(V1) == 0


def test_entries_are_sorted_by_name(registry: Registry) -> None:
    for name in ("b", "a", "c"):
        registry.publish(name, name * 64)
    assert [entry.name for entry in registry.entries()] == ["a", "b", "c", "tone"]


def test_the_first_record_of_a_version_stands(registry: Registry) -> None:
    first = Version(
        "f" * 64,
        source="upload",
        parents=(V1, V2),
        metrics={"loss": 0.5},
        num_bytes=9,
        rank=4,
        features=("dora", "head"),
    )
    assert registry.publish_version(first) == first
    assert registry.publish_version(Version("f" * 64, source="again")) == first
    assert registry.version("f" * 64) == first
    assert registry.features("f" * 64) == first.features
    assert registry.features(V1) == registry.features("unheard of") == ()


@pytest.mark.parametrize("digest", ["", "old", "A" * 64, "g" * 64, "0" * 65, "0" * 64])
def test_only_published_digests_can_be_used(registry: Registry, digest: str) -> None:
    with pytest.raises(UnknownVersion):
        registry.point("tone", digest)
    with pytest.raises(UnknownVersion):
        registry.set_canary("tone", digest, 0.5)
    with pytest.raises(UnknownVersion):
        registry.retire(digest)
    with pytest.raises(UnknownVersion):
        registry.version(digest)
    assert registry.entry("tone").kept == (V1,)


@pytest.mark.parametrize("metrics", [{"loss": float("nan")}, {"loss": object()}])
def test_metrics_are_finite_json(metrics: dict[str, object]) -> None:
    with pytest.raises((ValueError, TypeError)):
        Version(V1, metrics=metrics)


@pytest.mark.parametrize(
    "name", ["", "a/b", "merge", "base", "../x", "-a", "a b", "a,b", "a\n", "\u00e4", "a" * 129]
)
def test_bad_names_are_refused_with_a_remedy(registry: Registry, name: str) -> None:
    for act in (registry.point, registry.publish):
        with pytest.raises(InvalidName, match="cannot be an adapter's name"):
            act(name, V1)


@pytest.mark.parametrize("name", ["a", "a" * 128, "ft:base:me::1", "team.a-1_0", "merge-1"])
def test_usual_names_are_accepted(registry: Registry, name: str) -> None:
    assert registry.point(name, V1).name == name


def test_a_swap_can_demand_what_it_replaces(registry: Registry) -> None:
    with pytest.raises(PreconditionFailed, match="points at 111111111111"):
        registry.point("tone", V3, if_match=V2)
    with pytest.raises(PreconditionFailed, match="does not exist"):
        registry.point("new", V3, if_match=V2)
    for act in (registry.rollback, registry.delete, registry.promote):
        with pytest.raises(PreconditionFailed):
            act("tone", if_match=V2)
    assert registry.point("tone", V3, if_match=V1).digest == V3


def test_a_version_can_be_kept_without_being_active(registry: Registry) -> None:
    entry = registry.point("tone", V2, activate=False)
    assert (entry.digest, entry.kept) == (V1, (V2, V1))
    with pytest.raises(UnknownVersion, match="no version that was active before"):
        registry.rollback("tone")
    assert registry.rollback("tone", V2).digest == V2
    assert registry.rollback("tone").digest == V1


def test_rollbacks_walk_back_and_a_later_swap_starts_from_there(registry: Registry) -> None:
    for digest in (V2, V3):
        registry.point("tone", digest)
    assert registry.rollback("tone").digest == V2
    registry.point("tone", V4)
    assert registry.rollback("tone").digest == V2, "V3 was rolled back from, it is no way back"
    assert registry.rollback("tone", V4).digest == V4
    with pytest.raises(UnknownVersion, match="does not keep version 555555555555"):
        registry.rollback("tone", V5)


def test_a_name_keeps_its_last_versions_only(registry: Registry) -> None:
    for digest in (V2, V3, V4):
        registry.point("tone", digest)
    assert [version.digest for version in registry.versions("tone")] == [V4, V3, V2]
    registry.set_canary("tone", V3, 0.5)
    registry.point("tone", V5)
    assert set(registry.entry("tone").kept) == {V5, V4, V3}
    registry.point("tone", V1)
    assert set(registry.entry("tone").kept) == {V1, V5, V3}, "a canary is never let go"


def test_one_version_is_the_least_to_keep() -> None:
    with pytest.raises(ValueError, match="keep_last is 0"):
        Registry(keep_last=0)
    registry = Registry(keep_last=1)
    registry.publish("tone", V1)
    assert registry.publish("tone", V2).kept == (V2,)
    registry.close()


def test_only_what_nobody_uses_is_collected(registry: Registry) -> None:
    registry.retire(V5)
    assert registry.candidates() == (V2, V3, V4)
    assert registry.collect() == (V5,)
    lease = registry.lease("tone")
    registry.delete("tone")
    assert registry.collect() == ()
    lease.release()
    assert registry.collect() == (V1,)
    assert registry.collect() == ()
    with pytest.raises(UnknownVersion):
        registry.point("tone", V1)


def test_publishing_again_saves_a_version_from_collection(registry: Registry) -> None:
    registry.delete("tone")
    registry.publish_version(Version(V1))
    assert registry.collect() == ()
    assert registry.point("tone", V1).digest == V1


def test_a_version_in_use_is_not_retired(registry: Registry) -> None:
    registry.set_canary("tone", V2, 0.1)
    for digest in (V1, V2):
        with pytest.raises(VersionInUse, match="'tone'"):
            registry.retire(digest)
    registry.clear_canary("tone")
    registry.retire(V2)
    assert registry.entry("tone").kept == (V1,)
    assert registry.collect() == (V2,)


def test_history_says_what_happened_when_from_where_to_where(registry: Registry) -> None:
    registry.point("tone", V2)
    registry.point("tone", V2)
    registry.point("tone", V3, activate=False)
    registry.set_canary("tone", V3, 0.25)
    registry.promote("tone")
    registry.rollback("tone")
    registry.pin("tone")
    registry.pin("tone")
    registry.unpin("tone")
    registry.retire(V3)
    registry.delete("tone")
    found = [(e.action, e.from_digest, e.to_digest, e.weight) for e in registry.history("tone")]
    assert found[::-1] == [
        ("point", None, V1, None),
        ("point", V1, V2, None),
        ("keep", None, V3, None),
        ("set_canary", None, V3, 0.25),
        ("promote", V2, V3, None),
        ("rollback", V3, V2, None),
        ("pin", None, None, None),
        ("unpin", None, None, None),
        ("retire", V3, None, None),
        ("delete", V2, None, None),
    ]
    times = [event.time for event in registry.history("tone")]
    assert times == sorted(times, reverse=True)
    assert len(registry.history("tone", limit=2)) == 2


def test_times_are_those_of_the_name_and_of_its_last_move(registry: Registry) -> None:
    before = registry.entry("tone")
    assert before.created == before.updated
    after = registry.point("tone", V2)
    assert after.created == before.created < after.updated
    assert registry.pin("tone").updated == after.updated


def test_pinning_is_a_property_of_the_name(registry: Registry) -> None:
    assert registry.pin("tone").is_pinned
    assert registry.point("tone", V2).is_pinned
    assert not registry.unpin("tone").is_pinned


@pytest.mark.parametrize("weight", [0, -0.1, 1.01, float("nan"), float("inf")])
def test_weights_are_above_zero_and_at_most_one(registry: Registry, weight: float) -> None:
    with pytest.raises(InvalidCanary, match="above 0 and at most 1"):
        registry.set_canary("tone", V2, weight)


def test_a_canary_is_another_version(registry: Registry) -> None:
    with pytest.raises(InvalidCanary, match="already answers"):
        registry.set_canary("tone", V1, 0.5)
    with pytest.raises(InvalidCanary, match="no canary to promote"):
        registry.promote("tone")


def test_moving_the_name_to_its_canary_ends_the_canary(registry: Registry) -> None:
    registry.set_canary("tone", V2, 0.5)
    assert registry.promote("tone").canary is None
    assert registry.entry("tone").digest == V2
    registry.set_canary("tone", V1, 0.5)
    assert registry.rollback("tone").canary is None
    registry.set_canary("tone", V2, 0.5)
    assert registry.point("tone", V3).canary is not None
    assert registry.point("tone", V2).canary is None


@pytest.mark.parametrize("weight", [0.05, 0.3, 0.5, 0.95, 1.0])
def test_requests_without_a_user_are_spread_evenly(registry: Registry, weight: float) -> None:
    registry.set_canary("tone", V2, weight)
    num_canary = 0
    for index in range(1, 401):
        with registry.lease("tone") as lease:
            assert lease.is_canary == (lease.digest == V2)
            num_canary += lease.is_canary
        assert abs(num_canary - index * weight) < 3


def test_users_stay_where_they_are_and_a_growing_canary_keeps_them(registry: Registry) -> None:
    users = [f"user-{index}" for index in range(1000)]
    registry.set_canary("tone", V2, 0.1)
    few = {user for user in users if leased(registry, user=user) == V2}
    assert 60 < len(few) < 140
    assert few == {user for user in users if leased(registry, user=user) == V2}
    registry.set_canary("tone", V2, 0.4)
    many = {user for user in users if leased(registry, user=user) == V2}
    assert few < many
    assert 330 < len(many) < 470
    registry.set_canary("tone", V3, 0.4)
    assert many != {user for user in users if leased(registry, user=user) == V3}
    registry.clear_canary("tone")
    assert {leased(registry, user=user) for user in users} == {V1}


def test_leases_from_many_threads_balance(registry: Registry) -> None:
    def work() -> None:
        for _ in range(300):
            registry.lease("tone").release()

    run_threads([work] * 4)
    assert registry.num_leases(V1) == 0


def test_a_lease_released_by_many_threads_is_released_once(registry: Registry) -> None:
    other = registry.lease("tone")
    for _ in range(50):
        run_threads([registry.lease("tone").release] * 4)
    assert registry.num_leases(V1) == 1
    other.release()


def run_threads(works: list) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_version_can_be_held_by_its_digest_whatever_the_canary_draws() -> None:
    registry = Registry()
    older, newer = "a" * 64, "b" * 64
    registry.publish("poet", older)
    registry.publish("poet", newer)
    registry.set_canary("poet", older, 1.0)
    with registry.lease_version("poet") as active, registry.lease_version("poet", older) as held:
        assert (active.digest, held.digest) == (newer, older)
        assert registry.leases_by_digest() == {newer: 1, older: 1}
    assert registry.leases_by_digest() == {}
    with pytest.raises(UnknownVersion, match="does not keep"):
        registry.lease_version("poet", "c" * 64)
    with pytest.raises(UnknownName):
        registry.lease_version("nobody")
