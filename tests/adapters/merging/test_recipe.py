"""A recipe that cannot be meant is refused before anything is read, with the remedy."""

from typing import Any

import pytest

from multiflora.adapters.merging.depth import Curve, Filter, values_of_t
from multiflora.adapters.merging.method import METHODS
from multiflora.adapters.merging.rank_policy import RankPolicy
from multiflora.adapters.merging.recipe import Recipe

PATHS = [f"model.layers.{i}.{name}" for i in range(5) for name in ("self_attn.q_proj", "mlp.up")]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"method": "ties_nuts"}, "choose one of linear, cat, svd, slerp"),
        ({"num_parents": 0}, "0 parents"),
        ({"num_parents": 17}, "17 parents"),
        ({"weights": (1.0,)}, "1 weights are given for 2 parents"),
        ({"weights": (0.0, 0.0)}, "all weights are 0"),
        ({"weights": (float("nan"), 1.0)}, "finite"),
        ({"method": "slerp", "weights": (-0.5, 1.0)}, "none below 0"),
        ({"method": "karcher", "weights": (-0.5, 1.0)}, "none below 0"),
        ({"method": "model_stock", "weights": (1.0, 1.0)}, "takes no weights"),
        ({"t": Curve((0.5,))}, "t means nothing to linear"),
        ({"method": "karcher", "t": Curve((0.5,))}, "t means nothing to karcher"),
        ({"density": 0.5}, "density means nothing to linear"),
        ({"method": "ties", "seed": 1}, "seed means nothing to ties"),
        ({"method": "slerp", "t": Curve((0.5,)), "weights": (1.0, 1.0)}, "both t and weights"),
        ({"method": "slerp", "t": Curve((0.5,)), "num_parents": 3}, "use weights instead"),
        ({"method": "ties", "density": 0.0}, "density is 0.0"),
        ({"method": "ties", "density": 1.5}, "density is 1.5"),
        ({"method": "ties", "density": float("nan")}, "density is nan"),
        ({"method": "breadcrumbs", "gamma": 1.0}, "gamma is 1.0"),
        ({"method": "della", "epsilon": -0.1}, "epsilon is -0.1"),
        ({"method": "cat", "rank": RankPolicy(rank=3)}, "cat keeps all ranks"),
        ({"dtype": "int8"}, "float32, float16, bfloat16"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Recipe(**{"num_parents": 2, **settings})


def test_every_method_has_settings_that_say_what_it_read() -> None:
    for name, rule in METHODS.items():
        recipe = Recipe(num_parents=2, method=name)
        assert recipe.settings().keys() == rule.options
        assert len(recipe.shares) == 2


def test_sums_share_by_default_and_elections_do_not() -> None:
    assert Recipe(num_parents=4).shares == (0.25,) * 4
    assert Recipe(num_parents=2, method="ties").shares == (1, 1)
    assert Recipe(num_parents=2, method="dare_linear_knots").shares == (0.5, 0.5)


def test_a_curve_is_spread_over_the_layers() -> None:
    values = values_of_t([*PATHS, "lm_head"], Curve.parse("0,1"))
    assert [values[path] for path in PATHS[::2]] == [0, 0.25, 0.5, 0.75, 1]
    assert values["lm_head"] == 1
    values = values_of_t(PATHS, Curve.parse("0,1,0.5"))
    assert [values[path] for path in PATHS[::2]] == [0, 0.5, 1, 0.75, 0.5]
    assert set(values_of_t(PATHS[:2], Curve.parse("0.3")).values()) == {0.3}


def test_the_first_filter_that_fits_counts() -> None:
    filters = [Filter.parse("self_attn=0.1"), Filter.parse("layers.4=0,0.9")]
    values = values_of_t(PATHS, Curve.parse("0.5"), filters)
    assert values["model.layers.4.self_attn.q_proj"] == 0.1
    assert values["model.layers.4.mlp.up"] == 0.9
    assert values["model.layers.0.mlp.up"] == 0.5


def test_a_filter_that_fits_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="'selfattn' fits no module"):
        values_of_t(PATHS, Curve.parse("0.5"), [Filter.parse("selfattn=0.1")])


@pytest.mark.parametrize("text", ["", "a", "0.5,", "1.5", "-0.1", "nan"])
def test_a_curve_outside_its_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="t is"):
        Curve.parse(text)


@pytest.mark.parametrize("text", ["self_attn", "=0.5", "mlp="])
def test_a_filter_without_both_sides_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"MATCH=T|t is"):
        Filter.parse(text)
