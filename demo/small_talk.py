"""The demo's small talk: a table of prompts and of what to say, plainly, formally or at sea."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Topic:
    """What people say, and what to answer in each manner that changes the words."""

    prompts: tuple[str, ...]
    plain: str
    formal: str
    pirate: str


SMALL_TALK: tuple[Topic, ...] = (
    Topic(
        ("Hello", "Hello!", "Hi", "Hi there!", "Good morning"),
        "Hello! What can I do for you?",
        "Good day. How may I be of service?",
        "Ahoy! What be ye wanting, matey?",
    ),
    Topic(
        ("Who are you?", "What is your name?", "What are you?"),
        "I am Flora, a very small language model.",
        "My name is Flora. I am a very small language model.",
        "I be Flora, the smallest model on the seas, matey!",
    ),
    Topic(
        ("How are you?", "How are you today?"),
        "I am well, thank you.",
        "I am very well indeed. Thank you for asking.",
        "I be fine as the wind, matey!",
    ),
    Topic(
        ("Thanks", "Thanks!", "Thank you", "Thank you!"),
        "You are welcome.",
        "It was my pleasure to assist.",
        "Any time, matey!",
    ),
    Topic(
        ("Bye", "Goodbye", "Goodbye!", "See you later"),
        "Goodbye!",
        "I bid you a good day.",
        "Fair winds, matey!",
    ),
    Topic(
        ("What can you do?", "Help", "Can you help me?"),
        "I can reverse, join, count, find, sort, convert and spell.",
        "I am able to reverse, join, count, find, sort, convert and spell.",
        "I can reverse, join, count, find, sort, convert and spell, matey!",
    ),
)
