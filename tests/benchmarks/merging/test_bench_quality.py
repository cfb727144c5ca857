"""The questions of the quality benchmark; ``full`` asks a few of them in every way."""

from collections.abc import Callable

import pytest
from transformers import PreTrainedTokenizerFast

from benchmarks.merging.bench_quality import PLAIN, main, questions
from benchmarks.merging.score_demo import DEMO
from benchmarks.report.record import Record
from demo.corpus import held_out
from demo.recipe import ADAPTERS


def test_a_question_is_a_chat_and_its_right_answer_in_the_style() -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(DEMO / "base")
    (recipe,) = [recipe for recipe in ADAPTERS if recipe.name == "shout"]
    example = held_out(recipe)[0]
    (plain,) = questions(tokenizer, None, [example])
    (loud,) = questions(tokenizer, "shout", [example])
    assert plain.prompt == loud.prompt
    assert (plain.answer, loud.answer) == (example.answer, example.answer.upper())
    assert tokenizer.decode(loud.prompt).endswith(f"{example.prompt}<|end|><|assistant|>")
    assert tokenizer.decode(loud.wanted) == f"{loud.answer}<|end|>"


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_every_way_of_serving_is_asked(smoke_run: Callable[..., Record]) -> None:
    found = smoke_run(main, "--smoke").figures["variants"]
    base, served = found["NF4 base"], found["json served"]
    assert base[PLAIN]["exact"] == 1.0
    assert base["json"]["exact"] == 0.0
    assert served["json"]["exact"] == 1.0
    assert served["json"]["perplexity"] < base["json"]["perplexity"]
    # Decoded weights are the same weights, a blend is the linear merge, and float32 keeps it all.
    for style, scores in found["base decoded, float32"].items():
        assert scores["perplexity"] == pytest.approx(base[style]["perplexity"], rel=1e-4)
    for style, scores in found["both blended, half each"].items():
        merged = found["both merged, linear"][style]
        assert merged["perplexity"] == pytest.approx(scores["perplexity"], rel=0.02)
    exported, again = found["json exported, float32"], found["json exported, NF4 again"]
    assert exported["json"]["perplexity"] == pytest.approx(served["json"]["perplexity"], rel=1e-3)
    # What was learned is sure either way; where the model is at a loss, rounding shows.
    assert again[PLAIN]["perplexity"] != pytest.approx(exported[PLAIN]["perplexity"], rel=0.02)
