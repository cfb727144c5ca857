"""A name is found while another process holds the registry, and nothing is made or held."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from multiflora.adapters.error import AdapterRejected, RegistryUnavailable, UnknownName
from multiflora.adapters.intake import import_version
from multiflora.adapters.published import published_folder
from multiflora.adapters.registry import DATABASE_NAME, Registry
from multiflora.adapters.store import AdapterStore
from multiflora.adapters.target import Projection


def test_names_lead_to_their_version_beside_the_holder(
    tmp_path: Path, write_adapter: Callable[..., Path], projections: tuple[Projection, ...]
) -> None:
    data = tmp_path / "data"
    store = AdapterStore(data)
    registry = Registry.open(data, store=store)
    try:
        for rank in (2, 4):
            source = write_adapter(f"rank-{rank}", rank=rank)
            version = import_version(source, projections=projections, store=store)
            registry.publish_version(version)
            registry.publish("poet", version.digest)
            folder = published_folder(data, "poet")
            weights = "adapter_model.safetensors"
            assert (folder / weights).read_bytes() == (source / weights).read_bytes()
        with pytest.raises(UnknownName, match="no adapter is named 'nobody'"):
            published_folder(data, "nobody")
    finally:
        registry.close()
    assert published_folder(data, "poet") == folder


def test_without_a_registry_no_name_is_known_and_none_is_made(tmp_path: Path) -> None:
    with pytest.raises(UnknownName):
        published_folder(tmp_path, "poet")
    assert not list(tmp_path.iterdir())


def test_a_damaged_registry_is_reported(tmp_path: Path) -> None:
    (tmp_path / DATABASE_NAME).write_bytes(b"no database" * 100)
    with pytest.raises(RegistryUnavailable, match="could not be read"):
        published_folder(tmp_path, "poet")


def test_missing_bytes_are_reported(
    tmp_path: Path, write_adapter: Callable[..., Path], projections: tuple[Projection, ...]
) -> None:
    store = AdapterStore(tmp_path)
    registry = Registry.open(tmp_path, store=store)
    version = import_version(write_adapter(), projections=projections, store=store)
    registry.publish_version(version)
    registry.publish("poet", version.digest)
    registry.close()
    shutil.rmtree(published_folder(tmp_path, "poet"))
    with pytest.raises(AdapterRejected, match="not in the store"):
        published_folder(tmp_path, "poet")
