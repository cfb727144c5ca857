"""Our tokenizer gives the ids and texts of transformers' fast tokenizer."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tokenizers import Tokenizer as FastTokenizer

from multiflora.engine.errors import InvalidCheckpoint
from multiflora.engine.text.tokenizer import load_tokenizer

TEXTS = [
    "",
    " ",
    "Hello world",
    "  two leading spaces and a tail  ",
    "line\nbreaks\n\n\tand tabs",
    "Grüße, 你好, 🙂👩‍👩‍👧",
    "<|user|>hi</s>there<s>",
    "a" * 300,
    "3.14159 + 2 == 5?",
]
NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
DEMO = Path(__file__).parents[3] / "engine" / "demo" / "base"


def assert_equals_transformers(folder: Path) -> None:
    from transformers import AutoTokenizer

    oracle = AutoTokenizer.from_pretrained(folder)
    ours = load_tokenizer(folder)
    for text in TEXTS:
        for add in (True, False):
            expected = oracle.encode(text, add_special_tokens=add)
            assert ours.encode(text, add_special_tokens=add) == expected, text
        for skip in (True, False):
            assert ours.decode(expected, skip_special_tokens=skip) == oracle.decode(
                expected, skip_special_tokens=skip
            )
    assert ours.vocab_size == len(oracle)
    assert ours.bos_token == oracle.bos_token
    assert ours.eos_token == oracle.eos_token


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"add_bos_token": True},
        {"add_bos_token": True, "add_eos_token": True},
        {"add_bos_token": False, "add_eos_token": False},
    ],
    ids=["post_processor_of_file", "bos", "bos_and_eos", "neither"],
)
def test_ids_equal_transformers(fast_tokenizer, write_folder, config):
    fast_tokenizer.add_special_tokens(["<|user|>"])
    assert_equals_transformers(write_folder(fast_tokenizer, **NAMED, **config))


@pytest.mark.parametrize("model_type", ["llama", "mistral"])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"legacy": True},
        {"legacy": False, "add_prefix_space": True},
        {"add_prefix_space": False},
    ],
    ids=["plain", "legacy", "prefix", "no_prefix"],
)
def test_spaces_of_llama_tokenizers_equal_transformers(
    fast_tokenizer, write_folder, model_type, config
):
    folder = write_folder(fast_tokenizer, tokenizer_class="LlamaTokenizer", **NAMED, **config)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))

    assert_equals_transformers(folder)


def test_tokens_that_only_the_config_names_are_added(byte_level, write_folder):
    folder = write_folder(
        byte_level,
        **NAMED,
        pad_token={
            "__type": "AddedToken",
            "content": "<pad>",
            "single_word": False,
            "normalized": False,
            "lstrip": True,
            "rstrip": False,
            "special": True,
        },
        additional_special_tokens=["<|tool|>", "<|user|>"],
    )

    assert_equals_transformers(folder)
    tokenizer = load_tokenizer(folder)
    assert {tokenizer.token_id("<pad>"), tokenizer.token_id("<|tool|>")} <= tokenizer.special_ids


def test_added_tokens_decoder_of_the_config_is_honoured(byte_level, write_folder):
    size = byte_level.get_vocab_size()
    added = {
        str(size + 1): {"content": "<b>", "special": False, "normalized": False},
        str(size): {"content": "<a>", "special": True},
    }

    assert_equals_transformers(write_folder(byte_level, **NAMED, added_tokens_decoder=added))


def test_special_tokens_map_fills_what_the_config_lacks(byte_level, write_folder):
    folder = write_folder(byte_level)
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "</s>"}))

    assert load_tokenizer(folder).eos_token == "</s>"


@pytest.mark.skipif(not (DEMO / "tokenizer.json").is_file(), reason="the demo base is not there")
def test_demo_base_equals_transformers():
    assert_equals_transformers(DEMO)


def test_truncation_and_padding_of_the_file_are_ignored(byte_level, write_folder):
    byte_level = FastTokenizer.from_str(byte_level.to_str())
    byte_level.enable_truncation(4)
    byte_level.enable_padding(length=64)
    folder = write_folder(byte_level)

    assert 4 < len(load_tokenizer(folder).encode("The quick brown fox jumps")) < 64


def test_no_text_has_more_tokens_per_character_than_the_bound(fast_tokenizer, write_folder):
    tokenizer = load_tokenizer(write_folder(fast_tokenizer))

    for text in TEXTS:
        assert len(text) <= tokenizer.longest_token_chars * max(1, len(tokenizer.encode(text)))


def test_a_folder_without_tokenizer_json_names_the_remedy(tmp_path):
    (tmp_path / "tokenizer.model").touch()

    with pytest.raises(
        InvalidCheckpoint, match=r"no tokenizer\.json .*only tokenizer\.model.*copy"
    ):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_malformed_files_are_named(byte_level, write_folder, name):
    folder = write_folder(byte_level)
    (folder / name).write_text("{ not json")

    with pytest.raises(InvalidCheckpoint, match=name):
        load_tokenizer(folder)


def test_templates_are_read_by_name(byte_level, write_folder):
    folder = write_folder(
        byte_level,
        chat_template=[
            {"name": "default", "template": "old"},
            {"name": "tool_use", "template": "tools"},
        ],
    )
    (folder / "chat_template.jinja").write_text("new")

    templates = load_tokenizer(folder).folder.chat_templates
    assert templates == {"default": "new", "tool_use": "tools"}


@pytest.mark.parametrize("text", [text for text in TEXTS if "<s>" not in text])
def test_a_continuation_adds_nothing_to_what_it_follows(fast_tokenizer, write_folder, text):
    tokenizer = load_tokenizer(write_folder(fast_tokenizer, **NAMED))

    for before in ("The quick", "3.1", "line\n", "<|user|>"):
        settled = tokenizer.encode(before)
        joined = tokenizer.decode(settled + tokenizer.continuation(text), skip_special_tokens=False)
        assert joined == tokenizer.decode(settled, skip_special_tokens=False) + text


def test_a_chat_continuation_is_the_rest_of_the_chat(byte_level, write_folder):
    tokenizer = load_tokenizer(write_folder(byte_level, **NAMED))
    asked = "<s><|user|>" + tokenizer.quote("a </s> b") + "</s><|user|>"
    answer = tokenizer.quote("say </s>!") + "</s>"

    ids = tokenizer.encode_chat(answer, continues=True)

    assert tokenizer.encode_chat(asked) + ids == tokenizer.encode_chat(asked + answer)
    assert [token for token in ids if token in tokenizer.special_ids] == ids[-1:]


def test_other_threads_run_while_a_long_text_is_encoded_and_decoded(byte_level, write_folder):
    tokenizer = load_tokenizer(write_folder(byte_level, **NAMED))
    with ThreadPoolExecutor(1) as pool:
        encoding = pool.submit(tokenizer.encode, "a" * 1_000_000)
        num_turns = _turns_until_done(encoding)
        decoding = pool.submit(tokenizer.decode, encoding.result())

        assert num_turns > 20
        assert _turns_until_done(decoding) > 5
    assert decoding.result() == "a" * 1_000_000


def _turns_until_done(work):
    num_turns = 0
    while not work.done():
        time.sleep(0.001)
        num_turns += 1
    return num_turns


def test_many_special_tokens_of_a_user_take_no_longer_than_text(byte_level, write_folder):
    """Each used to be encoded anew: minutes for a body that a server accepts."""
    tokenizer = load_tokenizer(write_folder(byte_level, **NAMED))
    once = tokenizer.encode_chat("<s>" + tokenizer.quote("</s>"))

    many = tokenizer.encode_chat("<s>" + tokenizer.quote("</s>" * 100_000))

    assert many == once[:1] + once[1:] * 100_000
