"""The TPM through the TSS: the one module that speaks to the chip. No decision is taken here.

Every call opens what it needs and flushes it again: a TPM has three slots for objects, a crashed program leaves its own
occupied, and with a resource manager (`/dev/tpmrm0`) several programs may take turns. Call orders follow the TCG
library specification part 3; a policy session is replayed exactly as `crypto.tpm_policy` computes it.

Traffic to a discrete chip can be read on its bus: keys cross it only in sessions salted with a key that is known to be
this TPM's (`Sealed.parent` names it).
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from casemate.crypto import tpm_policy
from casemate.crypto.secret import Secret
from casemate.errors import HostError, NotAuthorisedError, NotFoundError, OperationError
from casemate.formats.keystore import Approval, Sealed

COUNTER: Final = 0x01800100
"""Where the counter lives unless told otherwise: the owner's range, clear of systemd's (0x01D10200)."""
_KINDS: Final = ("device", "swtpm", "mssim", "tabrmd")
_TRANSIENT: Final = 0x80000000
_COUNTER_BYTES: Final = 8
_APPROVED_AHEAD: Final = 1
"""How far above the counter an approval's limit is (`keystores.tpm`)."""
_SOFTWARE_VENDORS: Final = (b"SW", b"xCG")  # swtpm, and Microsoft's simulator
_ATTESTATION_KEY: Final = "ecc256:ecdsa-sha256:null"
_SEALED_TEXT: Final = "keyedhash"
_STORAGE_KEY: Final = "ecc256:aes128cfb"
_P256: Final = 32
"""Bytes of a coordinate."""


@dataclasses.dataclass(frozen=True, slots=True)
class TpmTime:
    """The TPM's own clock: milliseconds with power, and how often it was switched on. It cannot be set back."""

    clock_ms: int
    resets: int


class Tpm:
    """An open TPM; see `open_tpm`."""

    def __init__(self, esapi: Any, library: Any) -> None:
        """Drive *esapi* of the *library* tpm2_pytss."""
        self._e = esapi
        self._t = library
        self._none = library.ESYS_TR.NONE
        self._password = library.ESYS_TR.PASSWORD

    # -- identity ------------------------------------------------------------------------------------------------

    def endorsement(self) -> tuple[bytes, bytes]:
        """Return the EK certificate (DER; empty when the maker left none) and the EK's TPMT_PUBLIC."""
        certificate, template = self._endorsement_template()
        with self._primary(template, self._t.ESYS_TR.ENDORSEMENT) as (_, public):
            return bytes(certificate or b""), bytes(public.publicArea.marshal())

    def attestation_key(self) -> bytes:
        """Return the TPMT_PUBLIC of the attestation key: the same in every life of this TPM, so nothing is stored."""
        with self._attestation_key() as (_, public):
            return bytes(public.publicArea.marshal())

    def activate(self, identity: bytes, encrypted: bytes) -> bytes:
        """Open a credential made for this TPM's EK and attestation key; returns its secret.

        Raises:
            NotAuthorisedError: it was made for others.

        """
        t = self._t
        with self._attestation_key() as (ak, _), self._policy_session() as session:
            _, template = self._endorsement_template()
            with self._primary(template, t.ESYS_TR.ENDORSEMENT) as (ek, _):
                try:
                    self._e.policy_secret(t.ESYS_TR.ENDORSEMENT, session, b"", b"", b"", 0)
                    return bytes(
                        self._e.activate_credential(
                            ak,
                            ek,
                            t.TPM2B_ID_OBJECT.unmarshal(identity)[0],
                            t.TPM2B_ENCRYPTED_SECRET.unmarshal(encrypted)[0],
                            session1=self._password,
                            session2=session,
                        )
                    )
                except t.TSS2_Exception as error:
                    raise NotAuthorisedError(
                        "the credential does not open with this TPM", hint="enrol again from this device"
                    ) from error

    @property
    def is_software(self) -> bool:
        """Whether the TPM says that it is a program: its state is a file that can be copied and put back."""
        t = self._t
        with _said("say what it is", t):
            _, found = self._e.get_capability(t.TPM2_CAP.TPM_PROPERTIES, t.TPM2_PT_VENDOR.STRING_1, 4)
        vendor = b"".join(int(row.value).to_bytes(4, "big") for row in found.data.tpmProperties)
        return vendor.startswith(_SOFTWARE_VENDORS)

    # -- measurements --------------------------------------------------------------------------------------------

    def extend(self, pcr: int, digest: bytes) -> None:
        """Extend *pcr* of the SHA-256 bank by *digest* (32 bytes)."""
        t = self._t
        value = t.TPMT_HA(hashAlg=t.TPM2_ALG.SHA256, digest=t.TPMU_HA(sha256=digest))
        with _said("extend a PCR", t):
            self._e.pcr_extend(t.ESYS_TR(pcr), t.TPML_DIGEST_VALUES([value]))

    def pcrs(self, indexes: frozenset[int]) -> dict[int, bytes]:
        """Return the values of these PCRs of the SHA-256 bank.

        Raises:
            HostError: the TPM has no such bank.

        """
        found: dict[int, bytes] = {}
        for index in sorted(indexes):  # one by one: a TPM answers with eight values at most
            with _said("read a PCR", self._t):
                _, _, digests = self._e.pcr_read(self._selection({index}))
            if not digests:
                raise HostError("the TPM has no SHA-256 PCRs", hint="enable the SHA-256 bank in the firmware")
            found[index] = bytes(digests[0])
        return found

    def quote(self, nonce: bytes, pcrs: frozenset[int]) -> tuple[bytes, bytes]:
        """Sign what *pcrs* hold now, for *nonce*; returns TPMS_ATTEST and TPMT_SIGNATURE."""
        t = self._t
        with self._attestation_key() as (ak, _), _said("quote", t):
            scheme = t.TPMT_SIG_SCHEME(scheme=t.TPM2_ALG.NULL)
            attest, signature = self._e.quote(ak, self._selection(pcrs), nonce, scheme)
            return bytes(attest), bytes(signature.marshal())

    # -- the counter ---------------------------------------------------------------------------------------------

    def define_counter(self, index: int = COUNTER) -> bytes:
        """Make the counter unless it is there, and return its Name. It can be raised, never lowered.

        A counter that is deleted and made again starts above the highest value any had: a TPM keeps that promise.
        """
        t = self._t
        with contextlib.suppress(NotFoundError):
            return self._counter_name(index)
        flags = t.TPMA_NV
        public = t.TPM2B_NV_PUBLIC(
            nvPublic=t.TPMS_NV_PUBLIC(
                nvIndex=index,
                nameAlg=t.TPM2_ALG.SHA256,
                dataSize=_COUNTER_BYTES,
                attributes=flags.OWNERWRITE
                | flags.AUTHWRITE
                | flags.OWNERREAD
                | flags.AUTHREAD
                | flags.NO_DA
                | (t.TPM2_NT.COUNTER << flags.TPM2_NT_SHIFT),
            )
        )
        with _said("make a counter", t):
            self._e.nv_define_space(b"", public)
        self.increment(index)  # its Name is final, and it can be read, after the first write only
        return self._counter_name(index)

    def counter(self, index: int = COUNTER) -> int:
        """Return the counter's value.

        Raises:
            NotFoundError: there is none.

        """
        handle = self._counter(index)
        with _said("read the counter", self._t):
            return int.from_bytes(bytes(self._e.nv_read(handle, _COUNTER_BYTES, auth_handle=handle)), "big")

    def increment(self, index: int = COUNTER) -> None:
        """Raise the counter by one. NV memory wears: once per release, never per start."""
        handle = self._counter(index)
        with _said("raise the counter", self._t):
            self._e.nv_increment(handle, auth_handle=handle)

    def undefine_counter(self, index: int = COUNTER) -> None:
        """Take the counter away: what is sealed to it never opens again. One that is not there needs nothing.

        It is raised first: made again it starts one above its last value, and approvals allow one more.
        """
        with contextlib.suppress(NotFoundError):
            for _ in range(_APPROVED_AHEAD + 1):
                self.increment(index)
            handle = self._counter(index)
            with _said("take its counter away", self._t):
                self._e.nv_undefine_space(handle)

    def _counter(self, index: int) -> Any:
        try:
            return self._e.tr_from_tpmpublic(index)
        except self._t.TSS2_Exception as error:
            raise NotFoundError("the TPM has no counter of ours", hint="make the TPM keystore again") from error

    def _counter_name(self, index: int) -> bytes:
        return bytes(self._e.tr_get_name(self._counter(index)))

    # -- sealing -------------------------------------------------------------------------------------------------

    def seal(self, secret: Secret, policy: bytes) -> Sealed:
        """Seal *secret* to *policy* (32 bytes). No password opens it beside the policy."""
        t = self._t
        with self._storage_key() as srk, self._salted_session(srk) as bus, _said("seal a key", t):
            flags = t.TPMA_OBJECT
            template = t.TPM2B_PUBLIC.parse(
                _SEALED_TEXT, objectAttributes=flags.FIXEDTPM | flags.FIXEDPARENT | flags.NODA, authPolicy=policy
            )
            sensitive = t.TPM2B_SENSITIVE_CREATE(t.TPMS_SENSITIVE_CREATE(data=secret.reveal()))
            private, public, *_ = self._e.create(srk, sensitive, template, session1=bus)
            return Sealed(bytes(self._e.tr_get_name(srk)), bytes(public.marshal()), bytes(private.marshal()))

    def unseal(
        self, sealed: Sealed, approver: bytes, reference: bytes, approval: Approval, counter: int = COUNTER
    ) -> Secret:
        """Open what `seal` made, under *approval* by the key *approver* (PEM).

        Raises:
            NotAuthorisedError: the TPM refuses: other PCRs, a passed counter, a forged approval, another TPM.

        """
        t = self._t
        try:
            with self._storage_key() as srk:
                if bytes(self._e.tr_get_name(srk)) != sealed.parent:
                    raise NotAuthorisedError("this is not the TPM that sealed the key", hint="use the recovery code")
                handle = self._counter(counter)
                name = bytes(self._e.tr_get_name(handle))
                policy = tpm_policy.approved_policy(approval.pcrs, name, approval.limit)
                with self._policy_session() as session, self._salted_session(srk) as bus:
                    approver_name, ticket = self._check_approval(approver, policy, reference, approval.signature)
                    self._e.policy_pcr(session, b"", self._selection(approval.pcrs))
                    self._e.policy_nv(
                        handle, handle, session, approval.limit.to_bytes(8, "big"), t.TPM2_EO.UNSIGNED_LE, 0
                    )
                    self._e.policy_authorize(session, policy, approver_name, ticket, policy_ref=reference)
                    with self._loaded(srk, sealed) as held:
                        return Secret(bytes(self._e.unseal(held, session1=session, session2=bus)))
        except t.TSS2_Exception as error:
            raise NotAuthorisedError(
                "the TPM does not release the key in this state",
                hint="firmware or software changed, or this release was withdrawn: use the recovery code",
            ) from error

    # -- leases --------------------------------------------------------------------------------------------------

    def time(self) -> TpmTime:
        """Read the TPM's clock."""
        with _said("read its clock", self._t):
            found = self._e.read_clock().clockInfo
        return TpmTime(int(found.clock), int(found.resetCount))

    def seal_until(self, secret: Secret, pcrs: Mapping[int, bytes], until_ms: int, resets: int) -> Sealed:
        """Seal *secret* while *pcrs* hold, until the TPM's clock passes *until_ms* or its reset count *resets*."""
        return self.seal(secret, tpm_policy.lease_policy(pcrs, until_ms, resets))

    def unseal_until(self, sealed: Sealed, pcrs: Mapping[int, bytes], until_ms: int, resets: int) -> Secret:
        """Open what `seal_until` made, with the same limits.

        Raises:
            NotAuthorisedError: the TPM refuses: the time is over, other PCRs, other limits, another TPM.

        """
        t = self._t
        try:
            with self._storage_key() as srk, self._policy_session() as session, self._salted_session(srk) as bus:
                if bytes(self._e.tr_get_name(srk)) != sealed.parent:
                    raise NotAuthorisedError("this is not the TPM that sealed the key", hint="ask for it again")
                self._e.policy_pcr(session, b"", self._selection(pcrs))
                for at, operand in tpm_policy.lease_limits(until_ms, resets):
                    self._e.policy_counter_timer(session, operand, t.TPM2_EO.UNSIGNED_LE, at)
                with self._loaded(srk, sealed) as held:
                    return Secret(bytes(self._e.unseal(held, session1=session, session2=bus)))
        except t.TSS2_Exception as error:
            raise NotAuthorisedError("the TPM does not release the key any more", hint="ask for it again") from error

    def _check_approval(self, approver: bytes, policy: bytes, reference: bytes, signature: bytes) -> tuple[bytes, Any]:
        """Have the TPM verify the approval; returns the approver's Name and the TPM's ticket."""
        t = self._t
        flags = t.TPMA_OBJECT
        public = t.TPM2B_PUBLIC.from_pem(approver, objectAttributes=flags.SIGN_ENCRYPT | flags.USERWITHAUTH)
        point = public.publicArea.unique.ecc  # a coordinate that begins with a zero comes short, and TPMs refuse it
        point.x, point.y = (bytes(each).rjust(_P256, b"\0") for each in (point.x, point.y))
        key = self._e.load_external(public, hierarchy=t.ESYS_TR.OWNER)
        try:  # flushed at once: it holds one of three slots
            digest = tpm_policy.to_approve(policy, reference)
            return bytes(public.get_name()), self._e.verify_signature(
                key, digest, t.TPMT_SIGNATURE.unmarshal(signature)[0]
            )
        finally:
            self._e.flush_context(key)

    # -- objects and sessions, flushed at the end ---------------------------------------------------------------------

    def _selection(self, pcrs: Any) -> Any:
        return self._t.TPML_PCR_SELECTION.parse("sha256:" + ",".join(str(index) for index in sorted(pcrs)))

    def _endorsement_template(self) -> tuple[Any, Any]:
        from tpm2_pytss.utils import NVReadEK, create_ek_template  # noqa: PLC0415 - see `open_tpm`

        return create_ek_template("EK-RSA2048", NVReadEK(self._e))  # type: ignore[no-any-return]

    def _attestation_key(self) -> contextlib.AbstractContextManager[tuple[Any, Any]]:
        flags = self._t.TPMA_OBJECT
        made_here = flags.FIXEDTPM | flags.FIXEDPARENT | flags.SENSITIVEDATAORIGIN
        template = self._t.TPM2B_PUBLIC.parse(
            _ATTESTATION_KEY,
            objectAttributes=made_here | flags.USERWITHAUTH | flags.RESTRICTED | flags.SIGN_ENCRYPT | flags.NODA,
        )
        return self._primary(template, self._t.ESYS_TR.ENDORSEMENT)

    @contextlib.contextmanager
    def _storage_key(self) -> Iterator[Any]:
        flags = self._t.TPMA_OBJECT
        made_here = flags.FIXEDTPM | flags.FIXEDPARENT | flags.SENSITIVEDATAORIGIN
        template = self._t.TPM2B_PUBLIC.parse(  # NODA, as the TCG's own: a TPM counts each power cut as a wrong guess
            _STORAGE_KEY,
            objectAttributes=made_here | flags.USERWITHAUTH | flags.NODA | flags.RESTRICTED | flags.DECRYPT,
        )
        with self._primary(template, self._t.ESYS_TR.OWNER) as (handle, _):
            yield handle

    @contextlib.contextmanager
    def _primary(self, template: Any, hierarchy: Any) -> Iterator[tuple[Any, Any]]:
        t = self._t
        with _said("make a key", t):
            handle, public, *_ = self._e.create_primary(t.TPM2B_SENSITIVE_CREATE(), template, hierarchy)
        try:
            yield handle, public
        finally:
            self._e.flush_context(handle)

    @contextlib.contextmanager
    def _loaded(self, parent: Any, sealed: Sealed) -> Iterator[Any]:
        t = self._t
        handle = self._e.load(
            parent, t.TPM2B_PRIVATE.unmarshal(sealed.private)[0], t.TPM2B_PUBLIC.unmarshal(sealed.public)[0]
        )
        try:
            yield handle
        finally:
            self._e.flush_context(handle)

    def _policy_session(self) -> contextlib.AbstractContextManager[Any]:
        return self._session(self._none, self._t.TPM2_SE.POLICY)

    @contextlib.contextmanager
    def _salted_session(self, key: Any) -> Iterator[Any]:
        """Encrypt the secret parameter of a command: whoever listens on the bus lacks the salt."""
        flags = self._t.TPMA_SESSION
        with self._session(key, self._t.TPM2_SE.HMAC) as session:
            self._e.trsess_set_attributes(session, flags.DECRYPT | flags.ENCRYPT | flags.CONTINUESESSION)
            yield session

    @contextlib.contextmanager
    def _session(self, key: Any, kind: Any) -> Iterator[Any]:
        t = self._t
        symmetric = t.TPMT_SYM_DEF(
            algorithm=t.TPM2_ALG.AES,
            keyBits=t.TPMU_SYM_KEY_BITS(aes=128),
            mode=t.TPMU_SYM_MODE(aes=t.TPM2_ALG.CFB),
        )
        with _said("open a session", t):
            session = self._e.start_auth_session(key, self._none, kind, symmetric, t.TPM2_ALG.SHA256)
        try:
            yield session
        finally:
            self._e.flush_context(session)


@contextlib.contextmanager
def open_tpm(tcti: str) -> Iterator[Tpm]:
    """Open the TPM at *tcti* (`device:/dev/tpmrm0`) until the block ends.

    Raises:
        HostError: tpm2-pytss is not installed, the name is not one of a TPM, or nothing answers there.

    """
    if tcti.partition(":")[0] not in _KINDS:  # the TSS also knows `cmd:`, which runs a program
        raise HostError(f"{tcti!r} does not name a TPM", hint="use device:/dev/tpmrm0")
    os.environ.setdefault("TSS2_LOG", "all+NONE")  # it writes to stderr what it also returns
    try:
        import tpm2_pytss as library  # noqa: PLC0415 - built from source: present where somebody asked for a TPM
    except ImportError as error:
        raise HostError("TPM support is not installed", hint="pip install 'casemate[tpm]'") from error
    with _alone(tcti):
        yield from _opened(tcti, library)


def _opened(tcti: str, library: Any) -> Iterator[Tpm]:
    try:
        esapi = library.ESAPI(tcti)
    except library.TSS2_Exception as error:
        raise HostError(
            f"no TPM answers at {tcti}", hint="is the user in group tss, and is there a TPM? see `casemate doctor`"
        ) from error
    with esapi:
        if not tcti.startswith("device:"):
            esapi.startup(library.TPM2_SU.CLEAR)  # firmware has done it for a real one; twice does no harm
            _flush_left_over(esapi, library)
        yield Tpm(esapi, library)


@contextlib.contextmanager
def _alone(tcti: str) -> Iterator[None]:
    """Wait for our turn at a TPM on a unix socket: it has no resource manager, and we flush what others left."""
    _, found, place = tcti.partition("path=")
    if not found:
        yield
        return
    try:
        fd = os.open(Path(place).parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"no TPM answers at {tcti}", hint="check the path") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _flush_left_over(esapi: Any, library: Any) -> None:
    """Free what a program that died left in the three slots. A resource manager does this for a real TPM."""
    _, found = esapi.get_capability(library.TPM2_CAP.HANDLES, _TRANSIENT, 16)
    for handle in found.data.handles:
        with contextlib.suppress(library.TSS2_Exception):
            esapi.flush_context(esapi.tr_from_tpmpublic(handle))


@contextlib.contextmanager
def _said(what: str, library: Any) -> Iterator[None]:
    try:
        yield
    except library.TSS2_Exception as error:
        raise OperationError(f"the TPM did not {what}: {error}", hint="see `casemate doctor`") from error
