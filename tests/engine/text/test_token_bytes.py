"""Single tokens stand for bytes that add up to the text."""

from multiflora.engine.text.token_bytes import TokenBytes, num_characters, token_text

TEXT = "pack my box, Gr\u00fc\u00dfe \u4f60\u597d \U0001f642!"


def test_the_bytes_of_tokens_add_up_to_the_text(fast_tokenizer):
    names = TokenBytes(fast_tokenizer)
    ids = fast_tokenizer.encode(TEXT, add_special_tokens=False).ids

    whole = b"".join(names[token] for token in ids)

    assert whole.decode().removeprefix(" ") == TEXT
    assert sum(num_characters(names[token]) for token in ids) == len(whole.decode())


def test_special_tokens_stand_for_themselves(fast_tokenizer):
    names = TokenBytes(fast_tokenizer)

    assert names[fast_tokenizer.token_to_id("</s>")] == b"</s>"
    assert names[10**6] == b""


def test_a_part_of_a_character_is_written_as_bytes():
    assert token_text(b" fox") == " fox"
    assert token_text(b"\xe2\x98") == "bytes:\\xe2\\x98"
