"""The link process: the only one that speaks to the fleet. It carries bytes, keeps the pace, and decides nothing.

It holds the device's private key, so it is who the device is to the fleet; it cannot command the device, for commands
are proven by the agent with a key that no connection carries. Three threads share two queues and no other state:

    main      the agent's messages                    -> work for the speaker
    speaker   one connection: check-ins, answers, renewal
    listener  one connection: the wake stream         -> "check in now"
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from casemate.clock import Clock, SystemClock
from casemate.crypto import client_certificate
from casemate.crypto.client_certificate import Certificate
from casemate.crypto.ecdsa import EcKey
from casemate.device.channel import ChannelClosed
from casemate.device.fleet import membership
from casemate.device.home import write_atomic
from casemate.device.process import Child, boot
from casemate.errors import CasemateError, OperationError, UntrustedDataError
from casemate.formats import director, envelope, fleet_api, ipc
from casemate.link import comeback, enrol, pace
from casemate.link.client import FleetClient, Identity, Reply, tls_context
from casemate.link.comeback import Kind, Outcome
from casemate.link.sse import EventReader

CHECKIN: Final = "/device/v1/checkin"
EVENTS: Final = "/device/v1/events"
BYE: Final = "bye"
"""The event with which a server ends a stream, because it stops or because of the stream's age."""
PREFIX: Final = "/device/v1/"
REPORT_WITHIN: Final = 10.0
POSTS: Final = frozenset(
    {"inventory", "attest/challenge", "attest/evidence", "journal/checkpoint", "keys/release", "usage"}
)
"""Where the agent may have something posted; `keys/<model>/release` counts as `keys/release`."""
MAX_COMMANDS: Final = 16
_NAME: Final = re.compile(r"[A-Za-z0-9-]{1,64}\Z")
_OK: Final = 200
_NO_CONTENT: Final = 204
_REFUSED: Final = frozenset({401, 403, 410})
_BAD_CERTIFICATE: Final = 400
"""What a proxy in front of a fleet may answer to a certificate that has ended."""
CHIP_WITHIN: Final = 40.0


class Work(msgspec.Struct, frozen=True):
    """Something for the speaker; None: check in."""

    message: ipc.SendAnswer | ipc.SendWord | ipc.Post | ipc.Forget | None = None


class Link:
    """The process's state: what the threads share."""

    def __init__(self, child: Child, clock: Clock) -> None:
        """Open what enrolment left in the home's link directory.

        Raises:
            NotFoundError: there is nothing.
            UntrustedDataError: it is damaged.

        """
        self._child = child
        self._clock = clock
        self._sending = threading.Lock()
        self._directory = child.home / "link"
        self._place = membership.read_place(self._directory)
        self._root = client_certificate.read(self._place.root)
        self._signed = float(child.settings.get("signed", 0))
        self._address = str(child.settings.get("address", "")) or self._place.address
        self._identity = Identity(self._directory / membership.CERTIFICATE, self._directory / membership.KEY)
        self._key = EcKey.load_pem(_read(self._identity.key))
        self.work: queue.Queue[Work] = queue.Queue(64)
        self.reports: queue.Queue[ipc.Report] = queue.Queue(4)
        self._share = enrol.draw()  # how early this device renews, among its fellows
        self._next_report = 0
        self._enrol = str(child.settings.get("enrol", ""))
        self.chip = _Chip(self.tell)
        self._return_pace = pace.return_pace(enrol.draw)
        self._ended = threading.Event()
        self._reconnect = False

    @property
    def devices(self) -> str:
        """Return where the fleet is."""
        return self._place.devices

    # -- the agent

    def tell(self, message: ipc.Message) -> None:
        """Send *message* to the agent, from any thread."""
        with self._sending:
            self._child.control.send(message)

    def listen_to_agent(self) -> None:
        """Take the agent's messages until it closes the link."""
        while True:
            message, _ = self._child.control.recv()
            if isinstance(message, ipc.Ping):
                self.tell(ipc.Pong(n=message.n))
            elif isinstance(message, ipc.Report):
                with contextlib.suppress(queue.Full):
                    self.reports.put_nowait(message)
            elif isinstance(message, ipc.ChipSaid):
                self.chip.heard(message)
            elif isinstance(message, ipc.SendAnswer | ipc.SendWord | ipc.Post | ipc.Forget):
                self._enqueue(Work(message))

    def _enqueue(self, work: Work) -> None:
        """Queue *work*; a check-in that waits already is enough."""
        if work.message is None and not self.work.empty():
            return
        with contextlib.suppress(queue.Full):
            self.work.put_nowait(work)

    # -- speaking

    def speak(self) -> None:
        """Check in when it is time or somebody wakes us; in between send what the agent wants sent."""
        steps = pace.Pace(enrol.draw)
        client = self._connect(steps.failures)
        due = self._clock.monotonic()
        while not self._ended.is_set():
            try:
                work = self.work.get(timeout=max(0.0, due - self._clock.monotonic()))
            except queue.Empty:
                work = Work()
            if work.message is not None:
                self._send(client, work.message)
                continue
            try:
                wait = steps.answered(self._check_in(client))
            except CasemateError as error:
                wait = self._failed(error, steps)
                self._reconnect = True
            due = self._clock.monotonic() + wait
            if self._reconnect:
                self._reconnect = False
                client.close()
                client = self._connect(steps.failures)

    def _connect(self, failures: int) -> FleetClient:
        """Return a client for where the fleet was last, or, when that fails twice, for where its name leads.

        The last address needs no name server: a device in quarantine reaches none.
        """
        return self._client(self._place.devices, tls_context(self._root.der, self._identity), failures)

    def _client(self, url: str, context: ssl.SSLContext, failures: int) -> FleetClient:
        address = "" if failures // 2 % 2 else self._address
        return FleetClient(url, context, earliest=lambda: self._signed, address=address)

    # -- when the fleet does not take our certificate

    def _failed(self, error: CasemateError, steps: pace.Pace) -> float:
        """Say that a check-in failed, after trying to come back if that may be why; returns the seconds to wait."""
        later = error.seconds if isinstance(error, _LaterError) else 0.0
        leaf = client_certificate.from_pem(_read(self._identity.certificate))[0]
        ended = leaf.not_after < max(self._signed, self._clock.wall())
        turned_away = isinstance(error, _TurnedAwayError)
        cut_off = comeback.is_cut_off(error, turned_away=turned_away, failures=steps.failures, ended=ended)
        if not (cut_off and self._enrol):
            wait = steps.failed(later)
            self.tell(ipc.Contact(ok=False, why=error.message, next_s=wait))
            return wait
        try:
            found = self._come_back(leaf, steps.failures)
        except CasemateError as failed:
            found = Outcome(Kind.LATER, why=f"{error.message}; {failed.message}", seconds=later)
        if found.kind is Kind.BACK:
            return steps.failed()  # a new certificate that is refused, too, must not become a loop
        wait = self._wait_for(found, steps, later)
        said: Literal["expired", "waiting", "refused"] = "expired"
        said = {Kind.WAITING: "waiting", Kind.REFUSED: "refused"}.get(found.kind, said)  # type: ignore[assignment]
        why = _standing(found, leaf, ended=ended)
        self.tell(ipc.Contact(ok=False, why=why, next_s=wait, certificate_ends=leaf.not_after, cut_off=said))
        return wait

    def _come_back(self, leaf: Certificate, failures: int) -> Outcome:
        client = self._client(self._enrol, tls_context(self._root.der), failures)
        try:
            found = comeback.come_back(client, leaf, self._key, self._root, self.chip)
        finally:
            client.close()
        if found.kind is Kind.BACK:
            write_atomic(self._identity.certificate, client_certificate.to_pem(found.chain))
        return found

    def _wait_for(self, found: Outcome, steps: pace.Pace, later: float) -> float:
        if found.kind is Kind.WAITING:
            return self._return_pace.failed(found.seconds)
        if found.kind is Kind.REFUSED:
            return steps.failed(pace.LONGEST)
        return steps.failed(max(later if found.seconds == 0 else 0.0, found.seconds))

    def _check_in(self, client: FleetClient) -> float:
        """Say what the agent reports, hand over what came; returns the seconds until the next time.

        Raises:
            OperationError: nobody answered, the fleet refused, or the agent had nothing to say.
            UntrustedDataError: not the fleet, or not an answer.

        """
        body = fleet_api.encode(self._report())
        reply = client.request("POST", CHECKIN, body)
        if reply.status != _OK:
            raise _refusal(reply)
        answer = fleet_api.parse(reply.body, fleet_api.CheckInAnswer)
        self._remember(client.address)
        leaf = self._renewed(client, answer.server_time)
        self.tell(
            ipc.Contact(
                ok=True,
                address=client.address,
                port=client.port,
                server_time=answer.server_time,
                next_s=answer.next_checkin_s,
                certificate_ends=leaf.not_after,
                attest_wanted=answer.attest_wanted,
                inventory_wanted=answer.inventory_wanted,
            )
        )
        for delivery in answer.commands[:MAX_COMMANDS]:
            if not _NAME.match(delivery.id):
                continue  # it becomes part of a path
            self.tell(ipc.Ordered(name=delivery.id, envelope=delivery.envelope, server_time=answer.server_time))
        if answer.pick:
            self.tell(ipc.Picked(envelope=answer.pick, server_time=answer.server_time))
        return answer.next_checkin_s

    def _remember(self, address: str) -> None:
        """Keep where the fleet was reached, for a time without names."""
        if address != self._place.address:
            self._place = msgspec.structs.replace(self._place, address=address)
            write_atomic(self._directory / membership.LINK, msgspec.json.encode(self._place))
        self._address = address

    def _report(self) -> fleet_api.CheckIn:
        self._next_report += 1
        self.tell(ipc.Due(id=self._next_report))
        try:
            while (report := self.reports.get(timeout=REPORT_WITHIN)).id != self._next_report:
                pass
            return msgspec.convert(report.facts, fleet_api.CheckIn)
        except (queue.Empty, msgspec.ValidationError) as error:
            raise OperationError("the agent had nothing to report") from error

    def _renewed(self, client: FleetClient, now: float) -> Certificate:
        """Return our certificate, a new one when the old one is past the middle of its life by the server's clock.

        A renewal that fails is tried again at the next check-in: the old one holds for days.
        """
        leaf = client_certificate.from_pem(_read(self._identity.certificate))[0]
        if not pace.should_renew(now, leaf.not_before, leaf.not_after, self._share):
            return leaf
        try:
            chain = enrol.renew(client, self._key, self._root)
            if chain[0].device != leaf.device:
                raise UntrustedDataError("the new certificate names another device", check="certificate-device")
            write_atomic(self._identity.certificate, client_certificate.to_pem(chain))
        except CasemateError as error:
            self.tell(ipc.Contact(ok=True, why=f"certificate not renewed: {error.message}", server_time=now))
            return leaf
        self._reconnect = True
        return chain[0]

    def _send(self, client: FleetClient, message: ipc.SendAnswer | ipc.SendWord | ipc.Post | ipc.Forget) -> None:
        if isinstance(message, ipc.Forget):
            self._forget()
        elif isinstance(message, ipc.SendWord):
            word = fleet_api.GenerationWord(director.sign_word(message.payload, self._key))
            reply = self._try(client, f"{PREFIX}generation", fleet_api.encode(word))
            self.tell(ipc.WordSent(payload=message.payload, accepted=reply.status in {_OK, _NO_CONTENT}))
        elif isinstance(message, ipc.SendAnswer):
            signed = envelope.sign_answer(message.payload, self._key)
            reply = self._try(client, f"{PREFIX}commands/{message.name}/ack", _acknowledgement(signed))
            self.tell(ipc.AnswerSent(name=message.name, accepted=reply.status in {_OK, _NO_CONTENT}))
        elif _may_post(message.path):
            reply = self._try(client, PREFIX + message.path, message.body)
            self.tell(ipc.Posted(id=message.id, status=reply.status, body=reply.body))
        else:
            self.tell(ipc.Posted(id=message.id, status=0))

    def _try(self, client: FleetClient, path: str, body: bytes) -> Reply:
        try:
            return client.request("POST", path, body)
        except CasemateError:
            return Reply(0, b"")

    def _forget(self) -> None:
        """Destroy who we are: nobody can speak as this device after this, we included."""
        for path in (self._identity.key, self._identity.certificate, self._directory / membership.LINK):
            membership.overwrite_and_remove(path)
        self._ended.set()
        self.tell(ipc.Forgotten())

    # -- listening

    def listen_to_fleet(self) -> None:
        """Hold the wake stream; whatever it says, and whenever it comes back, the speaker checks in."""
        steps = pace.events_pace(enrol.draw)
        while not self._ended.is_set():
            client = self._connect(steps.failures)
            reader, greeted, goodbye = EventReader(), False, False
            try:
                for piece in client.stream(EVENTS):
                    names = reader.feed(piece)
                    goodbye = goodbye or BYE in names
                    if (names and not goodbye) or not greeted:
                        self._enqueue(Work())
                    greeted, steps.failures = True, 0
            except CasemateError:
                pass  # the speaker finds the same, and says it
            finally:
                client.close()
            if goodbye and reader.retry:
                self._ended.wait(steps.ended(reader.retry))
                self._enqueue(Work())  # why it ended, an answer says: the server stops, or this device is out
            else:
                self._ended.wait(steps.failed())


class _Chip:
    """The TPM, as the link has it: the agent is asked, and asks the attester."""

    def __init__(self, tell: Callable[[ipc.Message], None]) -> None:
        self._tell = tell
        self._said: queue.Queue[ipc.ChipSaid] = queue.Queue(4)
        self._number = 0

    def heard(self, message: ipc.ChipSaid) -> None:
        with contextlib.suppress(queue.Full):
            self._said.put_nowait(message)

    def introduce(self) -> comeback.Introduction | None:
        said = self._ask()
        if not said.there:
            return None
        return comeback.Introduction(said.certificate, said.endorsement_key, said.attestation_key)

    def prove(self, identity: bytes, encrypted: bytes, csr: bytes) -> bytes:
        return self._ask(identity, encrypted, csr).proof

    def _ask(self, identity: bytes = b"", encrypted: bytes = b"", csr: bytes = b"") -> ipc.ChipSaid:
        self._number += 1
        self._tell(ipc.AskChip(self._number, identity, encrypted, csr))
        try:
            while (said := self._said.get(timeout=CHIP_WITHIN)).id != self._number:
                pass
        except queue.Empty:
            raise OperationError("the TPM did not answer") from None
        if said.why:
            raise OperationError(f"the TPM did not prove who we are: {said.why}")
        return said


class _LaterError(OperationError):
    """The fleet asked us to come later."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class _TurnedAwayError(_LaterError):
    """The fleet did not take our certificate."""


def _standing(found: Outcome, leaf: Certificate, *, ended: bool) -> str:
    """Return in words where a device stands whose certificate is not taken."""
    day = time.strftime("%Y-%m-%d", time.gmtime(leaf.not_after))
    certificate = f"certificate expired on {day}" if ended else f"certificate (until {day}) is not taken any more"
    if found.kind is Kind.WAITING:
        return f"{certificate}; waiting for approval: `casemate fleet device approve {leaf.device}`"
    if found.kind is Kind.REFUSED:
        return f"{certificate}; the fleet refuses this device for good: {found.why}"
    return f"{certificate}; {found.why}"


def _refusal(reply: Reply) -> OperationError:
    if reply.status in _REFUSED:
        return _TurnedAwayError("the fleet does not know this device, or revoked it", pace.LAST_CEILING)
    if reply.status == _BAD_CERTIFICATE:
        return _TurnedAwayError("the fleet did not take what this device said, or its certificate", 0.0)
    return _LaterError(f"the fleet answered with status {reply.status}", reply.retry_after)


def _acknowledgement(signed: bytes) -> bytes:
    return fleet_api.encode(fleet_api.Acknowledgement(signed))


def _may_post(path: str) -> bool:
    parts = path.split("/")
    return path in POSTS or (len(parts) == 3 and (parts[0], parts[2]) == ("keys", "release") and parts[1].isprintable())  # noqa: PLR2004 - keys, model, release


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OperationError(f"cannot read {path}: {error.strerror}") from error


def main() -> None:
    """Open the identity, then speak and listen until the agent closes the link."""
    child = boot("link")
    try:
        link = Link(child, SystemClock())
        child.ready(devices=link.devices)
        for work in (link.speak, link.listen_to_fleet):
            threading.Thread(target=_until_the_end, args=(work,), daemon=True).start()
        link.listen_to_agent()
    except (ChannelClosed, UntrustedDataError) as error:
        os._exit(0 if isinstance(error, ChannelClosed) else 1)
    except CasemateError as error:
        child.fatal(error)


def _until_the_end(work: Any) -> None:
    """Run a thread; when it ends the process does: half a link would be silence nobody notices."""
    try:
        work()
    except ChannelClosed:
        os._exit(0)
    except BaseException:  # noqa: BLE001 - the agent starts us again
        import traceback  # noqa: PLC0415 - on the way out

        traceback.print_exc()
        os._exit(1)


if __name__ == "__main__":
    main()
