"""From a question to the sequences that the engine generates for it, each of them checked."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from multiflora.engine.errors import InvalidToken, PromptTooLong, RequestRejected
from multiflora.engine.request import EngineInfo, GenerationRequest
from multiflora.engine.text.answer_text import TextRules
from multiflora.engine.text.tokenizer import Tokenizer

from .catalog import ServedModel
from .generation import SequenceJob
from .question import Question
from .service import Service

_ID_LISTS: Final = ("stop_token_ids", "allowed_token_ids", "logit_bias")


def sequence_jobs(
    service: Service,
    question: Question,
    prompts: Sequence[Sequence[int]],
    *,
    info: EngineInfo,
    model: ServedModel,
    answer_id: str,
    grammar: str = "",
) -> list[SequenceJob]:
    """One job per prompt and choice, prompt by prompt. Raises ``RequestRejected``."""
    body = question.body
    if body.n > service.limits.max_choices:
        raise RequestRejected(
            f"n is {body.n}; this server gives at most {service.limits.max_choices} choices",
            param="n",
        )
    check_number(len(prompts) * body.n, limit=service.limits.max_sequences)
    for name in _ID_LISTS:
        check_tokens(list(getattr(body, name)), info.vocab_size, param=name)
    sampling = replace(
        body.sampling_params(),
        bad_words=_bad_words(service.tokenizer, body.bad_words),
        grammar=grammar,
    )
    rules = _text_rules(service, question)
    jobs: list[SequenceJob] = []
    seeds = body.seeds()
    for place, given in enumerate(prompts):
        prompt = tuple(given)
        check_prompt(prompt, info)
        max_tokens = _max_tokens(question, len(prompt), info.max_model_len)
        echo = question.echo(place, prompt) if question.echo else None
        for seed in seeds:
            request = GenerationRequest(
                id=f"{answer_id}-{len(jobs)}",
                prompt=prompt,
                sampling=replace(sampling, max_tokens=max_tokens, seed=seed),
                adapters=model.shares(),
                cache_salt=body.cache_salt,
                priority=body.priority,
            )
            jobs.append(SequenceJob(index=len(jobs), request=request, rules=rules, echo=echo))
    return jobs


def _text_rules(service: Service, question: Question) -> TextRules:
    body = question.body
    end_tokens = frozenset(body.stop_token_ids)
    if not body.ignore_eos:
        end_tokens |= service.end_tokens
    return TextRules(
        stops=tuple(body.stop),
        min_tokens=body.min_tokens,
        end_tokens=end_tokens,
        include_stop=body.include_stop_str_in_output,
        skip_special_tokens=body.skip_special_tokens and not question.keeps_special_tokens,
    )


def _bad_words(tokenizer: Tokenizer, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """The tokens of each word inside a text, with and without a space before it."""
    forms = (form for word in words for form in (word, f" {word.lstrip()}"))
    return tuple(dict.fromkeys(tuple(tokenizer.continuation(form)) for form in forms))


def check_number(num_sequences: int, *, limit: int, param: str = "prompt") -> None:
    """Raises ``RequestRejected`` for more sequences than one request may have."""
    if num_sequences > limit:
        raise RequestRejected(
            f"prompts times n is {num_sequences}; at most {limit} sequences fit in one request",
            param=param,
        )


def check_prompt(prompt: Sequence[int], info: EngineInfo, *, param: str = "prompt") -> None:
    """Raises ``RequestRejected`` for an empty prompt, ``InvalidToken`` for unknown ids."""
    if not prompt:
        raise RequestRejected("the prompt has no tokens", param=param)
    check_tokens(prompt, info.vocab_size, param=param)


def check_tokens(tokens: Sequence[int], vocab_size: int, *, param: str) -> None:
    """Raises ``InvalidToken`` for ids outside the vocabulary."""
    if not tokens or (min(tokens) >= 0 and max(tokens) < vocab_size):
        return
    wrong = next(token for token in tokens if not 0 <= token < vocab_size)
    raise InvalidToken(
        f"token id {str(wrong)[:30]} is outside the vocabulary of {vocab_size} ids", param=param
    )


def _max_tokens(question: Question, prompt_length: int, max_model_len: int) -> int:
    room = max_model_len - prompt_length
    wanted = question.max_tokens
    least = 1 if wanted is None else wanted
    if room < least:
        answer = f" plus {wanted} tokens of answer" if wanted else ""
        raise PromptTooLong(
            f"the context holds {max_model_len} tokens, but the prompt has {prompt_length}{answer}",
            param="messages" if question.default_max_tokens is None else "prompt",
        )
    return min(room, question.default_max_tokens or room) if wanted is None else wanted
