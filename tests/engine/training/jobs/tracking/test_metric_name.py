"""Metrics go out under the names that Hugging Face's trainers use."""

import math

from multiflora.engine.training.jobs.tracking.metric_name import tracked_values


def test_names_are_those_of_hugging_face_and_trl() -> None:
    given = {"loss": 1, "rewards/chosen": 2.0, "eval_loss": 3.0, "eval_rewards/margins": 4.0}
    assert tracked_values(given) == {
        "train/loss": 1.0,
        "train/rewards/chosen": 2.0,
        "eval/loss": 3.0,
        "eval/rewards/margins": 4.0,
    }


def test_what_is_not_finite_is_left_out() -> None:
    assert tracked_values({"loss": math.nan, "grad_norm": math.inf, "epoch": 1.0}) == {
        "train/epoch": 1.0
    }
