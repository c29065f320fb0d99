"""`/api/v1` as a program meets it: tokens, roles, pages, problems; and what a fuzzer makes of its description."""

from __future__ import annotations

import json

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from support.fleet import Device, running

PROBLEM = "application/problem+json"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    directory = tmp_path_factory.mktemp("api")
    with running(directory / "fleet") as started:
        for number in range(5):
            Device(started, directory, f"till-{number}").enrol(None, "--group", "even" if number % 2 == 0 else "odd")
        yield started


@pytest.fixture(scope="module")
def token(server):
    made = {role: server.cli("api-token", "create", role, "--role", role) for role in ("viewer", "operator", "owner")}
    return lambda role: {"Authorization": f"Bearer {made[role]['token']}"}


def get(server, path, headers, expect=200):
    answer = server.get("people", f"/api/v1{path}", headers)
    assert answer.status == expect, (answer.status, answer.body)
    return answer.json()


def post(server, path, headers, body, expect):
    answer = server.ask("people", "POST", f"/api/v1{path}", body, {**headers, "Content-Type": "application/json"})
    assert answer.status == expect, (answer.status, answer.body)
    if expect >= 400:
        assert answer.headers["content-type"] == PROBLEM
    return answer.json()


def test_pages_follow_each_other_to_the_end(server, token):
    seen, cursor = [], ""
    while True:
        page = get(server, f"/devices?limit=2&cursor={cursor}", token("viewer"))
        seen += [each["asset"] for each in page["devices"]]
        cursor = page["cursor"]
        if not cursor:
            break
    assert seen == [f"till-{number}" for number in range(5)]


def test_filters(server, token):
    even = get(server, "/devices?group=even", token("viewer"))["devices"]
    assert [each["asset"] for each in even] == ["till-0", "till-2", "till-4"]
    assert get(server, "/devices?asset=till-3", token("viewer"))["devices"][0]["group"] == "odd"
    assert get(server, "/devices?asset=%25", token("viewer"))["devices"] == []
    assert get(server, "/devices?state=wiped", token("viewer"))["devices"] == []


def test_a_device_and_its_history(server, token):
    shown = get(server, "/devices/till-1", token("viewer"))
    assert shown["history"][0]["action"] == "device.enrol"
    assert shown["certificates"][0]["state"] == "active"
    assert get(server, f"/devices/{shown['id']}", token("viewer"))["asset"] == "till-1"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/devices/nobody", 404),
        ("/devices?limit=0", 400),
        ("/devices?cursor=!!", 400),
        ("/devices?state=fine", 400),
        ("/nothing", 400),
        ("/devices/till-1/inventory", 404),
        ("/audit", 401),
    ],
)
def test_what_goes_wrong_is_a_problem_document(server, token, path, status):
    body = get(server, path, token("viewer"), status)
    assert body["status"] == status
    assert body["type"].startswith("urn:casemate:")


def test_without_a_good_token_nothing_is_said(server, token):
    revoked = server.cli("api-token", "create", "gone", "--role", "owner")
    server.cli("api-token", "revoke", revoked["id"])
    for header in ({}, {"Authorization": "Bearer x"}, {"Authorization": f"Bearer {revoked['token']}"}):
        assert get(server, "/devices", header, 401)["title"] == "an API token is needed"
    shown = json.dumps(server.cli("api-token", "list"))
    assert revoked["token"] not in shown


def test_a_role_is_a_bound(server, token):
    post(server, "/devices/till-0/quarantine", token("viewer"), b"{}", 401)
    assert (
        post(server, "/devices/till-0/quarantine", token("operator"), b'{"reason":"x"}', 200)["state"] == "quarantined"
    )
    post(server, "/devices/till-0/quarantine", token("operator"), b"{}", 403)


def test_what_needs_a_passkey_no_token_can_do(server, token):
    for order in ("wipe", "release"):
        assert "passkey" in post(server, f"/devices/till-4/{order}", token("owner"), b"{}", 403)["title"]
    assert server.device("till-4")["state"] == "enrolled"


def test_a_token_made_over_the_api_enrols(server, token, tmp_path):
    made = post(server, "/enrolments/tokens", token("operator"), b'{"asset":"from-api"}', 201)
    assert Device(server, tmp_path, "from-api").enrol(made["token"]).checkin().status == 200
    entries = get(server, "/audit?limit=5", token("owner"))["items"]
    assert "api:operator" in {each["actor"] for each in entries}


def test_the_description_is_openapi_3_1(server):
    described = server.get("people", "/api/v1/openapi.json").json()
    assert described["openapi"].startswith("3.1")
    assert "/devices/{device}" in described["paths"]


def test_a_body_is_bounded(server, token):
    post(server, "/enrolments/tokens", token("owner"), b" " * (2 << 20), 413)


def test_a_fuzzer_finds_no_answer_that_the_description_does_not_have(server, token):
    address = f"{server.addresses['people']}/api/v1/openapi.json"
    described = schemathesis.openapi.from_url(address, verify=str(server.ca))
    operations = [found.ok() for found in described.get_all_operations()]
    assert len(operations) >= 10
    for operation in operations:

        @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(case=operation.as_strategy())
        def probe(case):
            case.call_and_validate(
                headers=token("owner"), verify=str(server.ca), excluded_checks=[positive_data_acceptance]
            )

        probe()
