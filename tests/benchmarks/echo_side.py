"""A peer for tests: prints where it should not, and does what it is asked."""

import os
import sys
from typing import Any

from benchmarks.peer_process import answer_questions


def answer(what: str, *rest: Any) -> Any:
    print("loading weights: 100%")
    if what == "fail":
        raise ValueError(rest[0])
    if what == "end":
        sys.exit(3)
    if what == "environment":
        return dict(os.environ)
    return [what, *rest]


if __name__ == "__main__":
    if "--no-start" in sys.argv:
        sys.exit(5)
    answer_questions(answer)
