"""Pictures of losses."""

import io

from matplotlib.image import imread

from multiflora.engine.training.jobs.curve import draw_losses


def test_both_losses_are_in_the_picture() -> None:
    training = [{"step": step, "loss": 1 / step} for step in range(1, 80)]
    validation = [{"step": step, "eval_loss": 2 / step} for step in (20, 40)]
    few, both = (
        imread(io.BytesIO(draw_losses(rows, title="fancy")))
        for rows in (training[:5], training + validation)
    )
    assert few.shape == both.shape
    assert (few != both).any()


def test_a_job_without_metrics_has_an_empty_picture() -> None:
    assert imread(io.BytesIO(draw_losses([], title="fancy"))).ndim == 3
