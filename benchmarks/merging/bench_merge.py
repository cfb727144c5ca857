"""Time to merge two rank-16 adapters of an 8B model, beside PEFT's ``svd`` merge.

Ours is the whole command: read both folders, SLERP in every module, exactly or re-compressed, round
and write. PEFT's is ``add_weighted_adapter(combination_type="svd")`` alone, with the adapters
already in memory, on one module of each shape in ``--peft-modules``; its time for all modules is
the sum over shapes of (measured seconds x number of modules). A shape that is not measured counts
with the time of the largest one measured that is no larger in either dimension, so the sum is then
a lower bound, and the record says so.

    python -m benchmarks.merging.bench_merge [--peft-modules k_proj,q_proj] [--smoke]
"""

import argparse
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor

from multiflora.adapters.merging.delta import Delta
from multiflora.adapters.merging.merge import merge_folders
from multiflora.adapters.merging.parent import Parent
from multiflora.adapters.merging.rank_policy import RankPolicy
from multiflora.adapters.merging.recipe import Recipe
from multiflora.adapters.merging.write import round_delta, write_adapter

from ..harness import Timing, interleave, save
from ..peer_environment import require_peer_python
from ..peer_process import PeerProcess

RANK: Final = 16
# Llama-3.1-8B: [out, in] of the linears of one layer.
NUM_LAYERS: Final = 32
SHAPES: Final[Mapping[str, tuple[int, int]]] = {
    "q_proj": (4096, 4096),
    "k_proj": (1024, 4096),
    "v_proj": (1024, 4096),
    "o_proj": (4096, 4096),
    "gate_proj": (14336, 4096),
    "up_proj": (14336, 4096),
    "down_proj": (4096, 14336),
}
_SMOKE_LAYERS, _SMOKE_FACTOR = 2, 16


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    python = require_peer_python("peft")
    shapes, num_layers = dict(SHAPES), NUM_LAYERS
    if arguments.smoke:
        shapes = {name: (n // _SMOKE_FACTOR, k // _SMOKE_FACTOR) for name, (n, k) in shapes.items()}
        num_layers = _SMOKE_LAYERS
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        work = Path(folder)
        parents = [_write_parent(work / f"parent-{i}", shapes, num_layers, i) for i in range(2)]
        _check(parents, work)
        with _start_peft(python, parents, shapes, arguments.peft_modules) as peft:
            runs = _our_runs(parents, work) | _peft_runs(peft, arguments.peft_modules)
            timings = interleave(runs, repeats=arguments.repeats)
    record = _record(timings, shapes, num_layers, arguments)
    record["peer_versions"] = peft.versions
    name = "merge-smoke" if arguments.smoke else "merge"
    print(f"\n{_table(record)}\n\nwrote {save(name, record)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_AsWritten)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peft-modules", default="k_proj,q_proj", help="shapes to measure PEFT on")
    parser.add_argument("--work", type=Path, help="where the adapters are written; default: /tmp")
    parser.add_argument("--smoke", action="store_true", help="a model 1/16 as wide, 2 layers")
    arguments = parser.parse_args()
    arguments.peft_modules = arguments.peft_modules.split(",")
    if unknown := set(arguments.peft_modules) - set(SHAPES):
        parser.error(f"unknown modules {sorted(unknown)}; choose from {', '.join(SHAPES)}")
    return arguments


_AsWritten = argparse.RawDescriptionHelpFormatter


def _write_parent(
    folder: Path, shapes: Mapping[str, tuple[int, int]], num_layers: int, seed: int
) -> Path:
    """A random bfloat16 adapter on all linears."""
    generator = torch.Generator().manual_seed(seed)
    modules = {}
    for layer in range(num_layers):
        for name, (n, k) in shapes.items():
            place = "self_attn" if name[0] in "qkvo" else "mlp"
            b = 0.02 * torch.randn(n, RANK, generator=generator)
            a = torch.randn(RANK, k, generator=generator) / math.sqrt(k)
            path = f"model.layers.{layer}.{place}.{name}"
            modules[path] = round_delta(Delta(b, a), torch.bfloat16)
    write_adapter(folder, modules, base_name="shape/llama-3.1-8b", targets=list(shapes))
    return folder


def _our_runs(parents: list[Path], work: Path) -> dict[str, Callable[[], None]]:
    def run(rank: str) -> None:
        out = work / "merged"
        recipe = Recipe(num_parents=2, method="slerp", rank=RankPolicy.parse(rank))
        merge_folders(parents, recipe).write(out)
        shutil.rmtree(out)

    return {f"slerp {rank}": partial(run, rank) for rank in ("exact", str(RANK))}


def _start_peft(
    python: Path, parents: list[Path], shapes: Mapping[str, tuple[int, int]], names: list[str]
) -> PeerProcess:
    """PEFT with both parents' factors of one module of each name in memory."""
    given = {
        name: {"shape": shapes[name], "file": str(_write_factors(parents, name))} for name in names
    }
    return PeerProcess(python, "benchmarks.merging.peft_side", json.dumps(given))


def _write_factors(parents: list[Path], name: str) -> Path:
    factors: dict[str, Tensor] = {}
    for index, folder in enumerate(parents):
        with Parent(folder) as parent:
            b, a = parent.factors(next(path for path in parent.modules if path.endswith(name)))
            factors |= {f"{index}.a": a.contiguous(), f"{index}.b": b.contiguous()}
    path = parents[0].parent / f"{name}.safetensors"
    save_file(factors, path)
    return path


def _peft_runs(peft: PeerProcess, names: list[str]) -> dict[str, Callable[[], None]]:
    return {f"peft svd {name}": partial(peft.ask, name) for name in names}


def _check(parents: list[Path], work: Path) -> None:
    """Refuse to time what is wrong: one module against dense float64."""
    merge_folders(parents, Recipe(num_parents=2, method="slerp", dtype="float32")).write(work / "c")
    with Parent(parents[0]) as one, Parent(parents[1]) as other, Parent(work / "c") as merged:
        path = min(one.modules, key=lambda path: math.prod(one.modules[path].shape))
        left, right, found = (_dense(parent, path) for parent in (one, other, merged))
    angle = torch.acos((left * right).sum() / left.norm() / right.norm())
    expected = torch.sin(angle / 2) / torch.sin(angle) * (left + right)
    error = float((found - expected).norm() / expected.norm())
    if error > 1e-6:
        sys.exit(f"{path}: the merge is off by {error}; nothing is measured")
    shutil.rmtree(work / "c")


def _dense(parent: Parent, path: str) -> Tensor:
    delta = parent.delta(path)
    return delta.b.double() @ delta.a.double()


def _record(
    timings: Mapping[str, Timing],
    shapes: Mapping[str, tuple[int, int]],
    num_layers: int,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    measured = {shapes[name]: timings[f"peft svd {name}"].median for name in arguments.peft_modules}
    per_module = {name: _peft_seconds(shape, measured) for name, shape in shapes.items()}
    total = num_layers * sum(per_module.values())
    return {
        "threads": arguments.threads,
        "rank": RANK,
        "num_modules": num_layers * len(shapes),
        "shapes": {name: list(shape) for name, shape in shapes.items()},
        "seconds": {name: timing.seconds for name, timing in timings.items()},
        "median_seconds": {name: timing.median for name, timing in timings.items()},
        "peft": {
            "seconds_per_module": per_module,
            "extrapolated_seconds": total,
            "is_lower_bound": any(shape not in measured for shape in shapes.values()),
            "how": "sum over shapes of measured seconds of one module x number of modules; shapes "
            "that were not measured count as the largest measured one that fits into them",
        },
        "speedup_over_peft": total / timings[f"slerp {RANK}"].median,
    }


def _peft_seconds(shape: tuple[int, int], measured: Mapping[tuple[int, int], float]) -> float:
    if shape in measured:
        return measured[shape]
    fitting = [seconds for (n, k), seconds in measured.items() if n <= shape[0] and k <= shape[1]]
    return max(fitting, default=0.0)


def _table(record: Mapping[str, Any]) -> str:
    lines = [
        f"| {name}, {record['num_modules']} modules | {seconds:.2f} s |"
        for name, seconds in record["median_seconds"].items()
        if name.startswith("slerp")
    ]
    bound = "at least " if record["peft"]["is_lower_bound"] else ""
    seconds = record["peft"]["extrapolated_seconds"]
    lines.append(f"| PEFT svd, extrapolated | {bound}{seconds:.1f} s |")
    return "\n".join(["| merge | time |", "| --- | --: |", *lines])


if __name__ == "__main__":
    main()
