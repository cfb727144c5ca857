"""Constrained answers are what the grammar says, whoever shares their batch."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multiflora.engine.active_request import ActiveRequest
from multiflora.engine.constraint import Constraint
from multiflora.engine.constraint_desk import ConstraintDesk
from multiflora.engine.messages import Abort, Submit
from multiflora.engine.request import AdapterShare, FinishReason, GenerationRequest, SamplingParams
from multiflora.engine.sampler import sample
from multiflora.engine.text.grammar import (
    choice_grammar,
    json_grammar,
    problem_of,
    regex_grammar,
    text_grammar,
)
from multiflora.engine.text.tokenizer import Tokenizer, load_tokenizer

PROMPT = list(range(20, 40))
END = 1
SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad"]}, "count": {"type": "integer", "maximum": 99}},
    "required": ["mood", "count"],
    "additionalProperties": False,
}


@pytest.fixture
def tokenizer(model_folder: Callable[[str], Path]) -> Tokenizer:
    return load_tokenizer(model_folder("llama"))


def answer_of(bench: Any, tokenizer: Tokenizer, request_id: str) -> str:
    assert bench.reasons[request_id] is FinishReason.STOP, bench.errors.get(request_id)
    tokens = bench.answers[request_id]
    assert tokens.pop() == END
    return tokenizer.decode(tokens, skip_special_tokens=False)


def constrained(bench: Any, name: str | None, grammar: str, **settings: Any) -> Any:
    settings = {"ignore_eos": False, "max_tokens": 120, "grammar": grammar, **settings}
    return bench.request(name, PROMPT, **settings)


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_every_kind_of_grammar_is_followed_in_one_batch(
    temperature: float, make_bench: Callable[..., Any], tokenizer: Tokenizer
) -> None:
    bench = make_bench()
    grammars = {
        "json": json_grammar(SCHEMA),
        "regex": regex_grammar("[a-c]{3}-[0-9]{2}"),
        "choice": choice_grammar(["yes", "no", "per\u00f2"]),
        "lark": text_grammar('start: "<" /[xy]{1,4}/ ">"'),
        "gbnf": text_grammar('root ::= "a" ("b" | "c") "d"'),
    }
    requests = [
        constrained(bench, name, grammar, id=f"{kind}-{name}", temperature=temperature, seed=seed)
        for seed, (kind, grammar) in enumerate(grammars.items())
        for name in (None, "rank-3")
    ]
    free = bench.request(None, PROMPT, id="free", temperature=temperature, max_tokens=20)
    bench.run([*requests, free])
    for name in (None, "rank-3"):
        jsonschema.validate(json.loads(answer_of(bench, tokenizer, f"json-{name}")), SCHEMA)
        assert re.fullmatch("[a-c]{3}-[0-9]{2}", answer_of(bench, tokenizer, f"regex-{name}"))
        assert answer_of(bench, tokenizer, f"choice-{name}") in ("yes", "no", "per\u00f2")
        assert re.fullmatch("<[xy]{1,4}>", answer_of(bench, tokenizer, f"lark-{name}"))
        assert answer_of(bench, tokenizer, f"gbnf-{name}") in ("abd", "acd")
    alone = make_bench()
    alone.run([free])
    assert alone.answers["free"] == bench.answers["free"]


def test_a_blend_follows_a_grammar(make_bench: Callable[..., Any], tokenizer: Tokenizer) -> None:
    bench = make_bench()
    shares = tuple(AdapterShare(bench.digests[name], 0.5) for name in ("rank-1", "rank-3"))
    request = constrained(bench, None, json_grammar(SCHEMA), id="r")
    plain = {name: getattr(request, name) for name in ("id", "prompt", "sampling")}
    bench.run([GenerationRequest(**plain, adapters=shares)])
    jsonschema.validate(json.loads(answer_of(bench, tokenizer, "r")), SCHEMA)


def test_a_broken_grammar_fails_alone(make_bench: Callable[..., Any]) -> None:
    bench = make_bench()
    bench.run([constrained(bench, None, "start: nobody", id="broken"), bench.request(None, PROMPT)])
    assert bench.errors["broken"].error_code == "invalid_grammar"
    assert "nobody" in (bench.errors["broken"].error or "")


def test_an_abort_before_the_grammar_is_compiled(make_bench: Callable[..., Any]) -> None:
    bench = make_bench()
    bench.send(Submit(constrained(bench, None, json_grammar(SCHEMA), id="r")), Abort("r"))
    bench.run([bench.request(None, PROMPT)])
    assert bench.reasons["r"] is FinishReason.ABORT
    assert not bench.loop._constraints.is_busy


def test_a_base_without_an_end_token_refuses(tmp_path: Path) -> None:
    desk = ConstraintDesk(tmp_path, vocab_size=9, eos_token_ids=())
    params = SamplingParams(max_tokens=1, grammar="start: /a/")
    desk.start(GenerationRequest(id="r", prompt=(1,), sampling=params))
    while not (found := desk.poll()):
        pass
    assert "no token that ends" in str(found[0][1])
    desk.close()


# What a random model would ramble on about is bounded, so that every answer ends.
SCALARS = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(
        lambda a, b: {"type": "integer", "minimum": min(a, b), "maximum": max(a, b)},
        st.integers(-999, 999),
        st.integers(-999, 999),
    ),
    st.builds(lambda n: {"type": "string", "maxLength": n}, st.integers(0, 6)),
    st.just({"type": "string", "pattern": "^[a-f]{2,4}$"}),
    st.lists(st.text(max_size=5), min_size=1, max_size=4, unique=True).map(lambda v: {"enum": v}),
    st.just({"const": 7}),
)


def objects(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = st.text(min_size=1, max_size=5)

    def build(properties: dict[str, Any], num_required: int) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties)[:num_required],
            "additionalProperties": False,
        }

    return st.builds(build, st.dictionaries(names, children, max_size=3), st.integers(0, 3))


def arrays(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(
        lambda items, least: {"type": "array", "items": items, "minItems": least, "maxItems": 3},
        children,
        st.integers(0, 3),
    )


SCHEMAS = st.recursive(
    SCALARS,
    lambda children: st.one_of(
        objects(children),
        arrays(children),
        st.lists(children, min_size=1, max_size=2).map(lambda some: {"anyOf": some}),
    ),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def desk(model_folder: Callable[[str], Path]) -> Any:
    made = ConstraintDesk(model_folder("llama"), vocab_size=384, eos_token_ids=[END])
    yield made
    made.close()


@settings(max_examples=60)
@given(schema=SCHEMAS, seed=st.integers(0, 2**31))
def test_every_sampled_answer_validates(desk: ConstraintDesk, schema: Any, seed: int) -> None:
    grammar = json_grammar(schema)
    assert problem_of(grammar) == ""
    params = SamplingParams(max_tokens=400, grammar=grammar, seed=seed, stop_token_ids=(END,))
    active = ActiveRequest(GenerationRequest(id="r", prompt=(5,), sampling=params), 0)
    active.constraint = desk._compile(grammar)
    noise = torch.Generator().manual_seed(seed)
    while active.tokens[-1] != END:
        assert active.num_generated < 400
        (drawn,) = sample(2 * torch.randn(1, 384, generator=noise), [active])
        assert drawn.token is not None, drawn.error
        active.tokens.append(drawn.token)
        active.constraint.advance(drawn.token)
    text = load(desk).decode(active.tokens[1:-1], skip_special_tokens=False)
    jsonschema.validate(json.loads(text), schema)
    assert not re.search(r"\s", re.sub(r'"(\\.|[^"\\])*"', "", text)), (
        "white space between the parts"
    )


def load(desk: ConstraintDesk) -> Tokenizer:
    return load_tokenizer(desk._folder)


def test_a_constraint_says_what_went_wrong(desk: ConstraintDesk) -> None:
    constraint = desk._compile(regex_grammar("ab"))
    assert isinstance(constraint, Constraint)
    with pytest.raises(ArithmeticError):
        constraint.advance(END)
    assert constraint.problem
