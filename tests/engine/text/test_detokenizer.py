"""Text comes out as soon as it is settled, and adds up to the decoded whole."""

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multiflora.engine.text.detokenizer import Detokenizer
from multiflora.engine.text.tokenizer import load_tokenizer

relaxed = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture
def tokenizer(fast_tokenizer, write_folder):
    return load_tokenizer(write_folder(fast_tokenizer, bos_token="<s>", eos_token="</s>"))


def pieces_of(tokenizer, tokens):
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(token) for token in tokens]
    return [*pieces, detokenizer.finish()]


@relaxed
@given(text=st.text(max_size=60))
def test_pieces_add_up_to_the_decoded_text(tokenizer, text):
    tokens = tokenizer.encode(text, add_special_tokens=False)

    assert "".join(pieces_of(tokenizer, tokens)) == tokenizer.decode(tokens)


@relaxed
@given(
    words=st.lists(
        st.sampled_from([" a", "b", "  ", "\n", "é", "你", "🙂", "</s>", "<s>", "the fox", " "]),
        max_size=12,
    )
)
def test_special_tokens_and_spaces_between_them_add_up_too(tokenizer, words):
    parts = [tokenizer.encode(word, add_special_tokens=False) for word in words]
    tokens = [token for part in parts for token in part]

    assert "".join(pieces_of(tokenizer, tokens)) == tokenizer.decode(tokens)


@relaxed
@given(text=st.text(alphabet="aé你🙂👩‍", max_size=20))
def test_no_piece_holds_a_part_of_a_character(tokenizer, text):
    pieces = pieces_of(tokenizer, tokenizer.encode(text, add_special_tokens=False))

    assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_comes_with_its_last_byte(tokenizer):
    tokens = tokenizer.encode("x🙂", add_special_tokens=False)

    pieces = pieces_of(tokenizer, tokens)

    assert pieces[-1] == ""
    assert pieces[-2] == "🙂"


def test_an_unfinished_character_is_given_out_at_the_end(tokenizer):
    tokens = tokenizer.encode("x🙂", add_special_tokens=False)[:-1]

    pieces = pieces_of(tokenizer, tokens)

    assert pieces[-1].startswith("\ufffd")
    assert "".join(pieces) == tokenizer.decode(tokens)


@relaxed
@given(numbers=st.lists(st.integers(4, 399), max_size=80))
def test_random_byte_level_tokens_add_up(byte_level, write_folder, numbers):
    tokenizer = load_tokenizer(write_folder(byte_level))
    pieces = pieces_of(tokenizer, numbers)

    assert "".join(pieces) == tokenizer.decode(numbers)


def test_an_invalid_byte_does_not_take_back_what_was_given_out(byte_fallback, write_folder):
    tokenizer = load_tokenizer(write_folder(byte_fallback))
    text = "好" + "\ufffd"
    tokens = [tokenizer.token_id(f"<0x{byte:02X}>") for byte in [*"好".encode(), 0xFF]]
    last = tokenizer.encode("a", add_special_tokens=False)[-1]

    assert "".join(pieces_of(tokenizer, [*tokens, last])).startswith(text)


def test_an_endless_run_of_invalid_bytes_stays_cheap(tokenizer):
    vocabulary = ("<0xFF>", "ÿ")
    invalid = next(token for name in vocabulary if (token := tokenizer.token_id(name)) is not None)
    detokenizer = Detokenizer(tokenizer)
    started = time.process_time()

    text = "".join(detokenizer.push(invalid) for _ in range(20_000)) + detokenizer.finish()

    assert text == "\ufffd" * 20_000
    assert time.process_time() - started < 5
