"""What the settings page and the first run say: addresses others can use, no secret, a device's steps in order."""

from __future__ import annotations

import asyncio
import dataclasses
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.clock import SystemClock
from casemate.errors import OperationError
from casemate.fleet import bulk, serve, setup, trend
from casemate.fleet.api import shapes
from casemate.fleet.commands import Commander
from casemate.fleet.console import Console
from casemate.fleet.context import Fleet, Served
from casemate.fleet.home import FleetHome
from casemate.fleet.rollout import story
from casemate.fleet.states import State
from casemate.fleet.web.welcome import Step, step_of


@pytest.mark.parametrize(
    ("shape", "of"),
    [
        (shapes.Setup, setup.Setup),
        (shapes.Trend, trend.Trend),
        (shapes.Evidence, story.Evidence),
        (shapes.Bulk, bulk.Shown),
    ],
)
def test_what_a_page_shows_the_api_shows(shape, of):
    """A field that a shape lacks is dropped without a word."""
    assert set(shape.model_fields) == {field.name for field in dataclasses.fields(of)}


@pytest.fixture
def fleet(tmp_path):
    home = FleetHome(tmp_path / "fleet")
    asyncio.run(serve.prepare(home, SystemClock(), serve.Options()))
    return Fleet.open(home, SystemClock())


@pytest.mark.parametrize(
    ("listens", "names", "url"),
    [
        ("https://127.0.0.1:8445", (), "https://127.0.0.1:8445"),
        ("https://0.0.0.0:8445", ("fleet.example.org",), "https://fleet.example.org:8445"),
        ("https://[::]:8445", ("fleet.example.org", "10.0.0.1"), "https://fleet.example.org:8445"),
        ("https://10.0.0.1:8445", ("fleet.example.org",), "https://10.0.0.1:8445"),
        ("unix:/run/casemate/enrol.sock", (), ""),
        ("", (), ""),
    ],
)
def test_devices_are_told_an_address_that_they_can_reach(fleet, listens, names, url):
    fleet.settings = msgspec.structs.replace(fleet.settings, names=names)
    fleet.served = Served(enrol=listens)
    assert setup.enrol_url(fleet) == url
    fleet.settings = msgspec.structs.replace(fleet.settings, enrol_url="https://proxy.example.org")
    assert setup.enrol_url(fleet) == "https://proxy.example.org"


def test_the_settings_name_what_ends_and_hold_no_secret(fleet):
    secret = "https://hooks.example.org/T0/B1/very-secret?key=also-secret"
    database = "postgresql://fleet:database-secret@db.example.org/fleet"
    fleet.settings = msgspec.structs.replace(fleet.settings, database=database)  # its store is another
    fleet.served = Served(people="https://127.0.0.1:8443", devices="https://0.0.0.0:8444")

    async def work():
        try:
            commander = Commander(fleet.settings.fleet, fleet.home.signing_key("commands"))
            await Console(fleet, commander, "test").set_webhook(secret)
            return await setup.describe(fleet)
        finally:
            await fleet.store.close()

    found = asyncio.run(work())
    shown = json.dumps(dataclasses.asdict(found))
    assert "secret" not in shown
    assert found.webhook == "hooks.example.org"
    assert {"root", "intermediate"} <= {one.name for one in found.certificates}
    assert found.root_key_here
    assert [one.is_local for one in found.listeners] == [True, False, False]


@given(st.sampled_from(["open", "used", "revoked"]), st.booleans(), st.none() | st.sampled_from(State), st.booleans())
def test_a_device_comes_step_by_step(token, expired, device, seen):
    step = step_of(token=token, expired=expired, device=device, seen=seen)
    assert (step is Step.WAITING) == (token == "open" and not expired)
    if step in {Step.ASKS, Step.ENROLLED, Step.HERE}:
        assert token == "used"
    if step is Step.HERE:
        assert seen
        assert device is not State.PENDING, "who was not approved is not here"


@pytest.mark.parametrize("raw", [b"", b"[]", b"\xff", b'{"\xff":0}'])
def test_damaged_settings_are_refused_with_the_fix(fleet, raw):
    fleet.home.settings_file.write_bytes(raw)
    with pytest.raises(OperationError, match="is damaged") as caught:
        fleet.home.settings()
    assert "backup" in caught.value.hint
