"""Prompts of the training data, with the answers that the data gives to them."""

import random
from dataclasses import dataclass

from ..data.dataset import PreparedDataset
from ..example import Example, Item, Preference, Rating


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt, and the answer that the training data gives to it."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def draw_samples(
    data: PreparedDataset, num_prompts: int, *, max_model_len: int, seed: int
) -> list[Sample]:
    """Up to ``num_prompts`` in the order that belongs to ``seed``."""
    places = list(range(len(data)))
    random.Random(seed).shuffle(places)
    found: list[Sample] = []
    for place in places:
        if len(found) == num_prompts:
            break
        sample = _sample(data[place])
        if sample is not None and len(sample.prompt) < max_model_len:
            found.append(sample)
    return found


def _sample(item: Item) -> Sample | None:
    """The last answer of an example and all before it; None for one without a prompt."""
    match item:
        case Preference():
            return Sample(item.prompt, item.chosen)
        case Rating():
            # A bad completion is no answer to measure others by.
            return Sample(item.prompt, item.completion) if item.is_desirable else None
        case Example():
            end = max(place for place, weight in enumerate(item.weights) if weight == 1.0) + 1
            start = end
            while start and item.weights[start - 1] == 1.0:
                start -= 1
            return Sample(item.ids[:start], item.ids[start:end]) if start > 1 else None
