"""langchain-openai against a server: ``python -m tests.clients.ask_langchain URL KEY``."""

import sys
from functools import partial
from typing import Any

import openai
from langchain_openai import (  # pyright: ignore[reportMissingImports]
    ChatOpenAI,
    OpenAI,
    OpenAIEmbeddings,
)

from .checking import expect, report

SCHEMA = {
    "title": "Verdict",
    "description": "what the model thinks",
    "type": "object",
    "properties": {"is_even": {"type": "boolean"}},
    "required": ["is_even"],
    "additionalProperties": False,
}


def main() -> None:
    url, key = sys.argv[1:]
    known = {"base_url": f"{url}/v1", "api_key": key, "max_retries": 0}
    chat = partial(ChatOpenAI, model="rank-3", temperature=0, max_completion_tokens=12, **known)
    completion = partial(OpenAI, model="rank-1", temperature=0, max_tokens=6, **known)
    report(
        {
            "chat": partial(_chat, chat()),
            "chat, streamed with usage": partial(_stream, chat(stream_usage=True)),
            "chat, a batch": partial(_batch, chat()),
            "chat with logprobs": partial(_logprobs, chat(logprobs=True, top_logprobs=2)),
            "chat with a JSON schema": partial(_schema, chat(max_completion_tokens=64)),
            "completion": partial(_completion, completion()),
            "completion, streamed": partial(_completion_stream, completion()),
            "embeddings": partial(_embed, OpenAIEmbeddings, known),
            "an unknown model": partial(_unknown, chat(model="nobody")),
        }
    )


def _chat(chat: Any) -> None:
    answer = chat.invoke("the quick fox")
    expect(is_true=bool(answer.content), what="the answer is empty")
    usage = answer.usage_metadata
    expect(is_true=usage["output_tokens"] == 12, what=f"usage is {usage}")


def _stream(chat: Any) -> None:
    pieces = list(chat.stream("the quick fox"))
    text = "".join(piece.content for piece in pieces)
    expect(is_true=text == chat.invoke("the quick fox").content, what=f"streamed {text!r}")
    usage = [piece.usage_metadata for piece in pieces if piece.usage_metadata]
    expect(is_true=usage[-1]["output_tokens"] == 12, what=f"usage is {usage}")


def _batch(chat: Any) -> None:
    questions = ["the fox", "the dog", "the quick fox"]
    answers = [answer.content for answer in chat.batch(questions)]
    alone = [chat.invoke(question).content for question in questions]
    expect(is_true=answers == alone, what=f"{answers} is not {alone}")


def _logprobs(chat: Any) -> None:
    entries = chat.invoke("the fox").response_metadata["logprobs"]["content"]
    expect(is_true=len(entries) == 12, what=f"{len(entries)} entries")
    expect(is_true=len(entries[0]["top_logprobs"]) == 2, what=f"the first is {entries[0]}")


def _schema(chat: Any) -> None:
    found = chat.with_structured_output(SCHEMA, method="json_schema").invoke("is 4 even?")
    expect(is_true=isinstance(found["is_even"], bool), what=f"found {found}")


def _completion(completion: Any) -> None:
    expect(is_true=bool(completion.invoke("the quick")), what="the answer is empty")
    answers = completion.generate(["the quick", "the lazy"])
    expect(is_true=len(answers.generations) == 2, what=f"{answers}")


def _completion_stream(completion: Any) -> None:
    text = "".join(completion.stream("the quick"))
    expect(is_true=text == completion.invoke("the quick"), what=f"streamed {text!r}")


def _embed(kind: Any, known: dict[str, Any]) -> None:
    embeddings = kind(model="base", check_embedding_ctx_length=False, **known)
    vectors = embeddings.embed_documents(["the fox", "the dog"])
    lengths = [sum(value * value for value in vector) for vector in vectors]
    expect(is_true=all(abs(length - 1) < 1e-5 for length in lengths), what=f"lengths {lengths}")


def _unknown(chat: Any) -> None:
    try:
        chat.invoke("x")
    except openai.NotFoundError as error:
        expect(is_true=error.code == "model_not_found", what=f"code is {error.code}")
    else:
        raise AssertionError("an unknown model answered")


if __name__ == "__main__":
    main()
