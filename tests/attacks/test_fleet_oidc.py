"""Ways into the console past a sign-in provider: forged, borrowed and replayed answers. A real provider, over HTTP.

Control: the same dance with an honest token lets its person in, and `authlib` and `joserfc` alone (without the checks
that are ours) believe some of what is refused here.
"""

from __future__ import annotations

import http.client
import json
import re
import ssl
import time
from urllib.parse import urlencode, urlsplit

import pytest
import sqlalchemy as sa

from casemate.fleet import signon
from casemate.fleet.accounts import people, sessions
from casemate.fleet.accounts.roles import Role
from casemate.fleet.shared_settings import OidcSettings
from casemate.fleet.store import desk, tables
from support import fleet_site, provider

ROLES = (("fleet-admins", "owner"), ("shop-it", "operator"))


class Browser:
    """Cookies and redirects, and nothing else."""

    def __init__(self, site) -> None:
        self.site, self.cookies = site, {}

    def get(self, address, **headers):
        return self.ask("GET", address, None, headers)

    def post(self, address, form, **headers):
        own = {"origin": self.site.origin, "content-type": "application/x-www-form-urlencoded", **headers}
        return self.ask("POST", address, urlencode(form), own)

    def ask(self, method, address, body, headers):
        place = urlsplit(address if "://" in address else self.site.origin + address)
        ours = f"{place.scheme}://{place.netloc}" == self.site.origin
        kind = http.client.HTTPSConnection if place.scheme == "https" else http.client.HTTPConnection
        more = {"context": ssl._create_unverified_context()} if place.scheme == "https" else {}
        link = kind(place.hostname, place.port, timeout=20, **more)
        held = {"cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())} if ours else {}
        try:
            link.request(method, f"{place.path}?{place.query}", body, {**held, **headers})
            answer = link.getresponse()
            text = answer.read().decode()
        finally:
            link.close()
        if ours:
            for line in answer.headers.get_all("set-cookie") or ():
                name, _, value = line.partition(";")[0].partition("=")
                self.cookies.pop(name, None)
                if value.strip('"'):
                    self.cookies[name] = value
        return answer.status, answer.headers.get("location", ""), text

    def begin(self, path="/sign-in/oidc", after="/"):
        """Go to the provider; returns where it sends the browser back to."""
        status, away, text = self.get(f"{path}?{urlencode({'next': after})}")
        assert status == 303, text
        status, back, _ = self.get(away)
        assert status == 302
        return back

    def sign_in(self, **more):
        return self.get(self.begin(**more))

    @property
    def is_in(self):
        return self.get("/")[0] == 200


@pytest.fixture(scope="module")
def idp():
    with provider.running() as started:
        yield started


@pytest.fixture(scope="module")
def site(tmp_path_factory, idp):
    with fleet_site.running(tmp_path_factory.mktemp("oidc")) as started:
        settings = OidcSettings(idp.issuer, provider.CLIENT, label="Example", role_claim="groups", roles=ROLES)
        started.run(signon.set_provider(started.fleet, settings, provider.SECRET.encode(), "test"))
        yield started


@pytest.fixture(autouse=True)
def honest(idp, site):
    """Begin every test with a provider that tells the truth about Ada, whom the fleet knows by her address."""
    idp.control()

    async def only_ada(connection):
        for table in (tables.session, desk.oidc_identity, tables.ceremony, tables.user):
            await connection.execute(sa.delete(table))
        values = {"name": "Ada", "role": "viewer", "state": "active", "email": "ada@example.org", "created": 1.0}
        await connection.execute(sa.insert(tables.user).values(id="ada", **values))

    site.write(only_ada)


def people_of(site):
    rows = site.read(sa.select(tables.user.c.name, tables.user.c.role).order_by(tables.user.c.name))
    return [tuple(row) for row in rows]


def test_control_an_honest_answer_lets_its_person_in_and_back_to_where_they_were(site):
    browser = Browser(site)
    assert browser.get("/devices?state=pending")[1] == "/sign-in?next=%2Fdevices%3Fstate%3Dpending"
    assert "Sign in with Example" in browser.get("/sign-in")[2]
    status, after, _ = browser.sign_in(after="/devices?state=pending")
    assert (status, after) == (303, "/devices?state=pending")
    assert "Ada" in browser.get("/")[2]
    actions = [row.action for row in site.read(sa.select(tables.audit_event.c.action))]
    assert "person.linked" in actions
    assert Browser(site).sign_in()[0] == 303, "and again, as somebody who is known"
    assert people_of(site) == [("Ada", "viewer")]


def test_what_is_asked_has_a_state_a_nonce_and_a_challenge_of_its_own(site, idp):
    Browser(site).begin()
    Browser(site).begin()
    one, two = idp.told()["asked"][-2:]
    assert one["code_challenge_method"] == "S256"
    assert one["redirect_uri"] == f"{site.origin}/sign-in/oidc/callback"
    for name in ("state", "nonce", "code_challenge"):
        assert len(one[name]) >= 32
        assert one[name] != two[name]


LIES = {
    "wrong-audience": ("not for us: aud", {"claims": {"aud": "another-client"}}),
    "wrong-issuer": ("not for us: iss", {"claims": {"iss": "https://evil.example"}}),
    "wrong-nonce": ("not for us: nonce", {"claims": {"nonce": "x" * 32}}),
    "expired": ("is over", {"claims": {"exp": int(time.time()) - 3600}}),
    "alg-none": ("did not sign", {"sign": "none"}),
    "hs256-with-the-public-key": ("did not sign", {"sign": "hs256"}),
    "a-strangers-key": ("did not sign", {"sign": "stranger"}),
    "unverified-email": ("is verified", {"claims": {"email_verified": False}}),
    "nobody-we-know": ("nobody here has", {"claims": {"sub": "subject-2", "email": "eve@example.org"}}),
    "another-provider-answers": ("another provider", {"back": {"iss": "https://evil.example"}}),
    "an-error": ("let nobody in", {"back": {"code": "", "error": "access_denied"}}),
}


@pytest.mark.parametrize("lie", LIES)
def test_nobody_comes_in_with(site, idp, lie):
    said, told = LIES[lie]
    idp.control(**told)
    browser = Browser(site)
    status, after, text = browser.sign_in()
    assert status in {400, 403}
    assert said in text
    assert after == ""
    assert not browser.is_in
    assert people_of(site) == [("Ada", "viewer")]
    assert site.read(sa.select(tables.session)) == []


def test_an_answer_works_once_and_in_its_own_browser_only(site):
    victim, thief = Browser(site), Browser(site)
    back = victim.begin()
    assert thief.get(back)[0] == 403, "the thief has the address and not the cookie"
    mine = thief.begin()
    crossed = back.partition("?")[0] + "?" + mine.partition("?")[2]
    assert victim.get(crossed)[0] == 403, "a state of another browser"
    assert victim.get(back)[0] == 403, "and what was begun is used up"
    assert thief.get(mine)[0] == 303, "control: in its own browser"
    held = dict(thief.cookies)
    assert thief.get(mine)[0] == 403, "replayed"
    assert held["__Host-casemate"] == thief.cookies["__Host-casemate"]


def test_keys_that_were_rotated_are_fetched_once_and_keys_that_are_gone_sign_nothing(site, idp):
    assert Browser(site).sign_in()[0] == 303
    idp.rotate()
    before = idp.told()["keys_served"]
    assert Browser(site).sign_in()[0] == 303
    assert idp.told()["keys_served"] == before + 1
    idp.control(sign="stranger")
    assert Browser(site).sign_in()[0] == 400
    assert idp.told()["keys_served"] == before + 2, "a token that no key fits costs one more look, not many"


@pytest.mark.parametrize("target", ["//evil.example", "https://evil.example", "/\\evil.example", "/a\nb"])
def test_nobody_is_sent_elsewhere_afterwards(site, target):
    status, after, _ = Browser(site).sign_in(after=target)
    assert (status, after) == (303, "/")


def test_the_mapping_makes_somebody_and_goes_on_deciding(site, idp):
    eve = {"sub": "subject-2", "email": "Eve@Example.org"}
    idp.control(claims={**eve, "groups": ["shop-it", "cooks"]})
    assert Browser(site).sign_in()[0] == 303
    assert people_of(site) == [("Ada", "viewer"), ("eve@example.org", "operator")]
    idp.control(claims={**eve, "groups": "fleet-admins"})
    assert Browser(site).sign_in()[0] == 303
    assert people_of(site)[1] == ("eve@example.org", "owner")
    event = tables.audit_event.c
    told = site.read(sa.select(event.entry).where(event.actor == "eve@example.org").order_by(event.seq))
    assert [json.loads(row.entry)["detail"]["role"] for row in told] == ["operator", "owner"], "and it is written down"
    idp.control(claims={**eve, "groups": []})
    assert Browser(site).sign_in()[0] == 403, "who lost the group has lost the way in"


def test_whoever_was_disabled_stays_out_whatever_the_provider_says(site, idp):
    assert Browser(site).sign_in()[0] == 303
    idp.control(claims={"groups": ["fleet-admins"]})
    site.write(lambda connection: people.disable(connection, "Ada"))
    browser = Browser(site)
    assert browser.sign_in()[0] == 403
    assert not browser.is_in
    idp.control(claims={"sub": "subject-3", "groups": ["fleet-admins"]})
    assert Browser(site).sign_in()[0] == 403, "nor under another subject with the same address"


def test_settings_that_somebody_spoiled_let_nobody_in_and_keep_no_passkey_out(site):
    table = desk.fleet_setting
    (kept,) = site.read(sa.select(table.c.sealed).where(table.c.name == "oidc"))
    spoil = sa.update(table).where(table.c.name == "oidc")
    begun = Browser(site)
    back = begun.begin()
    site.write(lambda connection: connection.execute(spoil.values(sealed=b"\0" * 64)))
    try:
        browser = Browser(site)
        status, _, text = browser.get("/sign-in")
        assert (status, "Use my passkey" in text, "Sign in with Example" in text) == (200, True, False)
        assert browser.get("/sign-in/oidc")[0] == 503
        assert begun.get(back)[0] == 503, "nor does an answer that was under way"
        assert not begun.is_in
    finally:
        site.write(lambda connection: connection.execute(spoil.values(sealed=kept.sealed)))
    assert begun.sign_in()[0] == 303, "control: as it was"


def test_an_address_that_changed_hands_at_the_provider_does_not_change_hands_here(site, idp):
    assert Browser(site).sign_in()[0] == 303
    idp.control(claims={"sub": "subject-9"})
    assert Browser(site).sign_in()[0] == 403


def test_a_wipe_still_needs_proof_that_is_fresh(site, idp):
    site.write(lambda c: c.execute(sa.update(tables.user).values(role=Role.OWNER.value)))
    device = site.add_device("till-1")
    browser = Browser(site)
    assert browser.sign_in()[0] == 303, "the provider did not say when Ada proved who she is"
    token = re.search(r'name="csrf" value="([0-9a-f]+)"', browser.get("/people")[2])[1]
    wipe = (f"/devices/{device}/wipe", {"csrf": token, "confirm": "till-1"})
    assert browser.post(*wipe)[1].startswith("/prove?"), "an old sign-in is no proof"
    assert browser.post("/people/passkey/begin", {"csrf": token})[1].startswith("/prove?"), "nor makes a passkey"
    assert "Sign in again with Example" in browser.get("/prove")[2]
    back = browser.begin("/prove/oidc", "/devices")
    assert idp.told()["asked"][-1]["max_age"] == "0"
    idp.control(claims={"auth_time": int(time.time()) - 3600})
    assert browser.get(back)[0] == 403, "the provider did not ask her anew"
    idp.control(claims={"auth_time": None})
    assert browser.get(browser.begin("/prove/oidc"))[0] == 403, "or does not say so"
    idp.control(claims={"sub": "subject-2", "email": "eve@example.org", "groups": ["shop-it"]})
    assert browser.get(browser.begin("/prove/oidc"))[0] == 403, "somebody else's proof"
    assert browser.post(*wipe)[1].startswith("/prove?")
    idp.control()
    assert browser.get(browser.begin("/prove/oidc", "/devices"))[1] == "/devices"
    assert browser.post(*wipe)[1] == f"/devices/{device}", "control: asked anew, and it goes on"


def test_a_proof_begun_by_one_person_is_nothing_to_another(site, idp):
    ada, other = Browser(site), Browser(site)
    assert ada.sign_in()[0] == 303
    idp.control(claims={"sub": "subject-2", "email": "eve@example.org", "groups": ["shop-it"]})
    assert other.sign_in()[0] == 303
    back = ada.begin("/prove/oidc")
    other.cookies["__Host-oidc"] = ada.cookies["__Host-oidc"]
    assert other.get(back)[0] == 403
    proofs = {row.proved for row in site.read(sa.select(tables.session.c.proved))}
    assert proofs == {0.0}


def test_a_session_that_a_provider_made_ends_like_any_other(site):
    browser = Browser(site)
    browser.sign_in()
    cookie = browser.cookies["__Host-casemate"]
    assert site.write(lambda c: sessions.find(c, cookie, time.time())).name == "Ada"
    late = time.time() + sessions.LIFETIME + 1
    assert site.write(lambda c: sessions.find(c, cookie, late)) is None
