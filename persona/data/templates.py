"""Templates: how persona, filler, question, options and answer cue become one prompt, and where in it each stands.

A raw template is text with the fields ``{persona}``, ``{filler}``, ``{question}``, ``{options}``
and ``{cue}``. A line that holds nothing but an empty field is left out. The chat template is the
tokenizer's own: the persona is the system turn, or the head of the user's turn where the template
knows no system turn, and the cue is the beginning of the answer. A date that the template would
take from the clock is pinned, so the same input gives the same text on every day.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import string
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from pathlib import Path
from typing import Any

from persona_circuits.circuit.errors import OptionError, TaskError, cut
from persona_circuits.circuit.storage import Kind, read_json, read_text

__all__ = [
    "FIELDS",
    "PARTS",
    "Prompt",
    "Style",
    "Template",
    "chat_template",
    "has_chat",
    "load_templates",
    "option_list",
]

FIELDS = ("persona", "filler", "question", "options", "cue")
PARTS = ("persona", "filler", "question", "options")  # what has a span of its own between prefix and cue
RAW = "{persona}\n{filler}\nQ: {question}\n{cue}"
CHAT = "{filler}\n{question}\nAnswer with one word: {options}."
PROBE = "A persona stands here."
TEMPLATE = Kind("template", TaskError, "raw, chat or the path of a file")
CHAT_SECONDS = 10.0
CHAT_GROWTH, CHAT_LENGTH = 20, 200_000
"""How long a turn takes and becomes in a chat template at most: so many times its own length and so many characters."""
PINNED_DATE = "01 Jan 2025"
# strftime_now as the libraries offer it to templates, on the first of January 2025 at midnight; `+%}` keeps the
# template's own first line feed.
_PARTS_OF_DATE = {"%Y": "2025", "%y": "25", "%B": "January", "%b": "Jan", "%A": "Wednesday", "%a": "Wed"}


_PARTS_OF_DATE |= {"%-d": "1", "%d": "01", "%-m": "1", "%m": "01", "%H": "00", "%M": "00", "%S": "00"}


CLOCK = "{%- macro strftime_now(format) -%}{{ format" + "".join(
    f'|replace("{code}","{value}")' for code, value in _PARTS_OF_DATE.items()
)


CLOCK += " }}{%- endmacro +%}"


Span = tuple[int, int]


@dataclass(frozen=True)
class Prompt:
    """A prompt and the characters, ``[start, end)``, of what it is made of: ``prefix``, the parts, and ``cue``."""

    text: str
    spans: Mapping[str, Span]


@dataclass(frozen=True)
class Style:
    """What a format of ``persona.data.formats`` does beyond its text.

    ``first_person``: the persona speaks of itself. ``own_cue``: a question's own cue is not used; ``needs_cue``: it
    must have one. ``examples`` are questions and answers to choose from. ``lists``: the options stand in the prompt,
    so their order counts; ``letters``: with letters, which are the answers.
    """

    first_person: bool = False
    own_cue: bool = False
    needs_cue: bool = False
    examples: tuple[tuple[str, str], ...] = ()
    lists: bool = False
    letters: bool = False


@dataclass(frozen=True)
class Template:
    """One template, ready to be filled.

    ``text`` is the raw template or, for chat, the user's turn; ``cue`` is put in where a question
    has none of its own; ``fillers`` are sentences to choose from, ``neutral`` what may stand in the
    persona's place where there is none. ``chat`` is the tokenizer's template as it is used,
    ``system`` whether it takes a system turn.
    """

    name: str
    text: str
    cue: str = ""
    fillers: tuple[str, ...] = ()
    neutral: tuple[str, ...] = field(default=(), repr=False)
    tokenizer: Any = field(default=None, repr=False, compare=False)
    chat: str = ""
    system: bool = False
    style: Style = field(default_factory=Style)

    def render(self, values: Mapping[str, str]) -> Prompt:
        """The prompt for the values of ``FIELDS``; ``values`` has them all.

        Raises:
            TaskError: the chat template changes the text of its turns, so nothing can be found in it.
        """
        return self._chat(values) if self.chat else _with_ends(*_filled(self.text, values))

    def about(self) -> dict[str, Any]:
        """What a report says of this template."""
        record = {"name": self.name, "kind": "chat" if self.chat else "raw", "text": self.text, "cue": self.cue}
        if not self.chat:
            return record
        own = self.tokenizer.get_chat_template()
        return record | {
            "chat_template_sha256": hashlib.sha256(own.encode()).hexdigest(),
            "system_turn": self.system,
            "settings": _settings(own) | ({"clock": PINNED_DATE} if "strftime_now" in own else {}),
        }

    def _chat(self, values: Mapping[str, str]) -> Prompt:
        content, spans = _filled(self.text, values)
        system = values["persona"] if self.system else ""
        text = _rendered(self.tokenizer, self.chat, system, content)
        start = text.rfind(content)
        persona = text.rfind(system, 0, start) if self.system else start
        if start < 0 or persona < 0:
            raise TaskError(f"the chat template changes the text of its turns: {content!r} is not in {text!r}")
        placed = {name: (start + a, start + b) for name, (a, b) in spans.items()}
        if self.system:
            placed["persona"] = (persona, persona + len(system))
        return _with_ends(text + values["cue"], placed)


def load_templates(spec: str, tokenizer: Any, *, cue: str | None = None) -> tuple[Template, ...]:
    """The templates that ``spec`` names: ``raw``, ``chat``, or a file.

    A ``.json`` file holds ``template`` (or ``templates`` by name), and ``cue``, ``filler`` and
    ``neutral`` if wanted; ``user`` in the place of ``template`` is the user's turn of the tokenizer's own chat
    template; or, as the project's ``templates.json``, ``cues`` with ``before_question``
    and ``answer_cue``. There one or two lines of filler are neutral, as in the text that the shipped
    model has learnt. Any other file is one raw template. ``cue`` overrides every cue.

    Raises:
        OptionError: ``chat`` is asked and the tokenizer has no chat template, or it cannot be rendered.
        TaskError: the file cannot be read or is no template.
    """
    if spec == "chat":
        templates: Sequence[Template] = [chat_template(tokenizer)]
    elif spec == "raw":
        templates = [Template("raw", RAW, "A:")]
    else:
        templates = _file_templates(Path(spec), tokenizer)
    for template in templates:
        _check_fields(template, spec)
    return tuple(template if cue is None else replace(template, cue=cue) for template in templates)


def option_list(options: Sequence[str]) -> str:
    """``cake, fruit or pudding``."""
    return " or ".join(filter(None, [", ".join(options[:-1]), *options[-1:]]))


def _filled(text: str, values: Mapping[str, str]) -> tuple[str, dict[str, Span]]:
    """The text with its fields filled in, and the characters of those that are not empty."""
    for name in FIELDS:
        if not values[name]:
            text = re.sub(rf"(?m)^\{{{name}\}}\n|\n\{{{name}\}}\Z", "", text)
    parts, spans, length = [], {}, 0
    for literal, filled, _, _ in string.Formatter().parse(text):
        value = values[filled] if filled else ""
        if value and filled in PARTS:
            spans[filled] = (length + len(literal), length + len(literal) + len(value))
        parts += [literal, value]
        length += len(literal) + len(value)
    return "".join(parts), spans


def _with_ends(text: str, spans: dict[str, Span]) -> Prompt:
    """Prefix: all before the first part. Cue: all after the last one. A part that is not there is an empty span."""
    first, last = min(start for start, _ in spans.values()), max(end for _, end in spans.values())
    missing = {name: (first, first) for name in PARTS if name not in spans}
    return Prompt(text, {"prefix": (0, first), **missing, **spans, "cue": (last, len(text))})


def _check_fields(template: Template, source: str) -> None:
    try:
        used = [name for _, name, _, _ in string.Formatter().parse(template.text) if name is not None]
    except ValueError as error:
        raise TaskError(f"template {source} has a lone brace ({error}); write {{{{ and }}}} for braces") from error
    if unknown := [name for name in used if name not in FIELDS]:
        raise TaskError(f"template {source} has the unknown field {unknown[0]!r}; known are {', '.join(FIELDS)}")
    needed = [name for name in ("persona", "question") if not (template.system and name == "persona")]
    if missing := [name for name in needed if name not in used]:
        raise TaskError(f"template {source} has no {{{missing[0]}}}; a pair needs persona and question in its prompt")
    if repeated := [name for name in FIELDS if used.count(name) > 1]:
        raise TaskError(f"template {source} has {{{repeated[0]}}} more than once; use every field once")


def _file_templates(path: Path, tokenizer: Any) -> list[Template]:
    if path.suffix.lower() == ".json":
        content = read_json(path, TEMPLATE)
        if isinstance(content, dict) and "user" in content:
            return [_users_turn(content, path, tokenizer)]
        return _json_templates(content, path)
    return [Template(path.stem, read_text(path, TEMPLATE).removesuffix("\n"), "A:")]


def _users_turn(content: Mapping[str, Any], path: Path, tokenizer: Any) -> Template:
    """The tokenizer's chat template with the file's user's turn and beginning of the answer."""
    if odd := [name for name in ("template", "templates", "cues") if name in content]:
        raise TaskError(f"template {path}: 'user' is a turn of the chat template and {odd[0]!r} a raw one; give one")
    user, cue = _strings([content["user"], content.get("cue", "")], path)
    fillers, neutral = _strings(content.get("filler") or [], path), _neutral(content.get("neutral") or [], path)
    has_persona = "{persona}" in user
    template = chat_template(tokenizer, name=path.stem, text=user, cue=cue)
    if has_persona:  # the persona is where the file puts it, and not a turn of its own
        template = replace(template, text=user, system=False)
    return replace(template, fillers=fillers, neutral=neutral)


def _json_templates(content: Any, path: Path) -> list[Template]:
    try:
        fillers = _strings(content.get("filler") or [], path)
        neutral = _neutral(content.get("neutral") or [], path)
        if "cues" in content:
            cues = [(cue["before_question"], cue["answer_cue"]) for cue in content["cues"]]
            _strings([text for cue in cues for text in cue], path)
            neutral = neutral or (*fillers, *map("\n".join, permutations(fillers, 2)))
            return [
                Template(f"{path.stem}-{i}", _of_cue(before), answer, fillers, neutral)
                for i, (before, answer) in enumerate(cues)
            ]
        named = content["templates"] if "templates" in content else {path.stem: content["template"]}
        templates = [(name, text, content.get("cue", "A:")) for name, text in named.items()]
    except (AttributeError, KeyError, TypeError) as error:
        raise TaskError(
            f"template {path}: expected 'template' (or 'templates' by name), 'cue', 'filler' and 'neutral' if "
            "wanted, or 'cues'"
        ) from error
    _strings([text for texts in templates for text in texts], path)
    if not templates:
        raise TaskError(f"template {path}: 'templates' is empty; give one by its name")
    return [Template(name, text, cue, fillers, neutral) for name, text, cue in templates]


def _strings(values: Any, path: Path) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(text, str) for text in values):
        raise TaskError(f"template {path}: template, cue and every filler must be a string")
    return tuple(values)


def _neutral(values: Any, path: Path) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(text, str) and text.strip() for text in values):
        raise TaskError(f"template {path}: every neutral wording must be a string that says something")
    return tuple(values)


def _of_cue(before: str) -> str:
    return "{persona}\n{filler}\n" + before.replace("{", "{{").replace("}", "}}") + "{question}\n{cue}"


def has_chat(tokenizer: Any) -> bool:
    """Whether the tokenizer has a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def chat_template(
    tokenizer: Any, *, name: str = "chat", text: str = CHAT, cue: str = "", style: Style | None = None
) -> Template:
    """The tokenizer's chat template with ``text`` as the user's turn and ``cue`` as the beginning of the answer.

    Raises:
        OptionError: the tokenizer has no chat template, or it cannot be rendered.
    """
    style = style or Style()
    if not has_chat(tokenizer):
        raise OptionError("the tokenizer has no chat template; use --template raw, or a file with your own")
    own = tokenizer.get_chat_template()
    chat = (CLOCK if "strftime_now" in own else "") + own
    try:
        if PROBE in _rendered(tokenizer, chat, PROBE, "A question?"):
            return Template(name, text, cue, tokenizer=tokenizer, chat=chat, system=True, style=style)
    except OptionError:
        pass  # no system turn: many templates say so by raising
    _rendered(tokenizer, chat, "", "A question?")
    return Template(name, "{persona}\n\n" + text, cue, tokenizer=tokenizer, chat=chat, style=style)


def _rendered(tokenizer: Any, chat: str, system: str, content: str) -> str:
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": content})
    settings = {"chat_template": chat, "tokenize": False, "add_generation_prompt": True, **_settings(chat)}
    try:
        with _deadline(CHAT_SECONDS):
            text = tokenizer.apply_chat_template(messages, **settings)
    except Exception as error:  # a template is a program, and may fail in any way
        reason = cut(" ".join(str(error).split()) or "no reason given", 200)
        raise OptionError(
            f"the tokenizer's chat template cannot be rendered ({type(error).__name__}: {reason}); use a raw template, "
            "or a file with your own"
        ) from error
    if len(text) > CHAT_GROWTH * (len(system) + len(content)) + CHAT_LENGTH:
        raise OptionError(
            f"the tokenizer's chat template makes {len(text):,} characters of a turn of {len(content):,}; use a raw "
            "template, or a file with your own"
        )
    return text


@contextlib.contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Stops the rendering of a template that does not end, by checking the clock at each of its lines.

    Jinja's sandbox bounds a single range, not loops inside loops.
    """
    end, before = time.monotonic() + seconds, sys.gettrace()

    def watched(frame: Any, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in ("<template>", "<unknown>"):
            return None
        if time.monotonic() > end:
            raise TimeoutError(f"it does not end within {seconds:g} seconds")
        return watched

    sys.settrace(watched)
    try:
        yield
    finally:
        sys.settrace(before)


def _settings(chat: str) -> dict[str, Any]:
    """Values for what a template asks of its caller: a date, and whether the model thinks aloud first."""
    known = {"date_string": PINNED_DATE, "enable_thinking": False}
    return {name: value for name, value in known.items() if name in chat}
