"""Kept answers: given again for a day, over restarts, and never for another request."""

from contextlib import closing
from pathlib import Path

import pytest

from multiflora.adapters.kept_answer import KEPT_SECONDS, KeptAnswer, KeyReused
from multiflora.adapters.registry import Registry


def test_an_answer_is_given_again_also_after_a_restart(tmp_path: Path) -> None:
    with closing(Registry.open(tmp_path)) as registry:
        assert registry.answers.begin("key", "asked") is None
        registry.answers.finish("key", KeptAnswer(201, b"{}"))
    with closing(Registry.open(tmp_path)) as registry:
        assert registry.answers.begin("key", "asked") == KeptAnswer(201, b"{}")


def test_another_request_cannot_have_the_key() -> None:
    answers = Registry().answers
    answers.begin("key", "asked")
    with pytest.raises(KeyReused, match="new key"):
        answers.begin("key", "something else")


def test_a_request_that_never_ended_is_told_apart() -> None:
    answers = Registry().answers
    answers.begin("key", "asked")
    assert answers.begin("key", "asked") == KeptAnswer(None)


def test_a_forgotten_key_is_free_but_an_answer_is_not_forgotten() -> None:
    answers = Registry().answers
    answers.begin("failed", "asked")
    answers.forget("failed")
    assert answers.begin("failed", "something else") is None
    answers.finish("failed", KeptAnswer(200, b"x"))
    answers.forget("failed")
    assert answers.begin("failed", "something else") == KeptAnswer(200, b"x")


def test_answers_go_after_a_day() -> None:
    now = 1000.0
    answers = Registry(clock=lambda: now).answers
    answers.begin("key", "asked")
    answers.finish("key", KeptAnswer(200, b"x"))
    now += KEPT_SECONDS - 1
    assert answers.begin("key", "asked") is not None
    now += 1
    assert answers.begin("key", "something else") is None
