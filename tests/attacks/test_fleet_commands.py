"""Whoever holds the fleet's TLS listener, the network, or the device's link process tries to command the device.

Every attack has its control: the same bytes pass a device that lacks the one check.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from casemate.crypto.signing import SigningKey
from casemate.device.fleet import membership, orders
from casemate.device.fleet.destroy import Destroyed
from casemate.device.fleet.membership import Member
from casemate.device.fleet.orders import OrdersFile, State
from casemate.device.home import Home, owner_of
from casemate.device.respond import Respondent
from casemate.errors import OperationError
from casemate.formats import envelope, ipc
from casemate.formats.envelope import Command
from casemate.formats.tlog import VerifierKey

FLEET, DEVICE = "ab" * 16, "00000000-0000-4000-8000-00000000000a"
OTHER_DEVICE = "00000000-0000-4000-8000-00000000000b"
KEY, STRANGER = SigningKey.generate(), SigningKey.generate()
WITNESS = VerifierKey("witness", KEY.public)
SIGNED = 1_790_000_000
YEARS = 2 * 365 * 86_400


class Machine:
    """Stands where the agent's processes are: says what was done to them."""

    def __init__(self, home: Home, clock_off: float = 0.0) -> None:
        settings = {"telemetry.usage": False}
        installed = {"models": (), "generation": "", "policies": {}, "policy": ipc.TakePolicy()}
        self.plan = SimpleNamespace(home=home, owner_public="b3duZXI=", settings=settings, **installed)
        self.clock = SimpleNamespace(wall=lambda: SIGNED + clock_off, monotonic=lambda: 5.0)
        self.ready = True
        self.serving, self.fenced, self.destroyed, self.shown = True, False, 0, 0
        self.told: list = []
        self.journaled: list = []
        self.ended = None

    async def hold(self):
        self.serving = False

    async def resume(self):
        self.serving = True

    async def destroy_keys(self):
        self.destroyed += 1
        return Destroyed(keystore=True, slots=True, containers=1, keyfile=True, floors=True)

    async def fence(self, gate):
        self.fenced = gate is not None
        return ""

    def tell_link(self, message):
        self.told.append(message)

    def record(self, *events):
        self.journaled += [event["metadata"]["event_code"] for event in events]

    def show_evidence(self):
        self.shown += 1

    def spawn(self, work):
        work.close()

    def end(self, error):
        self.ended = error


@pytest.fixture
def home(tmp_path) -> Home:
    tmp_path.chmod(0o755)
    home = Home(tmp_path / "home").create()
    OrdersFile(home).write(orders.first(SIGNED))
    return home


def member() -> Member:
    return Member(1, FLEET, DEVICE, "https://fleet:1", KEY.public, str(WITNESS), SIGNED)


def signed(verb: str, sequence: int, key=KEY, *, device=DEVICE, issued=SIGNED, life=3600) -> bytes:
    return envelope.sign_command(Command(1, FLEET, device, sequence, verb, issued, issued + life, "why"), key)


def deliver(device: Respondent, *raws: bytes, server_time: float = SIGNED) -> None:
    async def run():
        for number, raw in enumerate(raws):
            await device.heard(ipc.Ordered(str(number), raw, server_time))

    asyncio.run(run())


def passes(raw: bytes, **without) -> bool:
    context = {"public": KEY.public, "fleet": FLEET, "device": DEVICE, "after": 0, "earliest": SIGNED, **without}
    return envelope.verify_command(raw, **context).digest != ""


def test_a_listener_without_the_command_key_orders_nothing(home):
    machine = Machine(home)
    device = Respondent(machine, member())
    wipe = signed("wipe", 1, STRANGER)
    assert passes(wipe, public=STRANGER.public)
    deliver(device, wipe)
    assert (machine.serving, machine.destroyed, device.orders.state) == (True, 0, State.SERVING)
    assert machine.told == []
    assert machine.journaled == ["fleet_command_refused"]
    deliver(device, signed("wipe", 1))
    assert (machine.serving, machine.destroyed, device.orders.state) == (False, 1, State.WIPING)


def test_a_command_for_another_device_is_not_this_ones(home):
    machine = Machine(home)
    redirected = signed("wipe", 1, device=OTHER_DEVICE)
    assert passes(redirected, device=OTHER_DEVICE)
    deliver(Respondent(machine, member()), redirected)
    assert machine.destroyed == 0


def test_a_release_that_was_recorded_before_does_not_end_a_later_quarantine(home):
    machine = Machine(home)
    device = Respondent(machine, member())
    old_release = signed("release", 1)
    deliver(device, old_release, signed("quarantine", 2))
    assert passes(old_release)
    deliver(device, old_release)
    assert (machine.serving, machine.fenced, device.orders.state) == (False, True, State.QUARANTINED)
    again = Respondent(Machine(home), member())  # and not after a restart either
    deliver(again, old_release)
    assert again.orders.state is State.QUARANTINED


def test_a_release_that_was_held_back_dies_of_what_the_fleet_signed_since(home):
    """It was never delivered, so its sequence is free; what came after it tells the time."""
    machine = Machine(home)
    device = Respondent(machine, member())
    held_back = signed("release", 9, issued=SIGNED, life=60)
    deliver(device, signed("quarantine", 2, issued=SIGNED + 3600))
    assert passes(held_back, after=2)
    deliver(device, held_back)
    assert device.orders.state is State.QUARANTINED


@pytest.mark.parametrize("off", [-YEARS, YEARS])
def test_a_clock_two_years_off_neither_revives_nor_kills_a_command(home, off):
    machine = Machine(home, clock_off=off)
    device = Respondent(machine, member())
    stale = signed("wipe", 1, issued=SIGNED - 7200)
    assert passes(stale, earliest=SIGNED - YEARS)
    deliver(device, stale)
    assert machine.destroyed == 0
    deliver(device, signed("quarantine", 1))
    assert device.orders.state is State.QUARANTINED


def test_a_server_that_lies_about_the_time_cannot_revive_a_command(home):
    machine = Machine(home)
    stale = signed("wipe", 1, issued=SIGNED - 7200)
    deliver(Respondent(machine, member()), stale, server_time=SIGNED - YEARS)
    assert machine.destroyed == 0


def test_a_lost_answer_is_given_again_and_the_command_not_obeyed_again(home):
    machine = Machine(home)
    device = Respondent(machine, member())
    order = signed("quarantine", 1)
    deliver(device, order)
    asyncio.run(device.heard(ipc.AnswerSent("0", accepted=True)))
    count = len(machine.told)
    deliver(device, order)
    assert isinstance(machine.told[-1], ipc.SendAnswer)
    assert len(machine.told) == count + 1
    assert machine.journaled.count("fleet_command_obeyed") == 1


def test_a_link_that_lies_about_an_answer_does_not_end_a_wipe_that_was_not_done(home):
    machine = Machine(home)

    async def fails():
        return Destroyed(keystore=False, slots=False, containers=1, keyfile=False, floors=False)

    machine.destroy_keys = fails
    device = Respondent(machine, member())
    deliver(device, signed("wipe", 1))
    asyncio.run(device.heard(ipc.AnswerSent("0", accepted=True)))
    assert device.orders.state is State.WIPING
    assert machine.ended is None
    assert '"failed"' in machine.told[-1].payload.decode()


def test_a_quarantine_is_durable_before_anything_is_done_about_it(home):
    machine = Machine(home)
    seen = []

    async def hold():
        seen.append(OrdersFile(home).read().state)
        raise KeyboardInterrupt  # the power goes

    machine.hold = hold
    with pytest.raises(KeyboardInterrupt):
        deliver(Respondent(machine, member()), signed("quarantine", 1))
    assert seen == [State.QUARANTINED]
    after = Machine(home)
    device = Respondent(after, member())
    asyncio.run(device.begin())
    assert (after.serving, after.fenced, device.may_serve) == (False, True, False)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="uids of their own need root")
def test_a_taken_over_link_cannot_write_what_the_agent_obeys_by(home):
    membership.write_member(home, member())
    code = "import sys; open(sys.argv[1], 'r+b').write(b'{}')"

    def writes(role: str, path: Path) -> bool:
        owner = owner_of(role)
        command = [sys.executable, "-S", "-c", code, str(path)]
        done = subprocess.run(
            ["/usr/bin/setpriv", f"--reuid={owner.uid}", f"--regid={owner.gid}", "--clear-groups", "--", *command],
            capture_output=True,
            check=False,
            cwd="/",
        )
        return done.returncode == 0

    for name in ("orders.json", "member.json"):
        assert not writes("link", home.fleet / name)
        assert writes("agent", home.fleet / name)  # control


def test_a_command_that_is_never_obeyed_is_refused_to_its_own_fleet_and_to_nobody_else(home):
    """A fleet that hears nothing shows the command as waiting for ever, and an operator waits with it."""
    machine = Machine(home)
    device = Respondent(machine, member())
    deliver(device, signed("quarantine", 5))
    machine.told.clear()
    late, old = signed("release", 4), signed("release", 6, issued=SIGNED - 7200, life=3600)
    unknown = signed("dance", 7)
    deliver(device, late, old, unknown, signed("release", 8, STRANGER), signed("release", 9, device=OTHER_DEVICE))
    answers = [envelope._answers.decode(each.payload) for each in machine.told if isinstance(each, ipc.SendAnswer)]
    assert [(each.sequence, each.outcome) for each in answers] == [(4, "refused"), (6, "refused"), (7, "refused")]
    assert [each.detail for each in answers] == [
        "command 4 came after command 5", "command 6 has expired", "this device knows no command 'dance'",
    ]  # fmt: skip
    assert [each.command for each in answers] == [
        envelope.parse(raw, envelope.COMMAND_TYPE).digest for raw in (late, old, unknown)
    ]
    assert (device.orders.state, device.orders.sequence) == (State.QUARANTINED, 5), "and nothing of it is remembered"
    assert not machine.serving


def test_a_wipe_that_is_ordered_again_is_proven_again(home):
    """The fleet missed the proof, or a key would not go at first: without this it would never believe the wipe."""
    machine = Machine(home)
    device = Respondent(machine, member())
    deliver(device, signed("wipe", 1))
    deliver(device, signed("wipe", 2))
    first, second = (
        envelope._answers.decode(each.payload) for each in machine.told if isinstance(each, ipc.SendAnswer)
    )
    assert (first.outcome, second.outcome) == ("done", "done")
    assert second.facts["keys_destroyed"]
    assert device.orders.state is State.WIPING


def test_a_device_proves_itself_again_once_the_fleet_has_its_word_and_not_before(home):
    machine = Machine(home)
    device = Respondent(machine, member())
    asyncio.run(device.heard(ipc.WordSent(payload=b"{}", accepted=False)))
    assert machine.shown == 0
    asyncio.run(device.heard(ipc.WordSent(payload=b"{}", accepted=True)))
    assert machine.shown == 1


def test_a_release_that_was_cut_off_before_the_fence_fell_is_finished_at_the_next_start(home):
    machine = Machine(home)
    device = Respondent(machine, member())
    deliver(device, signed("quarantine", 1))

    async def cut(_gate):
        raise KeyboardInterrupt  # the power goes

    machine.fence = cut
    with pytest.raises(KeyboardInterrupt):
        deliver(device, signed("release", 2))
    after = Machine(home)
    after.fenced = True  # the table outlives the process
    again = Respondent(after, member())
    asyncio.run(again.begin())
    assert (after.fenced, again.may_serve) == (False, True)


def test_on_a_full_disk_nothing_is_obeyed_that_sets_free_and_a_quarantine_ends_the_device(home, monkeypatch):
    machine = Machine(home)
    device = Respondent(machine, member())

    def full(_file, _orders):
        raise OperationError("cannot write orders.json: No space left on device")

    monkeypatch.setattr(OrdersFile, "write", full)
    deliver(device, signed("ping", 1))
    assert (machine.told, device.orders.sequence, machine.ended) == ([], 0, None)
    asyncio.run(device.heard(ipc.Contact(ok=True, server_time=SIGNED, address="10.0.0.1", port=1)))
    assert device.orders.address == ""
    with pytest.raises(OperationError):  # of a task of the agent: it ends the device
        deliver(device, signed("quarantine", 2))
