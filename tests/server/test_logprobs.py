"""Scores, echoes and token ids, whole and streamed."""

import pytest

from multiflora.engine.request import FinishReason

pytestmark = pytest.mark.anyio

CHECK = "\u2713"  # three bytes, none of which is a token with another in this vocabulary


def joined(events, *path):
    """The lists at ``path`` in all choices of a stream, one after the other."""
    found = []
    for event in events[:-1]:
        for choice in event["choices"]:
            for name in path:
                choice = choice and choice.get(name)
            found += choice or []
    return found


async def test_a_completion_lists_the_tokens_beside_the_text(complete, engine):
    answer = (await complete(logprobs=2)).json()["choices"][0]

    logprobs = answer["logprobs"]
    tokens = engine.tokenizer.encode("hello world")
    assert "".join(logprobs["tokens"]) == answer["text"] == "hello world"
    assert logprobs["token_logprobs"] == [engine.score(token, 0).logprob for token in tokens]
    assert [len(top) for top in logprobs["top_logprobs"]] == [3] * len(tokens)
    starts = [len("".join(logprobs["tokens"][:place])) for place in range(len(tokens))]
    assert logprobs["text_offset"] == starts


@pytest.mark.parametrize("prompt", ["hi there", [40, 41, 42]], ids=["text", "ids"])
@pytest.mark.parametrize("max_tokens", [0, 1, 2])
async def test_an_echo_begins_with_the_prompt_and_its_scores(
    complete, engine, tokenizer, prompt, max_tokens
):
    response = await complete(prompt=prompt, echo=True, logprobs=1, max_tokens=max_tokens)

    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    choice = response.json()["choices"][0]
    logprobs = choice["logprobs"]
    assert choice["text"].startswith(tokenizer.decode(ids))
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is None
    assert logprobs["token_logprobs"][1 : len(ids)] == [
        engine.score(token, 0).logprob for token in ids[1:]
    ]
    assert len(logprobs["tokens"]) == len(ids) + max_tokens
    assert response.json()["usage"]["completion_tokens"] == max_tokens


async def test_an_echo_without_scores_is_text(complete, engine):
    choice = (await complete(echo=True)).json()["choices"][0]

    assert choice["text"] == "hihello world"
    assert choice["logprobs"] is None
    assert engine.requests[0].sampling.prompt_logprobs is None


async def test_a_stream_has_the_same_scores_as_the_whole(complete, read_events):
    fields = {"prompt": "hi there", "echo": True, "logprobs": 2, "max_tokens": 4}
    whole = (await complete(**fields)).json()["choices"][0]["logprobs"]

    events = read_events(await complete(**fields, stream=True))

    for name, values in whole.items():
        assert joined(events, "logprobs", name) == values


async def test_chat_scores_have_bytes(chat, engine, tokenizer, read_events):
    tokens = tokenizer.encode(CHECK)
    engine.script = lambda r: [
        *(engine.event(r, [token]) for token in tokens),
        engine.event(r, [], reason=FinishReason.LENGTH),
    ]
    fields = {"logprobs": True, "top_logprobs": 1}

    content = (await chat(**fields)).json()["choices"][0]["logprobs"]["content"]

    assert bytes(byte for entry in content for byte in entry["bytes"]).decode() == CHECK
    assert content[0]["token"].startswith("bytes:")
    assert [entry["top_logprobs"][0]["logprob"] for entry in content] == [-1.0] * len(tokens)
    assert joined(read_events(await chat(**fields, stream=True)), "logprobs", "content") == content


async def test_tokens_behind_a_stop_string_have_no_scores(complete, engine, tokenizer):
    tokens = [token for char in "ab.cd" for token in tokenizer.encode(char)]
    engine.script = lambda r: [engine.event(r, tokens)]

    answer = (await complete(stop=".", logprobs=0, return_token_ids=True)).json()

    choice = answer["choices"][0]
    assert choice["logprobs"]["tokens"] == ["a", "b", "."]
    assert choice["token_ids"] == tokens[:3]
    assert answer["usage"]["completion_tokens"] == 3


async def test_token_ids_are_returned_on_request(complete, chat, engine, read_events):
    tokens = engine.tokenizer.encode("hello world")

    whole = (await complete(prompt=[[5], [6, 7]], return_token_ids=True)).json()["choices"]
    events = read_events(await complete(prompt=[5], return_token_ids=True, stream=True))
    answer = (await chat(return_token_ids=True)).json()

    assert [choice["token_ids"] for choice in whole] == [tokens, tokens]
    assert [choice["prompt_token_ids"] for choice in whole] == [[5], [6, 7]]
    assert joined(events, "token_ids") == tokens
    assert joined(events, "prompt_token_ids") == [5]
    assert answer["prompt_token_ids"] == list(engine.requests[-1].prompt)
    assert answer["choices"][0]["token_ids"] == tokens


async def test_settings_that_leave_no_token_are_the_clients_fault(complete, engine):
    engine.script = lambda r: [
        engine.event(r, [], reason=FinishReason.ERROR, error="none left", code="no_token_left")
    ]

    response = await complete(bad_words=["a"])

    assert response.status_code == 400
    assert response.json()["error"]["code"] == "no_token_left"
