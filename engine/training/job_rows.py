"""The prepared data sets of a job, as tasks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .example import Rows
from .job import TrainingJob
from .task import SupervisedTask, Task
from .task_kind import make_task, supervised_task


@dataclass(frozen=True, slots=True)
class JobRows:
    """The data of a job, ready to be packed."""

    task: Task
    validation: Task | None
    replay: SupervisedTask | None
    recent: SupervisedTask | None

    @property
    def longest(self) -> int:
        """Tokens of the longest row, which no micro-batch can be smaller than."""
        tasks = (self.task, self.validation, self.replay, self.recent)
        return max(task.num_tokens(row) for task in tasks if task for row in range(task.num_rows))


def read_rows(job: TrainingJob, open_rows: Callable[[str], Rows[Any]]) -> JobRows:
    """``open_rows`` opens the data set in a folder, which stays open while the tasks are used.

    Raises ``DatasetDamaged`` and ``InvalidTrainingData``.
    """
    method = job.settings.method
    return JobRows(
        make_task(open_rows(job.data), method),
        None if job.validation is None else make_task(open_rows(job.validation), method),
        None if job.replay is None else supervised_task(open_rows(job.replay)),
        None if job.recent is None else supervised_task(open_rows(job.recent)),
    )
