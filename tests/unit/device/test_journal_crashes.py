"""Any life a log may have: appends, checkpoints, restarts, crashes and power cuts in any order, judged by a model.

A power cut keeps what was synced and may keep, drop, shorten or zero the rest: the frame that was being written, and
tiles that the tail still holds. Whatever was acknowledged must be there afterwards, and nothing that was not appended.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from casemate.crypto import hpke
from casemate.device.journal import JournalWriter, LogFiles, Reader, tail, verify
from casemate.device.journal import writer as writer_module
from casemate.formats import event, tlog

PRIVATE, PUBLIC = hpke.generate()


class Clock:
    def wall(self):
        return 1_700_000_000.0

    def monotonic(self):
        return 1.0


class JournalLife(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.kept_limit = writer_module.MAX_TAIL_ENTRIES
        writer_module.MAX_TAIL_ENTRIES = 700  # so that tails are renewed within a short life
        self.path = Path(tempfile.mkdtemp(prefix="journal-life-"))
        self.acknowledged: list[str] = []
        self.checkpoints: list[bytes] = []
        self.writer: JournalWriter | None = None
        self.open()

    def teardown(self):
        if self.writer:
            self.writer.close()
        writer_module.MAX_TAIL_ENTRIES = self.kept_limit
        shutil.rmtree(self.path)

    def open(self):
        self.writer = JournalWriter(self.path, home_id="abc", owner_public=PUBLIC, clock=Clock())
        self.checkpoints.append((self.path / "checkpoint").read_bytes())

    def drop(self):
        """Let go as a killed process does."""
        os.close(self.writer._tail._fd)
        self.writer._tail.close = lambda: None
        self.writer._closed = True
        self.writer._stack.close()
        self.writer = None

    @precondition(lambda self: self.writer)
    @rule(count=st.sampled_from([1, 3, 60, 64, 200, 255, 256]))
    def append(self, count):
        names = [f"m{len(self.acknowledged) + n}" for n in range(count)]
        self.writer.record([event.model_removed(model=name, now=1.0) for name in names], role="vault")
        self.acknowledged += names

    @precondition(lambda self: self.writer)
    @rule()
    def publish(self):
        self.writer.publish()
        self.checkpoints.append((self.path / "checkpoint").read_bytes())

    @precondition(lambda self: self.writer)
    @rule()
    def restart(self):
        self.writer.close()
        self.open()

    @precondition(lambda self: self.writer)
    @rule()
    def kill(self):
        self.drop()
        self.open()

    @precondition(lambda self: self.writer)
    @rule(
        torn=st.integers(0, 100),
        zeroed=st.booleans(),
        fate=st.lists(st.sampled_from(["keep", "lose", "empty", "zero", "half"])),
    )
    def power_cut(self, torn, zeroed, fate):
        self.tear(torn, zeroed=zeroed)
        synced_below = self.writer._tail.base
        self.drop()
        held = self.held_by_the_tail(synced_below)
        for name, what in zip(held, fate, strict=False):
            ruin(self.path / name, what)
        self.open()

    def tear(self, percent, *, zeroed):
        """Leave a part of the frame that was being written when the power went."""
        writer = self.writer
        lost, _ = tail.pack_frame(
            writer.size, [os.urandom(300)] * 40, writer.published, writer._tail._mac, writer._tail_key
        )
        part = lost[: len(lost) * percent // 100]
        if percent == 100:
            part = part[:-1]  # whole would mean that it was written
        if zeroed and len(part) > 600:
            part = part[:500] + bytes(len(part) - 500)
        with (self.path / "tail").open("ab") as file:
            file.write(part)

    def held_by_the_tail(self, base):
        """Name the full tiles and bundles that may not have been synced."""
        files = LogFiles(self.path)
        numbers = range(base // 256, 10_000)
        names = [name(n) for n in numbers for name in (lambda n: tlog.tile_path(0, n), tlog.entries_path)]
        return [name for name in names[:40] if files.exists(name)]

    @invariant()
    def the_log_is_sound_and_complete(self):
        files = LogFiles(self.path)
        checked = verify(files, against=self.checkpoints[len(self.checkpoints) // 2])
        assert checked.size + checked.pending == self.writer.size
        shown = [item.event() for item in Reader(files, PRIVATE).events()]
        assert [item.app.name for item in shown if item.app] == self.acknowledged


def ruin(file, what):
    data = file.read_bytes()
    if what == "lose":
        file.unlink()
    elif what != "keep":
        file.write_bytes({"empty": b"", "zero": bytes(len(data)), "half": data[: len(data) // 2]}[what])


TestJournalLife = JournalLife.TestCase
TestJournalLife.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)
