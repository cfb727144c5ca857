"""litellm against a server: ``python -m tests.clients.ask_litellm URL KEY``."""

import os
import sys
from functools import partial
from typing import Any

# The price list would be fetched at the import.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm  # pyright: ignore[reportMissingImports]

from .checking import expect, report

MESSAGES = [{"role": "user", "content": "the quick fox"}]


def main() -> None:
    url, key = sys.argv[1:]
    known = {"api_base": f"{url}/v1", "api_key": key, "num_retries": 0}
    ask = partial(litellm.completion, messages=MESSAGES, max_tokens=8, temperature=0, **known)
    write = partial(litellm.text_completion, prompt="the quick", max_tokens=8, **known)
    report(
        {
            "hosted_vllm/ chat": partial(_chat, partial(ask, model="hosted_vllm/rank-3")),
            "openai/ chat": partial(_chat, partial(ask, model="openai/rank-3")),
            "chat, streamed with usage": partial(_stream, partial(ask, model="hosted_vllm/rank-1")),
            "chat with n and logprobs": partial(_choices, partial(ask, model="hosted_vllm/base")),
            "chat with a JSON schema": partial(_schema, partial(ask, model="hosted_vllm/base")),
            "text-completion-openai/": partial(
                _completion, partial(write, model="text-completion-openai/rank-1")
            ),
            "embeddings": partial(_embed, known),
            "an unknown model": partial(_unknown, partial(ask, model="hosted_vllm/nobody")),
            "a field out of bounds": partial(_bad, partial(ask, model="hosted_vllm/base")),
        }
    )


def _chat(ask: Any) -> None:
    answer = ask()
    expect(is_true=bool(answer.choices[0].message.content), what="the answer is empty")
    expect(is_true=answer.usage.completion_tokens == 8, what=f"usage is {answer.usage}")


def _stream(ask: Any) -> None:
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    whole = ask().choices[0].message.content
    expect(is_true=text == whole, what=f"streamed {text!r}, whole {whole!r}")
    usage = [chunk.usage for chunk in chunks if getattr(chunk, "usage", None)]
    expect(is_true=usage[-1].completion_tokens == 8, what=f"usage is {usage}")


def _choices(ask: Any) -> None:
    answer = ask(n=2, logprobs=True, top_logprobs=2)
    expect(is_true=len(answer.choices) == 2, what=f"{len(answer.choices)} choices")
    entries = answer.choices[0].logprobs.content
    expect(is_true=len(entries) == 8, what=f"{len(entries)} entries")


def _schema(ask: Any) -> None:
    schema = {"name": "even", "schema": {"enum": ["even", "odd"]}, "strict": True}
    form = {"type": "json_schema", "json_schema": schema}
    text = ask(response_format=form).choices[0].message.content
    expect(is_true=text in ('"even"', '"odd"'), what=f"answered {text!r}")


def _completion(write: Any) -> None:
    answer = write()
    expect(is_true=bool(answer.choices[0].text), what="the answer is empty")
    expect(is_true=answer.usage.completion_tokens == 8, what=f"usage is {answer.usage}")


def _embed(known: dict[str, Any]) -> None:
    answer = litellm.embedding(model="hosted_vllm/base", input=["the fox", "the dog"], **known)
    expect(is_true=len(answer.data) == 2, what=f"{len(answer.data)} vectors")


def _unknown(ask: Any) -> None:
    try:
        ask()
    except litellm.NotFoundError:
        return
    raise AssertionError("an unknown model answered")


def _bad(ask: Any) -> None:
    try:
        ask(top_p=7)
    except litellm.BadRequestError as error:
        expect(is_true="top_p" in str(error), what=str(error))
    else:
        raise AssertionError("top_p 7 was taken")


if __name__ == "__main__":
    main()
