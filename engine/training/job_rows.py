"""The prepared data sets of a job, as tasks."""

from dataclasses import dataclass
from pathlib import Path

from .data.dataset import PreparedDataset
from .example import Item, check_tokens
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


def read_rows(job: TrainingJob, vocab_size: int) -> JobRows:
    """Raises ``DatasetDamaged`` and ``InvalidTrainingData``."""
    method = job.settings.method

    def rows(folder: str) -> list[Item]:
        with PreparedDataset.open(Path(folder)) as dataset:
            found = list(dataset)
        check_tokens(found, vocab_size)
        return found

    return JobRows(
        make_task(rows(job.data), method),
        None if job.validation is None else make_task(rows(job.validation), method),
        None if job.replay is None else supervised_task(rows(job.replay)),
        None if job.recent is None else supervised_task(rows(job.recent)),
    )
