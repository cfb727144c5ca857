"""Versions of one recipe are laid out once; whatever differs in more than values, anew."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from multiflora.adapters.error import AdapterRejected
from multiflora.adapters.folder import CONFIG_NAME, WEIGHTS_NAME, AdapterFolder
from multiflora.adapters.inspection import inspect_adapter
from multiflora.adapters.known_outlines import KnownOutlines
from multiflora.adapters.layout import FlatLayout, plan_layout
from multiflora.adapters.mapped_tensors import MappedTensors
from multiflora.adapters.target import Projection

Write = Callable[..., Path]


class CountingOutlines(KnownOutlines):
    """``num_laid_out`` counts how often a folder was read in full."""

    def __init__(self, projections: tuple[Projection, ...], *, max_kept: int = 64) -> None:
        super().__init__(self._plan, max_kept=max_kept)
        self._projections = projections
        self.num_laid_out = 0

    def _plan(self, folder: AdapterFolder) -> FlatLayout:
        self.num_laid_out += 1
        return plan_layout(self._projections, inspect_adapter(folder, self._projections))


@pytest.fixture
def outlines(projections: tuple[Projection, ...]) -> CountingOutlines:
    return CountingOutlines(projections)


def double(tensors: dict[str, torch.Tensor]) -> None:
    for tensor in tensors.values():
        tensor *= 2


def test_versions_that_differ_in_values_share_a_recipe_and_keep_their_values(
    outlines: CountingOutlines, write_adapter: Write
) -> None:
    first = AdapterFolder(write_adapter("first"))
    second = AdapterFolder(write_adapter("second", edit=double))
    recipe = outlines.recipe_of(first)
    assert outlines.recipe_of(second) is recipe
    assert outlines.num_laid_out == 1
    assert second.entries == AdapterFolder(second.path).entries
    for entry in first.entries:
        once, twice = (MappedTensors(folder).get(entry.name) for folder in (first, second))
        assert torch.equal(2 * once, twice)


@pytest.mark.parametrize(
    "changes", [{"lora_alpha": 16}, {"rank": 8}, {"modules": ("q_proj",)}, {"use_rslora": True}]
)
def test_any_other_difference_is_laid_out_anew(
    outlines: CountingOutlines, write_adapter: Write, changes: dict[str, object]
) -> None:
    layout = outlines.recipe_of(AdapterFolder(write_adapter("first"))).layout
    second = outlines.recipe_of(AdapterFolder(write_adapter("second", **changes)))
    assert second.layout != layout
    assert outlines.num_laid_out == 2


def test_a_file_that_is_cut_or_longer_than_the_known_one_is_refused(
    outlines: CountingOutlines, write_adapter: Write
) -> None:
    outlines.recipe_of(AdapterFolder(write_adapter("first")))
    for name, change in (("cut", lambda raw: raw[:-2]), ("padded", lambda raw: raw + b"\0\0")):
        folder = write_adapter(name)
        (folder / WEIGHTS_NAME).write_bytes(change((folder / WEIGHTS_NAME).read_bytes()))
        with pytest.raises(AdapterRejected, match="truncated or padded"):
            outlines.recipe_of(AdapterFolder(folder))


def test_what_was_refused_is_refused_again(
    outlines: CountingOutlines, write_adapter: Write
) -> None:
    folder = write_adapter()
    config = json.loads((folder / CONFIG_NAME).read_text())
    (folder / CONFIG_NAME).write_text(json.dumps({**config, "target_modules": ["nowhere"]}))
    for _ in range(2):
        with pytest.raises(AdapterRejected):
            outlines.recipe_of(AdapterFolder(folder))
    assert outlines.num_laid_out == 2


def test_the_one_used_longest_ago_is_forgotten(
    projections: tuple[Projection, ...], write_adapter: Write
) -> None:
    outlines = CountingOutlines(projections, max_kept=2)
    folders = [write_adapter(str(rank), rank=rank) for rank in (2, 4, 6)]
    for place in (0, 1, 0, 2, 0):
        outlines.recipe_of(AdapterFolder(folders[place]))
    assert outlines.num_laid_out == 3
    outlines.recipe_of(AdapterFolder(folders[1]))
    assert outlines.num_laid_out == 4


def test_threads_that_read_the_same_outline_share_one_recipe(
    outlines: CountingOutlines, write_adapter: Write
) -> None:
    folders = [AdapterFolder(write_adapter(str(number))) for number in range(16)]
    with ThreadPoolExecutor(4) as threads:
        recipes = list(threads.map(outlines.recipe_of, folders))
    assert all(recipe is recipes[0] for recipe in recipes)
