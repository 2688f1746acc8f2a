"""Make text from outside safe to show: names, answers and messages contain whatever their authors put there.

What a terminal, a figure or a picture would obey or hide instead of showing is written as its escape: control
characters (the escape character that begins every terminal command among them), marks that turn the direction of
writing, invisible marks, and halves of surrogate pairs. Line feeds and tabs stay. Nothing here belongs into data files:
those keep the text as it is.
"""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Sequence

__all__ = ["html_table", "one_line", "shortened", "signed", "visible"]

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but for tab and line feed, delete, C1
    "\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # invisible, or bidirectional
    "\ud800-\udfff\U000e0000-\U000e007f]"  # halves of pairs, and letters that no one sees
)


def signed(value: float, places: int = 3) -> str:
    """A number with its sign and so many places, or with its first digits where these would be zeros.

    Examples:
        >>> signed(1.25), signed(-0.000042), signed(0)
        ('+1.250', '-4.2e-05', '+0.000')
    """
    return f"{value:+.{places}f}" if value == 0 or abs(value) >= 10.0**-places else f"{value:+.2g}"


def visible(text: object) -> str:
    r"""The text with what cannot be seen as its escape.

    Examples:
        >>> print(visible("red\x1b[31m, reversed \u202eabc"))
        red\u001b[31m, reversed \u202eabc
    """
    return _UNSEEN.sub(_escaped, str(text))


def one_line(text: object, most: int | None = None) -> str:
    """The same on one line, tabs and line feeds as spaces, and no longer than ``most`` characters."""
    line = visible(re.sub(r"[\t\r\n]+", " ", str(text)))
    return line if most is None else shortened(line, most)


def html_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table as a notebook shows it."""
    head = "".join(f"<th>{_in_html(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{_in_html(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<p>{_in_html(title)}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _in_html(text: object) -> str:
    return html.escape(one_line(text, 200))


def shortened(text: str, most: int, *, distinct: bool = False) -> str:
    """At most ``most`` characters, an ellipsis at the end of what is cut.

    With ``distinct`` the last eight characters are of the whole text's SHA-256, so that long texts
    which begin alike stay apart.
    """
    if len(text) <= most:
        return text
    if not distinct:
        return text[: most - 1] + "…"
    return f"{text[: most - 9]}…{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
