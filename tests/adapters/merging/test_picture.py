"""The picture shows what the report says, cell by cell."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from multiflora.adapters.merging.merge import merge_folders
from multiflora.adapters.merging.picture import draw_interference, grid, kind_of
from multiflora.adapters.merging.recipe import Recipe

MakeParent = Callable[..., Path]


def test_a_cell_is_the_mean_over_pairs_that_have_the_module(make_parent: MakeParent) -> None:
    parents = [
        make_parent("one"),
        make_parent("two", 1),
        make_parent("three", 2, targets=("q_proj",)),
    ]
    report = merge_folders(parents, Recipe(num_parents=3)).report
    kinds, layers = ["mlp.down_proj", "self_attn.q_proj", "self_attn.v_proj"], [0, 1]
    cells = grid(report.modules, layers, kinds, lambda pair: pair.cosine)
    found = {module.path: module for module in report.modules}
    down, q = found["model.layers.1.mlp.down_proj"], found["model.layers.0.self_attn.q_proj"]
    assert cells[1][0] == down.pairs[0].cosine
    assert cells[0][1] == pytest.approx(sum(pair.cosine for pair in q.pairs) / 3)


def test_a_module_of_one_parent_is_left_blank(make_parent: MakeParent) -> None:
    parents = [make_parent("one"), make_parent("two", 1, targets=("q_proj",))]
    report = merge_folders(parents, Recipe(num_parents=2)).report
    ((cell,),) = grid(report.modules[:1], [0], ["mlp.down_proj"], lambda pair: pair.cosine)
    assert math.isnan(cell)
    assert report.summary()["cosine_mean"] != 0


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_picture_is_written(make_parent: MakeParent, tmp_path: Path, suffix: str) -> None:
    parents = [make_parent("one"), make_parent("two", 1, targets=("q_proj",))]
    report = merge_folders(parents, Recipe(num_parents=2)).report
    draw_interference(report, tmp_path / f"picture{suffix}")
    content = (tmp_path / f"picture{suffix}").read_bytes()
    assert content.startswith({".png": b"\x89PNG", ".svg": b"<?xml"}[suffix])


def test_what_cannot_be_drawn_is_refused(make_parent: MakeParent, tmp_path: Path) -> None:
    alone = merge_folders([make_parent("one")], Recipe(num_parents=1)).report
    with pytest.raises(ValueError, match="2 parents"):
        draw_interference(alone, tmp_path / "picture.png")
    with pytest.raises(ValueError, match=r"\.png"):
        draw_interference(alone, tmp_path / "picture.txt")


def test_a_kind_is_the_place_within_the_layer() -> None:
    assert kind_of("model.layers.3.self_attn.q_proj") == "self_attn.q_proj"
    assert kind_of("lm_head") == "lm_head"
