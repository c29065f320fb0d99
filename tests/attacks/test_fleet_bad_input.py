"""Bad input at the fleet's server, as one table: what is done, what comes back, what counts it. Accepted: none.

A row is data. It is tried against a real server, with a real TPM's answers where it needs one, beside its control: the
same without the defect, which is accepted. What is a story of processes of its own (a database that goes away, a disk
that is full) is a test elsewhere and stands here by name; that it exists, and runs, is checked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from casemate.formats import tpm
from support import bad_evidence as tpms
from support import bad_requests as web
from support import databases
from support.bad_input import IGNORED, Said, Scene, moved
from support.fleet import running
from support.swtpm import needs_swtpm, software_tpm

ROOT = Path(__file__).resolve().parents[2]
Attempt = Callable[[Scene], Said]
Count = Callable[[Scene], float]


@dataclasses.dataclass(frozen=True)
class Row:
    """*item*: of the list this table answers. *counted*: what has moved afterwards. *control*: without the defect."""

    item: str
    name: str
    attempt: Attempt
    said: frozenset[Said]
    counted: Count
    control: Attempt
    both: bool = False
    """Its answer is the database's: tried on PostgreSQL, too."""

    def __str__(self) -> str:
        return f"{self.item}: {self.name}"


D, E, P, A = "devices", "enrol", "people", "attestation"
NOBODY = Said(401, "not_authorised")
UNKNOWN = Said(404, "not_found")
SPENT = Said(400, "nonce")
MALFORMED = Said(400, "body-format")
TOO_LARGE = Said(413, "body-size")
UNREADABLE = Said(400, "usage")
CUT_OFF = {Said(413), Said(0)}  # a server that stops reading says so to whoever still listens


def refused(listener: str, reason: str) -> Count:
    return lambda scene: scene.refusals(listener, reason)


def metric(line: str) -> Count:
    return lambda scene: scene.server.metric(line)


def policies_refused(scene: Scene) -> float:
    return scene.audited("policy.refuse")


def rows(item: str, control: Attempt, *given, both: bool = False) -> list[Row]:
    """Make rows of (attempt, what it is told, what counts it[, name])."""
    made = []
    for attempt, told, counted, *name in given:
        said = frozenset(told if isinstance(told, set) else {told})
        count = counted if callable(counted) else refused(*counted)
        made.append(Row(item, *(name or [attempt.__name__.replace("_", " ")]), attempt, said, count, control, both))
    return made


def judged(*given) -> tuple:
    """Evidence that is judged bad: the check it failed is its first reason, and is counted."""
    return tuple((attempt, Said(0, check), (A, check), *name) for attempt, check, *name in given)


def nobody(listener: str, *attempts: Attempt) -> tuple:
    return tuple((attempt, NOBODY, (listener, "not_authorised")) for attempt in attempts)


TABLE = (
    *rows(
        "no certificate",
        web.good_checkin,
        (web.no_certificate, Said(0, "certificate_required"), (D, "no-certificate")),
        (web.over_tls_1_2, Said(0, "protocol_version"), (D, "tls")),
        (web.in_clear, Said(0), (D, "tls")),
    ),
    *rows(
        "rogue-CA certificate",
        web.good_checkin,
        (web.of_a_stranger_with_our_names, Said(0, "unknown_ca"), (D, "certificate")),
        (web.of_the_server_itself, Said(0, "unsupported_certificate"), (D, "certificate")),
    ),
    *rows("rogue-CA certificate", web.good_checkin, *nobody(D, web.never_recorded), both=True),
    *rows(
        "expired certificate",
        web.good_checkin,
        (web.expired, Said(0, "certificate_expired"), (D, "certificate-expired")),
    ),
    *rows("expired certificate", web.good_checkin, *nobody(D, web.ended_in_the_records), both=True),
    *rows("revoked certificate", web.good_checkin, *nobody(D, web.revoked, web.revoked_on_a_kept_line), both=True),
    *rows("revoked certificate", web.good_stream, *nobody(D, web.revoked_at_the_wake_stream)),
    *rows("revoked certificate", web.good_renewal, *nobody(D, web.revoked_asks_for_its_next_certificate)),
    *rows("revoked certificate", tpms.good_proof, *nobody(E, tpms.revoked_with_its_tpm), both=True),
    *rows(
        "replayed token",
        web.good_enrolment,
        *nobody(E, web.token_used, web.token_revoked, web.token_expired, web.token_guessed, web.token_at_once),
        *nobody(E, tpms.used_token_without_its_tpm),
        both=True,
    ),
    *rows("replayed nonce", tpms.good_proof, *nobody(E, tpms.proof_replayed, tpms.proof_guessed), both=True),
    *rows(
        "replayed nonce",
        tpms.good_evidence,
        (tpms.nonce_made_up, SPENT, (D, "nonce")),
        (tpms.nonce_of_before, SPENT, (D, "nonce")),
        both=True,
    ),
    *rows(
        "replayed evidence",
        tpms.good_evidence,
        (tpms.evidence_replayed, SPENT, (D, "nonce")),
        (tpms.evidence_over_anothers_connection, SPENT, (D, "nonce")),
        *judged((tpms.quote_of_before_the_power_cycle, "quote-nonce")),
        both=True,
    ),
    *rows(
        "replayed command",
        web.good_answer,
        (web.answer_by_another_key, Said(400, "envelope-signature"), (D, "envelope-signature")),
        (web.answer_for_another_device, UNKNOWN, (D, "not_found")),
        (web.answer_that_changes_its_mind, UNKNOWN, (D, "not_found")),
        (web.answer_to_nothing, UNKNOWN, (D, "not_found")),
        (web.answer_that_no_database_could_name, UNREADABLE, (D, "usage")),
        both=True,
    ),
    *rows(
        "CSR with a foreign name",
        web.good_enrolment,
        (web.foreign_names, Said(200, IGNORED), metric('casemate_fleet_certificates_issued_total{way="token"}')),
        (web.foreign_at_renewal, Said(200, IGNORED), metric('casemate_fleet_certificates_issued_total{way="renewal"}')),
    ),
    *rows(
        "CSR with a weak key",
        web.good_enrolment,
        *((web.weak_request(kind), Said(400, check), (E, check), kind) for kind, (_, check) in web.WEAK.items()),
    ),
    *rows(
        "forged headers",
        web.good_checkin,
        (web.header_without_a_certificate, Said(0), (D, "no-certificate")),
        *nobody(D, web.header_beside_a_certificate_of_another),
        (web.device_path_at_enrolment, UNKNOWN, (E, "not_found")),
    ),
    *rows(
        "forged headers",
        web.good_enrolment,
        *nobody(E, web.header_at_enrolment),
        (web.a_header_without_end, Said(0), (E, "head-size")),
        (web.no_http, Said(400), (E, "http-form")),
    ),
    *(
        each
        for kind, what, change, check in tpms.ALTERED
        for each in rows(f"altered {kind}", tpms.good_evidence, *judged((tpms.altered(change), check, what)))
    ),
    *rows("altered signature", tpms.good_evidence, *judged((tpms.evidence_of_another_chip, "quote-signature"))),
    *rows(
        "altered log",
        tpms.good_key,
        (tpms.key_after_an_altered_log, Said(403, "policy_denied"), (D, "policy_denied")),
        (tpms.key_question_that_is_short, MALFORMED, (D, "body-format")),
        both=True,
    ),
    *rows(
        "altered AK attributes",
        tpms.good_hello,
        *(
            (tpms.attestation_key_with(bits), Said(400, "ak-attributes"), (E, "ak-attributes"), what)
            for bits, what in ((tpm.RESTRICTED, "signs anything"), (0x2, "may leave its TPM"), (0x20000, "decrypts"))
        ),
        (tpms.attestation_key_with(0x400), NOBODY, (E, "not_authorised"), "a good kind, and another name"),
        (tpms.noise_in("ak_public"), Said(400, "tpm-public"), (E, "tpm-public"), "noise"),
    ),
    *rows("swapped credential", tpms.good_proof, *nobody(E, tpms.credential_swapped, tpms.credential_altered)),
    *rows(
        "swapped credential",
        tpms.good_hello,
        *nobody(E, tpms.no_way_in),
        (tpms.certificate_of_another_chip, Said(400, "ek-certificate"), (E, "ek-certificate")),
        (tpms.noise_in("ek_public"), Said(400, "tpm-public"), (E, "tpm-public"), "noise for an endorsement key"),
        (tpms.noise_in("csr"), Said(400, "csr-format"), (E, "csr-format"), "noise for a request"),
    ),
    *rows(
        "TPM power cycle",
        tpms.good_evidence,
        *judged((tpms.log_of_before_the_power_cycle, "log-replay"), (tpms.state_put_back, "quote-clock")),
    ),
    *rows(
        "rolled-back policy",
        tpms.good_policy,
        (tpms.policy_rolled_back, Said(0, "policy-version"), policies_refused),
        (tpms.policy_of_a_stranger, Said(0, "envelope-signature"), policies_refused),
        (tpms.policy_altered, Said(0, "envelope-signature"), policies_refused),
        both=True,
    ),
    *rows(
        "oversized JSON",
        web.good_checkin,
        (web.oversized, TOO_LARGE, (D, "body-size")),
        (web.oversized_without_saying_so, CUT_OFF, (D, "body-size")),
        (web.an_unknown_field, MALFORMED, (D, "body-format")),
    ),
    *rows(
        "oversized JSON",
        web.good_api,
        (web.oversized_at_the_api, TOO_LARGE, (P, "body-size")),
        (web.oversized_at_the_api_without_saying_so, CUT_OFF, (P, "body-size")),
    ),
    *rows(
        "deep JSON",
        web.good_checkin,
        (web.nested, MALFORMED, (D, "body-format")),
        (web.nested_in_an_unknown_field, MALFORMED, (D, "body-format")),
        (web.nested_evidence, Said(400, "evidence-form"), (D, "evidence-form")),
    ),
    *rows("deep JSON", tpms.good_hello, (web.nested_at_enrolment, MALFORMED, (E, "body-format"))),
    *rows(
        "deep JSON",
        web.good_api,
        (web.nested_at_the_api, UNREADABLE, (P, "usage")),
        (web.nested_at_the_door, UNREADABLE, (P, "usage")),
    ),
    *rows(
        "10^6-package inventory",
        web.good_inventory,
        (web.a_million_packages, TOO_LARGE, (D, "body-size")),
        (web.a_million_packages_packed, MALFORMED, (D, "body-format")),
        (web.packages_that_fit_and_are_too_many, MALFORMED, (D, "body-format")),
    ),
    *rows(
        "device clock years off",
        web.good_checkin,
        *(
            (web.clock_off(years), Said(200, IGNORED), metric("casemate_fleet_checkins_total"), f"{years:+d} years")
            for years in (-2, 2, 30)
        ),
    ),
)

ATTACKS, SYSTEM, UNIT = "tests/attacks/test_", "tests/system/test_", "tests/unit/fleet/test_"
ELSEWHERE = {
    "revoked certificate": (
        SYSTEM + "fleet_server.py::test_a_revoked_device_is_refused_everywhere_within_a_second",
        SYSTEM + "fleet_server.py::test_a_resumed_session_of_a_revoked_device_is_refused",
        ATTACKS + "fleet_proxy.py::test_revocation_reaches_through_the_proxy",
    ),
    "replayed command": (
        ATTACKS + "fleet_commands.py::test_a_release_that_was_recorded_before_does_not_end_a_later_quarantine",
        ATTACKS + "fleet_commands.py::test_a_lost_answer_is_given_again_and_the_command_not_obeyed_again",
        ATTACKS + "fleet_commands.py::test_a_listener_without_the_command_key_orders_nothing",
        ATTACKS + "fleet_commands.py::test_a_command_for_another_device_is_not_this_ones",
        ATTACKS + "gated_model.py::test_a_grant_works_once",
    ),
    "forged headers": (
        ATTACKS + "fleet_proxy.py::test_a_forged_header_without_a_certificate_is_nobody",
        ATTACKS + "fleet_proxy.py::test_a_forged_header_beside_a_certificate_names_nobody_else",
        ATTACKS + "fleet_proxy.py::test_a_certificate_of_a_stranger_is_refused_by_proxy_and_socket",
    ),
    "altered AK attributes": (
        ATTACKS + "attestation.py::test_a_key_that_signs_anything_signs_a_quote_that_never_was",
    ),
    "TPM power cycle": (
        SYSTEM + "attester.py::test_a_log_that_was_taken_away_is_missed_until_the_machine_restarts",
        ATTACKS + "gated_model.py::test_cutting_the_power_again_and_again_does_not_stretch_a_lease",
    ),
    "device clock years off": (
        ATTACKS + "fleet_commands.py::test_a_clock_two_years_off_neither_revives_nor_kills_a_command",
        ATTACKS + "gated_model.py::test_setting_the_clock_back_does_not_lengthen_a_lease",
    ),
    "database restarted mid-request": (
        ATTACKS + "fleet_listener.py::test_a_database_that_is_restarted_in_the_middle_of_a_request_burns_no_token",
        SYSTEM + "fleet_replicas.py::test_a_database_that_is_restarted_is_waited_for",
    ),
    "disk full": (ATTACKS + "fleet_listener.py::test_a_full_disk_is_an_answer_and_nothing_half_done",),
    "10 k devices returning at once": (
        ATTACKS + "fleet_crowd.py::test_devices_that_return_at_once_are_all_served",
        ATTACKS + "fleet_crowd.py::test_thousands_that_return_at_once_are_all_served",
        ATTACKS + "fleet_crowd.py::test_who_holds_the_door_without_a_word_keeps_nobody_out",
    ),
    "replica killed mid-batch": (
        SYSTEM + "fleet_failover.py::test_a_server_killed_in_the_middle_of_a_batch_is_followed_by_the_other",
        SYSTEM + "fleet_replicas.py::test_one_is_restarted_and_one_is_killed_and_nothing_is_lost_or_doubled",
        UNIT + "rollouts.py::test_a_steward_that_dies_between_deciding_and_writing_repeats_itself",
        UNIT + "rollouts.py::test_two_stewards_at_once_offer_one_batch",
    ),
    "leader frozen and woken": (
        SYSTEM + "fleet_failover.py::test_a_leader_that_was_stopped_is_followed_by_the_other_and_wakes_to_nothing",
        UNIT + "replicas.py::test_what_a_leader_decided_before_another_led_is_not_written",
        UNIT + "replicas.py::test_a_leader_that_says_nothing_is_followed_by_another",
        UNIT + "replicas.py::test_a_transaction_that_was_left_open_frees_what_it_locked",
        UNIT + "replicas.py::test_a_server_that_stopped_in_the_middle_of_a_statement_blocks_nobody_for_long",
    ),
    "PostgreSQL restarted": (
        SYSTEM + "fleet_replicas.py::test_a_database_that_is_restarted_is_waited_for",
        UNIT + "replicas.py::test_a_change_on_one_server_is_told_on_another_at_once",
        UNIT + "replicas.py::test_a_duty_has_one_leader_and_goes_over_when_that_one_dies",
    ),
    "NATS gone": (
        SYSTEM + "fleet_bus.py::test_without_nats_batches_go_directly_and_with_it_again_through_the_stream",
        SYSTEM + "fleet_bus.py::test_what_the_stream_acknowledged_outlives_the_database_the_server_and_nats",
        SYSTEM + "fleet_bus.py::test_a_server_starts_serves_and_stops_whether_nats_is_there_or_not",
    ),
    "clock skew between replicas": (
        UNIT + "replicas.py::test_what_has_ended_has_ended_for_every_server",
        UNIT + "replicas.py::test_a_clock_that_is_right_is_left_alone",
    ),
    "devices that lie about success": (
        ATTACKS + "fleet_word.py::test_a_signed_lie_about_a_release_fails_by_the_tpm_and_passes_without_one",
        UNIT + "rollouts.py::test_silence_and_lies_are_failures",
        UNIT + "rollouts.py::test_a_word_is_held_against_what_the_tpm_proves",
    ),
    "rollout of a yanked or expired generation": (
        UNIT + "rollouts.py::test_what_was_taken_back_is_not_rolled_out_and_stops_where_it_is",
        UNIT + "rollouts.py::test_an_expired_release_pauses_a_rollout",
        SYSTEM + "fleet_rollout.py::test_a_yanked_release_and_an_older_repository_are_refused",
        SYSTEM + "fleet_rollout.py::test_an_expired_repository_is_refused",
    ),
    "two admins at once": (
        UNIT + "rollouts.py::test_of_two_admins_who_act_at_once_one_is_told_to_look_again",
        UNIT + "rollouts.py::test_of_two_rollouts_that_start_at_once_for_the_same_devices_one_does",
        SYSTEM + "fleet_api.py::test_a_request_with_a_key_happens_once_and_is_answered_as_often_as_it_is_sent",
        SYSTEM + "fleet_api.py::test_many_at_once_with_one_key_make_one",
        SYSTEM + "fleet_api.py::test_an_order_on_what_somebody_else_changed_meanwhile_is_refused",
        SYSTEM + "fleet_rollout.py::test_who_may_what_and_two_at_once",
    ),
    "OIDC: wrong audience, replayed state, expired keys": (
        ATTACKS + "fleet_oidc.py::test_nobody_comes_in_with",
        ATTACKS + "fleet_oidc.py::test_an_answer_works_once_and_in_its_own_browser_only",
        ATTACKS + "fleet_oidc.py::test_keys_that_were_rotated_are_fetched_once_and_keys_that_are_gone_sign_nothing",
        UNIT + "oidc.py::test_one_lie_is_enough",
    ),
}  # fmt: skip
"""Stories of their own."""

ITEMS = {
    "no certificate", "rogue-CA certificate", "expired certificate", "revoked certificate",
    "replayed token", "replayed nonce", "replayed command", "replayed evidence",
    "CSR with a foreign name", "CSR with a weak key", "forged headers",
    "altered event", "altered log", "altered signature", "altered AK attributes", "swapped credential",
    "TPM power cycle", "rolled-back policy", "oversized JSON", "deep JSON", "10^6-package inventory",
    "device clock years off", "database restarted mid-request", "disk full", "10 k devices returning at once",
    "replica killed mid-batch", "leader frozen and woken", "PostgreSQL restarted", "NATS gone",
    "clock skew between replicas", "devices that lie about success", "rollout of a yanked or expired generation",
    "two admins at once", "OIDC: wrong audience, replayed state, expired keys",
}  # fmt: skip
"""Every kind of bad input a fleet has to stand."""

CASES = [(kind, each) for kind in databases.KINDS for each in TABLE if kind == "sqlite" or each.both]


@pytest.fixture(scope="module")
def chips(tmp_path_factory):
    """A chip that will be proven and one in a stranger's hands, of one maker."""
    place = tmp_path_factory.mktemp("chips")
    with software_tpm(place / "a", place / "ca") as ours, software_tpm(place / "b", place / "ca") as theirs:
        yield ours, theirs


@pytest.fixture(scope="module")
def scenes(tmp_path_factory, chips):
    """Give the scene on a kind of database, which is made when it is first asked for."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def made(kind: str) -> Scene:
            directory = tmp_path_factory.mktemp(f"bad-{kind}")
            url = databases.new(kind, directory)
            server = stack.enter_context(running(directory / "fleet", database=url))
            return Scene(server, directory, chips)

        yield made


def tried(scene: Scene, each: Row) -> Said:
    """Try a row, once: its control first, then the defect; what counts it must move."""
    if str(each) not in scene.results:
        scene.from_elsewhere()
        control = each.control.__name__
        if control not in scene.results:
            scene.results[control] = each.control(scene)
        assert scene.results[control].accepted, (control, scene.results[control])
        with moved(lambda: each.counted(scene)):
            scene.results[str(each)] = each.attempt(scene)
    return scene.results[str(each)]


@needs_swtpm
@pytest.mark.parametrize(("kind", "each"), CASES, ids=[f"{kind}-{each}" for kind, each in CASES])
def test_it_is_refused_with_a_clear_error_and_counted(scenes, kind, each):
    said = tried(scenes(kind), each)
    assert said in each.said
    assert not said.accepted


@needs_swtpm
@pytest.mark.parametrize("kind", databases.KINDS)
def test_every_row_was_tried_and_nothing_was_accepted(scenes, kind):
    scene = scenes(kind)
    rows = [each for wanted, each in CASES if wanted == kind]
    found = {str(each): tried(scene, each) for each in rows}
    assert len(found) == len(rows)
    assert {name: said for name, said in found.items() if said.accepted} == {}
    assert scene.post(web.CHECKIN, web.BODY) == Said(200)  # and whoever behaved is still served


def test_every_kind_of_bad_input_has_a_row():
    assert {each.item for each in TABLE} | set(ELSEWHERE) == ITEMS


COLLECT = [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-m", "long or not long"]
COLLECT += ["-p", "no:cacheprovider", "-p", "support.collected"]


def test_a_row_that_is_a_test_elsewhere_exists_and_runs():
    """Collected as `make check-long` does; what would be skipped there, for whatever reason, is no test."""
    wanted = sorted({each for rows in ELSEWHERE.values() for each in rows})
    done = subprocess.run(
        [*COLLECT, *wanted],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert {each["test"] for each in found} == set(wanted)
    assert [each for each in found if each["skipped"]] == []
    ordinary = {each["test"] for each in found if not each["long"]}
    late = {item for item, rows in ELSEWHERE.items() if not ordinary.intersection(rows)}
    assert late == {"leader frozen and woken"} & late  # all others have a test in `make check`
