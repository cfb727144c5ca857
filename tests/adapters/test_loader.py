"""Slow reads keep to a lane of their own."""

import threading
import time

import torch

from multiflora.adapters.folder import AdapterFolder
from multiflora.adapters.known_outlines import Recipe
from multiflora.adapters.layout import FlatLayout, plan_layout
from multiflora.adapters.loader import Loader
from multiflora.adapters.module_spec import ModuleSpec
from multiflora.adapters.target import Projection, TargetModule
from multiflora.adapters.version_reader import HostVersion, PlannedVersion
from multiflora.kernels.matrix_copy import MatrixCopies

_FOLDER: AdapterFolder = None  # type: ignore[assignment]


def planned(digest: str, *, magnitude: str | None = None) -> PlannedVersion:
    projection = Projection(0, "o", (TargetModule("o", 4, 4),))
    module = ModuleSpec("o", 1, 1.0, "a", "b", magnitude=magnitude)
    layout: FlatLayout = plan_layout([projection], [module])
    recipe = Recipe((), layout, MatrixCopies([]))
    return PlannedVersion(digest, _FOLDER, recipe, num_bytes=8, host_bytes=8)


class Reader:
    """Reads of ``slow`` last until they are let go."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def plan(self, digest: str) -> PlannedVersion:
        return planned(digest)

    def read(self, planned: PlannedVersion) -> HostVersion:
        if planned.digest == "slow":
            assert self.go.wait(10)
        return HostVersion(planned.layout, torch.zeros(1), planned.host_bytes)


def test_versions_that_need_norms_of_the_base_hold_up_no_other() -> None:
    reader = Reader()
    loader = Loader(reader, num_threads=1)
    loader.read(planned("slow", magnitude="m"))
    assert not loader.has_lane_for(planned("other", magnitude="m"))
    assert loader.has_lane_for(planned("plain"))
    loader.read(planned("plain"))
    deadline = time.monotonic() + 10
    while "plain" in loader and time.monotonic() < deadline:
        assert [item.digest for item in loader.take_reads()] in ([], ["plain"])
    assert "plain" not in loader
    assert "slow" in loader
    reader.go.set()
    loader.close()
    assert [item.digest for item in loader.take_reads()] == ["slow"]
    assert loader.has_lane_for(planned("other", magnitude="m"))
