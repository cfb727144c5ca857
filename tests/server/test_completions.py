"""POST /v1/completions in process, against a scripted engine."""

import pytest

from multiflora.engine.request import AdapterShare, FinishReason

pytestmark = pytest.mark.anyio


async def test_an_answer_has_text_reason_and_usage(complete, engine, tokenizer):
    response = await complete()

    answer = response.json()
    assert response.status_code == 200
    assert answer["object"] == "text_completion"
    assert answer["model"] == "base"
    assert answer["choices"] == [
        {"index": 0, "text": "hello world", "logprobs": None, "finish_reason": "stop"}
    ]
    num_tokens = len(tokenizer.encode("hello world"))
    assert answer["usage"] == {
        "prompt_tokens": len(tokenizer.encode("hi")),
        "completion_tokens": num_tokens,
        "total_tokens": len(tokenizer.encode("hi")) + num_tokens,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


async def test_sixteen_tokens_are_the_default(complete, engine):
    engine.text = "hello world " * 20

    choice = (await complete()).json()["choices"][0]

    assert choice["finish_reason"] == "length"
    assert engine.requests[0].sampling.max_tokens == 16


async def test_the_default_is_cut_to_the_room_that_is_left(complete, engine):
    await complete(prompt=[5] * 250)

    assert engine.requests[0].sampling.max_tokens == 6


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("hello", ["hello"]),
        (["hello", "world"], ["hello", "world"]),
        ([7, 8, 9], [(7, 8, 9)]),
        ([[7], [8, 9]], [(7,), (8, 9)]),
        (["hello", [7]], ["hello", (7,)]),
    ],
    ids=["text", "texts", "tokens", "token_lists", "mixed"],
)
async def test_all_forms_of_a_prompt(complete, engine, tokenizer, prompt, expected):
    answer = (await complete(prompt=prompt)).json()

    wanted = [tuple(tokenizer.encode(p)) if isinstance(p, str) else p for p in expected]
    assert sorted(request.prompt for request in engine.requests) == sorted(wanted)
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(expected)))


async def test_choices_have_seeds_of_their_own(complete, engine):
    await complete(n=3, seed=11)
    first = {request.id[-1]: request.sampling.seed for request in engine.requests}
    engine.requests.clear()
    await complete(n=3, seed=11)

    assert first["0"] == 11
    assert len(set(first.values())) == 3
    assert {r.id[-1]: r.sampling.seed for r in engine.requests} == first


async def test_prompts_of_a_list_get_the_seed_they_would_get_alone(complete, engine):
    await complete(prompt=["a", "b"], seed=5)

    assert [request.sampling.seed for request in engine.requests] == [5, 5]


async def test_without_a_seed_each_request_draws_one(complete, engine):
    await complete()
    await complete()

    assert engine.requests[0].sampling.seed != engine.requests[1].sampling.seed


async def test_usage_counts_a_prompt_once_for_all_its_choices(complete, tokenizer):
    usage = (await complete(n=2)).json()["usage"]

    assert usage["prompt_tokens"] == len(tokenizer.encode("hi"))
    assert usage["completion_tokens"] == 2 * len(tokenizer.encode("hello world"))
    assert usage["prompt_tokens_details"] == {"cached_tokens": 2}


async def test_sampling_fields_reach_the_engine(complete, engine):
    await complete(
        temperature=0,
        top_p=0.5,
        top_k=-1,
        min_p=0.1,
        repetition_penalty=1.1,
        frequency_penalty=0.2,
        presence_penalty=0.3,
        stop_token_ids=[7],
        max_tokens=9,
        min_tokens=2,
        ignore_eos=True,
        cache_salt="tenant",
        logit_bias={"5": -1.5, "6": 100},
        allowed_token_ids=[8, 9],
        bad_words=["hello"],
        priority=3,
    )

    sampling = engine.requests[0].sampling
    assert sampling.is_greedy
    assert (sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0, 0.1)
    assert sampling.repetition_penalty == 1.1
    assert (sampling.frequency_penalty, sampling.presence_penalty) == (0.2, 0.3)
    assert (sampling.max_tokens, sampling.min_tokens) == (9, 2)
    assert sampling.stop_token_ids == (7,)
    assert sampling.ignore_eos
    assert sampling.logit_bias == ((5, -1.5), (6, 100))
    assert sampling.allowed_token_ids == (8, 9)
    encode = engine.tokenizer.continuation
    assert sampling.bad_words == (tuple(encode("hello")), tuple(encode(" hello")))
    assert (sampling.logprobs, sampling.prompt_logprobs) == (None, None)
    assert (engine.requests[0].cache_salt, engine.requests[0].priority) == ("tenant", 3)


async def test_an_adapter_is_asked_for_by_digest_and_named_in_a_header(complete, engine):
    response = await complete(model="loud:one")

    assert engine.requests[0].adapters == (AdapterShare("b" * 64),)
    assert response.headers["x-adapter-version"] == "b" * 64
    assert response.json()["model"] == "loud:one"


async def test_fingerprints_tell_versions_apart(complete):
    answers = [(await complete(model=name)).json() for name in ("base", "json", "base")]

    base, json, again = (answer["system_fingerprint"] for answer in answers)
    assert base == again != json


async def test_a_stop_string_ends_the_answer_and_the_engine_request(complete, engine):
    choice = (await complete(stop=["o w"])).json()["choices"][0]

    assert choice["text"] == "hell"
    assert choice["finish_reason"] == "stop"
    assert engine.closed_early == [engine.requests[0].id]


async def test_special_tokens_are_not_part_of_the_text(complete, engine, tokenizer):
    end = tokenizer.token_id("</s>")
    tokens = [*tokenizer.encode("hello"), end]
    engine.script = lambda r: [engine.event(r, tokens, reason=FinishReason.STOP)]

    answer = (await complete()).json()

    assert answer["choices"][0]["text"] == "hello"
    assert answer["usage"]["completion_tokens"] == len(tokens)


async def test_a_stop_token_that_ended_the_answer_is_not_part_of_it(complete, engine, tokenizer):
    tokens = tokenizer.encode("hello!")
    engine.script = lambda r: [engine.event(r, tokens, reason=FinishReason.STOP)]

    answer = (await complete(stop_token_ids=tokens[-1:])).json()

    assert answer["choices"][0]["text"] == "hello"


@pytest.mark.parametrize(
    "neutral",
    [
        {"logprobs": None, "suffix": None},
        {"echo": False, "n": 2, "best_of": 2, "logit_bias": {}},
        {"user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"},
    ],
    ids=["null", "off", "ignored"],
)
async def test_fields_that_ask_for_nothing_are_accepted(complete, neutral):
    assert (await complete(**neutral)).status_code == 200


async def test_only_the_last_tokens_of_a_prompt_are_kept_on_request(complete, engine):
    await complete(prompt=[5, 6, 7], truncate_prompt_tokens=2)

    assert engine.requests[0].prompt == (6, 7)


async def test_special_tokens_and_stop_strings_are_kept_on_request(complete, engine, tokenizer):
    tokens = [*tokenizer.encode("a"), tokenizer.token_id("<|user|>"), *tokenizer.encode("b.c")]
    engine.script = lambda r: [engine.event(r, tokens, reason=FinishReason.LENGTH)]
    fields = {"skip_special_tokens": False, "include_stop_str_in_output": True, "stop": "."}

    assert (await complete(**fields)).json()["choices"][0]["text"] == "a<|user|>b."
