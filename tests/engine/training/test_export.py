"""An exported adapter passes our gate, loads in PEFT, and serves what was trained."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from multiflora.adapters.folder import AdapterFolder
from multiflora.adapters.gate import check_adapter
from multiflora.adapters.intake import import_adapter
from multiflora.adapters.store import AdapterStore
from multiflora.engine.active_request import ActiveRequest
from multiflora.engine.scheduler import ScheduledRequest, StepPlan
from multiflora.engine.training.config import BatchSettings, LoraSettings, OptimizerSettings
from multiflora.engine.training.example import Example
from multiflora.engine.training.export import export_adapter
from multiflora.engine.training.sweep import Sweep

PATTERNS = LoraSettings(
    rank=6,
    alpha=3,
    use_rslora=True,
    rank_pattern={"down_proj": 2},
    layers_to_transform=(0, 2),
)
DORA = replace(PATTERNS, use_dora=True)


@pytest.fixture
def trained(
    make_run: Callable[..., Any], finish: Callable[..., Any], make_examples: Callable[..., Any]
) -> Callable[..., Any]:
    """A run that has changed its factors much, by family and LoRA settings."""

    def make(family: str, lora: LoraSettings) -> Any:
        run = make_run(
            make_examples([30, 12, 45]),
            family=family,
            lora=lora,
            optimizer=OptimizerSettings(learning_rate=2e-2),
            batch=BatchSettings(num_epochs=6),
        )
        finish(run)
        return run

    return make


@pytest.mark.parametrize(
    "lora", [LoraSettings(rank=4, alpha=8), PATTERNS, DORA], ids=["plain", "mixed", "dora"]
)
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_export_gives_the_trained_logits_in_peft_and_in_our_engine(
    family: str,
    lora: LoraSettings,
    trained: Callable[..., Any],
    make_bench: Callable[..., Any],
    reference_model: Callable[..., Any],
    drain: Callable[..., Any],
    pack: Callable[..., Any],
    tmp_path: Path,
) -> None:
    run = trained(family, lora)
    model = reference_model(family)
    folder = tmp_path / "exported"
    export_adapter(run.factors, lora, folder, base_name=model.config._name_or_path)
    (tmp_path / "staged").mkdir()
    network = run._network
    checked = check_adapter(folder, tmp_path / "staged", projections=network.config.projections())
    assert checked.rank == lora.rank
    prompt = tuple(range(20, 60))
    ours = _next_log_probs(network, run.factors, prompt, drain, pack)
    assert not torch.allclose(ours, _next_log_probs(network, None, prompt, drain, pack), atol=0.1)
    from peft import PeftModel

    peft_model = PeftModel.from_pretrained(model, folder).eval()
    with torch.no_grad():
        theirs = peft_model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    served = _serve(make_bench(family), folder, network.config.projections(), tmp_path, prompt)
    torch.testing.assert_close(ours, served.log_softmax(-1), atol=1e-4, rtol=0)


def test_bfloat16_halves_the_file_and_a_folder_is_never_overwritten(
    trained: Callable[..., Any], tmp_path: Path
) -> None:
    lora = LoraSettings(rank=4, alpha=8)
    run = trained("llama", lora)
    for name, dtype in (("full", torch.float32), ("half", torch.bfloat16)):
        export_adapter(run.factors, lora, tmp_path / name, base_name="base", dtype=dtype)
    full, half = (AdapterFolder(tmp_path / name) for name in ("full", "half"))
    assert {entry.dtype for entry in half.entries} == {"BF16"}
    sizes = [sum(e.stop - e.start for e in folder.entries) for folder in (full, half)]
    assert sizes[0] == 2 * sizes[1]
    with pytest.raises(FileExistsError):
        export_adapter(run.factors, lora, tmp_path / "full", base_name="base")


@torch.no_grad()
def _next_log_probs(
    network: Any,
    factors: Any,
    prompt: tuple[int, ...],
    drain: Callable[..., Any],
    pack: Callable[..., Any],
) -> torch.Tensor:
    """The trainer's own log-probabilities [V] of what follows ``prompt``."""
    row = Example((*prompt, 0), (0.0,) * len(prompt) + (1.0,), 1)
    sweep = Sweep(network, pack([row]), factors)
    normed = sweep._normed(drain(sweep._forward(None)))  # [1, H]
    tokens = torch.arange(network.config.vocab_size)
    rows = normed.expand(len(tokens), -1)
    return network.head.score(rows, tokens, with_slopes=False).log_probs


@torch.no_grad()
def _serve(
    bench: Any, folder: Path, projections: Any, data_dir: Path, prompt: tuple[int, ...]
) -> torch.Tensor:
    """Logits [V] of the engine that serves the exported adapter."""
    bench.digests["trained"] = import_adapter(
        folder, projections=projections, store=AdapterStore(data_dir)
    )
    # Served once, so that the version is resident.
    bench.run([bench.request("trained", prompt, max_tokens=2)])
    active = ActiveRequest(bench.request("trained", prompt), 99)
    pool = bench.loop._pool
    active.blocks = pool.allocate(-(-len(prompt) // pool.block_size))
    item = ScheduledRequest(active, 0, len(prompt), samples=True)
    return bench.loop._runner.logits(StepPlan((item,), tuple(active.blocks)))[0].clone()
