"""The training text and the held-out questions, each a pure function of a recipe.

Training text comes in groups, numbered from zero, so that a resumed run can start in the middle.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from random import Random

from .chat import Conversation, adapter_conversation, base_conversation
from .recipe import AdapterRecipe, BaseRecipe
from .tasks import Example, draw

BATCHES_PER_GROUP = 8
NUM_HELD_OUT = 256


@dataclass(frozen=True, slots=True)
class Group:
    """Conversations for a few batches, and the random stream that decides the batches' order."""

    conversations: list[Conversation]
    random: Random


def base_group(recipe: BaseRecipe, number: int) -> Group:
    random = Random(f"base {recipe.seed} {number}")
    phase = recipe.phase(number * BATCHES_PER_GROUP)
    rows = [
        base_conversation(random, phase.task_weights, style_share=phase.style_share)
        for _ in range(BATCHES_PER_GROUP * recipe.batch_size)
    ]
    return Group(rows, random)


def adapter_group(recipe: AdapterRecipe, number: int) -> Group:
    random = Random(f"{recipe.name} {recipe.seed} {number}")
    size = BATCHES_PER_GROUP * recipe.batch_size
    weights = dict(recipe.task_weights)
    rows = [adapter_conversation(random, weights, recipe.style) for _ in range(size)]
    return Group(rows, random)


def base_text(recipe: BaseRecipe) -> Iterator[Conversation]:
    """Yield every conversation that the base was trained on."""
    for number in range(num_groups(recipe.num_steps)):
        yield from base_group(recipe, number).conversations


def adapter_text(recipe: AdapterRecipe) -> Iterator[Conversation]:
    """Yield every conversation that one adapter was trained on."""
    for number in range(num_groups(recipe.num_steps)):
        yield from adapter_group(recipe, number).conversations


def num_groups(num_steps: int) -> int:
    return -(-num_steps // BATCHES_PER_GROUP)


def held_out(recipe: AdapterRecipe) -> list[Example]:
    """Return the adapter's held-out questions: no two alike, the same on every run."""
    random = Random(f"held out {recipe.name}")
    chosen: dict[str, Example] = {}
    while len(chosen) < NUM_HELD_OUT:
        example = draw(random.choice(recipe.scored_tasks), random, held_out=True)
        chosen.setdefault(example.prompt, example)
    return list(chosen.values())


def prompt_hash(example: Example) -> bytes:
    return sha256(example.prompt.encode()).digest()
