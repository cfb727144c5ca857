"""Loads a base: from its prepared form if there is one, else from the checkpoint."""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from multiflora.kernels.nf4 import BLOCK_SIZE, Nf4Tensor
from multiflora.kernels.ops import Ops

from ..config import BaseConfig
from ..errors import StartupError, UnsupportedModel
from .assemble import ResidentForm, assemble
from .checkpoint import Checkpoint
from .config import ModelConfig
from .digest import FileDigests
from .prepared import FORMAT, PreparedStore
from .shard import find_shards
from .weights import BaseWeights

logger = logging.getLogger(__name__)


def load_base(
    folder: Path,
    model: ModelConfig,
    base: BaseConfig,
    *,
    ops: Ops,
    dtype: torch.dtype,
    device: torch.device,
    cache_dir: Path | None,
    progress: Callable[[str, float], None],
) -> BaseWeights:
    """Load the checkpoint in ``folder`` as ``ops`` wants it, dense parts in ``dtype``.

    ``progress`` gets what is being done and how much of it is done, 0 to 1. The prepared form is
    kept under ``cache_dir``, keyed by the content of the files; None keeps nothing. Raises
    `InvalidCheckpoint`, `UnsupportedModel`, or `StartupError` if ``cache_dir`` cannot be made.
    """
    if model.prequantized and base.quantization == "none":
        raise UnsupportedModel(
            f"{folder} is already NF4: --quantization none would not bring its weights back; "
            "use --quantization nf4, or the unquantized checkpoint"
        )
    # Headers first: a damaged file should fail before gigabytes are hashed.
    checkpoint = Checkpoint.open(folder)
    form = ResidentForm(base=base, ops=ops, dtype=dtype, device=device)
    if cache_dir is None:
        return assemble(checkpoint, model, form, progress=progress)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartupError(f"{cache_dir} cannot be made ({error}); choose --data-dir") from error
    digests = FileDigests(cache_dir / "files.json")
    store = PreparedStore(cache_dir, digests)
    key = _content_key(folder, model, form, digests, progress)
    weights = store.load(key, device)
    if weights is None:
        weights = assemble(checkpoint, model, form, progress=progress)
        progress("storing the prepared base", 0.0)
        store.save(key, weights)
    else:
        logger.info("prepared base %s", key[:12])
    digests.save()
    progress("base ready", 1.0)
    return weights


def _content_key(
    folder: Path,
    model: ModelConfig,
    form: ResidentForm,
    digests: FileDigests,
    progress: Callable[[str, float], None],
) -> str:
    paths = find_shards(folder)
    contents = []
    for index, path in enumerate(paths):
        progress("checking the base's files", index / len(paths))
        contents.append(digests.digest(path))
    base = form.base
    parts = {
        "format": FORMAT,
        "model": asdict(model),
        "files": contents,
        "quantization": [base.quantization, base.double_quantization, base.quantize_head],
        "dtype": str(form.dtype),
        "backend": [form.ops.NAME, _layout(form)],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _layout(form: ResidentForm) -> str:
    """What the backend packs to on this machine; it may depend on the processor."""
    size = 4 * BLOCK_SIZE
    codes = torch.zeros(size * size // 2, dtype=torch.uint8, device=form.device)
    absmax = torch.zeros(size * size // BLOCK_SIZE, device=form.device)
    return form.ops.pack_nf4(Nf4Tensor(codes, absmax, size, size), form.dtype).layout
