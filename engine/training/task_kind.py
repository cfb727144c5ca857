"""Which task a method makes of rows, and whether the rows suit the run."""

from typing import Final, TypeVar, cast

from .config import (
    KtoSettings,
    MethodSettings,
    PreferenceSettings,
    SupervisedSettings,
    TrainingSettings,
)
from .error import InvalidTrainingData
from .example import Example, Item, Preference, Rating, Rows
from .network import TrainingNetwork
from .preference import PreferenceTask
from .rating import RatingTask
from .task import SupervisedTask, Task

Kind = TypeVar("Kind", Example, Preference, Rating)
_PLURAL: Final = {Example: "examples", Preference: "pairs", Rating: "ratings"}


def make_task(rows: Rows[Item], method: MethodSettings) -> Task:
    """The task that ``method`` makes of rows of one kind, which it keeps and reads as it goes.

    Raises ``InvalidTrainingData`` for the wrong kind.
    """
    match method:
        case PreferenceSettings():
            return PreferenceTask(_only(Preference, rows, "learning preferences"), method)
        case KtoSettings():
            return RatingTask(_only(Rating, rows, "learning from ratings"), method)
        case SupervisedSettings():
            return supervised_task(rows)


def supervised_task(rows: Rows[Item]) -> SupervisedTask:
    """Raises ``InvalidTrainingData`` for rows that are no examples."""
    return SupervisedTask(_only(Example, rows, "supervised learning"))


def _only(kind: type[Kind], rows: Rows[Item], what: str) -> Rows[Kind]:
    """All rows are of the kind of the first."""
    first = next(iter(rows), None)
    if first is not None and not isinstance(first, kind):
        raise InvalidTrainingData(
            f"{what} needs {_PLURAL[kind]}; these rows are {_PLURAL[type(first)]}"
        )
    return cast("Rows[Kind]", rows)


def check_rows(task: Task, settings: TrainingSettings, network: TrainingNetwork) -> None:
    """Refuse rows that fit no micro-batch or no position of the base, naming the first."""
    if not task.num_rows:
        raise InvalidTrainingData("there are no rows; give at least one")
    budget = settings.batch.micro_batch_tokens
    for row in range(task.num_rows):
        if task.num_tokens(row) > budget:
            raise InvalidTrainingData(
                f"line {task.line(row)} has {task.num_tokens(row)} tokens, over micro_batch_tokens "
                f"{budget}; shorten it or raise micro_batch_tokens"
            )
        if task.num_positions(row) > network.max_positions:
            raise InvalidTrainingData(
                f"line {task.line(row)} has {task.num_positions(row)} tokens, over the "
                f"{network.max_positions} positions of the base; shorten it"
            )
