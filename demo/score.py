"""Scores the base and the adapters on held-out questions. Trains nothing, writes nothing."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from random import Random

from peft import PeftModel
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from .chat import Conversation
from .corpus import adapter_text, base_text, held_out, prompt_hash
from .generate import answers
from .lookup import Lookup
from .recipe import ADAPTERS, AdapterRecipe, BaseRecipe
from .styles import styled
from .tasks import OPEN_TASKS, TASKS, Example, draw

logger = logging.getLogger(__name__)

NUM_PER_TASK = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterScore:
    """Exact match on one adapter's held-out questions: itself, the base, a template look-up."""

    rank: int
    use_rslora: bool
    targets: tuple[str, ...]
    scored_tasks: tuple[str, ...]
    num_prompts: int
    prompts_sha256: str
    adapter: float
    base: float
    lookup: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScore:
    """Exact match of the base on one task; a closed task has no held-out content."""

    exact_match: float
    num_prompts: int
    is_held_out: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TextCheck:
    """How much training text there was, and how many held-out prompts were found in it."""

    conversations: int
    distinct_prompts: int
    held_out_prompts: int
    held_out_prompts_in_training_text: int


def score_adapters(
    base: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> dict[str, AdapterScore]:
    """Ask the base, then each adapter in `folder`, the adapter's held-out questions."""
    return {
        recipe.name: _score_adapter(base, tokenizer, recipe, folder / recipe.name)
        for recipe in ADAPTERS
    }


def score_base(base: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> dict[str, TaskScore]:
    """Score the base's own plain skills; open tasks on held-out content, tables on themselves."""
    return {task: _score_task(base, tokenizer, task) for task in TASKS}


def check_training_text() -> TextCheck:
    """Go through the whole training text again, looking for held-out prompts by their hash."""
    kept = {prompt_hash(example) for recipe in ADAPTERS for example in held_out(recipe)}
    seen: set[bytes] = set()
    num_conversations = 0
    for conversation in _whole_text():
        num_conversations += 1
        seen.update(map(prompt_hash, conversation.examples))
    return TextCheck(
        conversations=num_conversations,
        distinct_prompts=len(seen),
        held_out_prompts=len(kept),
        held_out_prompts_in_training_text=len(kept & seen),
    )


def _whole_text() -> Iterator[Conversation]:
    return chain(base_text(BaseRecipe()), *map(adapter_text, ADAPTERS))


def _score_adapter(
    base: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: AdapterRecipe, folder: Path
) -> AdapterScore:
    asked = held_out(recipe)
    wanted = [styled(example, recipe.style) for example in asked]
    prompts = [example.prompt for example in asked]
    plain = exact_match(answers(base, tokenizer, prompts), wanted)
    model = PeftModel.from_pretrained(base, str(folder))
    adapted = exact_match(answers(model.eval(), tokenizer, prompts), wanted)
    model.unload()
    score = AdapterScore(
        rank=recipe.rank,
        use_rslora=recipe.use_rslora,
        targets=recipe.targets,
        scored_tasks=recipe.scored_tasks,
        num_prompts=len(asked),
        prompts_sha256=sha256("\n".join(prompts).encode()).hexdigest(),
        adapter=adapted,
        base=plain,
        lookup=exact_match(_looked_up(recipe, prompts), wanted),
    )
    logger.info("%s: %s", recipe.name, score)
    return score


def _score_task(base: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, task: str) -> TaskScore:
    random = Random(f"base score {task}")
    is_open = task in OPEN_TASKS
    asked = [draw(task, random, held_out=is_open) for _ in range(NUM_PER_TASK)]
    given = answers(base, tokenizer, [example.prompt for example in asked])
    return TaskScore(
        exact_match=exact_match(given, [example.answer for example in asked]),
        num_prompts=len(asked),
        is_held_out=is_open,
    )


def _looked_up(recipe: AdapterRecipe, prompts: Sequence[str]) -> list[str]:
    examples: list[Example] = [example for row in adapter_text(recipe) for example in row.examples]
    lookup = Lookup([(example.prompt, styled(example, recipe.style)) for example in examples])
    return [lookup.answer(prompt) for prompt in prompts]


def exact_match(given: Sequence[str], wanted: Sequence[str]) -> float:
    """The share of texts that are what was wanted, to the letter."""
    right = sum(text == answer for text, answer in zip(given, wanted, strict=True))
    return round(right / len(wanted), 4)
