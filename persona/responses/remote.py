"""Any OpenAI-compatible chat endpoint: asked with bounded concurrency, every answer on disk as it arrives.

What one request comes to:

    answered                      written to the journal at once; never asked again
    400, 422, no chat completion  a failure of that request, counted; a later run asks it again
    401, 403, 404                 the whole run ends: no other request would do better
    late, too large               a failure of that request, counted: ``deadline`` bounds an answer with all its
                                  tries, ``max_bytes`` its size; a later run asks it again
    429, 5xx, cut connection      asked again after 0.5 s, 1 s, 2 s, … at most 8 s, or what Retry-After
                                  says (the ``openai`` client's own back-off); after the last try
                                  the run ends, and another run goes on where it stopped

Ctrl-C ends ``ask`` at once: nothing waits for answers that are on their way.

The key is in the ``Endpoint`` and nowhere else: not in its ``repr``, in no file, no log and no
message, even where the server sends it back (``persona.responses.scrubbing``). So is what the address holds
beside the address: user name, password and parameters.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from persona_circuits.circuit.errors import OptionError, PersonaCircuitsError
from persona_circuits.circuit.printable import shortened
from persona_circuits.circuit.progress import Progress, untold
from persona_circuits.persona.responses.journal import Answer, Answers, Journal
from persona_circuits.persona.responses.options import EndpointOptions
from persona_circuits.persona.responses.scrubbing import bare_address, scrubbed, secrets_of

__all__ = ["Chat", "Endpoint", "EndpointError", "ask", "endpoint"]

NO_KEY = "none"  # what servers that want no key are sent: the client insists on one
DEFAULT_URL = "https://api.openai.com/v1"
GIVE_UP = 16  # failures without a single answer, after which nothing else is asked
SECRET = 12  # keys shorter than this ("none", "EMPTY") are no secret, and may be words of an answer
PER_REQUEST = (400, 413, 422)


class EndpointError(PersonaCircuitsError):
    """An endpoint refuses, cannot be reached, or is no OpenAI-compatible one."""


@dataclass(frozen=True)
class Endpoint:
    """Where to ask and how; build it with ``endpoint``, which finds address and key."""

    model: str
    base_url: str = field(repr=False)
    key: str = field(repr=False)
    options: EndpointOptions

    @cached_property
    def secrets(self) -> tuple[str, ...]:
        """The key, and what the base URL holds of that kind."""
        return secrets_of(self.key, self.base_url)

    @cached_property
    def address(self) -> str:
        """The base URL without user name, password, query and keys: what files and messages may hold."""
        return bare_address(self.base_url, self.secrets)

    def scrubbed(self, text: str) -> str:
        """A message without the secrets and without parts of them; what is to be cut is cut after this."""
        return scrubbed(text, self.secrets)

    def scrubbed_answer(self, text: str) -> str:
        """An answer without the secrets: whole ones, and none so short that it may be a word.

        Halves of surrogate pairs, which no file may hold, are U+FFFD.
        """
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return scrubbed(text, [secret for secret in self.secrets if len(secret) >= SECRET], parts=False)


def endpoint(
    model: str, options: EndpointOptions | None = None, *, environment: Mapping[str, str] | None = None
) -> Endpoint:
    """An endpoint from options, and from OPENAI_BASE_URL and OPENAI_API_KEY where an option is None.

    Raises:
        OptionError: the URL is none, a number is out of range, or the key has characters that no header may have.
        EndpointError: OpenAI's own address is asked without a key.
    """
    options, env = options or EndpointOptions(), os.environ if environment is None else environment
    url = options.base_url or env.get("OPENAI_BASE_URL") or DEFAULT_URL
    secret = (env.get("OPENAI_API_KEY", "") if options.api_key is None else options.api_key).strip()
    if not secret.isprintable() or not secret.isascii() or " " in secret:
        raise OptionError("the API key has spaces or characters that no key has; check for a bad copy (not shown here)")
    _check_address(url)
    place = Endpoint(model, url, secret, options.checked())
    if not secret and url == DEFAULT_URL:
        raise EndpointError("no API key: set OPENAI_API_KEY, or give the --base-url of a server that needs none")
    return place


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
    open_ones = {key: chat for key, chat in zip(keys, requests, strict=True) if _remembered(journal, key) is None}
    remembered = len(set(keys)) - len(open_ones)
    failures: dict[str, str] = {}
    if open_ones:
        failures = _ask_all(place, open_ones, journal, progress or untold, len(set(keys)))
    kept = [_remembered(journal, key) for key in keys]
    answers = tuple(None if item is None else Answer(item["text"], item["finish"], item["model"]) for item in kept)
    counts = {reason: list(failures.values()).count(reason) for reason in dict.fromkeys(failures.values())}
    return Answers(answers, len(open_ones) - len(failures), remembered, counts)


def _remembered(journal: Journal, key: str) -> dict[str, Any] | None:
    return journal.get(key, text=str, finish=str, model=str)


Outcome = Answer | str | BaseException


def _ask_all(
    place: Endpoint, requests: Mapping[str, Chat], journal: Journal, progress: Progress, total: int
) -> dict[str, str]:
    """Ask what is open; reasons by key for what failed on its own.

    Answers come from threads that nobody waits for when this one is stopped.
    """
    client = _client(place)
    results: SimpleQueue[tuple[str, Outcome]] = SimpleQueue()
    failures: dict[str, str] = {}
    waiting = iter(requests.items())
    running: dict[str, float] = {}
    done = total - len(requests)
    try:
        while True:
            while len(running) < place.options.concurrency and (following := next(waiting, None)) is not None:
                running[following[0]] = time.monotonic() + place.options.deadline
                threading.Thread(target=_tell, args=(results, client, place, *following), daemon=True).start()
            if not running:
                return failures
            key, outcome = _next(results, running, place)
            if reason := _kept(key, outcome, journal):
                failures[key] = reason
            done += 1
            progress(done, total)
            if len(failures) >= GIVE_UP and len(failures) == done - (total - len(requests)):
                raise _ended(place, f"the first {len(failures)} requests all failed: {reason}", journal)
    except _Fatal as error:
        last = {key: min(end, time.monotonic() + place.options.timeout) for key, end in running.items()}
        while last:
            _keep_if_answered(*_next(results, last, place), journal)
        raise _ended(place, str(error), journal) from None
    finally:
        while not results.empty():
            _keep_if_answered(*results.get(), journal)
        client.close()


def _tell(results: SimpleQueue[tuple[str, Outcome]], client: Any, place: Endpoint, key: str, chat: Chat) -> None:
    """Ask in a thread of its own; the outcome, errors too, is passed to the thread that waits."""
    try:
        outcome: Outcome = _ask_one(client, place, chat)
    except _Over as error:
        outcome = str(error)
    except BaseException as error:
        outcome = error
    results.put((key, outcome))


def _next(results: SimpleQueue[tuple[str, Outcome]], running: dict[str, float], place: Endpoint) -> tuple[str, Outcome]:
    """The outcome of the next request that ends or runs out of time; it counts as running no longer."""
    while True:
        soonest = min(running, key=running.__getitem__)
        try:
            key, outcome = results.get(timeout=max(0.0, running[soonest] - time.monotonic()))
        except Empty:
            del running[soonest]
            return soonest, f"no whole answer within {place.options.deadline:g} s"
        if running.pop(key, None) is not None:
            return key, outcome


def _kept(key: str, outcome: Outcome, journal: Journal) -> str:
    """Keep an answer; the reason where there is none."""
    if isinstance(outcome, BaseException):
        raise outcome
    if isinstance(outcome, str):
        return outcome
    journal.add(key, asdict(outcome))
    return ""


def _keep_if_answered(key: str, outcome: Outcome, journal: Journal) -> None:
    if isinstance(outcome, Answer):
        journal.add(key, asdict(outcome))


class _Over(BaseException):
    """A reply is larger or later than it may be. No Exception, which the client would take for a cut connection."""


class _Fatal(Exception):
    """No other request would do better."""


def _ended(place: Endpoint, why: str, journal: Journal) -> EndpointError:
    return EndpointError(
        f"{place.address}, model {place.model}: {why}; {len(journal)} answers are kept in {journal.path}, "
        "and another run goes on from there"
    )


def _ask_one(client: Any, place: Endpoint, chat: Chat) -> Answer | str:
    """The answer, or the reason where this request alone cannot be answered."""
    import openai

    try:
        reply = client.chat.completions.create(model=place.model, **chat.body(place.options.limit_field))
    except openai.APIStatusError as error:
        reason = f"status {error.status_code}: {_message(error, place)}"
        if error.status_code in PER_REQUEST:
            return reason
        raise _Fatal(reason + _advice(error.status_code)) from None
    except openai.APIConnectionError as error:
        cause = type(error.__cause__ or error).__name__
        raise _Fatal(f"no answer after {place.options.max_retries + 1} tries ({cause}); check --base-url") from None
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
    return Answer(**{name: place.scrubbed_answer(value) for name, value in kept.items()})


def _message(error: Any, place: Endpoint) -> str:
    """The server's own sentence without the key, on one line, and only then cut."""
    body = error.body if isinstance(error.body, dict) else {}
    return shortened(" ".join(place.scrubbed(str(body.get("message") or error.message)).split()), 200)


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
    parts = urlsplit(place.base_url)
    url, query = urlunsplit((*parts[:3], "", "")), dict(parse_qsl(parts.query))  # the client would append to a query
    return openai.OpenAI(
        api_key=place.key or NO_KEY,
        base_url=url,
        max_retries=place.options.max_retries,
        timeout=place.options.timeout,
        default_query=query,
        default_headers={"Accept-Encoding": "identity"},
        http_client=openai.DefaultHttpxClient(event_hooks={"response": [_bound(place)]}),
    )


def _bound(place: Endpoint) -> Callable[[Any], None]:
    """Has a reply end with ``_Over`` where its body is larger than ``max_bytes`` or goes on beyond ``deadline``."""

    def bound(response: Any) -> None:
        stream = response.stream
        if response.headers.get("content-encoding", "identity") != "identity":  # a small body could hold a large one
            raise _Over("the reply is compressed, which was not asked for")

        class Bounded(type(stream)):  # type: ignore[misc]  # which HTTP library it is of is the client's affair
            def __init__(self) -> None:
                """Holds nothing of its own."""

            def __iter__(self) -> Iterator[bytes]:
                yield from _within(place, stream)

            def close(self) -> None:
                stream.close()

        response.stream = Bounded()

    return bound


def _within(place: Endpoint, stream: Any) -> Iterator[bytes]:
    size, end = 0, time.monotonic() + place.options.deadline
    for part in stream:
        size += len(part)
        if size > place.options.max_bytes:
            raise _Over(f"the reply is larger than {place.options.max_bytes:,} bytes")
        if time.monotonic() > end:
            raise _Over(f"no whole answer within {place.options.deadline:g} s")
        yield part


def _check_address(url: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        usable = False
    if not usable:
        raise OptionError("--base-url is no http address; expected one like http://localhost:8000/v1")
