"""Keys taken out of texts: whole or in part, as they are or as a server, a browser or JSON would write them.

A server may send back the key it was given, in an answer, in an error, in a header that it
quotes, cut off after some characters or percent-encoded. A text is scrubbed first and cut
afterwards, never the other way round: what is left of a key that was cut is no longer the key.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit, urlunsplit

__all__ = ["PART", "bare_address", "scrubbed", "secrets_of"]

HIDDEN = "[key]"
PART = 8  # so many characters of a key in a row are as secret as all of it
_NAMES = re.compile(r"key|token|secret|sig|auth|pass|pwd|code|credential", re.I)
_RANDOM = re.compile(r"(?=[0-9]*[A-Za-z])(?=[A-Za-z]*[0-9])[A-Za-z0-9]{16,}")
_WRITTEN = re.compile(
    r"%(?:25)*(?P<percent>[0-9A-Fa-f]{2})|\\+u00(?P<json>[0-9A-Fa-f]{2})|\\+x(?P<hex>[0-9A-Fa-f]{2})"
    r"|&#x0*(?P<entity>[0-9A-Fa-f]{2});|&#0*(?P<decimal>[0-9]{2,3});|&(?P<name>amp|lt|gt|quot);"
    r"|\\+(?P<slash>[/\"'\\])|(?P<plain>.)",
    re.S,
)
_ENTITIES = {"amp": "&", "lt": "<", "gt": ">", "quot": '"'}


def secrets_of(key: str, url: str) -> tuple[str, ...]:
    """The key, and what an address holds that lets someone in: in front of the host, in the path, as a parameter."""
    parts = urlsplit(url)
    name, password = unquote(parts.username or ""), unquote(parts.password or "")
    secrets = [key, password or name]
    if name or password:
        secrets.append(base64.b64encode(f"{name}:{password}".encode()).decode())
    secrets += [value for name, value in parse_qsl(parts.query) if _NAMES.search(name) or _RANDOM.search(value)]
    secrets += [part for part in map(unquote, parts.path.split("/")) if _RANDOM.search(part)]
    return tuple(dict.fromkeys(filter(None, secrets)))


def bare_address(url: str, secrets: Sequence[str]) -> str:
    """The address without user name, password and query, and without what of its path is secret."""
    parts: SplitResult = urlsplit(url)
    host = parts.hostname or ""
    host = (f"[{host}]" if ":" in host else host) + (f":{parts.port}" if parts.port else "")
    path = "/".join(scrubbed(part, secrets) for part in parts.path.rstrip("/").split("/"))
    return urlunsplit((parts.scheme, host, path, "", ""))


def scrubbed(text: str, secrets: Sequence[str], *, parts: bool = True) -> str:
    """The text without the secrets, in whatever way their characters are written.

    With ``parts`` every run of at least ``PART`` characters of a secret goes too; a secret that is
    shorter goes where it is a word of its own.
    """
    spans = [span for secret in secrets for span in _spans(_small(text), _small(secret), parts)]
    read = [(_character(match), *match.span()) for match in _WRITTEN.finditer(text)]
    plain = "".join(character for character, _, _ in read)
    for secret in secrets:
        as_read = "".join(map(_character, _WRITTEN.finditer(secret)))
        spans += [(read[first][1], read[last - 1][2]) for first, last in _spans(plain, as_read, parts)]
    pieces: list[str] = []
    end = 0
    for first, last in sorted(spans):
        if first > end or not pieces:
            pieces += [text[end:first], HIDDEN]
        end = max(end, last)
    return "".join([*pieces, text[end:]])


def _character(match: re.Match[str]) -> str:
    """The one character that was written, as a small letter."""
    kind, value = match.lastgroup, match[match.lastgroup or 0]
    if kind in ("percent", "json", "hex", "entity"):
        value = chr(int(value, 16))
    elif kind == "decimal":
        value = chr(int(value))
    elif kind == "name":
        value = _ENTITIES[value]
    return _small(value)


def _small(text: str) -> str:
    """Small letters for ASCII's capitals, so that every character keeps its place."""
    return re.sub("[A-Z]+", lambda match: match[0].lower(), text)


def _spans(plain: str, secret: str, parts: bool) -> Iterator[tuple[int, int]]:
    """Where in the text the secret stands, or a part of it."""
    if len(secret) < PART:
        yield from (match.span() for match in re.finditer(rf"(?<!\w){re.escape(secret)}(?!\w)", plain))
        return
    size = PART if parts else len(secret)
    for piece in {secret[i : i + size] for i in range(len(secret) - size + 1)}:
        start = plain.find(piece)
        while start >= 0:
            yield start, start + size
            start = plain.find(piece, start + 1)
