"""Asks the questions of a group, one after the other; ``make bench`` and its kin.

    python -m benchmarks.ask bench [--only scale,slopes] [--list]

A question that fails is named at the end, and the others are asked all the same.
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence

from .report.generate import GROUPS
from .report.question import QUESTIONS, Question


def main() -> int:
    arguments = _arguments()
    try:
        chosen = questions(arguments.group, arguments.only)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    failed = [question for question in chosen if not ask(question, is_listed=arguments.list)]
    for question in failed:
        print(f"failed: {question.command}", file=sys.stderr)
    if not arguments.list:
        print("make report writes docs/benchmarks.md from the records", file=sys.stderr)
    return 1 if failed else 0


def questions(group: str, only: Sequence[str] = ()) -> list[Question]:
    """Of a group, in the order of the report. Raises ``ValueError`` for names it does not have."""
    of_group = [question for question in QUESTIONS if question.group == group]
    known = [question.name for question in of_group]
    if unknown := set(only) - set(known):
        raise ValueError(f"{', '.join(sorted(unknown))}: choose from {', '.join(known)}")
    return [question for question in of_group if not only or question.name in only]


def ask(question: Question, *, is_listed: bool = False) -> bool:
    """Run its command; whether it succeeded."""
    print(f"{question.name}: {question.command}", file=sys.stderr, flush=True)
    if is_listed:
        return True
    _, *arguments = shlex.split(question.command)
    return subprocess.run([sys.executable, *arguments]).returncode == 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("group", choices=tuple(GROUPS))
    parser.add_argument("--only", type=lambda text: text.split(","), default=(), metavar="NAME,...")
    parser.add_argument("--list", action="store_true", help="show the commands")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
