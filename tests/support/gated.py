"""A gated model without processes: a home, a software TPM, an attester's key ring, and a broker's key."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from casemate.clock import SystemClock
from casemate.crypto.secret import Secret
from casemate.crypto.tpm import make_credential
from casemate.device import containers, vault
from casemate.device.attester.keys import KeyRing
from casemate.device.channel import pair
from casemate.formats import ipc, lease, tpm
from casemate.formats.keystore import key_id
from casemate.formats.lease import LeasedKey
from casemate.keystores import tss
from support.homes import Bench
from support.swtpm import SoftwareTpm

MODEL = "tiny"


@dataclasses.dataclass
class WallClock:
    """A machine's clock that a test sets; the monotonic one is real."""

    at: float = 1_800_000_000.0

    def wall(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return SystemClock().monotonic()


@dataclasses.dataclass
class Site:
    """One device with a TPM, and what its fleet's broker knows."""

    bench: Bench
    chip: SoftwareTpm
    clock: Any = dataclasses.field(default_factory=WallClock)
    key: Secret = dataclasses.field(default_factory=Secret.random)

    def __post_init__(self) -> None:
        self.place = self.bench.home.path / "attester"
        self.place.mkdir(exist_ok=True)
        self.ring = KeyRing(self.place, self.clock)

    @property
    def lease(self) -> Any:
        return self.place / "leases" / f"{MODEL}.json"

    def grant(self, nonce: bytes, *, to: SoftwareTpm | None = None, **terms: Any) -> dict[str, bytes]:
        """Answer as the broker does."""
        asked = {"model": MODEL, "key": key_id(self.key), "min_assurance": "L2", "lease_s": 3600, **terms}
        made = lease.Terms(schema=1, fleet="shop", device="till-7", nonce=nonce, **asked)
        with tss.open_tpm((to or self.chip).tcti) as opened:
            ek, ak = tpm.parse_public(opened.endorsement()[1]), tpm.parse_public(opened.attestation_key())
        with Secret.random() as transport:
            given = lease.make_grant(transport, self.key, made)
            sealed = make_credential(ek.key, ek.name_algorithm, ek.symmetric_bits, ak.name, transport.reveal())
        return {"sealed": sealed, "grant": given}

    def take(self, answer: dict[str, Any], model: str = MODEL) -> int:
        with tss.open_tpm(self.chip.tcti) as opened:
            return self.ring.take(opened, model, **answer)

    def obtain(self, **terms: Any) -> int:
        return self.take(self.grant(self.ring.begin(MODEL), **terms))

    def use(self) -> LeasedKey:
        with tss.open_tpm(self.chip.tcti) as opened:
            return self.ring.use(opened, MODEL)[0]

    def add(self) -> None:
        """Add the model, gated."""
        leased = LeasedKey("shop", MODEL, key_id(self.key), "L2", self.key)
        self.bench.add(name=MODEL, gate=lambda _name, header, data: containers.broker_slot(header, data, leased, "L2"))

    def load(self, leased: LeasedKey | None) -> ipc.Loaded | ipc.LoadFailed:
        """Have a vault of this home load the model with *leased*."""
        reader, writer = os.pipe()
        try:
            if leased:
                os.write(writer, lease.hand(leased))
            ours, theirs = pair()
            with ours, theirs, self.bench.unlock() as keystore:
                made = vault.Vault(
                    self.bench.home, keystore, lambda *events: self.bench.events.extend(events), SystemClock(), {}
                )
                request = ipc.Load(MODEL, "", leased=leased is not None)
                return made.load(request, ours, lambda: None, reader if leased else None)
        finally:
            os.close(reader)
            os.close(writer)
