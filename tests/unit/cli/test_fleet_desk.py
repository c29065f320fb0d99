"""`casemate fleet oidc` and `fleet alert email` as they are typed, with a real provider and a real mail server."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json

import pytest

from casemate.cli.main import run
from casemate.clock import SystemClock
from casemate.fleet import serve
from casemate.fleet.home import FleetHome
from support import provider, smtp


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    made = FleetHome(tmp_path_factory.mktemp("desk") / "fleet")
    asyncio.run(serve.prepare(made, SystemClock(), serve.Options(people_url="https://fleet.example:8443")))
    return made


@pytest.fixture
def typed(home):
    def call(*words, expect=0):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            code = run(["fleet", *words, "--dir", str(home.path), "--json"])
        assert code == expect, out.getvalue()
        return json.loads(out.getvalue())

    return call


def test_a_provider_is_asked_who_it_is_before_it_is_believed(home, typed, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("between us\n")
    with provider.running() as idp:
        given = ("oidc", "set", "--client-id", "casemate", "--secret-file", str(secret))
        made = typed(*given, "--issuer", idp.issuer, "--role-claim", "groups", "--role", "it=operator")
        assert made["callback"] == "https://fleet.example:8443/sign-in/oidc/callback"
        shown = typed("oidc", "show")["oidc"]
        assert (shown["issuer"], shown["roles"]) == (idp.issuer, [["it", "operator"]])
        assert "between us" not in json.dumps(shown)
        assert shown["has_secret"]
        idp.control(calls_itself="https://evil.example")
        told = typed(*given, "--issuer", idp.issuer, expect=10)
        assert told["error"]["check"] == "oidc-issuer"
        typed(*given, "--issuer", idp.issuer, "--role", "it=operator", expect=2)
    typed(*given, "--issuer", idp.issuer, expect=1)
    assert typed("oidc", "show")["oidc"]["issuer"] == idp.issuer, "what was refused changed nothing"
    assert typed("oidc", "remove") == {"schema": 1, "oidc": None}
    assert typed("oidc", "show")["oidc"] is None
    assert "between us" not in home.settings_file.read_text()
    with contextlib.redirect_stdout(io.StringIO()) as out:
        run(["fleet", "audit", "show", "--dir", str(home.path), "--json"])
    actions = [json.loads(line)["action"] for line in out.getvalue().splitlines()]
    assert [each for each in actions if each.startswith("oidc")] == ["oidc.set", "oidc.remove"]


def test_mail_is_set_up_tried_and_switched_off(home, typed, tmp_path):
    with smtp.running(tmp_path, tls="none") as box:
        typed("alert", "email", "test", expect=2)
        here = f"127.0.0.1:{box.port}"
        typed("alert", "email", "server", here, "--from", "fleet@example.org", "--tls", "none")
        typed("alert", "email", "add", "ops@example.org")
        typed("alert", "email", "add", "ops@example.org", expect=6)
        assert typed("alert", "email", "test")["sent"] == ["ops@example.org"]
        typed("alert", "email", "server", "smtp.example.org:25", "--from", "a@b", "--tls", "none", expect=2)
        assert typed("alert", "email", "show")["recipients"] == ["ops@example.org"]
    assert box.letters[0][1]["from"] == "fleet@example.org"
    assert typed("alert", "email", "test", expect=1)["error"]["message"].startswith("the mail server cannot be reached")
    typed("alert", "email", "remove", "ops@example.org")
    typed("alert", "email", "remove", "ops@example.org", expect=5)
    typed("alert", "email", "off")
    assert typed("alert", "email", "show")["server"] is None


def test_an_address_belongs_to_one_person(typed):
    typed("admin", "email", "nobody", "a@example.org", expect=5)
    typed("admin", "email", "nobody", "no address", expect=2)
