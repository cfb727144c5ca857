"""Text sides of bases: templates of the kinds that real families use, with their tokenizers."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tokenizers import Tokenizer as FastTokenizer

from multiflora.engine.text.chat_template import chat_template_of
from multiflora.engine.text.tokenizer import Tokenizer, load_tokenizer
from multiflora.engine.training.data.renderer import Renderer

DEMO = Path(__file__).parents[4] / "engine" / "demo" / "base"


@dataclass(frozen=True)
class Family:
    """``end`` is what the template writes after an answer; None where it writes nothing."""

    template: str
    end: str | None
    special: tuple[str, ...]
    is_byte_level: bool = True
    # Whether the history shows answers as they were given.
    keeps_history: bool = True
    trims: bool = False


CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
# Thoughts are kept in the last answer only, which gets an empty one if it has none.
THINKING = """\
{%- set ns = namespace(last=0) %}
{%- for message in messages if message.role == 'user' %}
    {%- set ns.last = loop.index %}
{%- endfor %}
{%- set seen = namespace(users=0) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{%- set seen.users = seen.users + 1 %}{%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- set thought = '' %}
        {%- set text = message.content %}
        {%- if '</think>' in text %}
            {%- set thought = text.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set text = text.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if seen.users == ns.last %}
            {{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- text }}
    {%- else %}
        {{- message.content }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
HEADERS = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
    {{- message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""
# No mark between question and answer but text, and a space that the answer begins with.
INST = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- ' ' + message.content + eos_token }}
    {%- else %}
        {{- '[INST] ' + message.content + ' [/INST]' }}
    {%- endif %}
{%- endfor %}"""
TURNS = """\
{{- bos_token }}
{%- for message in messages %}
    {%- set role = 'model' if message.role == 'assistant' else message.role %}
    {{- '<start_of_turn>' + role + '\\n' + message.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}"""
# Nothing ends an answer but the next speaker.
SPEAKERS = """\
{%- for message in messages %}
    {{- message.role | capitalize + ': ' + message.content + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'Assistant: ' }}{%- endif %}"""
# The prompt opens the thought that the written answer is stripped of.
OPENED = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {{- message.content.split('</think>')[-1] + '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}"""
_IM = ("<|im_start|>", "<|im_end|>")
_HEADERS = ("<|begin|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
FAMILIES = {
    "demo": Family((DEMO / "chat_template.jinja").read_text(), "<|end|>", (), trims=True),
    "chatml": Family(CHATML, "<|im_end|>", _IM),
    "thinking": Family(THINKING, "<|im_end|>", _IM, keeps_history=False),
    "headers": Family(HEADERS, "<|eot_id|>", _HEADERS, trims=True),
    "inst": Family(INST, "</s>", ("<s>", "</s>"), is_byte_level=False),
    "turns": Family(
        TURNS, "<end_of_turn>", ("<bos>", "<start_of_turn>", "<end_of_turn>"), trims=True
    ),
    "speakers": Family(SPEAKERS, None, ("<eos>",), keeps_history=False),
    "opened": Family(OPENED, "<|im_end|>", _IM),
}
MakeRenderer = Callable[[str], Renderer]


@pytest.fixture(scope="session")
def make_renderer(
    tmp_path_factory: pytest.TempPathFactory, byte_fallback: FastTokenizer
) -> MakeRenderer:
    """``make_renderer("chatml")``: the text side of a base of that family."""
    made: dict[str, Renderer] = {}

    def make(name: str) -> Renderer:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            tokenizer = _tokenizer(folder, FAMILIES[name], byte_fallback)
            end = tokenizer.token_id(tokenizer.eos_token or "")
            assert end is not None
            template = chat_template_of(tokenizer.folder)
            made[name] = Renderer(tokenizer, template, end_tokens=frozenset({end}))
        return made[name]

    return make


def _tokenizer(folder: Path, family: Family, byte_fallback: FastTokenizer) -> Tokenizer:
    shutil.copy(DEMO / "tokenizer.json", folder)
    config = json.loads((DEMO / "tokenizer_config.json").read_text())
    if family.special:
        config |= {"bos_token": family.special[0], "eos_token": family.special[-1]}
        config["extra_special_tokens"] = list(family.special)
    if not family.is_byte_level:
        byte_fallback.save(str(folder / "tokenizer.json"))
    config["chat_template"] = family.template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(folder)
