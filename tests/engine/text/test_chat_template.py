"""Chat templates render as transformers renders them, inside a sandbox."""

import pytest

from multiflora.engine.errors import InvalidCheckpoint, RequestRejected
from multiflora.engine.text.chat_template import ChatTemplate, chat_template_of
from multiflora.engine.text.tokenizer import load_tokenizer

MESSAGES = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "  <b>hi</b> & 'you'  "},
    {"role": "assistant", "content": "hello"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"größe": [1, None, True]}}}]

LLAMA_2 = """\
{% if messages[0]['role'] == 'system' %}
    {% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}
    {% set messages = messages[1:] %}
{% else %}
    {% set system = '' %}
{% endif %}
{% for message in messages %}
    {% if message['role'] == 'user' %}
{% set start = system if loop.first else '' %}
{{ bos_token + '[INST] ' + start + message['content'] | trim + ' [/INST]' }}
    {% else %}
{{ ' ' + message['content'] + ' ' + eos_token }}
    {% endif %}
{% endfor %}"""
QWEN = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}
        {{- "\\n" }}{{- tool | tojson }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages %}
    {%- if loop.index0 > ns.last %}{%- break %}{%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- generation %}{{- message.content }}{%- endgeneration %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if documents %}{{- documents | tojson(indent=2) }}{%- endif %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""


@pytest.fixture
def render_both(byte_level, write_folder):
    """Render with transformers and with ours."""
    from transformers import AutoTokenizer

    def render(template, messages=MESSAGES, **options):
        folder = write_folder(byte_level, bos_token="<s>", eos_token="</s>", chat_template=template)
        expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(
            messages, tokenize=False, **options
        )
        extra = {name: options.pop(name) for name in ("style",) if name in options}
        ours = chat_template_of(load_tokenizer(folder).folder)
        return ours.render(messages, extra=extra, **options), expected

    return render


@pytest.mark.parametrize("template", [LLAMA_2, QWEN], ids=["llama_2", "qwen"])
@pytest.mark.parametrize(
    "options",
    [
        {"add_generation_prompt": True},
        {"add_generation_prompt": False, "tools": TOOLS},
        {"add_generation_prompt": True, "documents": [{"title": "a", "text": "b"}]},
        {"add_generation_prompt": False, "continue_final_message": True},
    ],
    ids=["answer", "tools", "documents", "continue"],
)
def test_real_templates_equal_transformers(render_both, template, options):
    ours, expected = render_both(template, **options)

    assert ours == expected


def test_a_continued_message_that_the_template_trims_equals_transformers(render_both):
    template = "{% for m in messages %}[{{ m.content | trim }}]{% endfor %}"
    messages = [{"role": "assistant", "content": "well "}]

    ours, expected = render_both(
        template, messages, add_generation_prompt=False, continue_final_message=True
    )

    assert ours == expected


def test_extra_variables_reach_the_template(render_both):
    ours, expected = render_both("{{ style }}", style="formal", add_generation_prompt=False)

    assert ours == expected == "formal"


def test_the_date_is_formatted():
    rendered = ChatTemplate({"default": "{{ strftime_now('%Y') }}"}).render(MESSAGES)

    assert len(rendered) == 4
    assert rendered.isdigit()


def test_tool_use_is_chosen_when_there_are_tools():
    template = ChatTemplate({"default": "plain", "tool_use": "tools"})

    assert template.render(MESSAGES) == "plain"
    assert template.render(MESSAGES, tools=TOOLS) == "tools"


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('no system') }}",
        "{{ messages[99].content }}",
        "{{ messages + 1 }}",
        "{{ 1 // 0 }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% for i in range(10**7) %}{% endfor %}",
        "{{ cycler.__init__.__globals__ }}",
    ],
    ids=range(8),
)
def test_what_a_template_may_not_do_is_a_rejected_request(source):
    with pytest.raises(RequestRejected, match="chat template refused"):
        ChatTemplate({"default": source}).render(MESSAGES)


def test_output_is_bounded():
    template = ChatTemplate(
        {"default": "{% for i in range(9999) %}{{ messages[0].content }}{% endfor %}"},
        max_chars=1000,
    )

    with pytest.raises(RequestRejected, match="longer than 1000"):
        template.render(MESSAGES)


def test_without_a_template_completions_are_the_remedy():
    with pytest.raises(RequestRejected, match="/v1/completions"):
        ChatTemplate({}).render(MESSAGES)


def test_a_malformed_template_fails_at_the_start():
    with pytest.raises(InvalidCheckpoint, match="malformed"):
        ChatTemplate({"default": "{% if %}"})


def test_a_template_cannot_change_the_messages_of_the_caller():
    template = ChatTemplate({"default": "{% set x = messages[0].update({'role': 'evil'}) %}"})

    with pytest.raises(RequestRejected):
        template.render(MESSAGES)
    assert MESSAGES[0]["role"] == "system"


def test_reserved_names_cannot_be_overridden():
    with pytest.raises(RequestRejected) as caught:
        ChatTemplate({"default": "{{ bos_token }}"}).render(MESSAGES, extra={"bos_token": "x"})

    assert caught.value.param == "chat_template_kwargs.bos_token"


def test_a_template_is_not_run_while_it_is_compiled():
    bombs = "{{ 'x' * 50_000_000_000 }}{% set x = 'x' | center(50_000_000_000) %}"

    assert ChatTemplate({"default": bombs}).is_available
