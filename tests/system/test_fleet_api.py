"""`/api/v1` as a program meets it: tokens, roles, pages, problems; and what a fuzzer makes of its description."""

from __future__ import annotations

import base64
import json
from concurrent import futures

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from support import databases
from support.fleet import Device, running, until

PROBLEM = "application/problem+json"


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.long)])
def server(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("api")
    with running(directory / "fleet", database=databases.new(request.param, directory)) as started:
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


def post(server, path, headers, body, expect=200):
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


# --- once, and not over somebody's head -------------------------------------------------------------------------------


def key(token, role, name):
    return {**token(role), "Idempotency-Key": name}


def test_a_request_with_a_key_happens_once_and_is_answered_as_often_as_it_is_sent(server, token):
    body = b'{"asset":"once-1"}'
    first = post(server, "/enrolments/tokens", key(token, "operator", "k1"), body, 201)
    again = server.ask(
        "people", "POST", "/api/v1/enrolments/tokens", body,
        {**key(token, "operator", "k1"), "Content-Type": "application/json"},
    )  # fmt: skip
    assert (again.status, again.json(), again.headers["idempotency-replayed"]) == (201, first, "true")
    made = [each for each in get(server, "/enrolments/tokens", token("viewer"))["items"] if each["asset"] == "once-1"]
    assert len(made) == 1
    post(server, "/enrolments/tokens", key(token, "operator", "k1"), b'{"asset":"once-2"}', 422)
    post(server, "/devices/till-2/quarantine", key(token, "operator", "k1"), b"{}", 422)
    other = post(server, "/enrolments/tokens", key(token, "owner", "k1"), body, 201)
    assert other["token"] != first["token"], "a key is its token's own: nobody reads another's answer"
    assert post(server, "/enrolments/tokens", token("operator"), body, 201)["id"] != first["id"], "control: no key"


def test_a_request_that_was_refused_may_be_tried_again_with_its_key(server, token):
    asked = ("/devices/till-4/approve", key(token, "operator", "k2"), b"{}", 403)
    post(server, *asked)
    post(server, *asked)
    for bad in ("", "x" * 256, "k\u00e9"):
        post(server, "/enrolments/tokens", key(token, "operator", bad.encode("latin-1")), b'{"asset":"no"}', 400)
    post(server, "/enrolments/tokens", {"Authorization": "Bearer x", "Idempotency-Key": "k3"}, b'{"asset":"no"}', 401)


def test_many_at_once_with_one_key_make_one(server, token):
    body, headers = b'{"asset":"crowd"}', key(token, "operator", "k4")
    with futures.ThreadPoolExecutor(6) as pool:
        statuses = sorted(
            pool.map(
                lambda _: (
                    server.ask(
                        "people",
                        "POST",
                        "/api/v1/enrolments/tokens",
                        body,
                        {**headers, "Content-Type": "application/json"},
                    ).status
                ),
                range(6),
            )
        )
    assert set(statuses) <= {201, 409}
    assert 201 in statuses
    made = [each for each in get(server, "/enrolments/tokens", token("viewer"))["items"] if each["asset"] == "crowd"]
    assert len(made) == 1


def test_an_order_on_what_somebody_else_changed_meanwhile_is_refused(server, token):
    shown = server.get("people", "/api/v1/devices/till-3", token("operator"))
    tag = {**token("operator"), "If-Match": shown.headers["etag"]}
    post(server, "/devices/till-3/quarantine", tag, b"{}")
    assert "meanwhile" in post(server, "/devices/till-3/revoke", tag, b"{}", 409)["title"]
    assert server.device("till-3")["state"] == "quarantined"
    for strange in ('"now"', '"nan"', "inf"):
        post(server, "/devices/till-3/revoke", {**tag, "If-Match": strange}, b"{}", 400)
    newer = server.get("people", "/api/v1/devices/till-3", token("operator")).headers["etag"]
    assert post(server, "/devices/till-3/revoke", {**tag, "If-Match": newer}, b"{}")["state"] == "revoked"


def test_tokens_are_listed_and_ended(server, token):
    made = server.cli("api-token", "create", "brief", "--role", "viewer")
    other = server.cli("api-token", "create", "other", "--role", "operator")
    own = {"Authorization": f"Bearer {made['token']}"}
    names = [each["name"] for each in get(server, "/tokens", token("owner"))["items"]]
    assert {"brief", "other"} <= set(names)
    assert made["token"] not in json.dumps(get(server, "/tokens", token("owner")))
    get(server, "/tokens", own, 401)
    assert server.ask("people", "DELETE", f"/api/v1/tokens/{other['id']}", headers=own).status == 401
    assert server.ask("people", "DELETE", f"/api/v1/tokens/{made['id']}", headers=own).status == 204
    get(server, "/devices", own, 401)
    assert server.ask("people", "DELETE", f"/api/v1/tokens/{other['id']}", headers=token("owner")).status == 204


# --- one order for many ----------------------------------------------------------------------------------------------


def test_an_order_for_many_is_shown_then_confirmed_by_its_number(server, token):
    crowd = [Device(server, server.directory.parent, f"many-{n}").enrol(None, "--group", "crowd") for n in range(3)]
    wish = b'{"action":"quarantine","group":"crowd","reason":"flood"}'
    post(server, "/bulk", token("viewer"), wish, 401)
    shown = post(server, "/bulk", token("operator"), wish, 201)
    assert (shown["count"], shown["sample"], shown["state"]) == (3, ["many-0", "many-1", "many-2"], "shown")
    confirm = f"/bulk/{shown['id']}/confirm"
    post(server, confirm, token("operator"), b'{"count":4}', 400)
    post(server, confirm, token("owner"), b'{"count":3}', 401)
    assert server.device("many-0")["state"] == "enrolled"
    done = post(server, confirm, token("operator"), b'{"count":3}')
    assert (done["done"], done["refused"]) == (3, 0)
    for each in crowd:
        until(lambda each=each: each.checkin().json().get("commands"))  # each has its own, signed
    post(server, confirm, token("operator"), b'{"count":3}', 409)
    until(lambda: get(server, f"/bulk/{shown['id']}", token("operator"))["state"] == "done")
    assert "passkey" in post(server, "/bulk", token("owner"), b'{"action":"release","group":"crowd"}', 403)["title"]
    told = server.cli("device", "release", "--group", "crowd", "--dry-run")["bulk"]
    assert (told["count"], told["dry_run"]) == (3, True)
    assert server.device("many-0")["state"] == "quarantined"
    server.cli("device", "release", "--group", "crowd", expect=2)
    server.cli("device", "release", "--group", "crowd", "--count", "2", expect=2)
    server.cli("device", "release", "many-0", "--group", "crowd", expect=2)
    assert server.cli("device", "release", "--group", "crowd", "--count", "3")["bulk"]["done"] == 3
    assert server.cli("device", "move", "many-0", "--to-group", "depot")["group"] == "depot"
    assert server.device("many-0")["group"] == "depot"
    server.cli("device", "revoke", "--group", "nobody", "--count", "1", expect=5)


# --- what no database stores ------------------------------------------------------------------------------------------


HIDDEN = base64.urlsafe_b64encode(b'["a\\u0000","b"]').decode()


@pytest.mark.parametrize(
    "path",
    ["/devices?asset=a%00", "/devices?group=%00", "/devices/a%00", "/devices?cursor=%00", f"/devices?cursor={HIDDEN}"],
)
def test_a_nul_is_a_wrong_request_and_not_a_failure(server, token, path):
    get(server, path, token("viewer"), 400)


def test_a_reason_is_a_line_of_text(server, token):
    post(server, "/devices/till-4/quarantine", token("operator"), b'{"reason":"a\\u0000b"}', 400)
    post(server, "/devices/till-4/quarantine", token("operator"), b'{"reason":"a\\nb"}', 400)
    post(server, "/rollouts", token("owner"), b'{"release":"a\\u0000"}', 400)


def test_a_device_with_a_nul_in_its_words_silences_no_other(server, tmp_path):
    """On PostgreSQL one such word would fail the batch that carries everybody's check-ins, for ever."""
    hostile, honest = (Device(server, tmp_path, name).enrol() for name in ("hostile-1", "honest-1"))
    for field in ("state", "agent", "generation"):
        assert hostile.checkin(**{field: "a\0"}).status == 400
    items = [{"kind": "dpkg", "name": "a\0", "version": "1"}]
    assert hostile.ask("POST", "/device/v1/inventory", {"items": items}).status == 400
    assert honest.checkin().status == 200
    until(lambda: server.device("honest-1")["last_seen"])


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
