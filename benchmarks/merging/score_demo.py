"""What is left of both parents' skills in a merge of two demo adapters, over t.

Each merge is asked both parents' held-out questions. ``exact`` counts answers that are right in the
parent's style, to the letter; since styles exclude each other, no merge can be right in both at
once. ``correct`` counts answers that hold the right word in whatever style. ``kept`` is
(merge - base) / (parent - base) of ``exact``.

    python -m benchmarks.merging.score_demo [--pairs json+shout,formal+pirate] [--smoke]
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import torch
from peft import PeftModel
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from demo.corpus import held_out
from demo.generate import answers
from demo.quantize import read_base
from demo.recipe import ADAPTERS, AdapterRecipe
from demo.score import exact_match
from demo.styles import styled
from multiflora.adapters.merging.depth import Curve
from multiflora.adapters.merging.merge import merge_folders
from multiflora.adapters.merging.recipe import Recipe

from ..harness import RESULTS, save

DEMO: Final = Path(__file__).resolve().parent.parent.parent / "engine" / "demo"
METHODS: Final = ("linear", "slerp")
_RECIPES: Final = {recipe.name: recipe for recipe in ADAPTERS}


@dataclass(frozen=True, slots=True)
class Score:
    """Shares of one parent's held-out questions."""

    exact: float
    correct: float


class Judge:
    """Asks the base, bare or with an adapter, a parent's held-out questions."""

    def __init__(self, num_prompts: int) -> None:
        self._base: LlamaForCausalLM = read_base(DEMO / "base")
        self._tokenizer = PreTrainedTokenizerFast.from_pretrained(DEMO / "base")
        self._num_prompts = num_prompts

    def score(self, adapter: Path | None, names: Sequence[str]) -> dict[str, Score]:
        """On the questions of each parent in ``names``."""
        if adapter is None:
            return {name: self._ask(self._base, _RECIPES[name]) for name in names}
        model = PeftModel.from_pretrained(self._base, str(adapter)).eval()
        try:
            return {name: self._ask(model, _RECIPES[name]) for name in names}
        finally:
            model.unload()

    def _ask(self, model: LlamaForCausalLM | PeftModel, recipe: AdapterRecipe) -> Score:
        asked = held_out(recipe)[: self._num_prompts]
        given = answers(model, self._tokenizer, [example.prompt for example in asked])
        correct = sum(
            words(example.answer) <= words(text) for example, text in zip(asked, given, strict=True)
        )
        wanted = [styled(example, recipe.style) for example in asked]
        return Score(exact_match(given, wanted), round(correct / len(asked), 4))


def words(text: str) -> set[str]:
    """All words of the text in small letters, without the punctuation of any style."""
    return set("".join(c if c.isalnum() else " " for c in text.lower()).split())


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    judge = Judge(arguments.prompts)
    names = sorted({name for pair in arguments.pairs for name in pair})
    base = judge.score(None, names)
    alone = {name: judge.score(DEMO / "adapters" / name, names) for name in names}
    pairs = [
        _score_pair(judge, pair, arguments.t, base=base, alone=alone) for pair in arguments.pairs
    ]
    record = {
        "num_prompts": arguments.prompts,
        "base": _plain(base),
        "parents": {name: _plain(scores) for name, scores in alone.items()},
        "pairs": pairs,
    }
    path = save("merge-skills-smoke" if arguments.smoke else "merge-skills", record)
    picture = path.with_suffix(".png")
    _draw(pairs, picture)
    print(f"{_table(pairs)}\n\nwrote {path} and {picture.relative_to(RESULTS.parent)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = ",".join("+".join(pair) for pair in combinations(_RECIPES, 2))
    parser.add_argument("--pairs", default=every, help=f"default: {every}")
    parser.add_argument("--t", default="0.25,0.5,0.75", help="default: 0.25,0.5,0.75")
    parser.add_argument("--prompts", type=int, default=256, help="questions per parent")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--smoke", action="store_true", help="two pairs, one t, 8 questions")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.pairs, arguments.t, arguments.prompts = "json+shout,formal+pirate", "0.5", 8
    arguments.pairs = [tuple(pair.split("+")) for pair in arguments.pairs.split(",")]
    for pair in arguments.pairs:
        if len(pair) != 2 or not set(pair) <= set(_RECIPES):
            parser.error(f"{'+'.join(pair)} is no pair of {', '.join(_RECIPES)}")
    arguments.t = [float(t) for t in arguments.t.split(",")]
    return arguments


def _score_pair(
    judge: Judge,
    pair: tuple[str, str],
    values: Sequence[float],
    *,
    base: Mapping[str, Score],
    alone: Mapping[str, Mapping[str, Score]],
) -> dict[str, Any]:
    points = {method: [_end(pair, alone, 0.0)] for method in METHODS}
    for method in METHODS:
        for t in values:
            merged = _score_merge(judge, pair, method, t)
            points[method].append({"t": t, **_plain(merged)})
        points[method].append(_end(pair, alone, 1.0))
    for method in METHODS:
        for point in points[method]:
            point["kept"] = {
                name: _kept(point[name]["exact"], base[name].exact, alone[name][name].exact)
                for name in pair
            }
    return {"parents": list(pair), "points": points}


def _score_merge(judge: Judge, pair: tuple[str, str], method: str, t: float) -> dict[str, Score]:
    settings: dict[str, Any] = {"t": Curve((t,))} if method == "slerp" else {"weights": (1 - t, t)}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "merged"
        recipe = Recipe(num_parents=2, method=method, **settings)
        merge_folders([DEMO / "adapters" / name for name in pair], recipe).write(out)
        scores = judge.score(out, pair)
    print(f"{'+'.join(pair)} {method} {t}: {scores}", flush=True)
    return scores


def _end(
    pair: tuple[str, str], alone: Mapping[str, Mapping[str, Score]], t: float
) -> dict[str, Any]:
    """At both ends a merge is its parent (tests/adapters/merging/test_merge.py)."""
    parent = pair[round(t)]
    return {"t": t, **_plain({name: alone[parent][name] for name in pair})}


def _kept(merged: float, base: float, parent: float) -> float | None:
    return round((merged - base) / (parent - base), 4) if parent > base else None


def _plain(scores: Mapping[str, Score]) -> dict[str, Any]:
    return {name: asdict(score) for name, score in scores.items()}


def _table(pairs: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| merge | t | first exact | second exact | first correct | second correct |"]
    lines.append("| --- | --: | --: | --: | --: | --: |")
    for pair in pairs:
        one, other = pair["parents"]
        for method, points in pair["points"].items():
            lines += [
                f"| {one}+{other} {method} | {p['t']} | {p[one]['exact']:.2f} | "
                f"{p[other]['exact']:.2f} | {p[one]['correct']:.2f} | {p[other]['correct']:.2f} |"
                for p in points
            ]
    return "\n".join(lines)


def _draw(pairs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """One panel per pair: both parents' skills on the way from one to the other."""
    from matplotlib.figure import Figure

    num_columns = min(3, len(pairs))
    num_rows = -(-len(pairs) // num_columns)
    figure = Figure(figsize=(4.2 * num_columns, 3.2 * num_rows + 0.6), layout="constrained")
    panels = figure.subplots(num_rows, num_columns, sharex=True, sharey=True, squeeze=False)
    for axes in panels.flat[len(pairs) :]:
        axes.set_visible(False)
    for axes, pair in zip(panels.flat, pairs, strict=False):
        for name, color in zip(pair["parents"], ("tab:blue", "tab:orange"), strict=True):
            for method, style in zip(METHODS, ("s--", "o-"), strict=True):
                points = pair["points"][method]
                values = [point[name]["exact"] for point in points]
                label = f"{name}, {method}"
                axes.plot([p["t"] for p in points], values, style, color=color, label=label)
        axes.set_title(" to ".join(pair["parents"]), fontsize=10)
        axes.set_ylim(-0.03, 1.03)
        axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
    figure.supxlabel("t", fontsize=10)
    figure.supylabel("exact match on the parent's held-out questions", fontsize=10)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
