"""Invitations, passkeys, sessions and roles, with an authenticator that signs as a real one does."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import shutil

import pytest
import sqlalchemy as sa

from casemate.crypto.signing import SigningKey
from casemate.errors import BusyError, NotAuthorisedError, UsageError
from casemate.fleet.accounts import ceremonies, people, roles, sessions
from casemate.fleet.accounts.passkeys import RelyingParty
from casemate.fleet.accounts.roles import PERMISSIONS, Permission, Role
from casemate.fleet.api import tokens
from casemate.fleet.audit import AuditLog
from casemate.fleet.store import schema, tables
from casemate.fleet.store.database import Store, sqlite_url
from support.passkey import Authenticator

PARTY = RelyingParty("fleet.example", "https://fleet.example:8443")
NOW = 1_800_000_000.0


@pytest.fixture(scope="module")
def migrated(tmp_path_factory):
    """Return a database with the schema and nothing else."""
    path = tmp_path_factory.mktemp("people") / "fleet.db"

    async def work():
        store = Store(sqlite_url(path))
        await schema.upgrade(store)
        await store.close()

    asyncio.run(work())
    return path


@pytest.fixture
def run(tmp_path, migrated):
    """Run a coroutine function with a transaction of a fresh database; each call sees what the last one wrote."""
    loop = asyncio.new_event_loop()
    store = Store(sqlite_url(shutil.copy(migrated, tmp_path / "fleet.db")))

    def call(act, *args, **kwargs):
        async def inside():
            async with store.write() as connection:
                return await act(connection, *args, **kwargs)

        return loop.run_until_complete(inside())

    yield call
    loop.run_until_complete(store.close())
    loop.close()


def join(run, name="Ada", role=Role.OWNER, key=None, now=NOW):
    key = key or Authenticator(PARTY.origin)
    token = run(people.invite, name, role, now)
    begun = run(people.begin_joining, PARTY, token, now)
    _, cookie = run(people.finish_joining, PARTY, begun.handle, key.create(begun.options), now)
    return key, run(sessions.find, cookie, now), cookie


def login(run, key, now=NOW, **changed):
    begun = run(people.begin_login, PARTY, now)
    return run(people.finish_login, PARTY, begun.handle, key.get(begun.options, **changed), now)


def test_an_invitation_becomes_a_person_once(run):
    key, person, _ = join(run)
    assert (person.name, person.role) == ("Ada", "owner")
    name, cookie = login(run, key)
    assert name == "Ada"
    assert run(sessions.find, cookie, NOW).id == person.id


def test_an_invitation_serves_one_person_even_when_two_began(run):
    token = run(people.invite, "Ada", Role.OWNER, NOW)
    first, second = (run(people.begin_joining, PARTY, token, NOW) for _ in range(2))
    run(people.finish_joining, PARTY, first.handle, Authenticator(PARTY.origin).create(first.options), NOW)
    with pytest.raises(NotAuthorisedError, match="used"):
        run(people.finish_joining, PARTY, second.handle, Authenticator(PARTY.origin).create(second.options), NOW)
    with pytest.raises(NotAuthorisedError, match="used"):
        run(people.begin_joining, PARTY, token, NOW)


def test_an_old_or_invented_invitation_opens_nothing(run):
    token = run(people.invite, "Ada", Role.OWNER, NOW)
    for wrong, when in ((token, NOW + people.INVITATION + 1), ("invented", NOW), ("", NOW), ("\ud800", NOW)):
        with pytest.raises(NotAuthorisedError):
            run(people.invited, wrong, when)


@pytest.mark.parametrize(
    "changed",
    [{"origin": "https://evil.example"}, {"type": "webauthn.create"}, {"challenge": "AAAA"}],
    ids=["origin", "type", "challenge"],
)
def test_a_login_for_somebody_else_is_refused(run, changed):
    key, _, _ = join(run)
    with pytest.raises(NotAuthorisedError):
        login(run, key, **changed)


def test_a_passkey_that_did_not_verify_its_person_is_refused(run):
    key, _, _ = join(run)
    key.verifies = False
    with pytest.raises(NotAuthorisedError):
        login(run, key)


def test_a_login_cannot_be_replayed(run):
    key, _, _ = join(run)
    begun = run(people.begin_login, PARTY, NOW)
    answer = key.get(begun.options)
    run(people.finish_login, PARTY, begun.handle, answer, NOW)
    with pytest.raises(NotAuthorisedError, match="already"):
        run(people.finish_login, PARTY, begun.handle, answer, NOW)


def test_a_copied_passkey_shows_by_its_counter(run):
    key, _, _ = join(run)
    copy = dataclasses.replace(key)
    login(run, key)
    login(run, key)
    with pytest.raises(NotAuthorisedError):
        login(run, copy)


def test_ceremonies_end_and_are_for_one_purpose(run):
    key, person, _ = join(run)
    begun = run(people.begin_login, PARTY, NOW)
    with pytest.raises(NotAuthorisedError):
        run(people.finish_proof, PARTY, person, handle=begun.handle, answer=key.get(begun.options), now=NOW)
    late = run(people.begin_login, PARTY, NOW)
    with pytest.raises(NotAuthorisedError, match="too long"):
        run(people.finish_login, PARTY, late.handle, key.get(late.options), NOW + ceremonies.TIME + 1)


@pytest.mark.parametrize("answer", [b"", b"[]", b"{}", b'{"id":3}', b"[" * 9000, b"{" + b" " * 40_000, b"\xff"])
def test_what_is_no_answer_is_refused(run, answer):
    join(run)
    begun = run(people.begin_login, PARTY, NOW)
    with pytest.raises(NotAuthorisedError):
        run(people.finish_login, PARTY, begun.handle, answer, NOW)


def test_a_session_ends_when_idle_old_or_signed_out(run):
    _, person, cookie = join(run)
    assert run(sessions.find, cookie, NOW + sessions.IDLE - 1)
    assert run(sessions.find, cookie, NOW + sessions.IDLE + 1) is None
    for minute in range(0, 9 * 60, 20):
        if run(sessions.find, cookie, NOW + minute * 60):
            run(sessions.touch, person, NOW + minute * 60)
    assert run(sessions.find, cookie, NOW + sessions.LIFETIME + 1) is None
    assert run(sessions.find, cookie, NOW - 3600) is None, "a clock that went back must not revive a session"
    _, other, cookie = join(run, "Grace")
    run(sessions.end, other)
    assert run(sessions.find, cookie, NOW) is None


def test_only_the_digest_of_a_session_is_stored(run):
    _, _, cookie = join(run)

    async def rows(connection):
        return [str(row) for row in await connection.execute(sa.select(tables.session))]

    assert cookie not in "".join(run(rows))


def test_a_proof_is_by_ones_own_passkey_and_ages(run):
    key, person, cookie = join(run)
    other, _, _ = join(run, "Grace")
    begun = run(people.begin_proof, PARTY, person, NOW + 600)
    with pytest.raises(NotAuthorisedError, match="another"):
        run(people.finish_proof, PARTY, person, handle=begun.handle, answer=other.get(begun.options), now=NOW + 600)
    assert not run(sessions.find, cookie, NOW + 600).has_proved(NOW + 600)
    begun = run(people.begin_proof, PARTY, person, NOW + 600)
    run(people.finish_proof, PARTY, person, handle=begun.handle, answer=key.get(begun.options), now=NOW + 600)
    assert run(sessions.find, cookie, NOW + 600).has_proved(NOW + 600)
    assert not run(sessions.find, cookie, NOW + 600).has_proved(NOW + 600 + sessions.PROOF + 1)


def test_another_passkey_is_added_by_its_person_only_and_belongs_to_one(run):
    key, ada, _ = join(run)
    _, grace, _ = join(run, "Grace")
    second = Authenticator(PARTY.origin)
    begun = run(people.begin_adding, PARTY, ada, NOW)
    made = second.create(begun.options)
    with pytest.raises(NotAuthorisedError, match="somebody else"):
        run(people.finish_adding, PARTY, grace, handle=begun.handle, answer=made, name="stolen", now=NOW)
    begun = run(people.begin_adding, PARTY, ada, NOW)
    run(people.finish_adding, PARTY, ada, handle=begun.handle, answer=second.create(begun.options), name="", now=NOW)
    assert login(run, second)[0] == "Ada"
    begun = run(people.begin_adding, PARTY, grace, NOW)
    with pytest.raises(BusyError):
        run(
            people.finish_adding,
            PARTY,
            grace,
            handle=begun.handle,
            answer=key.create(begun.options),
            name="",
            now=NOW,
        )


def test_a_new_invitation_for_a_known_person_ends_what_they_had(run):
    old, person, cookie = join(run)
    new, again, _ = join(run)
    assert again.id == person.id
    assert run(sessions.find, cookie, NOW) is None
    assert login(run, new)[0] == "Ada"
    with pytest.raises(NotAuthorisedError):
        login(run, old)


def test_who_is_disabled_is_out_at_once_and_the_last_owner_stays(run):
    key, _, _ = join(run)
    with pytest.raises(BusyError, match="last owner"):
        run(people.disable, "Ada")
    _, grace, cookie = join(run, "Grace", Role.OPERATOR)
    audit, made = AuditLog("ab" * 16, SigningKey.generate()), {"role": Role.VIEWER, "seconds": 60.0, "now": NOW}
    _, hers = run(tokens.create, audit, name="hers", actor="Grace", user_id=grace.id, **made)
    _, servers = run(tokens.create, audit, name="servers", actor="console", **made)
    assert run(tokens.find, f"Bearer {hers}", NOW).name == "hers"
    run(people.disable, "Grace")
    assert run(sessions.find, cookie, NOW) is None
    with pytest.raises(NotAuthorisedError):
        run(tokens.find, f"Bearer {hers}", NOW)
    assert run(tokens.find, f"Bearer {servers}", NOW).name == "servers"
    join(run, "Lin", Role.OWNER)
    run(people.disable, "Ada")
    with pytest.raises(NotAuthorisedError):
        login(run, key)


@pytest.mark.parametrize("name", ["", " ", "x" * 65, "a\x1bb", "a\u202eb"])
def test_a_name_that_would_fool_a_reader_is_refused(name):
    with pytest.raises(UsageError):
        people.parse_person(name)


# --- roles ------------------------------------------------------------------------------------------------------------


def test_every_role_is_in_the_table_and_an_unknown_one_may_nothing():
    assert set(PERMISSIONS) == set(Role) == set(roles.DESCRIPTIONS)
    assert not any(roles.allowed("root", permission) for permission in Permission)
    with pytest.raises(NotAuthorisedError, match="may not"):
        roles.require("viewer", Permission.WIPE)


def test_who_reads_can_change_nothing():
    for role in (Role.VIEWER, Role.AUDITOR):
        assert PERMISSIONS[role] <= {Permission.READ, Permission.AUDIT}
    assert PERMISSIONS[Role.CI_PUBLISHER] == {Permission.PUBLISH}
    for permission in (Permission.WIPE, Permission.POLICY):
        holders = {role for role in Role if roles.allowed(role, permission)}
        assert holders == {Role.OWNER, Role.SECURITY_OFFICER}
        with contextlib.suppress(NotAuthorisedError):
            roles.require("operator", permission)
            raise AssertionError("an operator passed")
