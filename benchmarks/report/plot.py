"""Pictures of records. Each belongs to one record and has its name, so a stale one is seen."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .record import ROOT, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURES: Final = ROOT / "docs" / "images" / "benchmarks"
_COLORS: Final = ("#3b6ea8", "#d9822b", "#6b8e4e", "#8c6bb1", "#9a9a9a")


def picture_name(record: Record) -> str | None:
    """The file of the record's picture; None if its question has none."""
    return f"{record.path.stem}.svg" if record.name in PLOTS else None


def draw(record: Record, folder: Path = PICTURES) -> Path:
    """Write the picture of ``record``: the same bytes for the same figures and matplotlib."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record.path.stem}.svg"
    with rc_context({"svg.hashsalt": "multiflora", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(6.4, 2.8), layout="constrained")
        PLOTS[record.name](record.figures, figure)
        figure.savefig(path, metadata={"Date": None})
    return path


def _bars(
    axes: "Axes",
    groups: Mapping[str, Mapping[str, float | None]],
    label: str,
    *,
    figure: str = "{:,.4g}",
) -> None:
    """One group per key, one bar per series; what is None is left out."""
    series = list(dict.fromkeys(name for bars in groups.values() for name in bars))
    width = 0.8 / len(series)
    for place, name in enumerate(series):
        shown = [(x, bars[name]) for x, bars in enumerate(groups.values()) if bars.get(name)]
        bars = axes.bar(
            [x + (place - (len(series) - 1) / 2) * width for x, _ in shown],
            [value or 0.0 for _, value in shown],
            width,
            label=name,
            color=_COLORS[place % len(_COLORS)],
        )
        axes.bar_label(bars, fmt=figure, fontsize=7)
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_ylabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.12)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=8)


def _adapter_mix(figures: Mapping[str, Any], figure: Any) -> None:
    speeds = figures["tokens_per_second"]
    loads = ("base x1", "adapters x1", "base x8", "adapters x8")
    groups = {
        load: {"multiflora": speeds[f"ours {load}"], "transformers + PEFT": speeds[f"peft {load}"]}
        for load in loads
    }
    _bars(figure.subplots(), groups, "tokens/s")


def _http_peers(figures: Mapping[str, Any], figure: Any) -> None:
    groups: dict[str, dict[str, float | None]] = {}
    for cell in figures["cells"]:
        load = f"{cell['concurrency']} x {cell['adapters'] or 'base'}"
        if len(figures["arguments"]["prompt_tokens"]) > 1:
            load += f"\n{cell['prompt_tokens']} tokens"
        speed = None if cell["invalid"] else cell["tokens_per_second"]
        groups.setdefault(load, {})[cell["server"]] = speed
    figure.set_size_inches(10, 3.4)
    _bars(figure.subplots(), groups, "tokens/s", figure="{:,.3g}")


def _training_peers(figures: Mapping[str, Any], figure: Any) -> None:
    speed, memory = figure.subplots(1, 2)
    sides = {name.replace("-", "\n"): one for name, one in figures["sides"].items()}
    _bars(speed, {name: {"": one["tokens_per_second"]} for name, one in sides.items()}, "tokens/s")
    peaks = {name: {"": one["peak_above_base_mib"]} for name, one in sides.items()}
    _bars(memory, peaks, "MiB above the base")


def _sse(figures: Mapping[str, Any], figure: Any) -> None:
    costs = figures["microseconds_per_event"]
    groups = {way.replace("_", " "): one for way, one in costs.items()}
    _bars(figure.subplots(), groups, "microseconds per event")


def _coserving(figures: Mapping[str, Any], figure: Any) -> None:
    sides = {"alone": "serving_alone", "beside training": "serving_beside_training"}
    between, first = figure.subplots(1, 2)
    for axes, kind in ((between, "inter_token_ms"), (first, "first_token_ms")):
        groups = {
            quantile: {name: figures[side][kind][quantile] for name, side in sides.items()}
            for quantile in ("p50", "p99")
        }
        _bars(axes, groups, kind.removesuffix("_ms").replace("_", " ") + ", ms")


def _scale(figures: Mapping[str, Any], figure: Any) -> None:
    panels = figure.subplots(1, 3)
    wanted = (
        ("tokens/s", lambda cell: cell["tokens_per_second"]),
        ("first token p99, ms", lambda cell: (cell["first_token_ms"] or {}).get("p99")),
        ("engine, MiB", lambda cell: cell["engine_mib"]),
    )
    for axes, (label, value) in zip(panels, wanted, strict=True):
        for place, mix in enumerate(("uniform", "zipf", "tiers", "cold")):
            cells = [cell for cell in figures["cells"] if cell["mix"] == mix]
            shown = sorted((cell["adapters"], value(cell)) for cell in cells if value(cell))
            if shown:
                style = "o-" if len(shown) > 1 else "D"
                axes.plot(*zip(*shown, strict=True), style, label=mix, ms=3, color=_COLORS[place])
        axes.set_xscale("log")
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
        axes.set_xlabel("adapters")
        axes.set_title(label, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=7)


def _slopes(figures: Mapping[str, Any], figure: Any) -> None:
    """Points, the line through them, and its slope by name."""
    found = figures["axes"]
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, (name, axis) in zip(panels, found.items(), strict=True):
        xs = [point["x"] for point in axis["points"]]
        line = [axis["intercept_ms"] + axis["slope_ms"] * x for x in xs]
        axes.plot(xs, line, "-", color=_COLORS[1], lw=1)
        axes.plot(xs, [point["step_ms"] for point in axis["points"]], "o", color=_COLORS[0], ms=3)
        axes.set_title(f"{1e3 * axis['slope_ms']:+.3g} us per {UNITS[name]}", fontsize=8)
        axes.set_xlabel(name)
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("ms per step")


# What an axis of bench_slopes counts.
UNITS: Final = {
    "adapters": "adapter",
    "ranks": "rank",
    "context": "token of context",
    "batch": "row",
}
PLOTS: Final[dict[str, Callable[[Mapping[str, Any], Any], None]]] = {
    "adapter-mix": _adapter_mix,
    "http-peers": _http_peers,
    "training-peers": _training_peers,
    "sse": _sse,
    "coserving": _coserving,
    "scale": _scale,
    "slopes": _slopes,
}
