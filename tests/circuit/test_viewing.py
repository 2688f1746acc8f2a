"""A folder of runs in a browser: what is listed and compared, what is served, and above all what is not."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from html import unescape

import pytest

from persona_circuits.circuit.discovery import Options, discover
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.io import read_circuit
from persona_circuits.circuit.page import read_page
from persona_circuits.circuit.viewing import runs_in, viewer_of


@pytest.fixture(scope="module")
def runs(tiny, tiny_task, tmp_path_factory):
    """Two circuits, a run of another command with a name that is markup, a broken one; and what must not be seen."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret.txt").write_text("secret")
    folder = tmp_path_factory.mktemp("runs")
    for name, n in (("small", 8), ("large", 20)):
        options = Options(method="eap", prune="greedy", top_n=n, n_random=0)
        discover(tiny, tiny_task, options).write(folder / name)
    other = folder / "a<b>&'c"
    other.mkdir()
    (other / "index.html").write_text("<title>mine</title>")
    (folder / "broken").mkdir()
    (folder / "broken" / "circuit.json").write_text('{"format": "<script>"}')
    (folder / ".hidden").mkdir()
    shutil.copy(folder / "small" / "circuit.json", folder / ".hidden")
    (folder / "small" / "out.txt").symlink_to(outside / "secret.txt")
    (folder / "linked").symlink_to(outside)
    (folder / "small" / "same.json").symlink_to(folder / "small" / "circuit.json")
    return folder


@pytest.fixture(scope="module")
def viewer(runs):
    server = viewer_of(runs)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join(10)
    server.server_close()
    assert not thread.is_alive()


def ask(viewer, path, method="GET", host=None, **headers):
    """Status, headers and text of one request, its path sent as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", viewer.server_port, timeout=20)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", f"127.0.0.1:{viewer.server_port}" if host is None else host)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read().decode("utf-8", errors="replace")
    connection.close()
    return found


def test_the_list_has_every_run_with_its_numbers(viewer, runs):
    status, headers, text = ask(viewer, "/")
    assert status == 200
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    for name in ("small", "large"):
        record = read_circuit(runs / name).record
        (row,) = re.findall(f'<tr>(?:(?!</tr>).)*value="{name}".*?</tr>', text, re.DOTALL)
        f = record["faithfulness"][-1]["circuit"]["ratio_of_means"]
        for said in (record["model"]["name"].split("/")[-1], f"{record['task']['divergence']:+.3f}", f"{f:.3f}",
                     f"/files/{name}/graph.png", f">{record['counts']['edges']}<"):  # fmt: skip
            assert said in row
    assert "a&lt;b&gt;&amp;&#x27;c" in text
    assert "<script" not in text
    assert "broken" in text
    assert ".hidden" not in text
    assert "linked" not in text


def test_every_link_of_the_list_leads_somewhere(viewer):
    _, _, text = ask(viewer, "/")
    links = {unescape(one) for one in re.findall(r'(?:href|src)="([^"]+)"', text)}
    assert len(links) > 6
    assert {link: ask(viewer, link)[0] for link in links} == dict.fromkeys(links, 200)


def test_a_run_without_a_page_gets_one_and_its_links_hold(viewer):
    status, headers, _ = ask(viewer, "/files/small")
    assert (status, headers["Location"]) == (301, "/files/small/")
    status, headers, text = ask(viewer, "/files/small/")
    assert status == 200
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "<h1>small</h1>" in text
    links = {unescape(one) for one in re.findall(r'(?:href|src)="\./([^"]+)"', text)}
    assert {"graph.png", "circuit.json", "summary.json"} <= links
    assert "out.txt" not in links
    assert all(ask(viewer, f"/files/small/{link}")[0] == 200 for link in links)


def test_the_page_that_discover_writes_goes_before(viewer, runs):
    (runs / "large" / "page.html").write_text("<title>the page</title>")
    assert ask(viewer, "/files/large/")[2] == "<title>the page</title>"
    assert "/files/large/page.html" in ask(viewer, "/")[2]
    (runs / "large" / "page.html").unlink()


def test_two_circuits_are_compared(viewer, runs):
    small, large = (set(read_circuit(runs / name).circuit.edge_names()) for name in ("small", "large"))
    status, _, text = ask(viewer, "/compare?run=small&run=large")
    assert status == 200
    shared = len(small & large)
    assert f"{shared:,} shared, of {len(small | large):,} in either; Jaccard {shared / len(small | large):.3f}" in text
    assert f"of large alone: {len(large - small)}" in text
    assert f"of small alone: {len(small - large)}" in text
    assert shared > 0
    assert all(unescape(text).count(f"<td>{name}</td>") == 1 for name in small | large)
    assert "/files/small/graph.png" in text
    assert "/files/large/graph.png" in text
    (link,) = re.findall(r'href="(/both[^"#]+)#view=0-1"', text)
    status, headers, page = ask(viewer, unescape(link))
    assert status == 200
    assert "connect-src data: blob:" in headers["Content-Security-Policy"]
    (runs.parent / "both.html").write_text(page)
    assert [set(_kept(run)) for run in read_page(runs.parent / "both.html")["runs"]] == [small, large]


def _kept(run):
    return (edge["edge"] for edge in run["edges"] if edge["kept"])


@pytest.mark.parametrize(
    "query", ["", "?run=small", "?run=small&run=absent", "?run=small&run=large&run=small", "?run=small&run=broken",
              "?run=small&run=../small"],
)  # fmt: skip
def test_what_is_no_comparison_is_refused(viewer, query):
    assert ask(viewer, f"/both{query}")[0] == 400
    status, _, text = ask(viewer, f"/compare{query}")
    assert status == 400
    assert "choose two with a circuit" in text


@pytest.mark.parametrize(
    "path",
    [
        "/files/../secret.txt",
        "/files/small/../../secret.txt",
        "/files/%2e%2e/secret.txt",
        "/files/small/%2e%2e/%2e%2e/etc/passwd",
        "/files/..%2f..%2fetc/passwd",
        "/files//etc/passwd",
        "/files/%2fetc%2fpasswd",
        "/files/small/..%5c..%5csecret.txt",
        "/files/small/circuit.json%00.png",
        "/files/C:/secret.txt",
        "/files/.hidden/circuit.json",
        "/files/small/out.txt",
        "/files/linked/secret.txt",
        "/files/linked/",
        "/files/absent",
        "/files",
        "/small/circuit.json",
        "//127.0.0.1/etc/passwd",
        "//[/",
        "/%ff",
    ],
)
def test_nothing_outside_the_folder_is_served(viewer, path):
    status, _, text = ask(viewer, path)
    assert status == 404
    assert "secret" not in text
    assert "root:" not in text


def test_a_link_within_the_folder_is_followed(viewer, runs):
    assert ask(viewer, "/files/small/same.json")[2] == (runs / "small" / "circuit.json").read_text()


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "evil.example:{port}", "", "[::1]:{port}"]
)
def test_another_host_gets_nothing(viewer, host):
    for path in ("/", "/files/small/circuit.json"):
        status, _, text = ask(viewer, path, host=host.format(port=viewer.server_port))
        assert status in (400, 403)
        assert "model" not in text
    assert ask(viewer, "/", host=f"localhost:{viewer.server_port}")[0] == 200


def test_a_second_host_header_is_refused(viewer):
    assert ask(viewer, "/", Host="evil.example")[0] == 403


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_only_get_and_head_are_answered(viewer, method):
    assert ask(viewer, "/", method)[0] == 501


def test_head_is_get_without_its_text(viewer):
    for path in ("/", "/files/small/graph.png", "/absent"):
        get, head = ask(viewer, path), ask(viewer, path, "HEAD")
        assert head[0] == get[0]
        assert head[2] == ""
        assert {k: v for k, v in head[1].items() if k != "Date"} == {k: v for k, v in get[1].items() if k != "Date"}


def test_only_this_machine_can_ask(viewer):
    assert viewer.server_address[0] == "127.0.0.1"


def test_files_are_what_they_are_called(viewer, runs):
    status, headers, _ = ask(viewer, "/files/small/scores.safetensors")
    assert (status, headers["Content-Type"]) == (200, "application/octet-stream")
    assert int(headers["Content-Length"]) == (runs / "small" / "scores.safetensors").stat().st_size
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_an_empty_folder_says_what_is_missing(tmp_path):
    assert runs_in(tmp_path) == []
    with viewer_of(tmp_path) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert "no folder of it holds a circuit.json" in ask(server, "/")[2]
        thread.join(10)


def test_errors_are_sentences(tmp_path, viewer):
    with pytest.raises(OptionError, match="is no folder; give one that holds runs"):
        viewer_of(tmp_path / "absent")
    with pytest.raises(OptionError, match="cannot be opened"):
        viewer_of(tmp_path, viewer.server_port)


def test_ctrl_c_stops_the_command_cleanly(runs):
    code = "import persona_circuits.cli; persona_circuits.cli.main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "view", str(runs)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)/; Ctrl-C stops", line)[1])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", "/")
        assert b"small" in connection.getresponse().read()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (0, "stopped\n", "")
