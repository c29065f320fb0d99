"""Rollouts as the server keeps them: moves of people, looks of the steward, and who loses when two act at once."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import hashlib
import shutil
import tempfile
import uuid
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import sqlalchemy as sa

from casemate.errors import ConflictError, NotAuthorisedError, PolicyDeniedError, UsageError
from casemate.fleet import keybroker, rehearse, serve
from casemate.fleet.context import Fleet
from casemate.fleet.home import FleetHome
from casemate.fleet.rollout import director, picks, records, releases, settle, steward, terms, words
from casemate.fleet.rollout.plan import Action
from casemate.fleet.rollout.records import Move, Wanted
from casemate.fleet.rollout.simulate import World
from casemate.fleet.rollout.states import Event, State
from casemate.fleet.rollout.terms import Terms, Window
from casemate.fleet.states import State as DeviceState
from casemate.fleet.store import database, rollout_tables, schema, tables
from casemate.formats import director as formats_director
from casemate.formats import envelope, grant
from casemate.formats.channel_set import Member
from casemate.formats.director import VerifiedWord, Word
from casemate.formats.gate import Gate
from support import databases
from support.release import FixedClock

NOW = 1_800_000_000.0
TERMS = Terms(soak=100.0, patience=50.0, install=60.0, come=500.0, control=0.1)
OLD = hashlib.sha256(b"old").hexdigest()


class Site:
    """A fleet's server with devices that say what the test wants."""

    def __init__(self, fleet, clock):
        self.fleet, self.clock = fleet, clock
        self.release = self.content = ""

    async def devices(self, count, group=""):
        ids = [str(uuid.uuid4()) for _ in range(count)]
        async with self.fleet.store.write() as connection:
            for each in ids:
                row = {"id": each, "asset": each, "state": "enrolled", "enrolled_by": "token", "created": NOW}
                row |= {"changed": NOW, "key_digest": "0" * 64, "group_name": group}
                await connection.execute(sa.insert(tables.device).values(row))
                seen = {"device_id": each, "last_seen": self.clock.now, "state": "ok", "generation": OLD}
                await connection.execute(sa.insert(tables.device_seen).values(seen))
                await picks.begin(connection, self.fleet.store, each, group, NOW)
        return ids

    async def publish(self, version="1.0.0", state="offered", gate=None):
        members = (Member("model", "tiny", version, 1, "0" * 32, "0" * 64, gate),)
        self.content = hashlib.sha256(msgspec.json.encode(members)).hexdigest()
        self.release = releases.identity("stable", self.content)
        row = {"id": self.release, "channel": "stable", "generation": 1, "content": self.content, "state": state}
        row |= {"target_sha256": "0" * 64, "target_length": 1, "members": msgspec.json.encode(members)}
        row |= {"expires": NOW + 1e6, "created": NOW, "created_by": "test", "changed": NOW}
        async with self.fleet.store.write() as connection:
            await connection.execute(sa.insert(rollout_tables.release).values(row))

    async def create(self, actor="ann", group=None, given=TERMS):
        async with self.fleet.store.write() as connection:
            return await records.create(
                connection, self.fleet, Wanted(self.release, group, given), actor, self.clock.now
            )

    async def move(self, name, event, actor="bob", **more):
        async with self.fleet.store.write() as connection:
            return await records.change(connection, self.fleet, name, Move(event, actor, self.clock.now, **more))

    async def running(self, **more):
        name = await self.create(**more)
        await self.move(name, Event.APPROVE)
        await self.move(name, Event.START)
        return name

    async def look(self):
        await steward.look(self.fleet)

    async def settle(self, name):
        """Settle devices alone: the steward would pause the rollout in between."""
        async with self.fleet.store.write() as connection:
            row = await records.find(connection, name)
            await settle.devices(connection, row, terms.decode(bytes(row.terms)), self.clock.now)

    async def show(self, name):
        async with self.fleet.store.read() as connection:
            return await records.show(connection, name)

    async def states(self, name):
        one = rollout_tables.rollout_device.c
        async with self.fleet.store.read() as connection:
            rows = await connection.execute(sa.select(one.device_id, one.state).where(one.rollout_id == name))
            return {row.device_id: row.state for row in rows}

    async def of(self, name, *wanted):
        return sorted(device for device, state in (await self.states(name)).items() if state in wanted)

    async def take(self, name, devices):
        async with self.fleet.store.write() as connection:
            for each in devices:
                await words.handed(connection, name, each, self.clock.now)

    async def say(self, devices, outcome="good", **more):
        async with self.fleet.store.write() as connection:
            for each in devices:
                word = Word(1, "0" * 32, each, self.content, outcome, int(self.clock.now), **more)
                await words.take(connection, self.fleet.store, VerifiedWord(word), b"", self.clock.now)

    async def call(self, devices, generation=None, state="ok"):
        seen = tables.device_seen
        values = {"last_seen": self.clock.now, "state": state, "generation": generation or self.content}
        async with self.fleet.store.write() as connection:
            await connection.execute(sa.update(seen).where(seen.c.device_id.in_(devices)).values(values))

    async def give_tpm(self, devices):
        async with self.fleet.store.write() as connection:
            for each in devices:
                row = {"device_id": each, "ek_digest": each, "ek_public": b"", "ak_public": b""}
                row |= {"ek_trusted": True, "created": NOW}
                await connection.execute(sa.insert(tables.tpm_identity).values(row))

    async def prove(self, device, generation, status="affirming", policy="default", lasts=900.0):
        """Keep a judgement of *device*, as `attestation` keeps it."""
        row = {"device_id": device, "status": status, "assurance": "L2", "policy": policy, "evidence_digest": "0" * 64}
        row |= {"generation": generation, "created": self.clock.now, "expires": self.clock.now + lasts}
        async with self.fleet.store.write() as connection:
            await connection.execute(sa.insert(tables.attest_result).values(row))

    async def whys(self, name):
        one = rollout_tables.rollout_device.c
        async with self.fleet.store.read() as connection:
            rows = await connection.execute(sa.select(one.device_id, one.why).where(one.rollout_id == name))
            return {row.device_id: row.why for row in rows}

    async def picks(self):
        pick = rollout_tables.device_pick
        async with self.fleet.store.read() as connection:
            return {row.device_id: row for row in await connection.execute(sa.select(pick))}


@functools.cache
def template():
    """Return the directory of a new fleet, made once."""
    directory = Path(tempfile.mkdtemp(prefix="rollouts-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    asyncio.run(serve.prepare(FleetHome(directory / "fleet"), FixedClock(NOW), serve.Options()))
    return directory / "fleet"


def site(work, directory, kind="sqlite"):
    home = FleetHome(shutil.copytree(template(), directory / "fleet"))
    url = database.sqlite_url(home.path / "fleet.db") if kind == "sqlite" else databases.new(kind, directory)

    async def whole():
        clock = FixedClock(NOW)
        fleet = Fleet.open(home, clock, database=url)
        if kind != "sqlite":
            await schema.upgrade(fleet.store)
        try:
            return await work(Site(fleet, clock))
        finally:
            await fleet.store.close()

    return asyncio.run(whole())


def test_a_gated_release_is_rolled_out_only_where_the_fleets_gate_asks_for_as_much(tmp_path):
    async def work(here):
        refused = []

        async def create():
            try:
                return await here.create()
            except PolicyDeniedError as error:
                refused.append(error.message)
                return ""

        async def gate(level):
            asked = keybroker.Gate(level, 3600, None)
            return (await keybroker.gate_model(here.fleet, "tiny", asked, "ann"))[1]

        await here.publish("1", gate=Gate("tiny", "L2", bytes(31) + b"9"))
        await create()  # no such model
        recipient = await gate("L2")
        await create()  # another fleet's
        await here.publish("2", gate=Gate("tiny", "L3", recipient))
        await create()  # asks for more
        assert await gate("L3") == recipient
        name = await create()
        await here.move(name, Event.APPROVE)
        await gate("L2")  # somebody lets more devices in meanwhile
        with pytest.raises(PolicyDeniedError, match="asks for L3"):
            await here.move(name, Event.START)
        await gate("L3")
        listed = (await keybroker.list_models(here.fleet))[0]
        assert grant.parse_recipient(listed["recipient"]) == recipient
        assert "wrapped" not in listed
        async with here.fleet.store.read() as connection:
            members = [each["members"][0].get("gate") for each in await releases.listed(connection, NOW)]
        assert {"model": "tiny", "min_assurance": "L3"} in members
        return refused, await here.move(name, Event.START)

    refused, state = site(work, tmp_path)
    words = ("which this fleet has no key of", "another key of 'tiny'", "this fleet gives 'tiny' to L2")
    assert [word in said for word, said in zip(words, refused, strict=True)] == [True] * 3
    assert state is State.RUNNING


@pytest.mark.parametrize("kind", databases.KINDS)
def test_a_good_release_reaches_everybody_batch_by_batch_and_the_control_group_last(tmp_path, kind):
    async def work(here):
        everybody = await here.devices(60)
        await here.publish()
        name = await here.running()
        sizes = []
        for _ in range(8):
            await here.look()
            await here.look()  # the second look sees the same and does nothing twice
            found = await here.show(name)
            if found["state"] != "running":
                break
            fresh = await here.of(name, "offered")
            sizes.append(len(fresh))
            await here.take(name, fresh)
            await here.say(fresh)
            here.clock.now += 100
            await here.call(fresh)
            await here.call(set(everybody) - set(await here.of(name, "installed", "good")), OLD)
        picks = await here.picks()
        return found, sizes, [picks[each].action for each in await here.of(name, "control")]

    found, sizes, held_back = site(work, tmp_path, kind)
    assert (found["state"], found["failed"], found["silent"]) == ("done", 0, 0)
    assert sizes[0] == 20
    assert found["control"] + found["good"] == 60
    assert set(held_back) == {"take"}  # after the end they get it as well


def test_a_bad_release_stops_at_the_first_batch_and_nobody_else_is_told_to_take_it(tmp_path):
    async def work(here):
        await here.devices(60)
        await here.publish()
        name = await here.running()
        await here.look()
        first = await here.of(name, "offered")
        await here.take(name, first[:10])
        await here.say(first[:10], "failed", why="it did not come up")
        await here.look()
        picks = await here.picks()
        return await here.show(name), first, picks

    found, first, picks = site(work, tmp_path)
    assert found["state"] == "paused"
    assert found["offered"] == found["failed"] == 10
    assert "10 of 10 devices failed" in found["why"]
    assert found["failures"][0]["why"] == "it did not come up"
    assert {each for each in picks if picks[each].action == "take"} == set(first[:10])  # they said no by themselves


def test_silence_and_lies_are_failures(tmp_path):
    async def work(here):
        await here.devices(30)
        await here.publish()
        name = await here.running(given=msgspec.structs.replace(TERMS, control=0.0))
        await here.look()
        mute, gone, liar, ill, good = (await here.of(name, "offered"))[:5]
        await here.take(name, [mute, gone, liar, ill, good])
        await here.say([gone, liar, ill, good])
        here.clock.now += 10
        await here.call([liar], OLD)  # says good, and checks in with what it had
        await here.look()
        early = await here.states(name)
        here.clock.now += 95
        await here.call([good])
        await here.call([ill], state="degraded")
        await here.look()
        middle = await here.states(name)
        here.clock.now += 60
        await here.look()
        return early[liar], middle[good], middle[ill], middle[gone], (await here.states(name))[gone], middle[mute]

    assert site(work, tmp_path) == ("failed", "good", "failed", "installed", "silent", "silent")


SAYS = "it proves another generation than it says"
MUTE = "it did not prove what it runs"
REFUTED = "it says that it runs this and its attestation is contraindicated"
NEW = "new"  # stands for the content that is rolled out
PROOFS = {  # what was judged (seconds after the word, what) -> at once, at the end of the soak, after the patience
    "affirmed": ([(100, {"generation": NEW})], "installed", "good", ("good", "")),
    "affirmed again": ([(1, {"generation": OLD}), (2, {"generation": NEW})], "installed", "good", ("good", "")),
    "another": ([(1, {"generation": OLD})], "failed", "failed", ("failed", SAYS)),
    "another at last": ([(1, {"generation": NEW}), (2, {"generation": OLD})], "failed", "failed", ("failed", SAYS)),
    "another, warned": ([(1, {"generation": OLD, "status": "warning"})], "failed", "failed", ("failed", SAYS)),
    "another, unjudged": (
        [(1, {"generation": OLD, "status": "none", "policy": ""})],
        "failed",
        "failed",
        ("failed", SAYS),
    ),
    "contraindicated": (
        [(1, {"generation": NEW, "status": "contraindicated"})],
        "failed",
        "failed",
        ("failed", REFUTED),
    ),
    "nothing": ([], "installed", "installed", ("silent", MUTE)),
    "before the word": ([(0, {"generation": NEW})], "installed", "installed", ("silent", MUTE)),
    "another before the word": ([(0, {"generation": OLD})], "installed", "installed", ("silent", MUTE)),
    "over": ([(1, {"generation": NEW, "lasts": 5.0})], "installed", "installed", ("silent", MUTE)),
    "names none": ([(1, {"generation": ""})], "installed", "installed", ("silent", MUTE)),
    "warned": ([(1, {"generation": NEW, "status": "warning"})], "installed", "installed", ("silent", MUTE)),
    "policy over": ([(1, {"generation": NEW, "status": "none"})], "installed", "installed", ("silent", MUTE)),
    "no policy": ([(1, {"generation": NEW, "status": "none", "policy": ""})], "installed", "good", ("good", "")),
    "no policy, before": (
        [(0, {"generation": NEW, "status": "none", "policy": ""})],
        "installed",
        "installed",
        ("silent", MUTE),
    ),
}


@pytest.mark.parametrize("kind", databases.KINDS)
def test_a_word_is_held_against_what_the_tpm_proves(tmp_path, kind):
    """Every device says good and checks in with it; one without a TPM, the control, is believed as before."""

    async def work(here):
        await here.devices(40)
        await here.publish()
        name = await here.running(given=msgspec.structs.replace(TERMS, control=0.0))
        await here.look()
        offered = await here.of(name, "offered")
        device, plain = dict(zip(PROOFS, offered, strict=False)), offered[-1]
        await here.give_tpm(device.values())
        all_of_them = [*device.values(), plain]
        await here.take(name, all_of_them)
        await here.say(all_of_them)
        begun, stages = here.clock.now, []
        for moment in (0, 1, 2, 50, 100, 151):
            here.clock.now = begun + moment
            await here.call(all_of_them)
            for case, (judged, *_) in PROOFS.items():
                for _, what in [one for one in judged if one[0] == moment]:
                    known = {**what, "generation": here.content if what["generation"] == NEW else what["generation"]}
                    await here.prove(device[case], **known)
            if moment in {50, 100, 151}:
                await here.settle(name)
                stages.append((await here.states(name), await here.whys(name)))
        cases = {
            case: (*(states[one] for states, _ in stages[:2]), (stages[2][0][one], stages[2][1][one]))
            for case, one in device.items()
        }
        return cases, [states[plain] for states, _ in stages]

    found, plain = site(work, tmp_path, kind)
    assert found == {case: tuple(wanted) for case, (_, *wanted) in PROOFS.items()}
    assert plain == ["installed", "good", "good"]


def test_no_data_never_passes(tmp_path):
    async def work(here):
        await here.devices(40)
        await here.publish()
        name = await here.running(given=msgspec.structs.replace(TERMS, control=0.0))
        await here.look()
        for _ in range(5):
            here.clock.now += 90
            await here.look()
        found = await here.show(name)
        return found["state"], found["offered"], found["ceiling"]

    assert site(work, tmp_path) == ("running", 0, 20)


def test_who_does_not_come_is_passed_over_and_does_not_hold_up_the_others(tmp_path):
    async def work(here):
        everybody = await here.devices(40)
        await here.publish()
        name = await here.running(given=msgspec.structs.replace(TERMS, control=0.0))
        await here.look()
        first = await here.of(name, "offered")
        here.clock.now += 501
        await here.call(set(everybody) - set(first), OLD)
        await here.look()
        return first, await here.of(name, "absent"), await here.of(name, "offered")

    first, absent, second = site(work, tmp_path)
    assert first == absent
    assert len(second) == 20
    assert not set(first) & set(second)


def test_an_author_does_not_approve_alone(tmp_path):
    async def work(here):
        await here.publish()
        name = await here.create("ann")
        with pytest.raises(NotAuthorisedError, match="after 10 minutes"):
            await here.move(name, Event.APPROVE, "ann")
        async with here.fleet.store.write() as connection:
            for who, role in (("ann", "release-manager"), ("bob", "security-officer")):
                user = {"id": str(uuid.uuid4()), "name": who, "role": role, "state": "active", "created": NOW}
                await connection.execute(sa.insert(tables.user).values(user))
        here.clock.now += 700
        with pytest.raises(NotAuthorisedError, match="cannot approve"):
            await here.move(name, Event.APPROVE, "ann")
        return await here.move(name, Event.APPROVE, "bob")

    assert site(work, tmp_path) is State.APPROVED


def test_a_single_owner_approves_after_ten_minutes(tmp_path):
    async def work(here):
        await here.publish()
        name = await here.create("ann")
        here.clock.now += 601
        return await here.move(name, Event.APPROVE, "ann")

    assert site(work, tmp_path) is State.APPROVED


@pytest.mark.parametrize("kind", databases.KINDS)
def test_of_two_admins_who_act_at_once_one_is_told_to_look_again(tmp_path, kind):
    async def work(here):
        await here.devices(30)
        await here.publish()
        name = await here.running()
        version = (await here.show(name))["version"]
        both = await asyncio.gather(
            here.move(name, Event.PAUSE, "ann", version=version),
            here.move(name, Event.ABORT, "bob", version=version),
            return_exceptions=True,
        )
        return both, await here.show(name)

    both, found = site(work, tmp_path, kind)
    assert sum(isinstance(each, ConflictError) for each in both) == 1
    assert found["state"] in {"paused", "aborted"}


def test_two_rollouts_for_the_same_devices_do_not_run_at_once(tmp_path):
    async def work(here):
        await here.devices(30, "shops")
        await here.publish()
        await here.running(group="shops")
        other = await here.running(group="depots")
        second = await here.create(group="shops")
        await here.move(second, Event.APPROVE)
        with pytest.raises(ConflictError, match="under way"):
            await here.move(second, Event.START)
        everybody = await here.create()
        await here.move(everybody, Event.APPROVE)
        with pytest.raises(ConflictError, match="under way"):
            await here.move(everybody, Event.START)
        return (await here.show(other))["state"]

    assert site(work, tmp_path) == "running"


@pytest.mark.parametrize("state", ["yanked", "stopped", "superseded"])
def test_what_was_taken_back_is_not_rolled_out_and_stops_where_it_is(tmp_path, state):
    async def work(here):
        await here.devices(30)
        await here.publish()
        name = await here.running()
        await here.look()
        async with here.fleet.store.write() as connection:
            await connection.execute(sa.update(rollout_tables.release).values(state=state))
        with pytest.raises(PolicyDeniedError, match="cannot be rolled out"):
            await here.create()
        await here.look()
        with pytest.raises(PolicyDeniedError):
            await here.move(name, Event.RESUME)
        return await here.show(name)

    found = site(work, tmp_path)
    assert found["state"] == "paused"
    assert "cannot be offered any more" in found["why"]


def test_an_expired_release_pauses_a_rollout(tmp_path):
    async def work(here):
        await here.devices(30)
        await here.publish()
        name = await here.running()
        here.clock.now = NOW + 2e6
        await here.look()
        return (await here.show(name))["why"]

    assert "expired" in site(work, tmp_path)


def test_a_steward_that_dies_between_deciding_and_writing_repeats_itself(tmp_path, monkeypatch):
    async def work(here):
        await here.devices(40)
        await here.publish()
        name = await here.running()
        tell = steward.picks.tell

        async def die(*_args, **_more):
            raise RuntimeError("power cut")

        monkeypatch.setattr(steward.picks, "tell", die)
        for _ in range(2):
            with contextlib.suppress(RuntimeError):
                await here.look()
        actions = {each.action for each in (await here.picks()).values()}
        nothing = (await here.show(name))["ceiling"], await here.of(name, "offered"), actions
        monkeypatch.setattr(steward.picks, "tell", tell)
        await here.look()
        return nothing, len(await here.of(name, "offered"))

    nothing, offered = site(work, tmp_path)
    assert nothing == (0, [], {"keep"})
    assert offered == 20


def test_two_stewards_at_once_offer_one_batch(tmp_path):
    async def work(here):
        await here.devices(60)
        await here.publish()
        name = await here.running()
        await asyncio.gather(*(here.look() for _ in range(4)), return_exceptions=True)
        return len(await here.of(name, "offered"))

    assert site(work, tmp_path, "postgresql") == 20


def test_a_pause_recalls_who_has_not_finished_and_a_resume_goes_on_with_them(tmp_path):
    async def work(here):
        await here.devices(40)
        await here.publish()
        name = await here.running()
        await here.look()
        first = await here.of(name, "offered")
        await here.take(name, first[:3])
        await here.say(first[:1])
        await here.move(name, Event.PAUSE)
        paused = await here.picks()
        here.clock.now += 400
        await here.call(await here.of(name, "control", "taken", "installed"), OLD)
        await here.look()
        still = await here.of(name, "taken")
        await here.move(name, Event.RESUME)
        await here.look()
        return first, paused, still, await here.picks(), await here.of(name, "taken", "offered", "failed", "silent")

    first, paused, still, resumed, again = site(work, tmp_path)
    assert {each for each in first if paused[each].action == "take"} == set(first[:1])
    assert still == first[1:3]  # a device that was told to stop is not silent
    assert all(resumed[each].action == "take" for each in still)
    assert len(again) >= 19


def test_an_abort_with_roll_back_needs_something_to_go_back_to(tmp_path):
    async def work(here):
        await here.devices(30)
        await here.publish("1.0.0")
        first = await here.running()
        with pytest.raises(PolicyDeniedError, match="nothing these devices could go back to"):
            await here.move(first, Event.ABORT, roll_back=True)
        await here.move(first, Event.FINISH)
        await here.publish("2.0.0")
        second = await here.running()
        await here.look()
        took = (await here.of(second, "offered"))[:4]
        await here.take(second, took)
        await here.say(took)
        await here.move(second, Event.ABORT, roll_back=True)
        picks = await here.picks()
        return took, {each for each in picks if picks[each].action == "back"}

    took, back = site(work, tmp_path)
    assert set(took) == back


def test_a_shut_window_offers_nothing(tmp_path):
    hour = int(NOW // 3600) % 24

    async def work(here):
        await here.devices(30)
        await here.publish()
        shut = Window((hour + 2) % 24 * 60, (hour + 3) % 24 * 60)
        name = await here.running(given=msgspec.structs.replace(TERMS, window=shut))
        await here.look()
        before = len(await here.of(name, "offered"))
        here.clock.now += 2 * 3600
        await here.call(await all_of(here), OLD)
        await here.look()
        return before, len(await here.of(name, "offered"))

    async def all_of(here):
        async with here.fleet.store.read() as connection:
            return [row.id for row in await connection.execute(sa.select(tables.device.c.id))]

    assert site(work, tmp_path) == (0, 20)


@pytest.mark.parametrize("kind", databases.KINDS)
def test_of_two_rollouts_that_start_at_once_for_the_same_devices_one_does(tmp_path, kind):
    async def work(here):
        await here.devices(30)
        await here.publish()
        names = [await here.create(), await here.create(group="shops")]
        for each in names:
            await here.move(each, Event.APPROVE)
        return await asyncio.gather(*(here.move(each, Event.START) for each in names), return_exceptions=True)

    both = site(work, tmp_path, kind)
    assert sorted(type(each).__name__ for each in both) == ["ConflictError", "State"]


def test_a_rollout_that_cannot_be_looked_at_does_not_stop_the_others(tmp_path):
    async def work(here):
        await here.devices(30, "shops")
        await here.devices(30, "depots")
        await here.publish()
        names = sorted([await here.running(group="shops"), await here.running(group="depots")])
        broken = rollout_tables.rollout.c.id == names[0]
        async with here.fleet.store.write() as connection:
            await connection.execute(sa.update(rollout_tables.rollout).where(broken).values(terms=b"{"))
        with pytest.raises(msgspec.DecodeError):
            await here.look()
        return len(await here.of(names[1], "offered"))

    assert site(work, tmp_path) == 20


def known(device, pick):
    return SimpleNamespace(id=device, group="", state=DeviceState.ENROLLED, pick=pick)


def test_a_device_that_asks_again_and_again_is_handed_its_pick_once_and_a_pause_in_between_is_heard(tmp_path):
    async def work(here):
        ids = await here.devices(30)
        await here.publish()
        name = await here.running()
        await here.look()
        offered = await here.of(name, "offered")
        first = [await director.deliver(here.fleet, known(offered[0], 2), 1, NOW) for _ in range(3)]
        taken = await here.of(name, "taken")
        await here.move(name, Event.PAUSE)
        late = await director.deliver(here.fleet, known(offered[1], 2), 1, NOW)
        nothing = await director.deliver(here.fleet, known(offered[0], 2), 2, NOW)
        ahead = await director.deliver(here.fleet, known(ids[0], 1), 40, NOW)
        lies = await director.deliver(here.fleet, known(ids[0], 1), 1 << 53, NOW)
        return offered, taken, [action_of(each) for each in (*first, late, ahead)], nothing, lies

    def action_of(raw):
        payload = envelope.parse(raw, formats_director.PICK_TYPE).payload
        found = msgspec.json.decode(payload)
        return found["action"], found["sequence"]

    offered, taken, said, nothing, lies = site(work, tmp_path)
    assert taken == offered[:1]
    assert said[:3] == [("take", 2)] * 3
    assert said[3] == ("keep", 3)  # its pick was taken back before it came
    assert said[4][1] == 41  # a restored server goes on above what its device follows
    assert (nothing, lies) == (None, None)


def test_what_people_write_is_one_line_of_text(tmp_path):
    async def work(here):
        await here.publish()
        name = await here.create()
        await here.move(name, Event.ABORT, why="\x1b[2Jgone\x00\nfor good")
        with pytest.raises(UsageError):
            await here.create(group="shops\x00")
        return (await here.show(name))["why"]

    assert site(work, tmp_path) == "[2Jgone  for good"


def test_terms_that_make_no_sense_are_refused():
    for given in ({"soak": 0}, {"shares": [0.5, 0.2, 1]}, {"shares": [0.5]}, {"first": 0}, {"colour": "red"}):
        with pytest.raises(UsageError):
            terms.read(given)
    assert terms.decode(terms.encode(terms.read({"soak": 60, "window": {"start": 60, "until": 120}}))).soak == 60


def test_the_rehearsal_runs_the_server_and_stops_a_brick_at_the_first_batch(tmp_path):
    seen = []
    outcome = asyncio.run(
        rehearse.rehearse(
            tmp_path / "fleet",
            80,
            Terms(install=3600.0),
            World(1.0, silent=1.0),
            seed=1,
            watcher=lambda _hours, row: seen.append(row["verdict"]),
        )
    )
    assert outcome.state is State.PAUSED
    assert outcome.exposed <= 20
    assert Action.STOP.value in seen


def test_counts_of_nothing_are_zero(tmp_path):
    async def work(here):
        await here.publish()
        name = await here.running()
        async with here.fleet.store.read() as connection:
            row = await records.find(connection, name)
            return await settle.count(connection, row, TERMS, here.clock.now)

    assert site(work, tmp_path).claimed == 0
