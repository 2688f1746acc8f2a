"""Keys in texts: whatever way a server writes them, nothing of eight characters is left."""

import base64
import html
import json
import string
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests_loopback import KEY, serving

from persona_circuits.persona.responses import (
    PART,
    Chat,
    EndpointError,
    Journal,
    ask,
    bare_address,
    endpoint,
    scrubbed,
    secrets_of,
)
from persona_circuits.persona.responses.options import EndpointOptions

LONG = "sk-proj-" + 'aZ9/+=_.~&<"' + "0123456789abcdef"
WRITINGS = {
    "plain": lambda key: key,
    "capitals": str.upper,
    "percent": lambda key: quote(key, safe=""),
    "small percent": lambda key: quote(key, safe="").lower(),
    "every character percent": lambda key: "".join(f"%{ord(x):02X}" for x in key),
    "twice percent": lambda key: quote(quote(key, safe=""), safe=""),
    "JSON": json.dumps,
    "JSON in JSON": lambda key: json.dumps(json.dumps(key)),
    "JSON with slashes": lambda key: json.dumps(key).replace("/", "\\/"),
    "JSON, all escaped": lambda key: "".join(f"\\u{ord(x):04x}" for x in key),
    "HTML": html.escape,
    "HTML, all escaped": lambda key: "".join(f"&#x{ord(x):x};" for x in key),
    "HTML, decimal": lambda key: "".join(f"&#{ord(x)};" for x in key),
    "repr": lambda key: repr(key),
    "bytes": lambda key: repr(key.encode()),
    "header": lambda key: f"{{'Authorization': 'Bearer {key}'}}",
}


def parts_of(key, text):
    """Runs of the key in the text, however it is written there: the longest."""
    return max(
        (n for n in range(1, len(key) + 1) for i in range(len(key) - n + 1) if key[i : i + n].lower() in text.lower()),
        default=0,
    )


@pytest.mark.parametrize("write", WRITINGS.values(), ids=WRITINGS)
@pytest.mark.parametrize("key", [KEY, LONG])
def test_every_writing_goes_whole_and_what_is_beside_it_stays(write, key):
    found = scrubbed(f"before {write(key)} after", [key])
    assert found.startswith("before ")
    assert found.endswith(" after")
    assert "[key]" in found
    assert parts_of(key, found.removeprefix("before ").removesuffix(" after")) < PART
    cut = scrubbed(f"before {write(key)[:-6]}… after", [key])
    assert "[key]" in cut
    assert parts_of(key, cut) < PART


@settings(max_examples=300, deadline=None)
@given(
    st.text(st.sampled_from(string.ascii_letters + string.digits + '-_.~+/=:|!*@<>"'), min_size=PART, max_size=60),
    st.lists(st.text(max_size=30), max_size=4),
    st.sampled_from(list(WRITINGS.values())),
    st.integers(0, 80),
)
def test_no_eight_characters_of_a_key_are_left(key, around, write, cut):
    """The key in any writing, cut anywhere, among any text."""
    text = write(key)[: max(cut, 1)].join(["", *around, ""])
    found = scrubbed(text, [key])
    assert not [
        i for i in range(len(key) - PART + 1) if key[i : i + PART].lower() in found.replace("[key]", "\0").lower()
    ]
    assert scrubbed(key, [key]) == "[key]"


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_a_text_without_the_key_stays_as_it_is(text):
    assert scrubbed(text, ["\u0001" * 12]) == text
    assert scrubbed(text, []) == text


def test_short_keys_go_as_words_alone():
    assert scrubbed("none, nonetheless, NONE", ["none"]) == "[key], nonetheless, [key]"
    assert scrubbed("sk-very- is no key of ours", ["sk-very-secret"], parts=False) == "sk-very- is no key of ours"


TOKEN = "a1b2c3d4e5f6a7b8c9"


@pytest.mark.parametrize(
    ("url", "kept", "secret"),
    [
        (f"http://me:{KEY}@host:81/v1", "http://host:81/v1", KEY),
        (f"http://{KEY}@host/v1", "http://host/v1", KEY),
        (f"http://host/v1?api_key={KEY}", "http://host/v1", KEY),
        (f"http://host/v1?version=3&key={KEY}#there", "http://host/v1", KEY),
        (f"http://host/bot/{TOKEN}/v1", "http://host/bot/[key]/v1", TOKEN),
        ("http://host/meta-llama-3-70b-instruct/v1", "http://host/meta-llama-3-70b-instruct/v1", None),
        ("http://host/v1?api-version=2024-02-01", "http://host/v1", None),
    ],
)
def test_what_of_an_address_is_secret(url, kept, secret):
    secrets = secrets_of("", url)
    assert bare_address(url, secrets) == kept
    assert [secret] == [one for one in secrets if one == secret] if secret else secrets == ()
    made = endpoint("toy", EndpointOptions(base_url=url, api_key="k"))
    assert made.address == kept
    assert secret is None or secret not in repr(made)


def test_a_key_in_the_path_is_not_part_of_what_answers_are_kept_under():
    chat = Chat((("user", "hi"),), 5)
    one, other = (
        endpoint("toy", EndpointOptions(base_url=f"http://host/{key}/v1", api_key=key)) for key in (KEY, KEY[::-1])
    )
    assert one.address == "http://host/[key]/v1"
    assert chat.digest(one) == chat.digest(other)


def test_basic_credentials_are_secret_too():
    encoded = base64.b64encode(f"me:{KEY}".encode()).decode()
    assert encoded not in scrubbed(f"Authorization: Basic {encoded}", secrets_of("", f"http://me:{KEY}@host/v1"))


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)
    with serving() as state:
        yield state


@pytest.mark.parametrize("status", [400, 401])
@pytest.mark.parametrize("place", range(150, 203, 4))
@pytest.mark.parametrize("write", [WRITINGS["plain"], WRITINGS["percent"], WRITINGS["JSON, all escaped"]])
def test_a_key_at_the_cut_of_a_message_is_not_shown_in_part(server, tmp_path, status, place, write):
    server.says = "x" * place + " " + write(KEY) + " " + "y" * 300
    server.plan = lambda text, turn: status
    with Journal(tmp_path / "j.jsonl") as journal:
        try:
            shown = str(
                dict(ask(endpoint("toy", EndpointOptions(base_url=server.url, api_key=KEY)), [CHAT], journal).failures)
            )
        except EndpointError as error:
            shown = str(error)
    assert "xxx" in shown
    assert parts_of(KEY, shown) < PART
    assert len(shown) < 600


CHAT = Chat((("user", "question"),), 5)


@pytest.mark.parametrize("where", ["?api_key={key}", "?key={key}&x=1"])
def test_a_key_of_the_address_is_in_no_message_and_no_file(server, tmp_path, where):
    server.says = f"no such place: /v1/chat/completions{where.format(key=KEY)}"
    server.plan = lambda text, turn: 404
    made = endpoint("toy", EndpointOptions(base_url=server.url + where.format(key=KEY), api_key="other-key-000000"))
    with Journal(tmp_path / "j.jsonl") as journal, pytest.raises(EndpointError) as caught:
        ask(made, [CHAT], journal)
    assert server.paths == [f"/v1/chat/completions{where.format(key=KEY)}"]  # it was in use
    for text in (str(caught.value), repr(made), (tmp_path / "j.jsonl").read_text()):
        assert parts_of(KEY, text) < PART


def test_answers_keep_words_that_are_parts_of_a_key(server, tmp_path):
    server.plan = lambda text, turn: ("say", f"{KEY[:12]} and {KEY} and {quote(KEY, safe='')} and \ud800")
    with Journal(tmp_path / "j.jsonl") as journal:
        answer = (
            ask(endpoint("toy", EndpointOptions(base_url=server.url, api_key=KEY)), [CHAT], journal).answers[0].text
        )
    assert answer == f"{KEY[:12]} and [key] and [key] and \ufffd"
