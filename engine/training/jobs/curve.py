"""A picture of a job's losses. Draws in memory, without a display."""

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

_SMOOTHING: Final = 0.9
_MANY: Final = 50


def draw_losses(rows: Sequence[Mapping[str, Any]], *, title: str) -> bytes:
    """A PNG of training and validation loss over the steps, from metrics under TRL's names."""
    # Imported late: it takes as long as the rest of the server.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    training = _points(rows, "loss")
    if training:
        steps, losses = zip(*training, strict=True)
        is_noisy = len(losses) >= _MANY
        axes.plot(steps, losses, color="C0", alpha=0.3 if is_noisy else 1.0, label="training")
        if is_noisy:
            axes.plot(steps, list(_smooth(losses)), color="C0", label="training, smoothed")
    validation = _points(rows, "eval_loss")
    if validation:
        steps, losses = zip(*validation, strict=True)
        axes.plot(steps, losses, color="C1", marker="o", label="validation")
    axes.set(title=title, xlabel="step", ylabel="loss")
    axes.grid(alpha=0.3)
    if training or validation:
        axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()


def _points(rows: Iterable[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(row["step"], row[name]) for row in rows if row.get(name) is not None]


def _smooth(values: Iterable[float]) -> Iterable[float]:
    """An exponential mean without the pull of a start at zero."""
    total = weight = 0.0
    for value in values:
        total = _SMOOTHING * total + (1 - _SMOOTHING) * value
        weight = _SMOOTHING * weight + (1 - _SMOOTHING)
        yield total / weight
