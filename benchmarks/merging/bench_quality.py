"""What every way of serving two adapters leaves of their skills: served, blended, merged, exported.

Everything is asked through the serving engine, in float32: the held-out questions of both adapters.
``exact`` is the share of greedy answers that are right in the style, to the letter, ``right`` of
those with the right word in whatever style, ``perplexity`` that of the right answer's tokens. The
style ``plain`` is that of the base. The demo's base exists in NF4 only; decoded, it is what is
stored as float32 and float16 here. What NF4 costs weights that do not lie on its levels is shown by
an exported model, served as it is and quantized again.

    python -m benchmarks.merging.bench_quality [--pair json,shout] [--smoke]
"""

import argparse
import asyncio
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from transformers import PreTrainedTokenizerFast

from benchmarks.harness import save
from benchmarks.serving.engine_load import engine
from demo.corpus import held_out
from demo.generate import MAX_NEW_TOKENS
from demo.recipe import ADAPTERS
from demo.score import exact_match
from demo.styles import styled
from demo.tasks import Example
from multiflora.adapters.intake import import_adapter
from multiflora.adapters.merging.depth import Curve
from multiflora.adapters.merging.merge import merge_folders
from multiflora.adapters.merging.recipe import Recipe
from multiflora.adapters.store import AdapterStore
from multiflora.engine.client import EngineClient
from multiflora.engine.config import BaseConfig, CacheConfig, EngineConfig, Quantization
from multiflora.engine.export.export import ExportSettings, export_model
from multiflora.engine.models.named_folder import NamedFolder
from multiflora.engine.models.registry import load_model_config
from multiflora.engine.request import AdapterShare, GenerationRequest, SamplingParams

from .score_demo import DEMO, words

PLAIN: Final = "plain"
_RECIPES: Final = {recipe.name: recipe for recipe in ADAPTERS}
# So many at once: the batch shows in no answer.
_TOGETHER: Final = 64


@dataclass(frozen=True, slots=True)
class Score:
    """Of the questions of one style."""

    exact: float
    right: float
    perplexity: float


@dataclass(frozen=True, slots=True)
class Question:
    """The tokens of a chat's prompt, and of the answer that is right in the style."""

    prompt: tuple[int, ...]
    wanted: tuple[int, ...]
    answer: str
    example: Example


@dataclass(frozen=True, slots=True)
class Variant:
    """A base, how it is stored, and what is added to it in each request."""

    base: Path
    quantization: Quantization
    shares: tuple[tuple[Path, float], ...] = ()


class Pupil:
    """An engine on one base, asked with one set of shares."""

    def __init__(
        self,
        client: EngineClient,
        tokenizer: PreTrainedTokenizerFast,
        shares: tuple[AdapterShare, ...],
    ) -> None:
        self._client = client
        self._tokenizer = tokenizer
        self._shares = shares
        self._num_asked = 0

    async def score(self, questions: Sequence[Question]) -> Score:
        given: list[str] = []
        losses: list[float] = []
        for start in range(0, len(questions), _TOGETHER):
            asked = questions[start : start + _TOGETHER]
            given += await asyncio.gather(*(self._answer(question) for question in asked))
            for found in await asyncio.gather(*(self._losses(question) for question in asked)):
                losses += found
        pairs = list(zip(questions, given, strict=True))
        right = sum(words(question.example.answer) <= words(text) for question, text in pairs)
        return Score(
            exact=exact_match(given, [question.answer for question in questions]),
            right=round(right / len(questions), 4),
            perplexity=round(math.exp(sum(losses) / len(losses)), 4),
        )

    async def _answer(self, question: Question) -> str:
        sampling = SamplingParams(max_tokens=MAX_NEW_TOKENS, temperature=0)
        tokens: list[int] = []
        async for event in self._client.generate(self._request(question.prompt, sampling)):
            tokens += event.tokens
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    async def _losses(self, question: Question) -> list[float]:
        """Of each token of the right answer, in nats."""
        sampling = SamplingParams(max_tokens=0, prompt_logprobs=0)
        request = self._request(question.prompt + question.wanted, sampling)
        scores = []
        async for event in self._client.generate(request):
            scores += event.prompt_scores
        return [-score.logprob for score in scores[-len(question.wanted) :]]

    def _request(self, prompt: tuple[int, ...], sampling: SamplingParams) -> GenerationRequest:
        self._num_asked += 1
        return GenerationRequest(
            id=f"quality-{self._num_asked}",
            prompt=prompt,
            sampling=sampling,
            adapters=self._shares,
        )


def questions(
    tokenizer: PreTrainedTokenizerFast, style: str | None, examples: Sequence[Example]
) -> list[Question]:
    """Each as a chat of its own, and its right answer up to the end of the turn."""
    found = []
    for example in examples:
        chat = [{"role": "user", "content": example.prompt}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        answer = styled(example, style)
        prompt = tokenizer.encode(str(text), add_special_tokens=False)
        wanted = tokenizer.encode(answer, add_special_tokens=False)
        end = int(tokenizer.eos_token_id)  # pyright: ignore[reportArgumentType]
        found.append(Question(tuple(prompt), (*wanted, end), answer, example))
    return found


def variants(work: Path, pair: tuple[str, str]) -> dict[str, Variant]:
    """Everything there is to ask, written into ``work`` where it is not there yet."""
    nf4 = DEMO / "base"
    one, other = (DEMO / "adapters" / name for name in pair)
    found = {"NF4 base": Variant(nf4, "nf4")}
    for dtype in ("float32", "float16"):
        decoded = _exported(work / f"decoded-{dtype}", one, dtype, weight=0.0)
        found[f"base decoded, {dtype}"] = Variant(decoded, "none")
    found |= {
        f"{pair[0]} served": Variant(nf4, "nf4", ((one, 1.0),)),
        f"{pair[1]} served": Variant(nf4, "nf4", ((other, 1.0),)),
        "both blended, half each": Variant(nf4, "nf4", ((one, 0.5), (other, 0.5))),
    }
    for method in ("linear", "slerp"):
        merged = _merged(work / method, (one, other), method)
        found[f"both merged, {method}"] = Variant(nf4, "nf4", ((merged, 1.0),))
    for dtype in ("float32", "float16", "bfloat16"):
        exported = _exported(work / f"exported-{dtype}", one, dtype)
        found[f"{pair[0]} exported, {dtype}"] = Variant(exported, "none")
    quantized = work / "exported-float32"
    found[f"{pair[0]} exported, NF4 again"] = Variant(quantized, "nf4")
    return found


def _merged(folder: Path, parents: tuple[Path, Path], method: str) -> Path:
    half: dict[str, Any] = {"t": Curve((0.5,))} if method == "slerp" else {"weights": (0.5, 0.5)}
    merge_folders(list(parents), Recipe(num_parents=2, method=method, **half)).write(folder)
    return folder


def _exported(folder: Path, adapter: Path, dtype: Any, *, weight: float = 1.0) -> Path:
    export_model(
        NamedFolder("demo", DEMO / "base"),
        NamedFolder(adapter.name, adapter),
        folder,
        ExportSettings(dtype=dtype, weight=weight, verify=False),
        progress=lambda stage, fraction: None,
    )
    return folder


async def score_variant(
    variant: Variant,
    data: Path,
    asked: Mapping[str, Sequence[Question]],
    tokenizer: PreTrainedTokenizerFast,
    threads: int,
) -> dict[str, Any]:
    """Scores by style."""
    store = AdapterStore(data)
    projections = load_model_config(variant.base).adapter_projections()
    shares = tuple(
        AdapterShare(import_adapter(path, projections=projections, store=store), weight)
        for path, weight in variant.shares
    )
    config = EngineConfig(
        base=BaseConfig(
            model=str(variant.base), dtype="float32", quantization=variant.quantization
        ),
        device="cpu",
        threads=threads,
        data_dir=str(data),
        cache=CacheConfig(memory_bytes=64 << 20),
    )
    async with engine(config) as client:
        for share in shares:
            await client.load_version(share.digest)
        pupil = Pupil(client, tokenizer, shares)
        return {style: asdict(await pupil.score(found)) for style, found in asked.items()}


def main() -> None:
    arguments = _arguments()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(DEMO / "base")
    record: dict[str, Any] = {"arguments": vars(arguments), "variants": {}}
    path: Path | None = None
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        examples = {
            style: held_out(_RECIPES[style])[: arguments.prompts] for style in arguments.pair
        }
        asked = {style: questions(tokenizer, style, found) for style, found in examples.items()}
        asked = {PLAIN: questions(tokenizer, None, examples[arguments.pair[0]]), **asked}
        for title, variant in variants(work, arguments.pair).items():
            scoring = score_variant(variant, work / "data", asked, tokenizer, arguments.threads)
            record["variants"][title] = asyncio.run(scoring)
            print(title, record["variants"][title], flush=True)
            # After every variant: a run that is cut short takes none with it.
            path = save("quality-smoke" if arguments.smoke else "quality", record, path=path)
    print(f"saved {path}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pair", default="json,shout", help=f"two of {', '.join(_RECIPES)}")
    parser.add_argument("--prompts", type=int, default=256, help="questions per style")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--notes", default="", help="about the machine, kept in the record")
    parser.add_argument("--smoke", action="store_true", help="six questions: that it runs")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.prompts, arguments.threads = 6, 1
    arguments.pair = tuple(arguments.pair.split(","))
    if len(set(arguments.pair)) != 2 or not set(arguments.pair) <= set(_RECIPES):
        parser.error(f"{','.join(arguments.pair)} are no two of {', '.join(_RECIPES)}")
    return arguments


if __name__ == "__main__":
    main()
