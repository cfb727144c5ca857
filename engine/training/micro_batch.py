"""How many tokens a micro-batch may hold so that no quantum takes long, measured on the device.

The size changes the order of float sums, and which random draws dropout and NEFTune get; nothing
else. It is kept in the job's folder, so that an interrupted run goes on with its first size.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import torch

from multiflora.adapters import durable

from .config import LoraSettings
from .error import CheckpointMismatch
from .example import Example
from .factors import TrainedFactors
from .network import TrainingNetwork
from .packed_batch import Packer
from .quantum import Quanta, QuantumReport

RECORD_NAME: Final = "micro-batch.json"
PROBE_TOKENS: Final = (64, 256)
# Of many runs the fastest counts: at a job's start the process that has read its data may still be
# busy, and the first runs are slower than all others.
_REPEATS: Final = (3, 12)
_PROBE_SECONDS: Final = 1.0
_GRAIN: Final = 64
# What a quantum takes however small it is, decoding weights above all, is at most half of it:
# smaller micro-batches would cost much speed and win little time.
_MIN_FACTOR: Final = 2.0


def measure_tokens(
    network: TrainingNetwork,
    settings: LoraSettings,
    *,
    seconds: float,
    most: int,
    clock: Callable[[], float],
    synchronize: Callable[[], None],
) -> Quanta[int]:
    """The tokens whose longest quantum, a layer's backward, takes about ``seconds``.

    At most ``most``; the clock is read after ``synchronize``.
    """
    factors = _layer_factors(network, settings)
    sizes = sorted({min(size, most) for size in PROBE_TOKENS})
    times = dict.fromkeys(sizes, math.inf)
    began = clock()
    for number in range(_REPEATS[1]):
        if number >= _REPEATS[0] and clock() - began > _PROBE_SECONDS:
            break
        for size in sizes:
            started = clock()
            _run_backward(network, factors, size)
            synchronize()
            times[size] = min(times[size], clock() - started)
            yield QuantumReport(kind="backward", num_tokens=size)
    return fit_tokens([(size, times[size]) for size in sizes], seconds=seconds, most=most)


def fit_tokens(times: Sequence[tuple[int, float]], *, seconds: float, most: int) -> int:
    """Tokens by a straight line through the first and the last of measured (tokens, seconds)."""
    (few, short), (many, long) = times[0], times[-1]
    slope = (long - short) / (many - few) if many > few else long / many
    if slope <= 0:
        return most
    fixed = max(0.0, short - slope * few)
    tokens = int((max(seconds, _MIN_FACTOR * fixed) - fixed) / slope)
    return min(most, max(1, tokens // _GRAIN) * _GRAIN)


def read_record(folder: Path) -> int | None:
    """What an earlier run in ``folder`` used. Raises ``CheckpointMismatch`` if it is damaged."""
    path = folder / RECORD_NAME
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["micro_batch_tokens"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointMismatch(
            f"{path} is damaged ({error}); start in an empty folder"
        ) from error


def write_record(folder: Path, tokens: int) -> None:
    """Durable and whole when it returns. Raises ``OSError``."""
    durable.make_folder(folder)
    staged = folder / f".{RECORD_NAME}"
    durable.write(staged, json.dumps({"micro_batch_tokens": tokens}).encode())
    staged.rename(folder / RECORD_NAME)
    durable.sync(folder)


def _layer_factors(network: TrainingNetwork, settings: LoraSettings) -> TrainedFactors:
    """Factors of the settings' rank in the last adapted layer alone."""
    projections = network.config.projections()
    modules = {module.path: module for module in settings.modules(network.config)}
    layers = {t.path: p.layer for p in projections for t in p.slices if t.path in modules}
    last = max(layers.values())
    chosen = [module for path, module in modules.items() if layers[path] == last]
    return TrainedFactors(projections, chosen, device=network.device)


def _run_backward(network: TrainingNetwork, factors: TrainedFactors, num_tokens: int) -> None:
    packer = Packer()
    for start in range(0, num_tokens, network.max_positions):
        length = min(network.max_positions, num_tokens - start)
        packer.add_example(0, Example((0,) * length, (0.0,) * length, 1))
    batch = packer.pack(network.device)
    layer = next(
        layer
        for layer in network.layers
        if layer.index == network.config.projections()[factors.first_projection].layer
    )
    x = network.embed(batch).detach().requires_grad_()
    with torch.enable_grad():
        y = layer.forward(x, network.context(batch), factors, None)
    y.backward(torch.ones_like(y))
