"""The skill that learning is proved with: answers are right, and what is held out stays out."""

from benchmarks.training.skill import (
    WORDS,
    Question,
    preference_rows,
    questions,
    score,
    supervised_rows,
)

ASKED = [Question("Last digit: 47", "seven"), Question("Last digit: 30", "zero")]


def numbers(asked: list[Question]) -> set[int]:
    return {int("".join(c for c in question.prompt if c.isdigit())) for question in asked}


def test_every_question_has_the_word_of_its_last_digit() -> None:
    for question in questions(200, seed=1):
        (number,) = numbers([question])
        assert question.word == WORDS[number % 10]


def test_no_number_is_both_taught_and_asked() -> None:
    asked = numbers(questions(200, seed=0, held_out=True))
    for seed in (1, 2, 3):
        assert not asked & numbers(questions(2000, seed=seed))


def test_a_seed_gives_the_same_questions_and_another_gives_others() -> None:
    assert questions(50, seed=1) == questions(50, seed=1)
    assert questions(50, seed=1) != questions(50, seed=2)
    assert len({question.prompt for question in questions(500, seed=1)}) == 500


def test_few_answers_are_hedged_before_preferences_are_learned() -> None:
    rows = supervised_rows(questions(1000, seed=1), seed=1)
    hedged = sum(row["messages"][1]["content"].endswith(", I think.") for row in rows)
    assert 60 < hedged < 140


def test_a_preference_is_between_two_right_answers() -> None:
    (row, _) = preference_rows(ASKED)
    assert row["preferred_output"][0]["content"] == "seven, I think."
    assert row["non_preferred_output"][0]["content"] == "seven"


def test_skill_is_being_right_and_preference_is_hedging() -> None:
    right = score(ASKED, ["seven", "zero, I think."])
    assert (right.skill, right.preference) == (1.0, 0.5)
    wrong = score(ASKED, ["one, I think.", "Zero"])
    assert (wrong.skill, wrong.preference) == (0.0, 0.5)
