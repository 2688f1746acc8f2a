"""A real HTTP server on loopback that speaks as much of the chat protocol as the tests need."""

import json
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-very-secret-0123456789"


class Server:
    """Answers ``echo: TEXT``. ``plan(text, turn)`` may say otherwise, ``turn`` counting from 1 per text:

    a number (status), ``cut`` (nothing), ``half`` (a torn body), ``html``, ``empty`` (no choices), ``null`` (no
    text), ``leak`` (the key in the answer), ``("say", TEXT)``, a float (seconds of delay), or None.
    """

    def __init__(self):
        self.plan = lambda text, turn: None
        self.says = ""  # in an error, if not the usual
        self.seen, self.bodies, self.keys, self.paths = [], [], [], []
        self.busy = self.most_busy = 0
        self.lock = threading.Lock()

    def turn(self, text):
        return self.seen.count(text)

    def reply(self, handler):
        raw = handler.rfile.read(int(handler.headers["Content-Length"]))
        body = json.loads(raw)
        text = body["messages"][-1]["content"]
        with self.lock:
            self.seen.append(text)
            self.bodies.append(body)
            self.keys.append(handler.headers["Authorization"])
            self.paths.append(handler.path)
            turn = self.turn(text)
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
        try:
            self.act(handler, self.plan(text, turn), text, body)
        finally:
            with self.lock:
                self.busy -= 1

    def act(self, handler, what, text, body):
        if isinstance(what, float):
            time.sleep(what)
        if what == "cut":
            handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True
        elif isinstance(what, int) and not isinstance(what, bool):
            says = self.says or f"no: {handler.headers['Authorization']} is not welcome"
            self.send(handler, what, json.dumps({"error": {"message": says}}).encode())
        elif what == "html":
            self.send(handler, 200, b"<html>hello</html>", kind="text/html")
        elif what == "empty":
            self.send(handler, 200, b'{"object": "something"}')
        else:
            content = (
                what[1]
                if isinstance(what, tuple)
                else {"null": None, "leak": f"your key is {KEY}"}.get(what, f"echo: {text}")
            )
            choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
            whole = {"id": "1", "object": "chat.completion", "created": 0, "model": f"{body['model']}-served"}
            sent = json.dumps({**whole, "choices": [choice]}).encode()
            self.send(handler, 200, sent, torn=what == "half")

    def send(self, handler, status, body, *, kind="application/json", torn=False):
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(body)))
        if status != 200:
            handler.send_header("retry-after-ms", "5")
        handler.end_headers()
        handler.wfile.write(body[: len(body) // 2] if torn else body)
        if torn:
            handler.close_connection = True


@contextmanager
def serving():
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            try:
                state.reply(self)
            except OSError:
                self.close_connection = True

        def log_message(self, *_):
            pass

        def handle_one_request(self):
            try:
                super().handle_one_request()
            except (OSError, ValueError):
                self.close_connection = True

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    state.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
