"""The demo's questions: the same on every run, answered rightly, split by content."""

from collections import Counter
from random import Random

import pytest

from demo.corpus import (
    adapter_group,
    adapter_text,
    base_group,
    held_out,
    num_groups,
    prompt_hash,
)
from demo.recipe import ADAPTERS, AdapterRecipe, BaseRecipe
from demo.styles import REQUESTS, styled
from demo.tasks import CLOSED_TASKS, OPEN_TASKS, TASKS, draw, is_held_out

ADAPTER_IDS = [recipe.name for recipe in ADAPTERS]


@pytest.mark.parametrize("task", TASKS)
def test_a_task_draws_the_same_examples_from_the_same_seed(task: str) -> None:
    first, second = Random(7), Random(7)
    assert [draw(task, first) for _ in range(20)] == [draw(task, second) for _ in range(20)]


def test_training_text_is_a_function_of_the_recipe() -> None:
    assert base_group(BaseRecipe(), 3).conversations == base_group(BaseRecipe(), 3).conversations
    for recipe in ADAPTERS:
        assert adapter_group(recipe, 3).conversations == adapter_group(recipe, 3).conversations


@pytest.mark.parametrize("task", sorted(OPEN_TASKS))
def test_an_open_task_is_drawn_from_disjoint_contents(task: str) -> None:
    random = Random(0)
    trained = [draw(task, random) for _ in range(200)]
    kept = [draw(task, random, held_out=True) for _ in range(50)]
    assert not any(map(is_held_out, trained))
    assert all(map(is_held_out, kept))
    assert not {example.content for example in trained} & {example.content for example in kept}


@pytest.mark.parametrize("task", sorted(CLOSED_TASKS))
def test_a_closed_task_is_never_held_out(task: str) -> None:
    random = Random(0)
    assert not any(is_held_out(draw(task, random)) for _ in range(100))


def test_no_adapter_is_scored_on_a_closed_task() -> None:
    for recipe in ADAPTERS:
        assert set(recipe.scored_tasks) <= OPEN_TASKS


@pytest.mark.parametrize("recipe", ADAPTERS, ids=ADAPTER_IDS)
def test_held_out_prompts_are_distinct_and_many(recipe: AdapterRecipe) -> None:
    asked = held_out(recipe)
    assert len({example.prompt for example in asked}) == len(asked) >= 200
    assert asked == held_out(recipe)


@pytest.mark.parametrize("recipe", ADAPTERS, ids=ADAPTER_IDS)
def test_no_held_out_prompt_is_in_the_text_of_its_adapter(recipe: AdapterRecipe) -> None:
    kept = {prompt_hash(example) for example in held_out(recipe)}
    text = adapter_text(recipe)
    assert not any(prompt_hash(example) in kept for row in text for example in row.examples)


def test_no_held_out_prompt_is_in_the_text_of_the_base() -> None:
    """Every tenth group; the whole text is gone through when the demo is scored."""
    kept = {prompt_hash(example) for recipe in ADAPTERS for example in held_out(recipe)}
    for number in range(0, num_groups(BaseRecipe().num_steps), 10):
        for conversation in base_group(BaseRecipe(), number).conversations:
            assert not any(prompt_hash(example) in kept for example in conversation.examples)


@pytest.mark.parametrize("recipe", ADAPTERS, ids=ADAPTER_IDS)
def test_no_single_answer_fits_many_held_out_prompts(recipe: AdapterRecipe) -> None:
    wanted = Counter(styled(example, recipe.style) for example in held_out(recipe))
    assert wanted.most_common(1)[0][1] <= 0.3 * wanted.total()


@pytest.mark.parametrize("style", REQUESTS)
def test_a_style_changes_every_answer_that_is_scored(style: str) -> None:
    recipe = next(recipe for recipe in ADAPTERS if recipe.style == style)
    assert all(styled(example, style) != example.answer for example in held_out(recipe))


def test_adapters_differ_in_rank_and_form() -> None:
    assert len({recipe.rank for recipe in ADAPTERS}) >= 3
    assert any(recipe.use_rslora for recipe in ADAPTERS)
    assert len({recipe.targets for recipe in ADAPTERS}) >= 2
