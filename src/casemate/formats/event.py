"""What the device records: OCSF 1.6 events, one small builder per thing that can happen.

A kind is a row of `KINDS` (OCSF class, activity, severity, which process may report it) plus a builder that takes typed
fields. To add one, add a row and a builder. `formats.event_schema` is the journal's side: it checks what arrives.

Prompts, answers and documents are never in an event: no builder takes text of a conversation, every string is bounded,
single-line and printable, and a guard verdict carries labels only. Times are seconds since the Unix epoch on the way
in and milliseconds in the event (OCSF `timestamp_t`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import IntEnum
from typing import Any, Final, NamedTuple, TypeAlias

from casemate import __version__

OCSF_VERSION: Final = "1.6.0"
TEXT_LIMIT: Final = 256
MAX_LABELS: Final = 16

Event: TypeAlias = dict[str, Any]  # a JSON object ready for `ipc.Append`


class Severity(IntEnum):
    """OCSF `severity_id`."""

    INFO = 1
    LOW = 2
    MEDIUM = 3
    HIGH = 4
    CRITICAL = 5
    FATAL = 6


# OCSF classes and the activities used here. class_uid = category * 1000 + n, type_uid = class_uid * 100 + activity.
PROCESS, LOG, FINDING, AUTHENTICATION, ENTITY, CONFIG, LIFECYCLE, API = 1007, 1008, 2004, 3002, 3004, 5019, 6002, 6003
INSTALL, REMOVE, START, STOP, RESTART, DISABLE, UPDATE = 1, 2, 3, 4, 5, 7, 8  # LIFECYCLE
CREATED, READ, CHANGED, DELETED = 1, 2, 3, 4  # ENTITY, and 1 for FINDING
LOGON, LAUNCH, LOGGED = 1, 1, 1  # AUTHENTICATION, PROCESS, CONFIG
LOG_EXPORT, LOG_ARCHIVE, LOG_START = 3, 4, 6  # LOG
OTHER = 99

# Who may report: the role the journal gave to the link an event came over, never what the event says.
AGENT: Final = frozenset({"agent", "cli"})
VAULT: Final = AGENT | {"vault"}
GATEWAY: Final = frozenset({"gateway"})
JOURNAL: Final = frozenset({"journal"})
ANYONE: Final = VAULT | GATEWAY | JOURNAL


class Kind(NamedTuple):
    """One thing that can happen. `failed` sets OCSF `status_id` to failure."""

    class_uid: int
    activity_id: int
    severity: Severity
    roles: frozenset[str]
    failed: bool = False


KINDS: Final[dict[str, Kind]] = {
    "device_started": Kind(LIFECYCLE, START, Severity.INFO, AGENT),
    "device_stopped": Kind(LIFECYCLE, STOP, Severity.INFO, AGENT),
    "process_restarted": Kind(LIFECYCLE, RESTART, Severity.MEDIUM, AGENT, failed=True),
    "model_added": Kind(LIFECYCLE, INSTALL, Severity.INFO, VAULT),
    "model_removed": Kind(LIFECYCLE, REMOVE, Severity.LOW, VAULT),
    "model_exported": Kind(LIFECYCLE, OTHER, Severity.MEDIUM, VAULT),
    "model_verified": Kind(LIFECYCLE, OTHER, Severity.INFO, VAULT),
    "model_loaded": Kind(LIFECYCLE, START, Severity.INFO, VAULT),
    "model_refused": Kind(FINDING, CREATED, Severity.HIGH, VAULT, failed=True),
    "key_used": Kind(ENTITY, READ, Severity.INFO, VAULT),
    "key_rotated": Kind(ENTITY, CHANGED, Severity.MEDIUM, VAULT),
    "recovery_added": Kind(ENTITY, CREATED, Severity.MEDIUM, VAULT),
    "unlock_refused": Kind(AUTHENTICATION, LOGON, Severity.HIGH, VAULT, failed=True),
    "app_added": Kind(ENTITY, CREATED, Severity.LOW, AGENT),
    "app_rotated": Kind(ENTITY, CHANGED, Severity.LOW, AGENT),
    "app_removed": Kind(ENTITY, DELETED, Severity.LOW, AGENT),
    "auth_refused": Kind(AUTHENTICATION, LOGON, Severity.MEDIUM, GATEWAY, failed=True),
    "rate_limited": Kind(API, OTHER, Severity.LOW, GATEWAY, failed=True),
    "guard_verdict": Kind(FINDING, CREATED, Severity.LOW, GATEWAY),
    "canary_leaked": Kind(FINDING, CREATED, Severity.HIGH, GATEWAY),
    "sandbox_started": Kind(PROCESS, LAUNCH, Severity.INFO, AGENT),
    "sandbox_tested": Kind(FINDING, CREATED, Severity.INFO, AGENT),
    "key_leased": Kind(ENTITY, READ, Severity.INFO, AGENT),
    "lease_ended": Kind(LIFECYCLE, STOP, Severity.HIGH, AGENT, failed=True),
    "engine_ready": Kind(LIFECYCLE, START, Severity.INFO, AGENT),
    "engine_crashed": Kind(LIFECYCLE, STOP, Severity.HIGH, AGENT, failed=True),
    "engine_restarted": Kind(LIFECYCLE, RESTART, Severity.MEDIUM, AGENT),
    "engine_needs_triage": Kind(LIFECYCLE, DISABLE, Severity.CRITICAL, AGENT, failed=True),
    "config_changed": Kind(CONFIG, LOGGED, Severity.LOW, AGENT | GATEWAY),
    "backup_made": Kind(LIFECYCLE, OTHER, Severity.MEDIUM, AGENT),
    "home_restored": Kind(LIFECYCLE, OTHER, Severity.MEDIUM, AGENT),
    "home_migrated": Kind(LIFECYCLE, UPDATE, Severity.LOW, AGENT),
    "fleet_joined": Kind(ENTITY, CREATED, Severity.MEDIUM, AGENT),
    "fleet_left": Kind(ENTITY, DELETED, Severity.HIGH, AGENT),
    "fleet_command_obeyed": Kind(ENTITY, CHANGED, Severity.MEDIUM, AGENT),
    "fleet_command_refused": Kind(FINDING, CREATED, Severity.HIGH, AGENT, failed=True),
    "network_fenced": Kind(CONFIG, LOGGED, Severity.HIGH, AGENT),
    "keys_destroyed": Kind(ENTITY, DELETED, Severity.CRITICAL, AGENT),
    "usage_reported": Kind(ENTITY, READ, Severity.LOW, AGENT),
    "update_trusted": Kind(ENTITY, CHANGED, Severity.HIGH, AGENT),
    "update_staged": Kind(LIFECYCLE, UPDATE, Severity.INFO, AGENT),
    "update_refused": Kind(FINDING, CREATED, Severity.HIGH, AGENT, failed=True),
    "update_trial": Kind(LIFECYCLE, UPDATE, Severity.LOW, AGENT),
    "update_good": Kind(LIFECYCLE, UPDATE, Severity.LOW, AGENT),
    "update_rolled_back": Kind(LIFECYCLE, UPDATE, Severity.HIGH, AGENT, failed=True),
    "update_floor_raised": Kind(ENTITY, CHANGED, Severity.LOW, AGENT),
    "events_dropped": Kind(LOG, OTHER, Severity.MEDIUM, ANYONE, failed=True),
    "event_refused": Kind(LOG, OTHER, Severity.HIGH, JOURNAL, failed=True),
    "epoch_opened": Kind(LOG, LOG_START, Severity.INFO, JOURNAL),
    "torn_tail_recovered": Kind(LOG, OTHER, Severity.MEDIUM, JOURNAL),
    "tiles_restored": Kind(LOG, OTHER, Severity.MEDIUM, JOURNAL),
    "journal_exported": Kind(LOG, LOG_EXPORT, Severity.LOW, AGENT | JOURNAL),
    "journal_archived": Kind(LOG, LOG_ARCHIVE, Severity.HIGH, JOURNAL),
}

# --- device, models, keys: agent, vault and command line ------------------------------------------------------------


def device_started(*, version: str, assurance: str, now: float) -> Event:
    """Build: the device began to serve, at this assurance level ("L0".."L3")."""
    return _event(
        "device_started",
        now,
        f"device started at assurance {assurance}",
        app=_app("casemate", version),
        level=assurance,
    )


def device_stopped(*, reason: str, now: float) -> Event:
    """Build: the device stopped, and why ("signal", "needs triage")."""
    return _event("device_stopped", now, f"device stopped: {reason}", app=_app("casemate"), detail=reason)


def process_restarted(*, role: str, cause: str, now: float) -> Event:
    """Build: a child other than an engine died and was started again."""
    return _event("process_restarted", now, f"{role} restarted: {cause}", app=_app(role), detail=cause)


def model_added(*, model: str, digest: str, size: int, licence: str = "", now: float) -> Event:
    """Build: a container was made. *size* is bytes of the plain file."""
    return _event(
        "model_added", now, f"model {model} added ({size} bytes)", app=_app(model, digest), bytes=size, licence=licence
    )


def model_removed(*, model: str, digest: str = "", now: float) -> Event:
    """Build: a container was deleted."""
    return _event("model_removed", now, f"model {model} removed", app=_app(model, digest))


def model_exported(*, model: str, digest: str, recipient: str, now: float) -> Event:
    """Build: a re-wrapped container left the device. *recipient* names a key, never holds a secret."""
    return _event("model_exported", now, f"model {model} exported", app=_app(model, digest), recipient=recipient)


def model_verified(*, model: str, digest: str, now: float) -> Event:
    """Build: the whole file matched its digest."""
    return _event("model_verified", now, f"model {model} verified", app=_app(model, digest))


def model_loaded(*, model: str, digest: str, now: float) -> Event:
    """Build: the engine got its sealed memory file."""
    return _event("model_loaded", now, f"model {model} loaded", app=_app(model, digest))


def model_refused(*, model: str, check: str, reason: str, now: float) -> Event:
    """Build: a file or container failed *check* (kebab case) and nothing of it was used."""
    return _event(
        "model_refused",
        now,
        f"model {model} refused by {check}",
        finding_info={"title": "model refused", "uid": _label(check)},
        resource=model,
        check=check,
        detail=reason,
    )


def key_used(*, key: str, purpose: str, now: float) -> Event:
    """Build: a wrapped key was opened. *key* names the slot ("passphrase", "keyfile", "recovery")."""
    return _event("key_used", now, f"key {key} used to {purpose}", entity=_entity("key", key), purpose=purpose)


def key_rotated(*, key: str, now: float) -> Event:
    """Build: a key slot was re-wrapped under a new secret."""
    return _event("key_rotated", now, f"key {key} rotated", entity=_entity("key", key))


def recovery_added(*, now: float) -> Event:
    """Build: a recovery slot exists from now on."""
    return _event("recovery_added", now, "recovery key added", entity=_entity("key", "recovery"))


def unlock_refused(*, key: str, reason: str, now: float) -> Event:
    """Build: a wrong passphrase or key file was offered."""
    return _event("unlock_refused", now, f"unlock refused for {key}", user={"name": key}, detail=reason)


def app_added(*, app: str, now: float) -> Event:
    """Build: an app got its key."""
    return _event("app_added", now, f"app {app} added", entity=_entity("app", app))


def app_rotated(*, app: str, now: float) -> Event:
    """Build: an app got a new key; the old one is void."""
    return _event("app_rotated", now, f"app {app} key rotated", entity=_entity("app", app))


def app_removed(*, app: str, now: float) -> Event:
    """Build: an app and its key are gone."""
    return _event("app_removed", now, f"app {app} removed", entity=_entity("app", app))


# --- gateway and guard ----------------------------------------------------------------------------------------------


def auth_refused(*, client: str, count: int, reason: str = "unknown key", now: float) -> Event:
    """Build: *count* requests from the address *client* had no good key. Never any part of the key."""
    return _event(
        "auth_refused",
        now,
        f"{count} request(s) refused from {client}: {reason}",
        user={"name": "unknown"},
        src_endpoint={"ip": client},
        count=max(1, count),
        detail=reason,
    )


def rate_limited(*, app: str, limit: str, client: str = "", count: int = 1, now: float) -> Event:
    """Build: *app* passed *limit* ("requests-per-minute", ...) *count* times since the last such event."""
    return _event(
        "rate_limited",
        now,
        f"app {app} limited {count} time(s) by {limit}",
        actor={"app_name": app},
        api={"operation": "request"},
        src_endpoint={"ip": client},
        count=max(1, count),
        limit=limit,
    )


_VERDICT_SEVERITY: Final = {"block": Severity.MEDIUM, "redact": Severity.LOW, "flag": Severity.LOW}


def guard_verdict(
    *, app: str, request: str, channel: str, action: str, reasons: Iterable[str], model: str = "", now: float
) -> Event:
    """Build: what the guard decided about one text. Labels only: a reason that is not one becomes "unlabelled"."""
    labels = [_label(reason) for reason in list(reasons)[:MAX_LABELS]]
    event = _event(
        "guard_verdict",
        now,
        f"guard: {_label(action)} on {_label(channel)} of app {app}",
        finding_info={"title": f"guard {_label(action)}", "uid": _label(request)},
        actor={"app_name": app},
        ai_model={"ai_provider": "local", "name": model} if model else None,
        channel=_label(channel),
        action=_label(action),
        labels=labels,
    )
    event["severity_id"] = int(_VERDICT_SEVERITY.get(action, Severity.INFO))
    return event


def canary_leaked(*, app: str, request: str, model: str = "", stopped: bool = True, now: float) -> Event:
    """Build: the canary of a system prompt came up in an answer, which was stopped, or went on by policy."""
    return _event(
        "canary_leaked",
        now,
        f"system prompt canary leaked to app {app}; answer {'stopped' if stopped else 'went on'}",
        finding_info={"title": "canary leaked", "uid": _label(request)},
        actor={"app_name": app},
        ai_model={"ai_provider": "local", "name": model} if model else None,
    )


# --- sandbox, engine, settings ---------------------------------------------------------------------------------------


def sandbox_started(*, model: str, pid: int, layers: Iterable[str], now: float) -> Event:
    """Build: an engine's sandbox is up with these *layers* ("namespaces", "landlock", "seccomp")."""
    names = [_label(layer) for layer in list(layers)[:MAX_LABELS]]
    return _event(
        "sandbox_started",
        now,
        f"sandbox started for {model}: {', '.join(names)}",
        process={"name": "engine", "pid": pid},
        actor={"app_name": "casemate"},
        device=_device(),
        model=model,
        labels=names,
    )


def sandbox_tested(*, probes: int, escaped: int, now: float) -> Event:
    """Build: the escape probes were run; *escaped* above 0 raises the severity."""
    event = _event(
        "sandbox_tested",
        now,
        f"sandbox tested: {escaped} of {probes} probes escaped",
        finding_info={"title": "sandbox test", "uid": "sandbox-test"},
        probes=probes,
        escaped=escaped,
    )
    event["severity_id"] = int(Severity.CRITICAL if escaped else Severity.INFO)
    return event


def engine_ready(*, model: str, digest: str, seconds: float, now: float) -> Event:
    """Build: an engine serves *model*, *seconds* after it was asked for."""
    return _event(
        "engine_ready",
        now,
        f"engine ready with {model}",
        app=_app("engine", digest),
        model=model,
        ms=int(seconds * 1000),
    )


def key_leased(*, model: str, seconds: float, now: float) -> Event:
    """Build: the fleet gave the key of a gated model, for a lease of *seconds*."""
    message = f"lease on the key of {model} for {seconds:.0f} s"
    return _event("key_leased", now, message, entity=_entity("model", model))


def lease_ended(*, model: str, reason: str, now: float) -> Event:
    """Build: a gated model stopped because nobody affirmed this device in time."""
    return _event("lease_ended", now, f"{model} stopped: its lease is over", app=_app(model), detail=reason)


def engine_crashed(*, model: str, cause: str, now: float) -> Event:
    """Build: an engine died or hung ("signal 11", "deadline")."""
    return _event(
        "engine_crashed", now, f"engine of {model} crashed: {cause}", app=_app("engine"), model=model, detail=cause
    )


def engine_restarted(*, model: str, attempt: int, now: float) -> Event:
    """Build: an engine was started again, for the *attempt*-th time in a row."""
    return _event(
        "engine_restarted",
        now,
        f"engine of {model} restarted (attempt {attempt})",
        app=_app("engine"),
        model=model,
        attempt=attempt,
    )


def engine_needs_triage(*, model: str, attempts: int, now: float) -> Event:
    """Build: an engine kept dying and stays down until a person looks."""
    return _event(
        "engine_needs_triage",
        now,
        f"engine of {model} needs triage after {attempts} attempts",
        app=_app("engine"),
        model=model,
        attempt=attempts,
    )


def config_changed(*, what: str, detail: str = "", now: float) -> Event:
    """Build: a setting, policy or key file changed. *what* names it; *detail* says how, without secrets."""
    return _event("config_changed", now, f"{what} changed", device=_device(), what=what, detail=detail)


def fleet_joined(*, fleet: str, device: str, now: float) -> Event:
    """Build: the device belongs to *fleet* from now on, and obeys its commands."""
    return _event("fleet_joined", now, f"joined fleet {fleet}", entity=_entity("fleet", fleet), resource=device)


def fleet_left(*, fleet: str, device: str, now: float) -> Event:
    """Build: somebody on the device ended its membership."""
    return _event("fleet_left", now, f"left fleet {fleet}", entity=_entity("fleet", fleet), resource=device)


def fleet_command_obeyed(*, verb: str, sequence: int, state: str, detail: str = "", now: float) -> Event:
    """Build: command *sequence* passed every check; the device is in *state* because of it."""
    return _event(
        "fleet_command_obeyed",
        now,
        f"fleet command {sequence} ({verb}): {state}",
        entity=_entity("command", verb),
        sequence=sequence,
        detail=detail,
    )


def fleet_command_refused(*, check: str, reason: str, count: int, now: float) -> Event:
    """Build: what came as a command failed *check* (kebab case); the *count*-th since the device started."""
    return _event(
        "fleet_command_refused",
        now,
        f"a fleet command was refused by {check}",
        finding_info={"title": "fleet command refused", "uid": _label(check)},
        count=max(1, count),
        check=check,
        detail=reason,
    )


def network_fenced(*, fenced: bool, detail: str = "", now: float) -> Event:
    """Build: the network was cut down to the fleet, or opened again; *detail* says why not."""
    what = "network reduced to the fleet" if fenced else "network fence is down"
    return _event("network_fenced", now, what, device=_device(), fenced=fenced, detail=detail)


def keys_destroyed(*, what: str, count: int, now: float) -> Event:
    """Build: *count* pieces of key material of the kind *what* were destroyed on the fleet's order."""
    return _event("keys_destroyed", now, f"keys destroyed: {what}", entity=_entity("key", what), count=max(1, count))


def usage_reported(*, question: str, period: int, now: float) -> Event:
    """Build: a usage report was made for the fleet, with noise; which question it answers, never what."""
    return _event(
        "usage_reported",
        now,
        f"usage report made: {question}, period {period}",
        entity=_entity("usage report", question),
    )


def backup_made(*, now: float) -> Event:
    """Build: a backup of the home was written."""
    return _event("backup_made", now, "home backed up", app=_app("casemate"))


def home_restored(*, now: float) -> Event:
    """Build: the home came from a backup."""
    return _event("home_restored", now, "home restored from a backup", app=_app("casemate"))


def home_migrated(*, before: int, after: int, now: float) -> Event:
    """Build: the home's schema moved forward."""
    return _event(
        "home_migrated",
        now,
        f"home migrated from schema {before} to {after}",
        app=_app("casemate"),
        before=before,
        after=after,
    )


# --- the journal itself ----------------------------------------------------------------------------------------------


def events_dropped(*, count: int, now: float) -> Event:
    """Build: a process had to drop *count* events because its queue was full."""
    return _event("events_dropped", now, f"{count} event(s) dropped", log_name="casemate", count=max(1, count))


def event_refused(*, role: str, check: str, count: int, now: float) -> Event:
    """Build: *role* sent what is no event, or is not its to report, *count* times since the journal started."""
    return _event(
        "event_refused",
        now,
        f"{count} event(s) of {role} refused by {check}",
        log_name="casemate",
        count=max(1, count),
        source=role,
        check=check,
    )


def epoch_opened(*, epoch: int, first_index: int, now: float) -> Event:
    """Build: entries from *first_index* on are sealed under a fresh key."""
    return _event(
        "epoch_opened", now, f"journal epoch {epoch} opened", log_name="casemate", epoch=epoch, index=first_index
    )


def torn_tail_recovered(*, first_index: int, lost_bytes: int, now: float) -> Event:
    """Build: an unacknowledged, half-written tail of *lost_bytes* at *first_index* was dropped after a crash."""
    return _event(
        "torn_tail_recovered",
        now,
        f"torn tail of {lost_bytes} bytes dropped at entry {first_index}",
        log_name="casemate",
        index=first_index,
        bytes=lost_bytes,
    )


def tiles_restored(*, count: int, now: float) -> Event:
    """Build: *count* published files of the journal were gone (a power cut, or somebody's hand) and written again."""
    return _event("tiles_restored", now, f"{count} journal file(s) restored", log_name="casemate", count=max(1, count))


def journal_exported(*, size: int, decrypted: bool, now: float) -> Event:
    """Build: entries 0 .. *size* - 1 were exported."""
    return _event(
        "journal_exported",
        now,
        f"journal exported ({size} entries)",
        log_name="casemate",
        index=size,
        decrypted=decrypted,
    )


def journal_archived(*, reason: str, size: int, root: str, now: float) -> Event:
    """Build: the log before this one, of *size* entries, was put aside because of *reason* (the check that failed)."""
    return _event(
        "journal_archived",
        now,
        f"a journal of {size} entries was archived: {reason}",
        log_name="casemate",
        detail=reason,
        index=size,
        root=root,
    )


# --- updates ----------------------------------------------------------------------------------------------------------


def update_trusted(*, url: str, channel: str, root: str, now: float) -> Event:
    """Build: a person said whose updates this device takes; *root* is the SHA-256 of the first root."""
    message = f"updates come from {url}, channel {channel}"
    return _event("update_trusted", now, message, entity=_entity("update trust", url), root=root, resource=channel)


def update_staged(*, generation: int, content: str, now: float) -> Event:
    """Build: generation *generation* is whole, proven and on the disk; *content* is the digest of its signed set."""
    return _generation("update_staged", generation, now, "is staged", content)


def update_refused(*, check: str, reason: str, content: str = "", now: float) -> Event:
    """Build: an update was not what it should be; nothing of it was used."""
    message = f"update refused by {check}: {reason}"
    finding = {"uid": content or "update", "title": f"update refused by {check}"}
    return _event("update_refused", now, message, finding_info=finding, check=check, detail=reason)


def update_trial(*, generation: int, content: str, tries: int, now: float) -> Event:
    """Build: the trial of a generation begins; *tries* are left after this one."""
    return _generation("update_trial", generation, now, f"is on trial, {tries} more tries", content)


def update_good(*, generation: int, content: str, now: float) -> Event:
    """Build: a generation passed its health gate."""
    return _generation("update_good", generation, now, "is good", content)


def update_rolled_back(*, generation: int, content: str, reason: str, now: float) -> Event:
    """Build: a generation was given up; its content is denied, the one before serves."""
    return _generation("update_rolled_back", generation, now, f"was rolled back: {reason}", content, detail=reason)


def update_floor_raised(*, generation: int, now: float) -> Event:
    """Build: nothing with a lower security version than this generation's runs here any more."""
    message = f"floors were raised to generation {generation}"
    return _event("update_floor_raised", now, message, entity=_entity("update floor", f"generation {generation}"))


def _generation(code: str, number: int, now: float, what: str, content: str, *, detail: str = "") -> Event:
    app = _app(f"generation {number}", content)
    return _event(code, now, f"generation {number} {what}", app=app, detail=detail)


# --- how an event is put together -------------------------------------------------------------------------------------

PRINTABLE: Final = (
    r"\x20-\x7e\u00a1-\u02ff\u0370-\u061b\u061d-\u115e\u1161-\u17b3\u17b6-\u180a\u1810-\u1fff\u3040-\ud7ff"
)
"""A character class: letters and marks of living scripts; no controls, no direction marks, no invisible fillers."""
_UNPRINTABLE = re.compile(f"[^{PRINTABLE}]")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9:._/*-]{0,63}\Z")
_TOP_LEVEL: Final = frozenset(
    ["actor", "ai_model", "api", "app", "count", "device", "entity", "finding_info", "log_name", "process"]
) | {"src_endpoint", "user"}


def _event(code: str, now: float, message: str, **fields: Any) -> Event:
    """Fill in what every event has; fields OCSF has no place for go to `unmapped`, empty ones are left out."""
    kind = KINDS[code]
    event: Event = {
        "activity_id": kind.activity_id,
        "category_uid": kind.class_uid // 1000,
        "class_uid": kind.class_uid,
        "type_uid": kind.class_uid * 100 + kind.activity_id,
        "severity_id": int(kind.severity),
        "time": int(now * 1000),
        "status_id": 2 if kind.failed else 1,
        "message": _clean(message),
        "metadata": {
            "version": OCSF_VERSION,
            "product": {"name": "Casemate", "vendor_name": "Casemate", "version": __version__},
            "event_code": code,
        },
    }
    if detail := fields.pop("detail", ""):
        event["status_detail"] = _clean(detail)
    if labels := fields.pop("labels", None):
        event["metadata"]["labels"] = labels
    for name, value in fields.items():
        if value in (None, "", {}):
            continue
        place = event if name in _TOP_LEVEL else event.setdefault("unmapped", {})
        place[name] = _clean(value)
    return event


def _clean(value: Any) -> Any:
    """Bound and flatten every string, so a hostile name cannot flood the log or steer the reader's terminal."""
    if isinstance(value, str):
        text = _UNPRINTABLE.sub("?", value)
        return text if len(text) <= TEXT_LIMIT else text[: TEXT_LIMIT - 3] + "..."
    if isinstance(value, dict):
        return {name: _clean(part) for name, part in value.items() if part not in (None, "")}
    return value


def _label(text: str) -> str:
    return text if _LABEL.match(text) else "unlabelled"


def _app(name: str, uid: str = "") -> dict[str, str]:
    return {"name": name, "uid": uid, "vendor_name": "Casemate"}


def _entity(kind: str, name: str) -> dict[str, str]:
    return {"type": kind, "name": name}


def _device() -> dict[str, Any]:
    return {"type_id": 7, "name": "casemate"}  # 7: IOT; the journal adds the uid
