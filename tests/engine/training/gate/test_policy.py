"""A policy is whole, has a digest, and refuses what cannot be checked."""

import json
from typing import Any

import msgspec
import pytest

from multiflora.engine.training.gate.policy import GatePolicy, Probe
from multiflora.engine.training.gate.text_rule import check_pattern, check_schema

POLICY = GatePolicy(
    suite=(Probe(prompt="3 + 4?", exact="7"),),
    answer_format="schema",
    answer_schema={"type": "object"},
)


def test_a_stored_policy_is_read_back_and_not_if_it_was_changed() -> None:
    document = json.loads(json.dumps(POLICY.document()))
    assert msgspec.convert(document, GatePolicy).digest == POLICY.digest
    for change in ({"max_divergence": 0.6}, {"suite": []}, {"sha256": "0" * 64}):
        with pytest.raises(msgspec.ValidationError, match="policy was changed"):
            msgspec.convert({**document, **change}, GatePolicy)


def test_the_digest_is_of_every_setting() -> None:
    changes: list[dict[str, Any]] = [
        {"confidence": 0.9},
        {"judge": "other"},
        {"required": ("suite",)},
        {"facts": (Probe(prompt="x", pattern="y"),)},
    ]
    digests = {GatePolicy(**change).digest for change in [{}, *changes]}
    assert len(digests) == len(changes) + 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"version": 2}, "version is 2; it must be 1"),
        ({"confidence": 0.2}, "confidence is 0.2"),
        ({"max_divergence": float("nan")}, "max_divergence is nan"),
        ({"min_suite_rate": 1.5}, "min_suite_rate is 1.5"),
        ({"required": ("speed",)}, "required is speed; it must be one of finite"),
        ({"answer_format": "schema"}, "answer_schema is None"),
        ({"answer_pattern": "x"}, "answer_pattern is x"),
        ({"answer_format": "pattern", "answer_pattern": "("}, "not valid"),
        ({"answer_format": "schema", "answer_schema": {"type": "wrong"}}, "not valid"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GatePolicy(**settings)


@pytest.mark.parametrize("given", [{}, {"exact": "a", "pattern": "a"}, {"pattern": "["}])
def test_a_probe_has_one_right_answer(given: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"exact or pattern|not valid"):
        Probe(prompt="x", **given)


def test_a_pattern_takes_linear_time() -> None:
    assert not check_pattern("^(a+)+$")("a" * 50_000 + "b")
    assert check_pattern("b$")("a" * 50_000 + "b")


@pytest.mark.parametrize("reference", ["https://example.org/s.json", "file:///etc/passwd"])
def test_a_schema_fetches_nothing(reference: str) -> None:
    with pytest.raises(ValueError, match=r"not fetched|not valid"):
        check_schema({"$ref": reference})


def test_a_text_fits_a_schema_or_not() -> None:
    fits = check_schema({"type": "object", "properties": {"a": {"type": "integer"}}})
    assert fits('{"a": 1}')
    assert not fits('{"a": "b"}')
    assert not fits('{"a": 1')
