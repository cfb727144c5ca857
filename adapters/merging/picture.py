"""How much the parents of a merge get in each other's way, as a heat map per layer and module."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

from .depth import layer_of
from .report import MergeReport, ModuleReport, PairReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES: Final = (".png", ".svg", ".pdf")
_INCHES_PER_COLUMN, _INCHES_PER_ROW = 0.62, 0.28
# More cells than this leave no room for a number in each.
_MAX_NUMBERS = 160


def draw_interference(report: MergeReport, path: Path) -> None:
    """Save cosine and overlap of the parents, averaged over their pairs, to ``path``.

    Raises ``ValueError`` for a file type that is not drawn or a merge of one parent, ``OSError``.
    """
    check_picture(path, num_parents=len(report.parents))
    # Imported late: it takes longer than many a merge.
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(kind_of(module.path) for module in report.modules))
    layers = sorted({layer_of(module.path) for module in report.modules}, key=_none_last)
    width, height = len(kinds) * _INCHES_PER_COLUMN, len(layers) * _INCHES_PER_ROW
    figure = Figure(figsize=(2 * width + 4.4, height + 2.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    cosines = grid(report.modules, layers, kinds, lambda pair: pair.cosine)
    overlaps = grid(report.modules, layers, kinds, lambda pair: pair.overlap)
    limit = max([0.01, *(abs(v) for row in cosines for v in row if not math.isnan(v))])
    _draw(figure, left, cosines, title="cosine of the deltas", limits=(-limit, limit), map="RdBu_r")
    _draw(figure, right, overlaps, title="overlap of output spaces", limits=(0, 1), map="viridis")
    for axes in (left, right):
        axes.set_xticks(range(len(kinds)), kinds, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(layers)), ["-" if n is None else str(n) for n in layers])
    left.set_ylabel("layer")
    names = " + ".join(parent.name for parent in report.parents)
    figure.suptitle(
        f"{names}\nred adds up, blue cancels; 1 on the right: one space; grey: in one parent only",
        fontsize=9,
    )
    figure.savefig(path, dpi=150)


def check_picture(path: Path, *, num_parents: int) -> None:
    """Raise ``ValueError`` for a picture that cannot be drawn."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} is no picture file; end it with {', '.join(SUFFIXES)}")
    if num_parents < 2:
        raise ValueError("a picture of interference needs 2 parents or more")


def kind_of(path: str) -> str:
    """The module's place within its layer, such as ``self_attn.q_proj``."""
    layer = layer_of(path)
    return path.rpartition(".")[2] if layer is None else path.partition(f".{layer}.")[2]


def _none_last(layer: int | None) -> tuple[bool, int]:
    return layer is None, layer or 0


def grid(
    modules: Sequence[ModuleReport],
    layers: Sequence[int | None],
    kinds: Sequence[str],
    value: Callable[[PairReport], float],
) -> list[list[float]]:
    """Mean over pairs that both have the module; NaN where there is none."""
    cells = [[math.nan] * len(kinds) for _ in layers]
    for module in modules:
        found = [value(pair) for pair in module.pairs if all(module.ranks[i] for i in pair.parents)]
        if found:
            row, column = layers.index(layer_of(module.path)), kinds.index(kind_of(module.path))
            cells[row][column] = fmean(found)
    return cells


def _draw(
    figure: "Figure",
    axes: "Axes",
    cells: list[list[float]],
    *,
    title: str,
    limits: tuple[float, float],
    map: str,
) -> None:
    low, high = limits
    image = axes.imshow(cells, cmap=map, vmin=low, vmax=high, aspect="auto")
    axes.set_facecolor("0.9")
    axes.set_title(title, fontsize=10)
    figure.colorbar(image, ax=axes, shrink=0.9)
    if len(cells) * len(cells[0]) > _MAX_NUMBERS:
        return
    for row, values in enumerate(cells):
        for column, number in enumerate(values):
            if not math.isnan(number):
                _write(axes, column, row, number, _is_dark(image, number))


def _is_dark(image: Any, number: float) -> bool:
    red, green, blue, _ = image.cmap(image.norm(number))
    return 0.3 * red + 0.6 * green + 0.1 * blue < 0.5


def _write(axes: "Axes", column: int, row: int, number: float, on_dark: bool) -> None:
    text = f"{number:.2f}".replace("0.", ".", 1)
    color = "white" if on_dark else "black"
    axes.text(column, row, text, ha="center", va="center", fontsize=7, color=color)
