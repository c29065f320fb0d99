"""A person at a terminal: the passphrase is asked for on /dev/tty, never echoed, and confirmed when it is new."""

from __future__ import annotations

import os
import pty
import select
import sys
import time

import pytest

from support import gguf_files
from support.device import environment


class Terminal:
    """The command line on a pseudo-terminal of its own."""

    def __init__(self, env, *arguments):
        self.pid, self.fd = pty.fork()
        if not self.pid:
            os.execve(sys.executable, [sys.executable, "-m", "casemate", *arguments], env)
        self.seen = ""

    def expect(self, text, within=30.0):
        deadline = time.monotonic() + within
        while text not in self.seen:
            assert select.select([self.fd], [], [], deadline - time.monotonic())[0], self.seen
            try:
                self.seen += os.read(self.fd, 4096).decode()
            except OSError:
                break
        assert text in self.seen, self.seen
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, line):
        os.write(self.fd, line.encode() + b"\n")

    def finish(self):
        rest = self.seen
        try:
            while piece := os.read(self.fd, 4096).decode():
                rest += piece
        except OSError:
            pass  # EIO: the other side is closed
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.fd)
        return code, rest


@pytest.fixture
def env(tmp_path):
    (tmp_path / "tiny.gguf").write_bytes(gguf_files.tiny())
    return {**environment(tmp_path / "home"), "TERM": "dumb"}


def test_a_new_passphrase_is_asked_twice_and_then_opens_it(env, tmp_path):
    first = Terminal(env, "model", "add", str(tmp_path / "tiny.gguf"))
    first.expect("new passphrase:")
    first.type("short")
    first.expect("too short")
    first.expect("new passphrase:")
    first.type("correct horse")
    first.expect("once more:")
    first.type("correct mouse")
    first.expect("differ")
    first.expect("new passphrase:")
    first.type("correct horse")
    first.expect("once more:")
    first.type("correct horse")
    first.expect("opened by a passphrase; assurance L1")
    code, rest = first.finish()
    assert (code, "added" in rest, "correct" in rest) == (0, True, False)

    second = Terminal(env, "model", "verify", "tiny")
    second.expect("keystore passphrase:")
    second.type("correct mouse")
    code, rest = second.finish()
    assert (code, "does not open" in rest) == (4, True)


def test_a_rotation_asks_for_the_new_passphrase_and_not_for_a_key_file(env, tmp_path):
    made = Terminal(env, "model", "add", str(tmp_path / "tiny.gguf"))
    made.expect("new passphrase:")
    made.type("")
    assert made.finish()[0] == 0
    rotation = Terminal(env, "keystore", "rotate", "--to", "passphrase")
    assert "key file" not in rotation.expect("new passphrase:")
    rotation.type("correct horse")
    rotation.expect("once more:")
    rotation.type("correct horse")
    code, rest = rotation.finish()
    assert (code, "opened by passphrase" in rest) == (0, True)


def test_pressing_enter_takes_a_key_file(env, tmp_path):
    terminal = Terminal(env, "model", "add", str(tmp_path / "tiny.gguf"))
    terminal.expect("press enter to use a key file")
    terminal.expect("new passphrase:")
    terminal.type("")
    terminal.expect("opened by a key file")
    assert terminal.finish()[0] == 0
    assert (tmp_path / "keys" / "device.key").exists()
