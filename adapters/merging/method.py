"""The methods of merging by name, and what each of them can be told. Knows no tensor."""

from dataclasses import dataclass
from typing import Final, Literal

# scalar: a weighted sum of the parents, found from inner products.
# dense: entry by entry on whole matrices, then truncated. knots: the same, on aligned thin blocks.
# peft: what PEFT does under that name.
Family = Literal["scalar", "dense", "knots", "peft"]
COMPAT: Final = "peft_compat:"
KNOTS: Final = "_knots"


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """``options`` are the settings it reads besides weights, rank and dtype.

    ``weight`` is each parent's weight where none are given: 1, or an equal share of 1. ``drop`` and
    ``join`` name the two parts of an element-wise rule; ``about`` says which variant it is.
    """

    name: str
    family: Family
    about: str
    options: frozenset[str] = frozenset()
    weight: Literal["one", "share"] = "share"
    has_weights: bool = True
    drop: str = ""
    join: str = ""

    def weights(self, num_parents: int) -> tuple[float, ...]:
        return (1.0 if self.weight == "one" else 1 / num_parents,) * num_parents


def _scalar(name: str, about: str, *options: str, has_weights: bool = True) -> Method:
    return Method(
        name=name,
        family="scalar",
        about=about,
        options=frozenset(options),
        has_weights=has_weights,
    )


def _element_wise(name: str, drop: str, join: str, about: str, *options: str) -> list[Method]:
    places: tuple[tuple[str, Family, str], ...] = (
        ("", "dense", "; on dense matrices, truncated"),
        (KNOTS, "knots", "; on blocks in the shared output basis of the KnOTS alignment"),
    )
    elected = "; sign elected by weighted sum, mean of those that agree" if join == "elect" else ""
    return [
        Method(
            name=name + suffix,
            family=family,
            about=f"{about}{elected}{where}",
            options=frozenset({"density", *options}),
            weight="one" if join == "elect" else "share",
            drop=drop,
            join=join,
        )
        for suffix, family, where in places
    ]


def _peft(name: str, about: str, *options: str) -> Method:
    return Method(
        name=f"{COMPAT}{name}",
        family="peft",
        about=f"as PEFT 0.21.2: {about}",
        options=frozenset(options),
        weight="one",
    )


METHODS: Final = {
    method.name: method
    for method in (
        _scalar("linear", "the weighted sum"),
        _scalar("cat", "the weighted sum, ranks side by side"),
        _scalar("svd", "the weighted sum at the highest rank of any parent"),
        _scalar(
            "slerp",
            "along the arc between unnormalised deltas, per module",
            "t",
            "filters",
            "sequential",
            "on_antiparallel",
        ),
        _scalar("karcher", "Riemannian mean of directions, mean length"),
        _scalar("model_stock", "mean of all, drawn towards the base", has_weights=False),
        *_element_wise("ties", "magnitude", "elect", "largest entries of each parent"),
        *_element_wise("magnitude_prune", "magnitude", "sum", "largest entries of each parent"),
        *_element_wise("dare_ties", "dare", "elect", "random entries, scaled up", "seed"),
        *_element_wise("dare_linear", "dare", "sum", "random entries, scaled up", "seed"),
        *_element_wise(
            "della", "della", "elect", "random entries, likelier if large", "seed", "epsilon"
        ),
        *_element_wise(
            "della_linear", "della", "sum", "random entries, likelier if large", "seed", "epsilon"
        ),
        *_element_wise("breadcrumbs", "breadcrumbs", "sum", "neither tail", "gamma"),
        *_element_wise("breadcrumbs_ties", "breadcrumbs", "elect", "neither tail", "gamma"),
        _peft("linear", "sum of factors with roots of weights, which adds cross-terms"),
        _peft("cat", "the weighted sum"),
        _peft("svd", "the weighted sum at the highest rank"),
        _peft("ties", "TIES on each factor by itself", "density"),
        _peft("magnitude_prune", "largest entries of each factor", "density"),
        _peft("ties_svd", "TIES, sign elected without weights, at the highest rank", "density"),
        _peft("magnitude_prune_svd", "largest entries, at the highest rank", "density"),
    )
}


def find_method(name: str) -> Method:
    """Raises ``ValueError`` naming all methods."""
    if name not in METHODS:
        raise ValueError(f"method {name[:60]!r} is unknown; choose one of {', '.join(METHODS)}")
    return METHODS[name]
