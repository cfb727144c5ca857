"""The process in which one training file is checked: request on stdin, result on stdout.

The messages are those of ``file_check``, in plain json: importing msgspec would double the start.
"""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from multiflora.adapters.resource_limit import ProcessLimits, restrict_process

from .problem import Problem, ProblemList
from .row_reader import RowReader

# Serving comes first.
_NICENESS: Final = 10


def main() -> None:
    request = json.load(sys.stdin)
    os.nice(_NICENESS)
    restrict_process(ProcessLimits(**request["limits"], file_bytes=0))
    found = _check(Path(request["path"]))
    os.write(sys.stdout.fileno(), json.dumps(found, ensure_ascii=False).encode())


def _check(path: Path) -> dict[str, Any]:
    problems = ProblemList()
    num_rows = 0
    try:
        with open(path, "rb") as file:
            reader = RowReader(file)
            for each in reader:
                if isinstance(each, Problem):
                    problems.add(each)
                else:
                    num_rows += 1
    except MemoryError:
        return {"failure": "a row needs too much memory; split the file, or its longest rows"}
    except OSError as error:
        return {"failure": f"the file could not be read: {error.strerror}"}
    return {
        "format": reader.format.name if reader.format else None,
        "num_rows": num_rows,
        "num_problems": problems.num_problems,
        "problems": [asdict(problem) for problem in problems.first],
    }
