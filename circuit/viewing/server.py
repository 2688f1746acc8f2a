"""Serves a folder of runs to browsers on this machine, and to nobody else.

It listens on the loopback address alone, answers GET and HEAD alone, and only where the Host header is its own: a page
of another site that has its name point here gets nothing. A file is served if its real place, links followed, is in
the folder, and no part of its path is hidden. Nothing is written.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import parse_qs, quote, unquote

from persona_circuits.circuit.errors import OptionError, PersonaCircuitsError
from persona_circuits.circuit.page import page_html, page_of_run
from persona_circuits.circuit.viewing.pages import BOTH, FILES, compared, listed, overview
from persona_circuits.circuit.viewing.runs import INDEX, PAGE, Run, runs_in

__all__ = ["Viewer", "viewer_of"]

LOOPBACK = "127.0.0.1"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".jsonl": "text/plain; charset=utf-8",
    ".csv": "text/plain; charset=utf-8",
    ".md": "text/plain; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".pdf": "application/pdf",
}
OURS = "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
FILE = "default-src 'self' 'unsafe-inline' data: blob:; connect-src data: blob:; form-action 'none'; base-uri 'none'"
"""Figures and pages of runs bring their scripts with them; what they would send anywhere stays here."""
PICTURE = "default-src 'none'; style-src 'unsafe-inline'; font-src data:"


class Viewer(ThreadingHTTPServer):
    """A server of one folder, at ``address``; ``serve_forever`` serves until ``shutdown``."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.folder = folder.resolve()
        super().__init__((LOOPBACK, port), _Handler)

    @property
    def address(self) -> str:
        return f"http://{LOOPBACK}:{self.server_port}/"

    @property
    def hosts(self) -> set[str]:
        """What the Host header may say."""
        return {f"{name}:{self.server_port}" for name in (LOOPBACK, "localhost")}

    def inside(self, path: str) -> Path | None:
        """The file or folder at a path of an address; None where there is none that may be seen."""
        parts = [part for part in path.split("/") if part]
        if any(part.startswith(".") or "\\" in part or "\0" in part or ":" in part for part in parts):
            return None
        try:
            place = self.folder.joinpath(*parts).resolve(strict=True)
        except (OSError, RuntimeError, ValueError):
            return None
        if not place.is_relative_to(self.folder):
            return None
        hidden = any(part.startswith(".") for part in place.relative_to(self.folder).parts)
        return None if hidden or not (place.is_file() or place.is_dir()) else place


def viewer_of(folder: str | Path, port: int = 0) -> Viewer:
    """A server of a folder that listens already; port 0 is a free one.

    Raises:
        OptionError: there is no such folder, or the port is taken.
    """
    if not Path(folder).is_dir():
        raise OptionError(f"{folder} is no folder; give one that holds runs, such as runs")
    try:
        return Viewer(Path(folder), port)
    except (OSError, OverflowError) as error:
        raise OptionError(f"port {port} cannot be opened ({error}); leave out --port for a free one") from error


class _Handler(BaseHTTPRequestHandler):
    server_version, sys_version = "persona-circuits", ""
    protocol_version = "HTTP/1.1"
    timeout = 30

    @property
    def viewer(self) -> Viewer:
        return cast(Viewer, self.server)

    def do_GET(self) -> None:
        if self.headers.get_all("Host", []) not in [[host] for host in self.viewer.hosts]:
            self._say(HTTPStatus.FORBIDDEN, f"this is {self.viewer.address}, and answers to that name alone")
            return
        path, _, query = self.path.partition("?")
        try:
            self._answer(_decoded(path), parse_qs(query).get("run", []))
        except PersonaCircuitsError as error:
            self._say(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_HEAD = do_GET

    def _answer(self, path: str, chosen: Sequence[str]) -> None:
        if path == "/":
            self._page(listed(runs_in(self.viewer.folder), self.viewer.folder))
        elif path in ("/compare", BOTH):
            self._compare(chosen, in_one=path == BOTH)
        elif path.startswith(FILES) and (place := self.viewer.inside(path.removeprefix(FILES))) is not None:
            self._folder(place, path) if place.is_dir() else self._file(place)
        else:
            self._say(HTTPStatus.NOT_FOUND, "there is nothing here that may be seen")

    def _compare(self, chosen: Sequence[str], *, in_one: bool) -> None:
        known = {run.name: run for run in runs_in(self.viewer.folder) if run.record}
        if len(chosen) != 2 or any(name not in known for name in chosen):
            self._say(HTTPStatus.BAD_REQUEST, f"{len(chosen)} runs were chosen to compare; choose two with a circuit")
            return
        first, second = (known[name] for name in chosen)
        if in_one:
            page = page_html(page_of_run(first.folder, name=first.name, others={second.name: second.folder}))
            self._send(HTTPStatus.OK, page.encode(), TYPES[".html"], {"Content-Security-Policy": FILE})
            return
        self._page(compared(first, second))

    def _folder(self, place: Path, path: str) -> None:
        """Its own page, or one that is made of its files; a folder's address ends in a slash, so that links hold."""
        if not path.endswith("/"):
            self._send(HTTPStatus.MOVED_PERMANENTLY, b"", "text/plain", {"Location": f"{quote(path)}/"})
            return
        own = next((place / name for name in (PAGE, INDEX) if (place / name).is_file()), None)
        if own is not None and self.viewer.inside(own.relative_to(self.viewer.folder).as_posix()) is not None:
            self._file(own)
            return
        root = self.viewer.folder
        name = place.relative_to(root).as_posix()
        runs = [replace(run, name=name) for run in runs_in(place) if run.folder == place]
        self._page(overview(runs[0] if runs else Run(name, place, {}, "", "", None, ())))

    def _file(self, place: Path) -> None:
        with place.open("rb") as file:
            kind = TYPES.get(place.suffix.lower(), "application/octet-stream")
            policy = FILE if kind == TYPES[".html"] else PICTURE
            self._send(HTTPStatus.OK, file, kind, {"Content-Security-Policy": policy}, size=place.stat().st_size)

    def _page(self, text: str) -> None:
        self._send(HTTPStatus.OK, text.encode(), TYPES[".html"], {"Content-Security-Policy": OURS})

    def _say(self, status: HTTPStatus, sentence: str) -> None:
        self._send(status, f"{sentence}\n".encode(), TYPES[".txt"], {})

    def _send(
        self, status: HTTPStatus, content: bytes | BinaryIO, kind: str, more: dict[str, str], *, size: int | None = None
    ) -> None:
        self.send_response(status)
        own = {"Content-Type": kind, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
        own |= {"Cache-Control": "no-store", "Cross-Origin-Resource-Policy": "same-origin"}
        own["Content-Length"] = str(size if not isinstance(content, bytes) else len(content))
        for name, value in {**own, **more}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if isinstance(content, bytes):
            self.wfile.write(content)
        else:
            shutil.copyfileobj(content, self.wfile)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a page of many pictures would fill the terminal."""


def _decoded(path: str) -> str:
    """The path of an address as text; empty where it is invalid."""
    try:
        return unquote(path, errors="strict") if path.isascii() else ""
    except UnicodeDecodeError:
        return ""
