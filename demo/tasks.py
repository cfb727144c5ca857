"""The demo's questions, with answers that can be checked. Knows nothing of styles or models.

A question of an *open* task is built from content drawn from a large space (lists, numbers,
sentences), and its content is either always held out or never: `is_held_out` decides by a hash of
the content, whatever the wording, the style or the order of turns. A *closed* task is a table
(days, opposites, small talk); it is taught and never used to score an adapter.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from .small_talk import SMALL_TALK
from .words import COLOUR_OF, DAYS, OPPOSITES, THINGS

HELD_OUT_SHARE = 16  # one content in this many is held out

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True, slots=True)
class Example:
    """One question. `content` is what the answer depends on, free of wording."""

    task: str
    prompt: str
    answer: str
    content: str


Generator = Callable[[Random], Example]


def is_held_out(example: Example) -> bool:
    """True if this content belongs to the held-out part of an open task."""
    if example.task not in OPEN_TASKS:
        return False
    digest = hashlib.sha256(f"{example.task}|{example.content}".encode()).digest()
    return digest[0] % HELD_OUT_SHARE == 0


def draw(task: str, random: Random, *, held_out: bool = False) -> Example:
    """Draw one example of a task from the training part, or from the held-out part."""
    generate = TASKS[task]
    while True:
        example = generate(random)
        if is_held_out(example) == held_out:
            return example


def count(random: Random) -> Example:
    words = _things(random, 2, 7)
    listed = " ".join(words)
    wording = random.choice(("How many words: {}", "Count these words: {}"))
    return Example("count", wording.format(listed), NUMBERS[len(words)], listed)


def contain(random: Random) -> Example:
    words = _things(random, 4, 6)
    asked = random.choice(words[1:]) if random.random() < 0.5 else words[0]
    listed = " ".join(words[1:])
    wording = random.choice(("Is {} in this list: {}", "Does {} appear here: {}"))
    answer = "no" if asked == words[0] else "yes"
    return Example("contain", wording.format(asked, listed), answer, f"{asked} {listed}")


def parity(random: Random) -> Example:
    number = random.randint(10, 9999)
    prompt = random.choice(("Is {} even or odd?", "Even or odd: {}")).format(number)
    return Example("parity", prompt, "odd" if number % 2 else "even", str(number))


def compare(random: Random) -> Example:
    left, right = random.sample(range(10, 100), 2)
    wording = random.choice(("Is {} more than {}?", "Is {} greater than {}?"))
    answer = "yes" if left > right else "no"
    return Example("compare", wording.format(left, right), answer, f"{left} {right}")


def later(random: Random) -> Example:
    index, step = random.randrange(len(DAYS)), random.randint(1, 6)
    prompt = f"What day is {step} days after {DAYS[index]}?"
    return Example("later", prompt, DAYS[(index + step) % len(DAYS)], prompt)


def multiply(random: Random) -> Example:
    left, right = random.randint(1, 9), random.randint(1, 9)
    wording = random.choice(("What is {} times {}?", "{} x {}", "Multiply {} by {}."))
    prompt = wording.format(left, right)
    return Example("multiply", prompt, str(left * right), prompt)


def day(random: Random) -> Example:
    index = random.randrange(len(DAYS))
    word, step = random.choice((("after", 1), ("before", -1)))
    prompt = f"What day comes {word} {DAYS[index]}?"
    return Example("day", prompt, DAYS[(index + step) % len(DAYS)], prompt)


def opposite(random: Random) -> Example:
    pair = random.choice(OPPOSITES)
    word, answer = pair if random.random() < 0.5 else pair[::-1]
    prompt = random.choice(("What is the opposite of {}?", "Opposite of {}?")).format(word)
    return Example("opposite", prompt, answer, prompt)


def colour(random: Random) -> Example:
    thing, answer = random.choice(COLOUR_OF)
    prompt = f"What colour is {thing}?"
    return Example("colour", prompt, answer, prompt)


def small_talk(random: Random) -> Example:
    topic = random.choice(SMALL_TALK)
    prompt = random.choice(topic.prompts)
    return Example("small_talk", prompt, topic.plain, prompt)


def _things(random: Random, fewest: int, most: int) -> list[str]:
    return random.sample(THINGS, random.randint(fewest, most))


TASKS: dict[str, Generator] = {
    "count": count,
    "contain": contain,
    "parity": parity,
    "compare": compare,
    "multiply": multiply,
    "later": later,
    "day": day,
    "opposite": opposite,
    "colour": colour,
    "small_talk": small_talk,
}

CLOSED_TASKS = frozenset(("multiply", "later", "day", "opposite", "colour", "small_talk"))
OPEN_TASKS = frozenset(TASKS) - CLOSED_TASKS
