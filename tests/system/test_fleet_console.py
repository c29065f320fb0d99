"""The console in a real browser, with real passkeys: who gets in, what they can do, and that all can read it."""

from __future__ import annotations

import http.client
import json
import shutil
import ssl
import time
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest
import sqlalchemy as sa
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from casemate.fleet import approvals, inventory
from casemate.fleet.accounts.roles import Role
from casemate.fleet.changes import note_change
from casemate.fleet.rollout import records, terms
from casemate.fleet.states import State
from casemate.fleet.store import rollout_tables, tables
from casemate.fleet.web import routes
from casemate.formats.fleet_api import Inventory, Item
from support import console_fleet
from support.fleet_site import browser, running
from support.passkey import Authenticator

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not shutil.which("chromium"), reason="apt install chromium chromium-driver"),
]
AXE = Path(__file__).parents[1] / "support" / "axe" / "axe.min.js"
PAGES = (
    "/", "/devices", "/health", "/inventory", "/alerts", "/enrolment", "/policies", "/grants", "/audit", "/people",
    "/settings", "/welcome", "/bulk", "/releases", "/rollouts", "/usage",
)  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with running(tmp_path_factory.mktemp("console")) as started:
        yield started


@pytest.fixture(scope="module")
def ada(site):
    """Return the browser of the owner."""
    with browser() as driver:
        join(driver, site.invite())
        yield driver


@pytest.fixture(scope="module")
def seeded(site):
    """Put something on every page."""
    return console_fleet.seed(site, devices=14, days=2)


def about(seeded):
    """Return the pages about one thing."""
    return f"/devices/{seeded.device}", f"/rollouts/{seeded.running}", f"/rollouts/{seeded.stopped}"


def join(driver, link):
    driver.get(link)
    driver.find_element(By.CSS_SELECTOR, "button.primary").click()
    until(driver, lambda: urlsplit(driver.current_url).path in {"/", "/welcome"})


def until(driver, true, within=20):
    wait = WebDriverWait(driver, within, poll_frequency=0.05, ignored_exceptions=[StaleElementReferenceException])
    wait.until(lambda _: true())


def words(driver):
    return driver.find_element(By.TAG_NAME, "body").text


def clicked(driver, *where):
    """Click; a page that hears of a change may have put another in the place of what was found."""
    until(driver, lambda: driver.find_element(*where).click() or True)


def opened(driver, action):
    clicked(driver, By.CSS_SELECTOR, f"[data-opens=ask-{action}]")
    return driver.find_element(By.ID, f"ask-{action}")


def path(driver):
    return urlsplit(driver.current_url).path


def raw(site, method, target, *, headers=None, body=None):
    """Speak HTTP to the console without a browser."""
    port = int(site.origin.rpartition(":")[2])
    link = http.client.HTTPSConnection("localhost", port, context=ssl._create_unverified_context(), timeout=20)
    try:
        link.request(method, target, body=body, headers=headers or {})
        answer = link.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode()
    finally:
        link.close()


def cookie(driver):
    return driver.get_cookie("__Host-casemate")["value"]


# --- the door ---------------------------------------------------------------------------------------------------------


def test_nobody_sees_anything_without_signing_in(site):
    for route in routes.routes():
        target = route.path.replace("{device}", "x").replace("{token}", "x").replace("{approval}", "x")
        target = target.replace("{alert:int}", "1").replace("{name}", "casemate.css")
        if target.startswith(("/static", "/sign", "/join")):
            continue
        method = next(iter(route.methods - {"HEAD"}))
        own = {"origin": site.origin, "sec-fetch-site": "same-origin"}
        status, headers, text = raw(site, method, target, headers=own)
        assert status == 303, (method, target, status)
        assert headers["location"].startswith("/sign-in?")
        assert text == ""


def test_the_owner_came_in_with_a_passkey_and_the_cookie_is_out_of_reach(site, ada):
    ada.get(site.origin)
    assert "What needs a person comes first" in words(ada)
    held = ada.get_cookie("__Host-casemate")
    assert (held["secure"], held["httpOnly"], held["sameSite"], held["path"]) == (True, True, "Lax", "/")
    assert ada.execute_script("return document.cookie") == ""


def test_an_invitation_works_once(site, ada):
    link = site.invite("Grace", Role.OPERATOR)
    with browser() as other:
        join(other, link)
        assert "Grace" in words(other)
        other.delete_all_cookies()
        other.get(link)
        assert "this invitation was used" in words(other).lower()


def test_signing_out_ends_the_session_on_the_server(site):
    with browser() as driver:
        join(driver, site.invite("Lin", Role.VIEWER))
        stolen = cookie(driver)
        driver.find_element(By.CSS_SELECTOR, "form[action='/sign-out'] button").click()
        until(driver, lambda: path(driver) == "/sign-in")
        status, _, _ = raw(site, "GET", "/", headers={"cookie": f"__Host-casemate={stolen}"})
        assert status == 303
        driver.find_element(By.CSS_SELECTOR, "button.primary").click()
        until(driver, lambda: path(driver) == "/")
        assert "Lin" in words(driver)


def ceremony(site, target, answer, headers):
    """Go through *target*'s ceremony as its page does; returns the status, the headers and what followed."""
    sent = {"origin": site.origin, "sec-fetch-site": "same-origin", "content-type": "application/json", **headers}
    status, begun, text = raw(site, "POST", f"{target}/begin", headers=sent, body="{}")
    assert status == 200, text
    handle = begun["set-cookie"].partition(";")[0]
    sent["cookie"] = "; ".join(filter(None, (sent.get("cookie"), handle)))
    body = json.dumps({"answer": json.loads(answer(json.loads(text)["options"])), "name": "spare"})
    status, ended, text = raw(site, "POST", f"{target}/finish", headers=sent, body=body)
    return status, ended, json.loads(text)


def test_another_passkey_is_written_down_and_lets_its_owner_in(site):
    spare = Authenticator(site.origin)
    with browser() as driver:
        join(driver, site.invite("Mae", Role.VIEWER))
        driver.get(f"{site.origin}/people")
        token = driver.find_element(By.NAME, "csrf").get_attribute("value")
        hers = {"cookie": f"__Host-casemate={cookie(driver)}", "x-csrf-token": token}
    status, headers, told = ceremony(site, "/people/passkey", spare.create, hers)
    assert (status, told) == (200, {"next": "/people"})
    assert "set-cookie" not in headers, "her session goes on"
    status, headers, told = ceremony(site, "/sign-in", spare.get, {})
    assert (status, told) == (200, {"next": "/"})
    assert headers["set-cookie"].startswith('__Host-ceremony=""'), "it is over"
    assert ceremony(site, "/prove", spare.get, hers)[0] == 200
    assert ceremony(site, "/sign-in", Authenticator(site.origin).get, {})[0] == 401, "the control: a stranger's passkey"
    said = [(row.action, row.actor) for row in site.read(sa.select(tables.audit_event))]
    assert [action for action, actor in said if actor == "Mae"] == [
        "person.joined",
        "person.passkey-added",
        "person.signed-in",
    ]


# --- requests that another site makes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "https://evil.example", "sec-fetch-site": "cross-site"},
        {"origin": "null"},
        {"origin": "{own}", "sec-fetch-site": "cross-site"},
        {"origin": "{own}", "sec-fetch-site": "same-site"},
        {"origin": "{own}", "sec-fetch-site": "same-origin", "csrf": "wrong"},
        {"origin": "{own}", "sec-fetch-site": "same-origin", "csrf": ""},
    ],
    ids=["nothing", "elsewhere", "null", "cross-site", "same-site", "wrong-token", "no-token"],
)
def test_a_request_that_is_not_from_our_page_changes_nothing(site, ada, headers):
    device = site.add_device(f"csrf-{time.monotonic_ns()}")
    ada.get(f"{site.origin}/devices/{device}")
    token = ada.find_element(By.NAME, "csrf").get_attribute("value")
    sent = {key: value.replace("{own}", site.origin) for key, value in headers.items()}
    body = urlencode({"csrf": sent.pop("csrf", token), "reason": "x"})
    sent |= {"cookie": f"__Host-casemate={cookie(ada)}", "content-type": "application/x-www-form-urlencoded"}
    status, _, _ = raw(site, "POST", f"/devices/{device}/quarantine", headers=sent, body=body)
    assert status == 403
    assert state_of(site, device) == State.ENROLLED
    good = sent | {"origin": site.origin, "sec-fetch-site": "same-origin"}
    body = urlencode({"csrf": token, "reason": "x"})
    assert raw(site, "POST", f"/devices/{device}/quarantine", headers=good, body=body)[0] == 303
    assert state_of(site, device) == State.QUARANTINED, "the control: our own page can"


def state_of(site, device):
    return site.read(sa.select(tables.device.c.state).where(tables.device.c.id == device))[0].state


@pytest.mark.parametrize("target", ["//evil.example", "https://evil.example", "/\\evil.example", "/a\nb"])
def test_nobody_is_sent_elsewhere_after_signing_in(site, ada, target):
    found = raw(
        site, "GET", f"/sign-in?{urlencode({'next': target})}", headers={"cookie": f"__Host-casemate={cookie(ada)}"}
    )
    assert found[0] == 303
    assert found[1]["location"] == "/"


@pytest.mark.parametrize("target", ["/", "/sign-in", "/static/casemate.css", "/nothing", "/devices/nope"])
def test_every_answer_carries_the_headers(site, target):
    _, headers, _ = raw(site, "GET", target)
    assert "'unsafe" not in headers["content-security-policy"]
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert headers["x-frame-options"] == "DENY"


def test_names_from_devices_and_people_are_text_and_nothing_else(site, ada):
    nasty = "<img src=x onerror=window.owned=1>"
    device = site.add_device(nasty)
    for target in ("/devices?search=%3Cimg", f"/devices/{device}", "/"):
        ada.get(site.origin + target)
        assert ada.execute_script("return window.owned ?? null") is None
    ada.get(f"{site.origin}/devices/{device}")
    assert nasty in words(ada)
    site.run(
        inventory.store(site.fleet, device, Inventory((Item("engine", nasty, "\"'><script>window.owned=1</script>"),)))
    )
    for target in ("/inventory", "/inventory?name=%3Cimg", "/health?span=%22%3E%3Cimg%3E", "/usage?group=%3Cimg%3E"):
        ada.get(site.origin + target)
        assert ada.execute_script("return window.owned ?? null") is None
    ada.get(f"{site.origin}/inventory?name=%3Cimg")
    assert nasty in words(ada)


# --- what people do ---------------------------------------------------------------------------------------------------


def test_a_device_is_quarantined_and_released_with_a_passkey_shown_again(site, ada):
    device = site.add_device("till-70")
    ada.get(f"{site.origin}/devices/{device}")
    ask = opened(ada, "quarantine")
    ask.find_element(By.NAME, "reason").send_keys("seen at a market")
    ask.find_element(By.CSS_SELECTOR, "button.danger").click()
    until(ada, lambda: "quarantined" in words(ada))
    assert "seen at a market" in words(ada)
    site.write(lambda connection: connection.execute(sa.update(tables.session).values(proved=0)))
    opened(ada, "release").find_element(By.CSS_SELECTOR, "button.primary").click()
    until(ada, lambda: path(ada) == "/prove")
    assert state_of(site, device) == State.QUARANTINED
    ada.find_element(By.CSS_SELECTOR, "button.primary").click()
    until(ada, lambda: path(ada) == f"/devices/{device}")
    opened(ada, "release").find_element(By.CSS_SELECTOR, "button.primary").click()
    until(ada, lambda: state_of(site, device) == State.ENROLLED)


def test_a_device_that_asks_to_come_back_is_let_in_with_a_click(site, ada):
    device = site.add_device("till-71")
    asks = {"device_id": device, "asked": time.time(), "seen": time.time()}
    site.write(lambda connection: connection.execute(sa.insert(tables.device_return), [asks]))
    ada.get(site.origin)
    assert "wants to come back" in words(ada)
    ada.get(f"{site.origin}/devices/{device}")
    assert "It asks to come back" in words(ada)
    opened(ada, "approve").find_element(By.CSS_SELECTOR, "button.primary").click()
    until(ada, lambda: "device.approve" in words(ada))  # in its history, at the end of the page
    assert "It asks to come back" not in words(ada)
    assert not ada.find_elements(By.CSS_SELECTOR, "[data-opens=ask-approve]")
    assert state_of(site, device) == State.ENROLLED


def told(site, device, kind="state"):
    """Have open pages hear of a change, again and again: one that was just opened may not listen yet."""
    site.write(lambda connection: note_change(connection, device, kind, time.time()))
    time.sleep(0.5)


def test_an_open_page_hears_of_a_change_by_itself(site, ada):
    ada.get(site.origin)
    site.add_device("kiosk-live", State.PENDING)
    device = site.add_device("kiosk-cause")
    until(ada, lambda: told(site, device) or "kiosk-live" in words(ada))


def test_a_wipe_needs_a_second_person_and_the_asset_tag(site, ada):
    device = site.add_device("till-80")
    with browser() as second:
        join(second, site.invite("Sol", Role.SECURITY_OFFICER))
        ada.get(f"{site.origin}/devices/{device}")
        ask = opened(ada, "wipe")
        ask.find_element(By.NAME, "confirm").send_keys("till-81", Keys.ENTER)
        until(ada, lambda: "not the asset tag" in words(ada))
        ada.get(f"{site.origin}/devices/{device}")
        opened(ada, "wipe").find_element(By.NAME, "confirm").send_keys("till-80", Keys.ENTER)
        until(ada, lambda: "waits for a second person" in words(ada))
        assert not ada.find_elements(By.XPATH, "//button[contains(., 'Agree')]")
        assert site.settle(later=3600) == 0, "time alone is not enough when somebody else could agree"
        assert state_of(site, device) == State.ENROLLED
        second.get(site.origin)
        second.find_element(By.XPATH, "//button[contains(., 'Agree')]").click()
        until(second, lambda: state_of(site, device) == State.WIPING)
        site.write(
            lambda connection: connection.execute(
                sa.update(tables.user).where(tables.user.c.name == "Sol").values(state="disabled")
            )
        )


def test_a_single_owner_waits_and_can_change_their_mind(site, ada):
    kept, gone = site.add_device("till-90"), site.add_device("till-91")
    for asset, device in (("till-90", kept), ("till-91", gone)):
        ada.get(f"{site.origin}/devices/{device}")
        opened(ada, "wipe").find_element(By.NAME, "confirm").send_keys(asset, Keys.ENTER)
        until(ada, lambda: "unless somebody cancels" in words(ada))
    ada.get(f"{site.origin}/devices/{kept}")
    ada.find_element(By.XPATH, "//button[contains(., 'Cancel it')]").click()
    until(ada, lambda: "unless somebody cancels" not in words(ada))
    assert site.settle(later=1) == 0
    assert site.settle(later=approvals.ALONE + 1) == 1
    assert (state_of(site, kept), state_of(site, gone)) == (State.ENROLLED, State.WIPING)


def test_many_devices_are_ordered_at_once_by_whoever_types_their_number(site, ada):
    flooded = [site.add_device(f"flood-{number}", group="flooded") for number in range(3)]
    ada.get(f"{site.origin}/devices?group=flooded")
    ada.find_element(By.LINK_TEXT, "Order for many").click()
    until(ada, lambda: path(ada) == "/bulk")
    assert ada.find_element(By.NAME, "group").get_attribute("value") == "flooded"
    ada.find_element(By.CSS_SELECTOR, "button.primary").click()
    until(ada, lambda: "For exactly these" in words(ada))
    assert "flood-0, flood-1, flood-2" in words(ada)
    page = ada.current_url
    ada.find_element(By.NAME, "count").send_keys("2", Keys.ENTER)
    until(ada, lambda: "for 3 devices and not 2" in words(ada))
    assert state_of(site, flooded[0]) == State.ENROLLED
    ada.get(page)
    ada.find_element(By.NAME, "count").send_keys("3", Keys.ENTER)
    until(ada, lambda: "3 done, 0 left as they were" in words(ada))
    assert {state_of(site, each) for each in flooded} == {State.QUARANTINED}
    site.write(lambda connection: connection.execute(sa.update(tables.session).values(proved=0)))
    ada.get(f"{site.origin}/bulk?group=flooded")
    Select(ada.find_element(By.NAME, "action")).select_by_visible_text("revoke")
    ada.find_element(By.CSS_SELECTOR, "button.primary").click()
    until(ada, lambda: "For exactly these" in words(ada))
    ada.find_element(By.NAME, "count").send_keys("3", Keys.ENTER)
    until(ada, lambda: path(ada) == "/prove")
    assert state_of(site, flooded[0]) == State.QUARANTINED, "what cannot be taken back needs a passkey for many"
    ada.find_element(By.CSS_SELECTOR, "button.primary").click()  # later tests go on with a proof that is fresh
    until(ada, lambda: path(ada).startswith("/bulk/"))


def test_a_viewer_sees_and_cannot_do(site):
    device = site.add_device("till-95")
    with browser() as driver:
        join(driver, site.invite("Vic", Role.VIEWER))
        driver.get(f"{site.origin}/devices/{device}")
        assert not driver.find_elements(By.CSS_SELECTOR, "[data-opens]")
        token = driver.find_element(By.NAME, "csrf").get_attribute("value")
        sent = {
            "cookie": f"__Host-casemate={cookie(driver)}",
            "origin": site.origin,
            "content-type": "application/x-www-form-urlencoded",
        }
        for verb in ("quarantine", "revoke", "wipe", "release", "approve"):
            body = urlencode({"csrf": token, "confirm": "till-95"})
            assert raw(site, "POST", f"/devices/{device}/{verb}", headers=sent, body=body)[0] == 403
        driver.get(f"{site.origin}/audit")
        assert "may not do this" in words(driver)
    assert state_of(site, device) == State.ENROLLED


def test_a_token_is_shown_once(site, ada):
    ada.get(f"{site.origin}/enrolment")
    ada.find_element(By.NAME, "asset").send_keys("till-99", Keys.ENTER)
    until(ada, lambda: "shown once" in words(ada))
    token = ada.find_element(By.CSS_SELECTOR, ".command .token").text
    ada.get(f"{site.origin}/enrolment")
    assert token not in ada.page_source
    assert "till-99" in words(ada)


def test_a_token_for_a_program_is_made_shown_once_and_ended(site, ada):
    ada.get(f"{site.origin}/people")
    form = ada.find_element(By.CSS_SELECTOR, "form[action='/people/tokens']")
    form.find_element(By.NAME, "name").send_keys("reports", Keys.ENTER)
    until(ada, lambda: "The token is shown once" in words(ada))
    bearer = {"authorization": f"Bearer {ada.find_element(By.CSS_SELECTOR, 'code.secret').text}"}
    assert raw(site, "GET", "/api/v1/devices", headers=bearer)[0] == 200
    maker = sa.select(tables.user.c.name).join(tables.api_token, tables.api_token.c.user_id == tables.user.c.id)
    assert site.read(maker.where(tables.api_token.c.name == "reports")) == [("Ada",)], "it would end with her account"
    ada.get(f"{site.origin}/people")
    assert bearer["authorization"][7:] not in ada.page_source
    ada.find_element(By.CSS_SELECTOR, "[aria-label='End the token reports']").click()
    until(ada, lambda: "reports" not in words(ada))
    assert raw(site, "GET", "/api/v1/devices", headers=bearer)[0] == 401


def test_a_hundred_devices_come_in_pages_and_a_search_finds_one(site, ada):
    for number in range(60):
        site.add_device(f"page-{number:03}")
    ada.get(f"{site.origin}/devices?search=page-")
    assert len(ada.find_elements(By.CSS_SELECTOR, "tbody tr")) == 50
    ada.find_element(By.CSS_SELECTOR, "a[rel=next]").click()
    until(ada, lambda: len(ada.find_elements(By.CSS_SELECTOR, "tbody tr")) == 10)
    ada.get(f"{site.origin}/devices")
    ada.find_element(By.ID, "search").send_keys("page-031")
    until(ada, lambda: [row.text for row in ada.find_elements(By.CSS_SELECTOR, "tbody td:first-child")] == ["page-031"])


# --- everybody can use it ---------------------------------------------------------------------------------------------


CLEAN = "const [how, done] = arguments; axe.run(how).then((told) => done(told.violations));"


def test_every_page_is_clean_to_axe_in_both_themes_and_quiet_in_the_log(site, ada, seeded):
    still = {"features": [{"name": "prefers-reduced-motion", "value": "reduce"}]}  # colours change at once
    ada.execute_cdp_cmd("Emulation.setEmulatedMedia", still)
    ada.get(site.origin)
    ada.get_log("browser")
    for target in (*PAGES, *about(seeded), "/inventory?name=l", "/prove", "/join/x"):
        ada.get(site.origin + target)
        ada.execute_script(AXE.read_text())
        for theme, how in (("light", {}), ("dark", {"runOnly": ["color-contrast"]})):  # all that a theme changes
            ada.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)
            found = ada.execute_async_script(CLEAN, how)
            assert not found, (target, theme, json.dumps([(one["id"], one["nodes"][0]["html"]) for one in found]))
        loud = [row for row in ada.get_log("browser") if "403" not in row["message"]]
        assert not loud, (target, loud)


def test_it_works_on_a_phone_and_by_keyboard(site, ada, seeded):
    size = ada.get_window_size()
    ada.set_window_size(400, 800)
    try:
        for target in (*PAGES, *about(seeded)):
            ada.get(site.origin + target)
            wide = ada.execute_script("return document.documentElement.scrollWidth - innerWidth")
            assert wide <= 0, target
        ada.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
        assert ada.switch_to.active_element.text == "Skip to the content"
        ada.switch_to.active_element.send_keys(Keys.ENTER)
        assert ada.execute_script("return location.hash") == "#content"
        assert not ada.find_element(By.ID, "menu").is_displayed()
        ada.find_element(By.CSS_SELECTOR, "[data-menu]").send_keys(Keys.ENTER)
        ada.find_element(By.LINK_TEXT, "Health").send_keys(Keys.ENTER)
        until(ada, lambda: path(ada) == "/health")
    finally:
        ada.set_window_size(size["width"], size["height"])


def test_no_page_is_heavy(site, ada, seeded):
    entries = "return performance.getEntries().reduce((sum, one) => sum + (one.encodedBodySize || 0), 0)"
    for target in (*PAGES, *about(seeded)):
        ada.get(site.origin + target)
        assert 0 < ada.execute_script(entries) <= 250_000, target


# --- the fleet in numbers ---------------------------------------------------------------------------------------------


def test_the_devices_that_run_an_engine_are_one_search_away(site, ada, seeded):
    ada.get(f"{site.origin}/inventory")
    ada.find_element(By.NAME, "name").send_keys("llama.c")
    until(
        ada,
        lambda: [row.text for row in ada.find_elements(By.CSS_SELECTOR, "tbody td:nth-child(2)")] == ["b6082", "b6097"],
    )
    clicked(ada, By.CSS_SELECTOR, "tbody tr:nth-child(2) td.end a")
    until(ada, lambda: path(ada) == "/devices")
    assert "that have llama.cpp b6097" in words(ada)
    assert len(ada.find_elements(By.CSS_SELECTOR, "tbody tr")) == 3
    ada.find_element(By.ID, "search").send_keys("till-detmold")
    until(ada, lambda: len(ada.find_elements(By.CSS_SELECTOR, "tbody tr")) == 1)


def test_the_health_of_the_fleet_is_drawn_and_told(site, ada, seeded):
    ada.get(f"{site.origin}/health")
    until(ada, lambda: len(ada.find_elements(By.CSS_SELECTOR, ".plot canvas")) == 5)
    assert "212\u202fms" in words(ada) or "216\u202fms" in words(ada), "how fast it answers, in numbers too"
    blank = (
        "const c = arguments[0]; return !c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((v) => v)"
    )
    assert not any(ada.execute_script(blank, one) for one in ada.find_elements(By.CSS_SELECTOR, ".plot canvas"))
    told = json.loads(ada.find_element(By.CSS_SELECTOR, "figure").get_attribute("data-chart"))
    assert len(told["times"]) == 288
    assert 10 <= told["values"][1].count(None) <= 14, "an hour without a server is a gap"
    assert len(ada.find_elements(By.CSS_SELECTOR, ".scroll tbody tr")) in range(22, 26)
    ada.find_element(By.LINK_TEXT, "A week").click()
    until(ada, lambda: "span=week" in ada.current_url and ada.find_elements(By.CSS_SELECTOR, ".plot canvas"))


def test_usage_is_shown_with_its_error_and_what_is_not_known(site, ada, seeded):
    ada.get(f"{site.origin}/usage")
    rows = ada.find_elements(By.CSS_SELECTOR, "section[aria-labelledby=q-requests] tbody tr")
    assert len(rows) == 5
    for row in rows:
        ends = [float(line.get_attribute("x1").rstrip("%")) for line in row.find_elements(By.CSS_SELECTOR, ".a-range")]
        centre = float(row.find_element(By.TAG_NAME, "circle").get_attribute("cx").rstrip("%"))
        assert ends[1] <= centre <= ends[2]
        assert ends[2] > ends[1], "never without an error"
    hidden = ada.find_element(By.CSS_SELECTOR, "section[aria-labelledby=hidden]").text
    assert "guard refuse" in hidden
    assert "31" not in hidden, "not even how few they are"
    assert "do whose owners did not agree" in words(ada)


# --- rollouts ---------------------------------------------------------------------------------------------------------


def test_a_rollout_is_seen_filling_and_is_paused(site, ada, seeded):
    ada.get(f"{site.origin}/rollouts/{seeded.running}")
    good = ada.find_element(By.CSS_SELECTOR, ".batches tbody td:nth-child(3)").text
    one = rollout_tables.rollout_device.c
    first = sa.and_(one.rollout_id == seeded.running, one.state == "good")
    some = sa.select(one.device_id).where(first).limit(1).scalar_subquery()

    async def fail(connection):
        await connection.execute(
            sa.update(rollout_tables.rollout_device)
            .where(one.rollout_id == seeded.running, one.device_id == some)
            .values(state="failed", why="it smokes")
        )
        await note_change(connection, "", "rollout", time.time())

    site.write(fail)
    until(ada, lambda: told(site, "", "rollout") or "it smokes" in words(ada))
    third = ".batches tbody td:nth-child(3)"
    until(ada, lambda: int(ada.find_element(By.CSS_SELECTOR, third).text) == int(good) - 1)
    assert ada.find_element(By.CSS_SELECTOR, "svg.test polyline").get_attribute("points").count(",") > 5
    unproved(site)
    ask = opened(ada, "pause")
    site.write(fail)
    time.sleep(1.5)
    assert ask.is_displayed(), "a page does not change under somebody who is deciding"
    ask.find_element(By.NAME, "why").send_keys("smells burnt", Keys.ENTER)
    until(ada, lambda: "Ada paused it" in words(ada))
    assert rollout_state(site, seeded.running) == "paused", "to stop it nobody is asked for a passkey"
    opened(ada, "resume").find_element(By.CSS_SELECTOR, "button.primary").click()
    until(ada, lambda: "policy" in words(ada) and rollout_state(site, seeded.running) == "running")


def unproved(site):
    """Make every session one whose passkey was shown long ago."""
    site.write(lambda connection: connection.execute(sa.update(tables.session).values(proved=0)))


def test_what_reaches_every_device_or_goes_against_the_numbers_needs_a_fresh_passkey(site, ada, seeded):
    async def draft(connection):
        wanted = records.Wanted("stable", None, terms.Terms())
        name = await records.create(connection, site.fleet, wanted, "Rolf", time.time())
        approved = sa.update(rollout_tables.rollout).where(rollout_tables.rollout.c.id == name)
        await connection.execute(approved.values(state="approved", approved_by="Sol", approved=time.time()))
        return name

    name = site.write(draft)
    ada.get(f"{site.origin}/rollouts/{name}")
    assert "passkey" in opened(ada, "start").text
    token = ada.find_element(By.NAME, "csrf").get_attribute("value")

    def moved(rollout, verb, **more):
        """Return where the form leads, and the state after it."""
        found = site.read(sa.select(rollout_tables.rollout.c.version).where(rollout_tables.rollout.c.id == rollout))
        form = urlencode({"csrf": token, "version": found[0].version, **more})
        sent = {"cookie": f"__Host-casemate={cookie(ada)}", "origin": site.origin}
        sent["content-type"] = "application/x-www-form-urlencoded"
        _, headers, text = raw(site, "POST", f"/rollouts/{rollout}/{verb}", headers=sent, body=form)
        return headers.get("location", text), rollout_state(site, rollout)

    asked = [(name, "start", {}), (seeded.stopped, "resume", {}), (seeded.stopped, "abort", {"roll_back": "yes"})]
    unproved(site)
    before = {rollout: rollout_state(site, rollout) for rollout, _, _ in asked}
    for rollout, verb, more in asked:
        assert moved(rollout, verb, **more) == (f"/prove?next=%2Frollouts%2F{rollout}", before[rollout]), verb
    ada.get(f"{site.origin}/prove?next=/rollouts/{name}")
    ada.find_element(By.CSS_SELECTOR, "button.primary").click()
    until(ada, lambda: path(ada) == f"/rollouts/{name}")
    for rollout, verb, more in asked[:2]:
        assert "/prove" not in moved(rollout, verb, **more)[0], "control: shown just now it is not asked for"
    unproved(site)
    assert moved(name, "abort") == (f"/rollouts/{name}", "aborted"), "to end one is free, too"
    ada.get(f"{site.origin}/prove")
    ada.find_element(By.CSS_SELECTOR, "button.primary").click()  # later tests go on with a proof that is fresh
    until(ada, lambda: path(ada) == "/")


def rollout_state(site, name):
    return site.read(sa.select(rollout_tables.rollout.c.state).where(rollout_tables.rollout.c.id == name))[0].state


def test_the_slower_of_two_people_is_told(site, ada, seeded):
    ada.get(f"{site.origin}/rollouts/{seeded.stopped}")
    site.write(
        lambda connection: connection.execute(
            sa.update(rollout_tables.rollout)
            .where(rollout_tables.rollout.c.id == seeded.stopped)
            .values(version=rollout_tables.rollout.c.version + 1)
        )
    )
    opened(ada, "abort").find_element(By.CSS_SELECTOR, "button.danger").click()
    until(ada, lambda: "changed meanwhile" in words(ada))
    assert rollout_state(site, seeded.stopped) == "paused"
    ada.get(f"{site.origin}/rollouts/{seeded.stopped}")
    assert "The numbers stopped it" in words(ada)
    opened(ada, "abort").find_element(By.CSS_SELECTOR, "button.danger").click()
    until(ada, lambda: rollout_state(site, seeded.stopped) == "aborted")


def test_a_release_becomes_a_draft_that_its_author_does_not_approve(site, ada, seeded):
    with browser() as other:
        join(other, site.invite("Rolf", Role.RELEASE_MANAGER))
        ada.get(f"{site.origin}/releases")
        ada.find_element(By.XPATH, "//button[contains(., 'Roll out')]").click()
        ada.find_element(By.CSS_SELECTOR, "dialog[open] select[name=group]").send_keys("Coburg")
        ada.find_element(By.CSS_SELECTOR, "dialog[open] button.primary").click()
        until(ada, lambda: "A draft." in words(ada))
        draft = path(ada)
        opened(ada, "approve").find_element(By.CSS_SELECTOR, "button.primary").click()
        until(ada, lambda: "its author cannot approve" in words(ada).lower())
        other.get(site.origin)
        other.find_element(By.CSS_SELECTOR, f"a[href='{draft}']").click()
        opened(other, "approve").find_element(By.CSS_SELECTOR, "button.primary").click()
        until(other, lambda: "Approved by Rolf" in words(other))
        token = other.find_element(By.NAME, "csrf").get_attribute("value")
        sent = {"cookie": f"__Host-casemate={cookie(other)}", "origin": site.origin}
        sent["content-type"] = "application/x-www-form-urlencoded"
        status, _, _ = raw(site, "POST", f"{draft}/start", headers=sent, body=urlencode({"csrf": token}))
        assert status == 400, "a form that names no version is not ours"
