"""The instructions of the repository's Dockerfile, stage by stage."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True, slots=True)
class Instruction:
    """``RUN --mount=... pip install`` is the keyword RUN, the flags, and the rest."""

    keyword: str
    flags: tuple[str, ...]
    rest: str


@dataclass(slots=True)
class Stage:
    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, keyword: str) -> list[Instruction]:
        return [step for step in self.instructions if step.keyword == keyword]

    def copied(self) -> list[tuple[str, str]]:
        """Pairs of source and target that come from the repository."""
        steps = [step for step in self.all("COPY") if not any("--from" in f for f in step.flags)]
        pairs = []
        for *sources, target in (shlex.split(step.rest) for step in steps):
            pairs += [(source, target) for source in sources]
        return pairs

    def environment(self) -> dict[str, str]:
        words = [word for step in self.all("ENV") for word in shlex.split(step.rest)]
        return dict(word.split("=", 1) for word in words)


def read_stages() -> dict[str, Stage]:
    stages: dict[str, Stage] = {}
    for keyword, rest in _instructions((ROOT / "Dockerfile").read_text()):
        if keyword == "FROM":
            base, _, name = rest.split()
            stages[name] = Stage(name, base)
        elif stages:
            flags, bare = _split_flags(rest)
            list(stages.values())[-1].instructions.append(Instruction(keyword, flags, bare))
    return stages


def _split_flags(rest: str) -> tuple[tuple[str, ...], str]:
    flags = []
    while match := re.match(r"(--\S+) +", rest):
        flags.append(match[1])
        rest = rest[match.end() :]
    return tuple(flags), rest


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    kept = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for line in kept.replace("\\\n", " ").splitlines():
        if line.strip():
            keyword, _, rest = line.partition(" ")
            yield keyword, " ".join(rest.split())
