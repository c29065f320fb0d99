"""A small HTTP proxy, run as a process of its own: prints its port, then one line per request it passed on."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import subprocess
import sys
import threading
from urllib.parse import urlsplit


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        line = self.rfile.readline(8192)
        method, address, _version = line.decode("ascii").split()
        headers = []
        while (header := self.rfile.readline(8192)).strip():
            headers.append(header)
        say(method, address, b"proxy-authorization" in b"".join(headers).lower())
        if method == "CONNECT":
            host, _, port = address.rpartition(":")
            path = ""
        else:
            split = urlsplit(address)
            host, port, path = split.hostname or "", str(split.port or 80), split.path
        with socket.create_connection((host, int(port)), 5) as upstream:
            if method == "CONNECT":
                self.wfile.write(b"HTTP/1.1 200 yes\r\n\r\n")
            else:
                kept = [header for header in headers if not header.lower().startswith((b"proxy-", b"connection"))]
                upstream.sendall(
                    f"{method} {path} HTTP/1.1\r\n".encode() + b"".join(kept) + b"Connection: close\r\n\r\n"
                )
            back = threading.Thread(target=pump, args=(upstream, self.connection))
            back.start()
            pump(self.connection, upstream)
            back.join()


def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def pump(source, target):
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True


@contextlib.contextmanager
def running():
    """Run one; yields its port and a function that stops it and returns what it passed on."""
    process = subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)

    def stop() -> list[str]:
        process.terminate()
        return process.communicate(timeout=10)[0].splitlines()

    try:
        assert process.stdout is not None
        yield int(process.stdout.readline()), stop
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


if __name__ == "__main__":
    with Server(("127.0.0.1", 0), Handler) as server:
        say(server.server_address[1])
        server.serve_forever()
