"""An engine in this process, driven step by step, over the tiny models; and tiny tokenizers."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from multiflora.adapters.intake import import_adapter
from multiflora.adapters.store import AdapterStore
from multiflora.engine.assembly import build_engine
from multiflora.engine.config import (
    BaseConfig,
    CacheConfig,
    EngineConfig,
    SchedulerConfig,
    TrainingConfig,
)
from multiflora.engine.loop import EngineLoop
from multiflora.engine.messages import Command, Events, Report, Submit, Trained
from multiflora.engine.models.registry import load_model_config
from multiflora.engine.request import (
    AdapterShare,
    FinishReason,
    GenerationRequest,
    SamplingParams,
    TokenEvent,
    TokenScore,
)
from multiflora.engine.training.job import JobEvent

from .peft_extras import BASES, Extras, save_biased, save_extras

CORPUS = [
    "The quick brown fox jumps over the lazy dog. 0123456789 +-*/=() {}[]",
    "pack my box with five dozen liquor jugs; how vexingly quick daft zebras jump!",
    "Grüße aus Köln, naïve café, 你好 世界, こんにちは, emoji 🙂🚀👩‍👩‍👧 and ¡olé!",
    "def main():\n    return [x for x in range(10)]\n\n\tprint('hello   world')",
] * 4
SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>"]


class WriteFolder(Protocol):
    def __call__(self, tokenizer: Tokenizer, **config: Any) -> Path: ...


@dataclass
class Bench:
    """A loop and what it reported so far."""

    loop: EngineLoop
    digests: dict[str, str]
    reports: list[Report]
    answers: dict[str, list[int]] = field(default_factory=dict)
    reasons: dict[str, FinishReason] = field(default_factory=dict)
    errors: dict[str, TokenEvent] = field(default_factory=dict)
    scores: dict[str, list[TokenScore]] = field(default_factory=dict)
    prompt_scores: dict[str, list[TokenScore]] = field(default_factory=dict)
    training: dict[str, list[JobEvent]] = field(default_factory=dict)

    def send(self, *commands: Command) -> None:
        for command in commands:
            self.loop.inbox.put(command)

    def turn(self) -> None:
        """One turn of the loop; collects what it reports."""
        self.loop.turn()
        for report in self.reports:
            for event in report.events if isinstance(report, Events) else ():
                self.answers.setdefault(event.request_id, []).extend(event.tokens)
                self.scores.setdefault(event.request_id, []).extend(event.scores)
                self.prompt_scores.setdefault(event.request_id, []).extend(event.prompt_scores)
                if event.finish_reason:
                    self.reasons[event.request_id] = event.finish_reason
                if event.error:
                    self.errors[event.request_id] = event
            if isinstance(report, Trained):
                self.training.setdefault(report.job_id, []).append(report.event)
        self.reports.clear()

    def run(self, requests: Iterable[GenerationRequest], max_turns: int = 5000) -> None:
        """Submit all, then turn until each has ended."""
        requests = list(requests)
        self.send(*(Submit(request) for request in requests))
        for _ in range(max_turns):
            if all(request.id in self.reasons for request in requests):
                return
            self.turn()
        raise AssertionError("requests did not end")

    def request(
        self,
        name: str | None,
        prompt: Sequence[int],
        *,
        id: str | None = None,
        max_tokens: int = 8,
        **sampling: object,
    ) -> GenerationRequest:
        """A greedy request for the adapter ``name``, or for the base."""
        settings = {"temperature": 0.0, "ignore_eos": True, **sampling}
        return GenerationRequest(
            id=id or f"{name}-{len(prompt)}",
            prompt=tuple(prompt),
            sampling=SamplingParams(max_tokens=max_tokens, **settings),  # type: ignore[arg-type]
            adapters=(AdapterShare(self.digests[name]),) if name else (),
        )


@pytest.fixture(scope="session")
def extras(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Callable[..., Path]
) -> Callable[[str], Extras]:
    """``extras(base)``: a checkpoint of ``BASES`` and a PEFT folder for each of ``EXTRAS``."""
    made: dict[str, Extras] = {}

    def make(base: str) -> Extras:
        if base not in made:
            root = tmp_path_factory.mktemp(base)
            model = save_biased(model_folder("llama", **BASES[base]), root / "base")
            made[base] = model, save_extras(model, root)
        return made[base]

    return make


@pytest.fixture
def make_bench(
    model_folder: Callable[..., Path],
    adapter_folders: Callable[[str], dict[str, Path]],
    tmp_path: Path,
) -> Iterable[Callable[..., Bench]]:
    """``make_bench(family, dtype=..., quantization=..., cache=..., scheduler=...)``.

    ``model`` and ``adapters`` stand in for the family's own checkpoint and PEFT folders.
    """
    made: list[Bench] = []

    def make(
        family: str = "llama",
        *,
        dtype: str = "float32",
        quantization: str = "nf4",
        kernels: str = "auto",
        cache: CacheConfig | None = None,
        scheduler: SchedulerConfig | None = None,
        training: TrainingConfig | None = None,
        changes: dict[str, Any] | None = None,
        max_model_len: int | None = None,
        model: Path | None = None,
        adapters: dict[str, Path] | None = None,
    ) -> Bench:
        folder = model or model_folder(family, **(changes or {}))
        base = BaseConfig(model=str(folder), dtype=dtype, quantization=quantization)  # type: ignore[arg-type]
        config = EngineConfig(
            base=base,
            device="cpu",
            kernels=kernels,  # type: ignore[arg-type]
            data_dir=str(tmp_path),
            max_model_len=max_model_len,
            cache=cache or CacheConfig(memory_bytes=8 << 20),
            scheduler=scheduler or SchedulerConfig(),
            training=training or TrainingConfig(),
        )
        projections = load_model_config(folder).adapter_projections()
        store = AdapterStore(tmp_path)
        digests = {
            name: import_adapter(path, projections=projections, store=store)
            for name, path in (adapters or adapter_folders(family)).items()
        }
        reports: list[Report] = []
        bench = Bench(build_engine(config, reports.append), digests, reports)
        reports.clear()
        made.append(bench)
        return bench

    yield make
    for bench in made:
        bench.loop.close()


@pytest.fixture(scope="session")
def large_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 170 MB of bfloat16 linears in one shard, the largest tensor 8 MB."""
    folder = tmp_path_factory.mktemp("large")
    hidden, inner, layers, vocab = 1024, 4096, 5, 1024
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "vocab_size": vocab,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    for index in range(layers):
        layer = f"model.layers.{index}"
        shapes |= {f"{layer}.self_attn.{p}_proj.weight": (hidden, hidden) for p in "qkvo"}
        shapes |= {f"{layer}.mlp.{p}_proj.weight": (inner, hidden) for p in ("gate", "up")}
        shapes[f"{layer}.mlp.down_proj.weight"] = (hidden, inner)
        shapes[f"{layer}.input_layernorm.weight"] = (hidden,)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
    tensors = {name: torch.randn(shape).bfloat16() for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def byte_level() -> Tokenizer:
    """Byte-level BPE, as Llama 3, Qwen and the demo base use it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@pytest.fixture(scope="session")
def byte_fallback() -> Tokenizer:
    """BPE over spaces written as U+2581 with byte fallback, as Llama 2 and Mistral use it."""
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=450, special_tokens=[*SPECIAL[:3], *bytes_])
    ascii_only = [text.encode("ascii", "ignore").decode() for text in CORPUS]
    trained.train_from_iterator(ascii_only, trainer)
    model = json.loads(trained.to_str())["model"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=model["vocab"],
            merges=[tuple(merge) for merge in model["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", bos)]
    )
    return tokenizer


@pytest.fixture(params=["byte_level", "byte_fallback"])
def fast_tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """Each kind in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def write_folder(tmp_path: Path) -> WriteFolder:
    """Write a tokenizer folder with the given tokenizer_config.json."""

    def write(tokenizer: Tokenizer, **config: Any) -> Path:
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        defaults = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
        }
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**defaults, **config}))
        return tmp_path

    return write
