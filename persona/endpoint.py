"""Any OpenAI-compatible chat endpoint: asked with bounded concurrency, every answer on disk as it arrives.

What one request comes to:

    answered                      written to the journal at once; never asked again
    400, 422, no chat completion  a failure of that request, counted; a later run asks it again
    401, 403, 404                 the whole run ends: no other request would do better
    429, 5xx, cut connection      asked again after 0.5 s, 1 s, 2 s, … at most 8 s, or what Retry-After
                                  says (the ``openai`` client's own back-off); after the last try
                                  the run ends, and another run goes on where it stopped

The key is in the ``Endpoint`` and nowhere else: not in its ``repr``, in no file, no log and no
message, even where the server sends it back.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from circuit.errors import FileError, OptionError, PersonaCircuitsError
from circuit.reading import DamagedState, parse_json

__all__ = ["Answer", "Answers", "Chat", "Endpoint", "EndpointError", "Journal", "ask", "endpoint"]

HIDDEN = "[key]"
NO_KEY = "none"  # what servers that want no key are sent: the client insists on one
DEFAULT_URL = "https://api.openai.com/v1"
GIVE_UP = 16  # failures without a single answer, after which nothing else is asked
SECRET = 12  # keys shorter than this ("none", "EMPTY") are no secret, and may be words of an answer
PER_REQUEST = (400, 413, 422)
LIMITS = ("max_tokens", "max_completion_tokens")
Progress = Callable[[int, int], None]


class EndpointError(PersonaCircuitsError):
    """An endpoint refuses, cannot be reached, or is no OpenAI-compatible one."""


@dataclass(frozen=True)
class Endpoint:
    """Where to ask and how; build it with ``endpoint``.

    ``limit`` is the name of the field that bounds the answer's length: newer models of
    OpenAI know ``max_completion_tokens`` only, other servers mostly ``max_tokens``.
    """

    model: str
    base_url: str
    key: str = field(default="", repr=False)
    concurrency: int = 8
    max_retries: int = 8
    timeout: float = 120.0
    limit: str = "max_tokens"

    @property
    def address(self) -> str:
        """The base URL without user name, password and query: what files and messages may hold."""
        parts = urlsplit(self.base_url)
        host = parts.hostname or ""
        host = (f"[{host}]" if ":" in host else host) + (f":{parts.port}" if parts.port else "")
        return urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))

    def scrubbed(self, text: str) -> str:
        """The text without the key."""
        return text.replace(self.key, HIDDEN) if self.key else text


def endpoint(
    model: str,
    *,
    base_url: str | None = None,
    key: str | None = None,
    concurrency: int = 8,
    max_retries: int = 8,
    timeout: float = 120.0,
    limit: str = "max_tokens",
    environment: Mapping[str, str] | None = None,
) -> Endpoint:
    """An endpoint from options, and from OPENAI_BASE_URL and OPENAI_API_KEY where an option is None.

    Raises:
        OptionError: the URL is none, a number is out of range, or the key has characters that no header may have.
        EndpointError: OpenAI's own address is asked without a key.
    """
    env = os.environ if environment is None else environment
    url = base_url or env.get("OPENAI_BASE_URL") or DEFAULT_URL
    secret = (env.get("OPENAI_API_KEY", "") if key is None else key).strip()
    if not secret.isprintable() or not secret.isascii() or " " in secret:
        raise OptionError("the API key has spaces or characters that no key has; check for a bad copy (not shown here)")
    made = Endpoint(model, url, secret, concurrency, max_retries, timeout, limit)
    _check(made)
    if not secret and url == DEFAULT_URL:
        raise EndpointError("no API key: set OPENAI_API_KEY, or give the --base-url of a server that needs none")
    return made


@dataclass(frozen=True)
class Chat:
    """One request: ``(role, text)`` messages and how to answer them. ``sample`` tells repeated requests apart."""

    messages: tuple[tuple[str, str], ...]
    max_tokens: int
    temperature: float | None = 1.0
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    sample: int = 0

    def body(self, limit: str) -> dict[str, Any]:
        """What is sent, but for the model."""
        settings = {"temperature": self.temperature, "top_p": self.top_p, "seed": self.seed}
        known = {name: value for name, value in settings.items() if value is not None}
        messages = [{"role": role, "content": text} for role, text in self.messages]
        return {"messages": messages, limit: self.max_tokens, **known, **({"stop": [*self.stop]} if self.stop else {})}

    def digest(self, place: Endpoint) -> str:
        """SHA-256 over address, model and everything that is asked: what an answer is kept under."""
        whole = {"url": place.address, "model": place.model, "sample": self.sample, **self.body("max_tokens")}
        return hashlib.sha256(json.dumps(whole, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@dataclass(frozen=True)
class Answer:
    """The text, why it ended (``stop``, ``length``, ``content_filter``, …) and which model says it answered."""

    text: str
    finish: str
    model: str = ""


@dataclass(frozen=True)
class Answers:
    """An answer per request, None where it failed; ``failures`` are reasons with their counts."""

    answers: tuple[Answer | None, ...]
    asked: int
    remembered: int
    failures: Mapping[str, int]


class Journal:
    """An append-only JSON Lines file of results by key, for work that may be killed at any moment.

    A line is written in one piece and handed to the system at once. A line that a killed
    run left unfinished is passed over and counted in ``torn``; the next line begins after it.
    May be used from several threads.

    Raises:
        FileError: the file cannot be read or written, or is no journal.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.torn = 0
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            content = self.path.read_bytes() if self.path.exists() else b""
            self._found = self._parsed(content)
            self._file = self.path.open("ab", buffering=0)
            if content and not content.endswith(b"\n"):
                self._file.write(b"\n")
        except OSError as error:
            raise FileError(f"journal {self.path} cannot be used ({error.strerror}); check the path") from error

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._found)

    def get(self, key: str, **types: type) -> dict[str, Any] | None:
        """What stands under the key; None where nothing does, or something without values of these types."""
        found = self._found.get(key)
        good = found is not None and all(isinstance(found.get(name), wanted) for name, wanted in types.items())
        return found if good else None

    def add(self, key: str, value: Mapping[str, Any]) -> None:
        """Keep a result; it is in the file when this returns."""
        line = json.dumps({"key": key, **value}, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            self._file.write(line)
            self._found[key] = dict(value)

    def _parsed(self, content: bytes) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for line in content.split(b"\n"):
            if not line.strip():
                continue
            try:
                item = parse_json(line.decode("utf-8"))
                key = item.pop("key")
                if not isinstance(key, str):
                    raise TypeError("a key is text")
                found[key] = item
            except (ValueError, KeyError, AttributeError, TypeError):
                self.torn += 1
        if self.torn and not found and content.count(b"\n") > 1:
            raise FileError(f"{self.path} is no journal of answers; move it away or choose another folder with --out")
        if self.torn:
            count = f"{self.torn} line{'s' if self.torn > 1 else ''}"
            warnings.warn(DamagedState(f"{count} of {self.path} cannot be read; that work is done again"), stacklevel=3)
        return found


def ask(place: Endpoint, requests: Sequence[Chat], journal: Journal, *, progress: Progress | None = None) -> Answers:
    """Answers to all requests: from the journal where it has them, else from the endpoint.

    Equal requests are asked once. ``progress`` is called from this thread alone.

    Raises
    ------
    OptionError
        The ``openai`` package is not installed.
    EndpointError
        The endpoint refuses the key, does not know the model, cannot be reached or does
        not recover; what has been answered is in the journal.
    """
    keys = [request.digest(place) for request in requests]
    open_ones = {key: chat for key, chat in zip(keys, requests, strict=True) if _kept(journal, key) is None}
    remembered = len(set(keys)) - len(open_ones)
    failures: dict[str, str] = {}
    if open_ones:
        failures = _ask_all(place, open_ones, journal, progress or _silent, len(set(keys)))
    kept = [_kept(journal, key) for key in keys]
    answers = tuple(None if item is None else Answer(item["text"], item["finish"], item["model"]) for item in kept)
    counts = {reason: list(failures.values()).count(reason) for reason in dict.fromkeys(failures.values())}
    return Answers(answers, len(open_ones) - len(failures), remembered, counts)


def _kept(journal: Journal, key: str) -> dict[str, Any] | None:
    return journal.get(key, text=str, finish=str, model=str)


def _ask_all(
    place: Endpoint, requests: Mapping[str, Chat], journal: Journal, progress: Progress, total: int
) -> dict[str, str]:
    """Ask what is open; reasons by key for what failed on its own."""
    client = _client(place)
    failures: dict[str, str] = {}
    waiting = iter(requests.items())
    running: dict[Future[str], str] = {}
    done = total - len(requests)
    pool = ThreadPoolExecutor(place.concurrency, thread_name_prefix="endpoint")
    try:
        while True:
            while len(running) < place.concurrency and (following := next(waiting, None)) is not None:
                key, chat = following
                running[pool.submit(_ask_one, client, place, key, chat, journal)] = key
            if not running:
                return failures
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                key = running.pop(future)
                if reason := future.result():
                    failures[key] = reason
                done += 1
                progress(done, total)
            if len(failures) >= GIVE_UP and len(failures) == done - (total - len(requests)):
                raise _ended(place, f"the first {len(failures)} requests all failed: {reason}", journal)
    except _Fatal as error:
        raise _ended(place, str(error), journal) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        client.close()


class _Fatal(Exception):
    """No other request would do better."""


def _ended(place: Endpoint, why: str, journal: Journal) -> EndpointError:
    return EndpointError(
        f"{place.address}, model {place.model}: {why}; {len(journal)} answers are kept in {journal.path}, "
        "and another run goes on from there"
    )


def _ask_one(client: Any, place: Endpoint, key: str, chat: Chat, journal: Journal) -> str:
    """Ask, and keep the answer; the reason where this request alone cannot be answered, else an empty string."""
    import openai

    try:
        reply = client.chat.completions.create(model=place.model, **chat.body(place.limit))
    except openai.APIStatusError as error:
        reason = place.scrubbed(f"status {error.status_code}: {_message(error)}")
        if error.status_code in PER_REQUEST:
            return reason
        raise _Fatal(reason + _advice(error.status_code)) from None
    except openai.APIConnectionError as error:
        cause = type(error.__cause__ or error).__name__
        raise _Fatal(f"no answer after {place.max_retries + 1} tries ({cause}); check --base-url") from None
    except (openai.APIError, ValueError) as error:
        return f"the reply is no chat completion ({type(error).__name__})"
    try:
        choice = reply.choices[0]
        text, finish = choice.message.content or "", choice.finish_reason or "unknown"
        kept = {"text": text, "finish": finish, "model": reply.model or ""}
    except (AttributeError, IndexError, TypeError):
        return "the reply is no chat completion (it has no choices)"
    if not all(isinstance(value, str) for value in kept.values()):
        return "the reply is no chat completion (its content is not text)"
    if len(place.key) >= SECRET:
        kept = {name: place.scrubbed(value) for name, value in kept.items()}
    journal.add(key, kept)
    return ""


def _message(error: Any) -> str:
    """The server's own sentence, short and on one line."""
    body = error.body if isinstance(error.body, dict) else {}
    text = " ".join(str(body.get("message") or error.message).split())
    return text if len(text) <= 200 else text[:199] + "…"


def _advice(status: int) -> str:
    return {
        401: "; check OPENAI_API_KEY",
        403: "; check what the key is allowed",
        404: "; check --base-url (it mostly ends in /v1) and --endpoint-model",
        429: "; lower --concurrency or wait",
    }.get(status, "")


def _client(place: Endpoint) -> Any:
    try:
        import openai
    except ImportError as error:
        raise OptionError("asking an endpoint needs the openai package: pip install 'persona-circuits[api]'") from error
    return openai.OpenAI(
        api_key=place.key or NO_KEY, base_url=place.base_url, max_retries=place.max_retries, timeout=place.timeout
    )


def _check(place: Endpoint) -> None:
    try:
        parts = urlsplit(place.base_url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        usable = False
    if not usable:
        raise OptionError("--base-url is no http address; expected one like http://localhost:8000/v1")
    for name, least in (("concurrency", 1), ("max_retries", 0)):
        if getattr(place, name) < least:
            raise OptionError(f"{name.replace('_', '-')} is {getattr(place, name)}; it must be at least {least}")
    if not place.timeout > 0:
        raise OptionError(f"timeout is {place.timeout:g} s; it must be above 0")
    if place.limit not in LIMITS:
        raise OptionError(f"limit {place.limit!r} is not one of {', '.join(LIMITS)}")


def _silent(done: int, total: int) -> None:
    """No progress is wanted."""
