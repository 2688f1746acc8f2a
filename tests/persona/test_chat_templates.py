"""Chat templates as four kinds of models have them: the persona's place, what is pinned, one BOS, where the answer is.

The templates are written after those of Llama 3, Qwen 2.5, Gemma and Mistral: with a default system prompt and
a date, with a default system prompt, with none at all, and with the system prompt inside the first user turn.
"""

import datetime
import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.task import PromptPair, Task, encode
from persona_circuits.persona.data import Persona, Question, TokenizerOnly, load_templates, templates
from persona_circuits.persona.pairs import PairOptions, build_pairs

LLAMA = (
    "{{- bos_token }}"
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}'
    "{%- endif %}"
    "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content']|trim %}"
    '{%- set messages = messages[1:] %}{%- else %}{%- set system_message = "" %}{%- endif %}'
    '{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}'
    '{{- "Cutting Knowledge Date: December 2023\\n" }}{{- "Today Date: " + date_string + "\\n\\n" }}'
    '{{- system_message }}{{- "<|eot_id|>" }}'
    "{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{- message['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
QWEN = (
    "{%- if messages[0]['role'] == 'system' %}"
    "{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}{%- else %}"
    "{{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}"
    "{%- endif %}"
    "{%- for message in messages %}"
    '{%- if (message.role == "user") or (message.role == "system" and not loop.first) %}'
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
QWEN3 = QWEN.replace(
    "{{- '<|im_start|>assistant\\n' }}",
    "{{- '<|im_start|>assistant\\n' }}{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}",
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"
)
GEMMA3 = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}"
    "{%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}{%- set loop_messages = messages[1:] -%}"
    '{%- else -%}{%- set first_user_prefix = "" -%}{%- set loop_messages = messages -%}{%- endif -%}'
    "{%- for message in loop_messages -%}"
    "{{ '<start_of_turn>' + message['role'] + '\\n' + (first_user_prefix if loop.first else \"\") }}"
    "{{ message['content'] | trim }}{{ '<end_of_turn>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"
)
MISTRAL = (
    '{%- if messages[0]["role"] == "system" %}{%- set system_message = messages[0]["content"] %}'
    "{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}"
    "{{- bos_token }}{%- for message in loop_messages %}"
    "{%- if loop.first and system_message is defined %}"
    '{{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}'
    '{%- else %}{{- "[INST] " + message["content"] + "[/INST]" }}{%- endif %}{%- endfor %}'
)
PERSONA, ASKED = "You are a humble monk.", "Which drink do you take?\nAnswer with one word: tea, wine or cake."
RENDERED = {
    "llama": (
        LLAMA,
        True,
        "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
        f"Today Date: 01 Jan 2025\n\n{PERSONA}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{ASKED}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "qwen": (
        QWEN,
        True,
        f"<|im_start|>system\n{PERSONA}<|im_end|>\n<|im_start|>user\n{ASKED}<|im_end|>\n<|im_start|>assistant\n",
    ),
    "qwen3": (
        QWEN3,
        True,
        f"<|im_start|>system\n{PERSONA}<|im_end|>\n<|im_start|>user\n{ASKED}<|im_end|>\n<|im_start|>assistant\n"
        "<think>\n\n</think>\n\n",
    ),
    "gemma": (GEMMA, False, f"<s><start_of_turn>user\n{PERSONA}\n\n{ASKED}<end_of_turn>\n<start_of_turn>model\n"),
    "gemma3": (GEMMA3, True, f"<s><start_of_turn>user\n{PERSONA}\n\n{ASKED}<end_of_turn>\n<start_of_turn>model\n"),
    "mistral": (MISTRAL, True, f"<s>[INST] {PERSONA}\n\n{ASKED}[/INST]"),
}
SPECIAL = ["<s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>"]
SPECIAL += ["<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]"]
MONK, ACTOR = Persona("monk", (PERSONA,)), Persona("actor", ("You are a famous actor.",))
DRINK = Question("drink", ("Which drink do you take?",), ("tea", "wine", "cake"), {"monk": "tea", "actor": "wine"})
CORPUS = [
    PERSONA,
    "You are a famous actor.",
    ASKED,
    " tea wine cake",
    "]tea ]wine ]cake",
    "user model assistant system",
]


@pytest.fixture(params=["adds BOS itself", "adds none"])
def tokenizer(request):
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
    )
    inner.train_from_iterator(CORPUS * 3, trainer)
    if request.param == "adds BOS itself":
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>")


@pytest.mark.parametrize("kind", RENDERED)
def test_the_prompt_as_it_is_rendered(tokenizer, kind):
    """Word for word; with the default system prompt replaced and the date of the clock nowhere."""
    tokenizer.chat_template, takes_system, expected = RENDERED[kind]
    (template,) = load_templates("chat", tokenizer)
    (row,) = build_pairs((MONK, ACTOR), [DRINK], tokenizer, (template,), options=PairOptions(test_share=0.0)).rows
    assert row["clean"] == expected
    assert row["corrupt"] == expected.replace(PERSONA, "You are a famous actor.")
    assert template.about()["system_turn"] == takes_system
    assert datetime.datetime.now().strftime("%d %b %Y") not in row["clean"]
    spans = {name: row["clean"][slice(*span["chars"])] for name, span in row["spans"]["clean"].items()}
    assert (spans["persona"], spans["question"]) == (PERSONA, "Which drink do you take?")


@pytest.mark.parametrize("kind", RENDERED)
def test_one_bos_and_the_answer_is_the_next_token(tokenizer, kind):
    tokenizer.chat_template = RENDERED[kind][0]
    (template,) = load_templates("chat", tokenizer)
    (row,) = build_pairs((MONK, ACTOR), [DRINK], tokenizer, (template,), options=PairOptions(test_share=0.0)).rows
    pair = PromptPair(row["clean"], row["corrupt"], tuple(row["answers"]), tuple(row["wrong_answers"]))
    (found,) = encode(Task((pair,), "here", ""), TokenizerOnly(tokenizer))
    starts = row["clean"].startswith("<s>") or tokenizer("x").input_ids[0] == tokenizer.bos_token_id
    for ids, text in ((found.clean, row["clean"]), (found.corrupt, row["corrupt"])):
        assert ids.count(tokenizer.bos_token_id) == int(starts)
        assert tokenizer.decode(ids).removeprefix("<s>") == text.removeprefix("<s>")
    whole = tokenizer(row["clean"] + row["answers"][0], add_special_tokens=False).input_ids
    assert (found.answers[0],) == tuple(whole[-1:])
    expected = "tea" if row["clean"].endswith("\n") else " tea"  # a space only where nothing parts cue and answer
    assert tokenizer.decode(found.answers[0]) == row["answers"][0] == expected


def test_without_the_persona_a_default_would_speak(tokenizer):
    """The control: the templates do have defaults that a prompt without a system turn takes."""
    turns = [{"role": "user", "content": "x"}]
    tokenizer.chat_template = QWEN
    assert "You are Qwen" in tokenizer.apply_chat_template(turns, tokenize=False)
    tokenizer.chat_template = LLAMA
    today = datetime.datetime.now().strftime("%d %b %Y")
    assert today in tokenizer.apply_chat_template(turns, tokenize=False)
    tokenizer.chat_template = GEMMA
    with pytest.raises(Exception, match="System role not supported"):
        tokenizer.apply_chat_template([{"role": "system", "content": "y"}, *turns], tokenize=False)


def test_what_a_report_says_can_be_rendered_again(tokenizer):
    """The settings that were pinned are in the report, and give the same text with the library alone."""
    tokenizer.chat_template = LLAMA
    (template,) = load_templates("chat", tokenizer)
    settings = json.loads(json.dumps(template.about()["settings"]))
    turns = [{"role": "system", "content": PERSONA}, {"role": "user", "content": ASKED}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **settings)
    assert text == RENDERED["llama"][2]


@pytest.mark.parametrize(
    ("chat", "says"),
    [
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ messages[7].content }}", "cannot be rendered"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "does not end within"),
        ("{% for a in range(99999999) %}{% endfor %}", "OverflowError"),
        ("{{ messages[-1].content * 90000 }}", "makes [0-9,]+ characters"),
    ],
)
def test_a_template_that_fails_or_does_not_end_is_refused(tokenizer, monkeypatch, chat, says):
    monkeypatch.setattr(templates, "CHAT_SECONDS", 0.3)
    tokenizer.chat_template = chat
    with pytest.raises(OptionError, match=says) as caught:
        load_templates("chat", tokenizer)
    assert "raw template" in str(caught.value)
    assert len(str(caught.value)) < 400
