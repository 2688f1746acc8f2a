"""The forms of a pair's options as tokens, checked after every prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from persona_circuits.circuit.task.forms import Forms, forms_of
from persona_circuits.circuit.task.pairs import PromptPair
from persona_circuits.circuit.task.tokens import Reader, beyond_embedding

__all__ = ["options_of", "read_forms"]


def options_of(pair: PromptPair) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The options of a pair, the answers first, and the texts that stand for each: itself, where no forms are given."""
    given = dict(pair.forms or ())
    names = dict.fromkeys((*pair.answers, *pair.wrong_answers, *given))
    return tuple((name, given.get(name, (name,))) for name in names)


def read_forms(
    pair: PromptPair,
    prompts: Sequence[tuple[list[int], str, Callable[[str], list[int]]]],
    model: Reader,
    faults: list[str],
) -> Forms:
    """The forms of the answers that are the same tokens after every prompt and belong to one option only."""
    text_of: dict[tuple[int, ...], str] = {}
    options: dict[str, list[tuple[int, ...]]] = {}
    left_out: list[str] = []
    for name, texts in options_of(pair):
        options[name] = []
        for text in texts:
            why: list[str] = []
            behind = {_behind(ids, read(prompt + text), prompt, text, model, why) for ids, prompt, read in prompts}
            if len(behind) > 1 and not why:
                why.append(f"{text!r} is not the same tokens after every prompt")
            left_out += why[:1]
            if not why:
                options[name].append(form := behind.pop())
                text_of.setdefault(form, text)
    forms = forms_of(options, text_of, left_out)
    wanted = dict.fromkeys((*pair.answers, *pair.wrong_answers))
    empty = [name for name, some in zip(forms.names, forms.forms, strict=True) if name in wanted and not some]
    why_not = f" ({'; '.join(forms.left_out)})" if forms.left_out else ""
    faults += [f"option {name!r} has no form that can be counted{why_not}; give it other 'forms'" for name in empty]
    if both := set(pair.answers) & set(pair.wrong_answers):
        faults.append(f"{', '.join(map(repr, sorted(both)))} is both an answer and a wrong answer")
    own = forms.only(tuple(wanted))
    if model.n_context and (size := max(len(ids) for ids, _, _ in prompts) + len(own.forced)) > model.n_context:
        faults.append(f"a prompt with its forms has {size} tokens, the model's context holds {model.n_context}")
    return own


def _behind(
    ids: list[int], joined: list[int], prompt: str, text: str, model: Reader, why: list[str]
) -> tuple[int, ...]:
    """The tokens that a form adds after a prompt's."""
    form = tuple(joined[len(ids) :])
    if joined[: len(ids)] != ids or not form:
        why.append(f"{text!r} merges with the prompt's last token")
    elif model.tokenizer.unk_token_id is not None and model.tokenizer.unk_token_id in form:
        why.append(f"the tokenizer has no token for {text!r}")
    else:
        why += beyond_embedding(form, model)
    return form
