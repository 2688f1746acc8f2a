"""Options as sets of forms, and forms of several tokens scored along themselves, all of a prompt in one pass.

A form's later tokens are read after its earlier ones. So the beginnings of all forms are put after the prompt as
branches of a tree, each token of which sees the prompt and its own branch, at the position that it would have there:

    prompt | tira  mi | ice          forms "tira mi su", "ice cream", "cake"
             1     2    1            positions from the prompt's end

One pass then has every token's logits, whatever is patched or differentiated in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from persona_circuits.metrics.forms import with_options

__all__ = ["FormTable", "Forms", "form_table", "forms_left_out", "forms_of"]

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Forms:
    """The forms of a prompt's options as token ids: ``forms[i]`` are those of the option ``names[i]``.

    No form begins another one. ``left_out`` says which were not counted, and why.
    """

    names: tuple[str, ...]
    forms: tuple[tuple[Ids, ...], ...]
    left_out: tuple[str, ...] = ()

    @cached_property
    def nodes(self) -> tuple[Ids, ...]:
        """What stands after the prompt: every beginning of a form, parents before their children."""
        return tuple(sorted({form[:n] for some in self.forms for form in some for n in range(1, len(form))}))

    @property
    def forced(self) -> Ids:
        """The tokens after the prompt."""
        return tuple(node[-1] for node in self.nodes)

    def only(self, names: Sequence[str]) -> Forms:
        """Those of some options, in this order."""
        place = {name: i for i, name in enumerate(self.names)}
        return replace(self, names=tuple(names), forms=tuple(self.forms[place[name]] for name in names))


def forms_of(options: Mapping[str, Iterable[Ids]], said: Mapping[Ids, str], left_out: Iterable[str] = ()) -> Forms:
    """The forms that can be counted: none stands for two options, begins one of another option, or is counted twice.

    Parameters
    ----------
    options
        The forms of every option.
    said
        The text of every form.
    left_out
        What was not counted before.

    Returns
    -------
    What is left; an option may have nothing.
    """
    owners: dict[Ids, set[str]] = {}
    for name, forms in options.items():
        for form in forms:
            owners.setdefault(form, set()).add(name)
    beginnings: dict[Ids, set[str]] = {}
    for form, names in owners.items():
        for n in range(1, len(form)):
            beginnings.setdefault(form[:n], set()).update(names)
    notes = list(left_out)
    for form, names in owners.items():
        others = beginnings.get(form, set()) - names if len(names) == 1 else names
        if others:
            verb = "stands for" if len(names) > 1 else "begins"
            whom = ", ".join(repr(name) for name in sorted(names | others))
            notes.append(f"{said[form]!r} {verb} {'more than one of ' if verb == 'begins' else ''}{whom}")
    clear = {
        form: names for form, names in owners.items() if len(names) == 1 and not beginnings.get(form, set()) - names
    }
    kept = {
        name: tuple(
            form
            for form in dict.fromkeys(forms)
            if form in clear and not any(form[:n] in clear and clear[form[:n]] == {name} for n in range(1, len(form)))
        )
        for name, forms in ((name, tuple(forms)) for name, forms in options.items())
    }
    return Forms(tuple(kept), tuple(kept.values()), tuple(dict.fromkeys(notes)))


def forms_left_out(notes: Sequence[Sequence[str]], most: int = 5) -> tuple[str, ...]:
    """Notes on forms that are not counted, from the ``left_out`` of every pair."""
    counts = Counter(note for own in notes for note in own)
    lines = [f"a form is not counted: {note} ({n} of {len(notes)} pairs)" for note, n in counts.most_common(most)]
    return (*lines, *([f"{len(counts) - most} more forms are not counted"] if len(counts) > most else []))


@dataclass(frozen=True, eq=False)
class FormTable:
    """The forms of a batch's rows as tensors; the last ``n_read`` positions are read, -1 is padding.

    ``places``, ``tokens`` and ``options`` are as ``metrics.with_options`` takes them. Of the last positions but one,
    which may be tokens after the prompt, ``depth`` is how far after its end each is (0: it belongs to the prompt),
    and ``sees`` which of each other they see.
    """

    places: Int[Tensor, "batch form step"]
    tokens: Int[Tensor, "batch form step"]
    options: Int[Tensor, "batch form"]
    depth: Int[Tensor, "batch node"]
    sees: Bool[Tensor, "batch node node"]
    n_options: int

    @property
    def n_read(self) -> int:
        """How many of the last positions are read."""
        return self.depth.shape[1] + 1

    def __len__(self) -> int:
        return len(self.options)

    def __getitem__(self, some: slice | Sequence[int]) -> FormTable:
        """Some rows."""
        cut: dict[str, Any] = {field.name: getattr(self, field.name)[some] for field in fields(self)[:-1]}
        return FormTable(**cut, n_options=self.n_options)

    def key(self, row: int) -> bytes:
        """What distinguishes rows of the same tokens."""
        return self.depth[row].cpu().numpy().tobytes() + self.sees[row].cpu().numpy().tobytes()

    def read(self, logits: Float[Tensor, "*lead batch read vocab"]) -> Float[Tensor, "*lead batch events"]:
        """The logits of the vocabulary and the options, of those at the places that are read."""
        return with_options(logits, self.places, self.tokens, self.options, self.n_options)

    def chain(self, n_tokens: int) -> Int[Tensor, "batch pos"]:
        """The position of every token of rows this long as if its branch were the only one."""
        n_nodes, places = self.depth.shape[1], torch.arange(n_tokens, device=self.depth.device)
        ends = n_tokens - 1 - (self.depth > 0).sum(1, keepdim=True)
        own = torch.where(self.depth > 0, ends + self.depth, places[n_tokens - n_nodes :])
        return torch.cat([places[: n_tokens - n_nodes].expand(len(self), -1), own], 1)

    def branched(self, mask: Tensor) -> Tensor:
        """A mask or a bias ``[batch, heads, query, key]`` of rows without branches, as the branches see each other."""
        n_tokens, n_nodes = mask.shape[-1], self.depth.shape[1]
        chain, rows = self.chain(n_tokens), torch.arange(len(self), device=mask.device)[:, None, None]
        moved = mask.expand(len(self), -1, -1, -1).transpose(0, 1)[:, rows, chain[:, :, None], chain[:, None]]
        hidden = torch.zeros(len(self), n_tokens, n_tokens, dtype=torch.bool, device=mask.device)
        hidden[:, n_tokens - n_nodes :, n_tokens - n_nodes :] = ~self.sees
        blocked = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        return moved.masked_fill(hidden, blocked).transpose(0, 1)


def form_table(rows: Sequence[Forms], device: torch.device | str) -> FormTable:
    """The forms of rows, those with fewer padded."""
    n_nodes = max(len(entry.nodes) for entry in rows)
    n_forms = max(sum(map(len, entry.forms)) for entry in rows)
    n_steps = max(len(form) for entry in rows for some in entry.forms for form in some)
    shape = (len(rows), n_forms, n_steps)
    places, tokens = torch.zeros(shape, dtype=torch.long), torch.full(shape, -1)
    options = torch.full(shape[:2], -1)
    depth = torch.zeros(len(rows), n_nodes, dtype=torch.long)
    sees = torch.ones(len(rows), n_nodes, n_nodes, dtype=torch.bool)
    for row, entry in enumerate(rows):
        end = n_nodes - len(entry.nodes)  # the place of the prompt's last token among those read
        place = {(): end} | {node: end + 1 + i for i, node in enumerate(entry.nodes)}
        places[row] = end
        owned = [(number, form) for number, some in enumerate(entry.forms) for form in some]
        for i, (number, form) in enumerate(owned):
            options[row, i] = number
            tokens[row, i, : len(form)] = torch.tensor(form)
            places[row, i, : len(form)] = torch.tensor([place[form[:n]] for n in range(len(form))])
        depth[row, end:] = torch.tensor([len(node) for node in entry.nodes], dtype=torch.long)
        sees[row, :, end:] = False
        for node in entry.nodes:
            seen = [place[node[: n + 1]] - 1 for n in range(len(node))]
            sees[row, place[node] - 1, seen] = True
    here = (x.to(device) for x in (places, tokens, options, depth, sees))
    named: dict[str, Any] = dict(zip((field.name for field in fields(FormTable)), here, strict=False))
    return FormTable(**named, n_options=max(len(entry.names) for entry in rows))
