"""The fingerprint of the text side changes with everything that changes tokens, and only then."""

from multiflora.engine.text.fingerprint import text_fingerprint
from multiflora.engine.text.tokenizer import load_tokenizer


def test_equal_folders_have_one_fingerprint(byte_level, write_folder):
    folder = write_folder(byte_level, eos_token="</s>", chat_template="{{ messages }}")

    first, second = (text_fingerprint(load_tokenizer(folder), {2}) for _ in range(2))

    assert first == second
    assert len(first) == 64


def test_template_tokens_and_ends_all_count(byte_level, byte_fallback, write_folder):
    found = {
        text_fingerprint(load_tokenizer(write_folder(fast, eos_token=eos, chat_template=text)), end)
        for fast in (byte_level, byte_fallback)
        for eos in ("</s>", "<s>")
        for text in ("{{ messages }}", "{{ messages}}")
        for end in ((1,), (1, 2))
    }

    assert len(found) == 16
