"""Puts training jobs together: the engine that trains, the files, and the way to a name."""

from dataclasses import dataclass
from pathlib import Path

from multiflora.adapters.registry import Registry
from multiflora.adapters.store import AdapterStore
from multiflora.engine.client import EngineClient
from multiflora.engine.models.config import ModelConfig
from multiflora.engine.training.data.file_registry import FileRegistry
from multiflora.engine.training.jobs.job_folder import JobFolders
from multiflora.engine.training.jobs.job_registry import JobRegistry
from multiflora.engine.training.jobs.preparation import Preparation
from multiflora.engine.training.jobs.tracking.message import SinkName
from multiflora.engine.training.jobs.training_jobs import TrainingJobs
from multiflora.engine.training.jobs.workshop import Workshop

from .job_publishing import JobPublishing


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedBase:
    """The base that jobs train on: ``name`` is reserved, ``path`` is how PEFT loads it."""

    name: str
    path: str
    folder: Path
    config: ModelConfig


def make_training_jobs(
    data_dir: Path,
    base: TrainedBase,
    *,
    client: EngineClient,
    registry: Registry,
    files: FileRegistry,
    publishing: JobPublishing,
    end_tokens: frozenset[int],
    tracking: tuple[SinkName, ...] = (),
) -> TrainingJobs:
    """All jobs of ``data_dir``; none runs before ``TrainingJobs.start``.

    ``tracking`` are the sinks that they may send metrics to.
    """
    shop = Workshop(
        jobs=JobRegistry(registry.database),
        folders=JobFolders(data_dir),
        files=files,
        engine=client,
        preparing=Preparation(base.folder, end_tokens=end_tokens),
        publishing=publishing,
        store=registry.store or AdapterStore(data_dir),
        model=base.config,
        base_name=base.path,
        end_tokens=end_tokens,
        tracking=tracking,
    )
    return TrainingJobs(shop, reserved=[base.name])
