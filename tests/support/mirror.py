"""A web server over `public/` that counts every byte and misbehaves on request. Real sockets, loopback, a free port."""

from __future__ import annotations

import contextlib
import http.server
import re
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote


class Mirror:
    """`answers` maps a path to what is done instead of serving it: `f(handler, path)`; True means it has answered."""

    def __init__(self, root: Path | str, *, rate: float = 0.0) -> None:
        self.root = Path(root)
        self.rate = rate
        self.sent: Counter[str] = Counter()
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.answers: dict[str, Callable[[http.server.BaseHTTPRequestHandler, str], bool]] = {}
        self.url = ""

    @property
    def bytes_of_chunks(self) -> int:
        return sum(size for path, size in self.sent.items() if path.startswith("chunks/"))

    def answer(self, pattern: str, act) -> None:
        self.answers[pattern] = act

    def serve(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        path = handler.path.lstrip("/")
        self.asked.append(path)
        self.headers.append({key.lower(): value for key, value in handler.headers.items()})
        for pattern, act in list(self.answers.items()):
            if re.fullmatch(pattern, path) and act(handler, path):
                return
        file = self.root / path
        if not file.is_file():
            file = self.root / unquote(path)
        if not file.is_file():
            handler.send_error(404)
            return
        self.give(handler, path, file.read_bytes())

    def give(self, handler, path: str, data: bytes, *, stop: int | None = None) -> None:
        """Send *data* as the answer, with ranges; end the connection after *stop* bytes."""
        wanted = re.fullmatch(r"bytes=([0-9]+)-", handler.headers.get("Range", ""))
        begin = int(wanted[1]) if wanted else 0
        handler.send_response(206 if wanted else 200)
        if wanted:
            handler.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        handler.send_header("Content-Length", str(len(data) - begin))
        handler.end_headers()
        view = memoryview(data)[begin:]
        self.push(handler, path, view if stop is None else view[:stop])
        if stop is not None:
            cut(handler)

    def push(self, handler, path: str, view) -> None:
        step = 16 * 1024
        for at in range(0, len(view), step):
            piece = view[at : at + step]
            handler.wfile.write(piece)
            self.sent[path] += len(piece)
            if self.rate:
                time.sleep(len(piece) / self.rate)


def cut(handler) -> None:
    """End the connection without a word."""
    handler.close_connection = True
    with contextlib.suppress(OSError):
        handler.connection.shutdown(socket.SHUT_RDWR)


def status(code: int, **headers: str):
    """Answer *code*, always."""

    def act(handler, _path):
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return True

    return act


def times(count: int, act):
    """Do *act* the first *count* times only."""
    left = [count]

    def once(handler, path):
        left[0] -= 1
        return act(handler, path) if left[0] >= 0 else False

    return once


@contextlib.contextmanager
def serving(root, *, rate: float = 0.0, certificate: tuple[Path, Path] | None = None, tls=ssl.TLSVersion.TLSv1_3):
    """Serve *root* on a free port of 127.0.0.1; with *certificate* (chain, key) over TLS."""
    mirror = Mirror(root, rate=rate)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            try:
                mirror.serve(self)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_):
            pass

    server = Server(("127.0.0.1", 0), Handler)
    scheme = "http"
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.maximum_version = tls
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        scheme = "https"
    mirror.url = f"{scheme}://127.0.0.1:{server.server_address[1]}/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield mirror
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
