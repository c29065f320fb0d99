"""What the device's processes say to each other: length-prefixed JSON frames of tagged messages.

A frame is a little-endian u32 length and that many bytes of JSON. Descriptors travel beside the first byte of a frame
(SCM_RIGHTS); `fds` in a message says how many the receiver must find. One union per direction of each link, so a
message on the wrong link does not decode. This module knows the bytes; `device.channel` does the sockets.
"""

from __future__ import annotations

import struct
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec

from casemate.errors import UntrustedDataError
from casemate.formats.decoding import MALFORMED

FRAME_LIMIT: Final = 16 * 1024 * 1024
_LENGTH = struct.Struct("<I")

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]
"""A number that limits and bills are made of: a compromised engine must not report a refund."""


class Message(msgspec.Struct, frozen=True, tag_field="t", forbid_unknown_fields=True, omit_defaults=True):
    """Base of every frame's body."""


# --- agent <-> any child ------------------------------------------------------------------------------------------


class Hello(Message, frozen=True, tag="hello"):
    """Child: everything is imported, nothing has been opened."""

    role: str
    pid: int


class Start(Message, frozen=True, tag="start"):
    """Agent: begin. `fds` names the descriptors that came with the frame, in order."""

    home: str
    fds: tuple[str, ...] = ()
    settings: dict[str, Any] = {}


class Ready(Message, frozen=True, tag="ready"):
    """Child: serving. `facts` is shown by `casemate status`."""

    facts: dict[str, Any] = {}


class Fatal(Message, frozen=True, tag="fatal"):
    """Child: cannot go on; the fields are those of `CasemateError`. `transient` asks for a restart."""

    code: str
    message: str
    hint: str = ""
    exit_code: int = 1
    check: str = ""
    transient: bool = False


class Ping(Message, frozen=True, tag="ping"):
    """Agent: are you alive."""

    n: int


class Pong(Message, frozen=True, tag="pong"):
    """Child: yes. `memory` is the most this process ever held, in KiB, from one that can tell."""

    n: int
    memory: Count = 0


# --- agent -> vault -------------------------------------------------------------------------------------------------


class Load(Message, frozen=True, tag="load"):
    """Agent: decrypt *model* into a sealed memory file and send it down the descriptor that came along.

    *leased*: the key that opens it comes through a second one (`formats.lease.hand`).
    """

    model: str
    path: str
    leased: bool = False


class Loaded(Message, frozen=True, tag="loaded"):
    """Vault: the engine has its descriptor."""

    model: str
    digest: str
    bytes: int
    seconds: float
    security_version: int = 0


class LoadFailed(Message, frozen=True, tag="load_failed"):
    """Vault: refused; nothing was handed over."""

    model: str
    code: str
    message: str
    hint: str = ""
    exit_code: int = 10
    check: str = ""


class WrapKey(Message, frozen=True, tag="wrap_key"):
    """Wrap a container's data key (first descriptor) under the gated key of *model* (second).

    Command line to agent with the first, agent to vault with both (*keyed*). *header* is the container's;
    *min_assurance* what the key must ask for at least.
    """

    id: int
    model: str
    header: bytes
    min_assurance: str
    keyed: bool = False


class KeyWrapped(Message, frozen=True, tag="key_wrapped"):
    """Vault: the container's only slot, the JSON of `formats.container.BrokerSlot`."""

    id: int
    slot: bytes


# --- update -> agent -> vault: what needs the content key of a release ------------------------------------------------


class OpenRelease(Message, frozen=True, tag="open_release"):
    """Open the sealed part of a release. *manifest* is its public part, verified by whoever asks.

    *gate*: what the fleet calls a gated model; the agent adds its leased key as the last descriptor (*keyed*).
    """

    id: int
    manifest: bytes
    grant: bytes
    sealed: bytes
    gate: str = ""
    keyed: bool = False


class OpenPayload(Message, frozen=True, tag="open_payload"):
    """Decrypt the *payload* (its id) from the first descriptor that came along to the second. Never for a model."""

    id: int
    manifest: bytes
    grant: bytes
    payload: str


class Transcode(Message, frozen=True, tag="transcode"):
    """Make the container *model* of the sealed *payload* in the descriptor that came along and the container *base*.

    *path* names the file of the release; *base* is empty for a full payload; *gate* and *keyed* as in `OpenRelease`.
    """

    id: int
    manifest: bytes
    grant: bytes
    sealed: bytes
    payload: str
    path: str
    model: str
    base: str = ""
    gate: str = ""
    keyed: bool = False


class ListContainers(Message, frozen=True, tag="list_containers"):
    """Say the names of all model containers."""

    id: int


class RemoveContainer(Message, frozen=True, tag="remove_container"):
    """Remove the container *model* of a generation that is needed no more; one that is gone is no fault."""

    id: int
    model: str


class ReleaseOpened(Message, frozen=True, tag="release_opened"):
    """Vault: *part* is the JSON of `formats.manifest.SealedPart`."""

    id: int
    part: bytes


class PayloadOpened(Message, frozen=True, tag="payload_opened"):
    """Vault: *bytes* of plaintext were written."""

    id: int
    bytes: int


class Transcoded(Message, frozen=True, tag="transcoded"):
    """Vault: the container is whole, proven and durable."""

    id: int
    model: str
    digest: str
    bytes: int
    seconds: float


class Containers(Message, frozen=True, tag="containers"):
    """Vault: the names of the containers that are there now."""

    id: int
    names: tuple[str, ...]


class ReleaseRefused(Message, frozen=True, tag="release_refused"):
    """Vault: request *id* was refused or failed; nothing was left behind."""

    id: int
    code: str
    message: str
    hint: str = ""
    exit_code: int = 10
    check: str = ""


# --- vault -> engine: one frame with one descriptor -------------------------------------------------------------------


class Weights(Message, frozen=True, tag="weights"):
    """Vault: the sealed memory file that came with this frame holds *bytes* of GGUF."""

    model: str
    bytes: int


# --- agent -> gateway -------------------------------------------------------------------------------------------------


class EngineUp(Message, frozen=True, tag="engine_up"):
    """Agent: talk to *model* over the descriptor that came along."""

    model: str
    digest: str
    slots: int
    context: int
    created: int = 0


class EngineDown(Message, frozen=True, tag="engine_down"):
    """Agent: *model* is gone; `retry_after` seconds until it may be back, None when it needs a person."""

    model: str
    reason: str
    retry_after: int | None = None


class EngineHold(Message, frozen=True, tag="engine_hold"):
    """Agent: start nothing more of *model*; requests wait until another engine of it is up."""

    model: str


class Rehearse(Message, frozen=True, tag="rehearse"):
    """Agent: ask *model* one prompt of its release the way an app would, guard and limits included."""

    id: int
    model: str
    prompt: str
    max_tokens: int
    seconds: float


class Rehearsed(Message, frozen=True, tag="rehearsed"):
    """Gateway: the answer, or the code of the API's error. `first_token` is seconds until the first text."""

    id: int
    text: str = ""
    error: str = ""
    first_token: float = 0.0


class TakePolicy(Message, frozen=True, tag="take_policy"):
    """Agent: what a generation says about apps, and the guard's data; both replace what came before, empty or not.

    `apps` is the text of a policy by the name of its app; `guard` is what `casemate.guard.Guard.from_bytes` takes.
    """

    apps: dict[str, str] = {}
    guard: bytes = b""


class EngineStuck(Message, frozen=True, tag="engine_stuck"):
    """Gateway: *model* missed its deadline and ignored a cancel."""

    model: str


class Used(Message, frozen=True, tag="used"):
    """Gateway: what was done since the last time, all apps together; see `device.usage`. Numbers, and of nobody."""

    requests: Count
    refused: Count
    tokens: Count
    latency: Annotated[tuple[Count, ...], msgspec.Meta(max_length=16)]


# --- agent <-> attester ----------------------------------------------------------------------------------------------


class Measure(Message, frozen=True, tag="measure"):
    """Agent: measure *events* (`formats.evidence.Event`) before they are used."""

    id: int
    events: tuple[dict[str, Any], ...]


class Quote(Message, frozen=True, tag="quote"):
    """Agent: answer a fleet's challenge."""

    id: int
    nonce: bytes
    pcrs: tuple[int, ...]


class BeginKey(Message, frozen=True, tag="begin_key"):
    """Agent: make the nonce that a fleet's broker is asked for *model*'s key with."""

    id: int
    model: str


class TakeKey(Message, frozen=True, tag="take_key"):
    """Agent: the broker's answer (`fleet_api.KeyAnswer`): keep *model*'s key for the lease."""

    id: int
    model: str
    identity: bytes
    encrypted: bytes
    terms: bytes
    wrapped: bytes


class UseKey(Message, frozen=True, tag="use_key"):
    """Agent: write *model*'s key into the descriptor that came along, if its lease runs."""

    id: int
    model: str


class DropKeys(Message, frozen=True, tag="drop_keys"):
    """Agent: forget every lease; *forever*: and take our counters, which keys are sealed to, out of the TPM."""

    id: int
    forever: bool = False


class RaiseFloor(Message, frozen=True, tag="raise_floor"):
    """Agent: an update was found good: raise its counter to *number*."""

    id: int
    number: int


class Introduce(Message, frozen=True, tag="introduce"):
    """Agent: say which TPM this is, to a fleet that the device comes back to."""

    id: int


class ProveReturn(Message, frozen=True, tag="prove_return"):
    """Agent: open a credential and say its `fleet_api.return_proof` for *csr*. The secret itself is said to nobody."""

    id: int
    identity: bytes
    encrypted: bytes
    csr: bytes


class Introduced(Message, frozen=True, tag="introduced"):
    """Attester: the maker's certificate (DER, or empty), the endorsement key and the attestation key (TPMT_PUBLIC)."""

    id: int
    certificate: bytes
    endorsement_key: bytes
    attestation_key: bytes


class ReturnProven(Message, frozen=True, tag="return_proven"):
    """Attester: the proof."""

    id: int
    proof: bytes


class FloorRaised(Message, frozen=True, tag="floor_raised"):
    """Attester: the counter shows *number*."""

    id: int
    number: int


class KeyBegun(Message, frozen=True, tag="key_begun"):
    """Attester: ask with this nonce."""

    id: int
    nonce: bytes


class Measured(Message, frozen=True, tag="measured"):
    """Attester: done; the log of this boot has *records*."""

    id: int
    records: int


class Quoted(Message, frozen=True, tag="quoted"):
    """Attester: the evidence, ready to be posted."""

    id: int
    evidence: bytes


class KeyHeld(Message, frozen=True, tag="key_held"):
    """Attester: the lease runs for *seconds* more (0: there is none any more, as was asked)."""

    id: int
    seconds: float = 0.0


class AttesterRefused(Message, frozen=True, tag="attester_refused"):
    """Attester: request *id* failed; nothing was written."""

    id: int
    code: str
    message: str
    hint: str = ""
    check: str = ""


# --- agent <-> link: what a fleet says and is told -------------------------------------------------------------------


class Report(Message, frozen=True, tag="report"):
    """Agent: what check-in *id* says; *facts* fit `fleet_api.CheckIn`."""

    id: int
    facts: dict[str, Any]


class SendAnswer(Message, frozen=True, tag="send_answer"):
    """Agent: sign *payload* with the device's key and post it as the answer to the command delivered as *name*."""

    name: str
    payload: bytes


class SendWord(Message, frozen=True, tag="send_word"):
    """Agent: sign *payload* with the device's key and post it as its word about a generation."""

    payload: bytes


class Post(Message, frozen=True, tag="post"):
    """Agent: post *body* to a path below `/device/v1/`."""

    id: int
    path: str
    body: bytes


class Forget(Message, frozen=True, tag="forget"):
    """Agent: destroy the device's key and certificate; nothing is sent after that."""


class ChipSaid(Message, frozen=True, tag="chip_said"):
    """Agent: what the TPM says to request *id*. Not *there*: this device has none; *why*: it could not say it."""

    id: int
    there: bool = True
    why: str = ""
    certificate: bytes = b""
    endorsement_key: bytes = b""
    attestation_key: bytes = b""
    proof: bytes = b""


class AskChip(Message, frozen=True, tag="ask_chip"):
    """Link: which TPM is this; or, with a credential of the fleet, prove that it is this one, for the request *csr*."""

    id: int
    identity: bytes = b""
    encrypted: bytes = b""
    csr: bytes = b""


class Due(Message, frozen=True, tag="due"):
    """Link: a check-in is due; what shall it say."""

    id: int


class Ordered(Message, frozen=True, tag="ordered"):
    """Link: the fleet delivered *envelope* as *name*; *server_time* is its server's now. Nothing is proven."""

    name: str
    envelope: bytes
    server_time: float


class Picked(Message, frozen=True, tag="picked"):
    """Link: the fleet's director says *envelope*; *server_time* is its server's now. Nothing is proven."""

    envelope: bytes
    server_time: float


class WordSent(Message, frozen=True, tag="word_sent"):
    """Link: the fleet was told *payload*; not *accepted*: it could not be told."""

    payload: bytes
    accepted: bool


class AnswerSent(Message, frozen=True, tag="answer_sent"):
    """Link: the fleet has the answer to *name*; not *accepted*: it could not be told."""

    name: str
    accepted: bool


class Posted(Message, frozen=True, tag="posted"):
    """Link: the answer to request *id*; status 0: nobody answered."""

    id: int
    status: int
    body: bytes = b""


class Contact(Message, frozen=True, tag="contact"):
    """Link: how the last check-in went. *address* and *port* are where the fleet was reached; times in Unix seconds."""

    ok: bool
    why: str = ""
    address: str = ""
    port: int = 0
    server_time: float = 0.0
    next_s: float = 0.0
    certificate_ends: int = 0
    attest_wanted: bool = False
    inventory_wanted: bool = False
    cut_off: Literal["", "expired", "waiting", "refused"] = ""
    """The fleet takes this device's certificate no more; *waiting*: for its operator's yes; *refused*: for good."""


class Forgotten(Message, frozen=True, tag="forgotten"):
    """Link: the device's key is destroyed."""


# --- gateway <-> engine -----------------------------------------------------------------------------------------------


class Generate(Message, frozen=True, tag="generate"):
    """Gateway: run one request. `params` holds only fields the gateway typed and bounded."""

    id: int
    kind: str  # chat | completion | embedding
    params: dict[str, Any]
    deadline: float  # seconds from receipt


class Cancel(Message, frozen=True, tag="cancel"):
    """Gateway: stop request *id* at the next token."""

    id: int


class Chunk(Message, frozen=True, tag="chunk"):
    """Engine: one piece of streamed text of request *id* (may be empty: the role announcement)."""

    id: int
    text: str


class Done(Message, frozen=True, tag="done"):
    """Engine: request *id* ended. `result` is text for chat and completion, vectors for embedding."""

    id: int
    finish_reason: str = "stop"
    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    vectors: list[list[float]] | None = None


class Failed(Message, frozen=True, tag="failed"):
    """Engine: request *id* was refused or failed. `code`: bad_request | too_long | deadline | busy | internal."""

    id: int
    code: str
    message: str = ""


# --- anyone -> journal ------------------------------------------------------------------------------------------------


class Append(Message, frozen=True, tag="append"):
    """Record events (OCSF objects, see `formats.event`); acknowledged once they are durable."""

    id: int
    events: list[dict[str, Any]]


class Appended(Message, frozen=True, tag="appended"):
    """Journal: the events of request *id* are on disk; the last has this *index*."""

    id: int
    index: int


class NotAppended(Message, frozen=True, tag="not_appended"):
    """Journal: none of the events of request *id* was recorded (disk full, not an event, not this role's to say)."""

    id: int
    code: str
    message: str
    hint: str = ""


class Attach(Message, frozen=True, tag="attach"):
    """Agent to journal: *role* was restarted; its new link is the descriptor that came along."""

    role: str


class ProveLog(Message, frozen=True, tag="prove_log"):
    """Agent to journal: make a witness's request for the newest checkpoint, proven from *old* entries on."""

    id: int
    old: int


class LogProven(Message, frozen=True, tag="log_proven"):
    """Journal: the request (`tlog.AddCheckpoint`) and the log's key; no request while there is no checkpoint."""

    id: int
    size: int
    vkey: str
    request: bytes = b""


class KeepWitnessed(Message, frozen=True, tag="keep_witnessed"):
    """Agent to journal: keep this cosigned checkpoint beside the log."""

    note: bytes


# --- a process that is a unit of its own -> agent, over run/link/agent.sock ----------------------------------------


class Join(Message, frozen=True, tag="join"):
    """Unit: I am the process for *role* (for *model*, when an engine). The kernel says whether that is true."""

    role: str
    model: str = ""


class Joined(Message, frozen=True, tag="joined"):
    """Agent: you are wanted; from here on this connection is the control link. `fds` names what came along."""

    fds: tuple[str, ...] = ()


# --- agent <-> spawner, when root runs `casemate up` ----------------------------------------------------------------


class Spawn(Message, frozen=True, tag="spawn"):
    """Agent: start the process of *role* (of *model*); its links come along, the control link first."""

    id: int
    role: str
    links: int
    model: str = ""
    replay: bool = False


class Kill(Message, frozen=True, tag="kill"):
    """Agent: end the process *pid*, which this spawner started."""

    pid: int


class Fence(Message, frozen=True, tag="fence"):
    """Agent: cut this machine's network down to *gate* (JSON of `device.fleet.fence.Gate`), or (null) open it."""

    id: int
    gate: bytes


class ShredKeyfile(Message, frozen=True, tag="shred_keyfile"):
    """Agent: destroy the key file that the spawner holds open."""

    id: int


class Served(Message, frozen=True, tag="served"):
    """Spawner: request *id* is done; *why* says why it could not be."""

    id: int
    why: str = ""


class Spawned(Message, frozen=True, tag="spawned"):
    """Spawner: request *id* runs as *pid*; with pid 0 it could not be started, and *why*."""

    id: int
    pid: int
    why: str = ""


class Ended(Message, frozen=True, tag="ended"):
    """Spawner: *pid* is gone; *reason* says how."""

    pid: int
    reason: str


# --- command line <-> agent, over run/agent.sock --------------------------------------------------------------------


class Ask(Message, frozen=True, tag="ask"):
    """Command line or update: do *verb* (status | record | stop, and what `device.upkeep` knows) with *args*."""

    verb: str
    args: dict[str, Any] = {}


class Answer(Message, frozen=True, tag="answer"):
    """Agent: the outcome; when not *ok*, *data* holds the code, message, hint, exit code and check of the error."""

    ok: bool
    data: dict[str, Any] = {}


def descriptors(message: Message) -> int:
    """Return how many file descriptors travel with *message*."""
    if isinstance(message, Start | Joined):
        return len(message.fds)
    if isinstance(message, Spawn):
        return message.links
    if isinstance(message, OpenPayload):
        return 2
    if isinstance(message, Load):
        return 2 if message.leased else 1
    if isinstance(message, WrapKey):
        return 2 if message.keyed else 1
    if isinstance(message, OpenRelease | Transcode):
        return isinstance(message, Transcode) + message.keyed
    return 1 if isinstance(message, UseKey | Weights | EngineUp | Attach) else 0


ToAttester = Measure | Quote | BeginKey | TakeKey | UseKey | DropKeys | RaiseFloor | Introduce | ProveReturn
FromAttester = Measured | Quoted | KeyBegun | KeyHeld | FloorRaised | Introduced | ReturnProven | AttesterRefused
ToVault = OpenRelease | OpenPayload | Transcode | ListContainers | RemoveContainer
FromVault = ReleaseOpened | PayloadOpened | Transcoded | Containers | KeyWrapped | ReleaseRefused
ToJournalProcess = Attach | ProveLog | KeepWitnessed
ToLinkProcess = Report | SendAnswer | SendWord | Post | Forget | ChipSaid
FromLinkProcess = Due | AskChip | Ordered | AnswerSent | Picked | WordSent | Posted | Contact | Forgotten
FromAnyChild = Hello | Ready | Fatal | Pong | LogProven
AgentToChild = (
    ToJournalProcess
    | ToLinkProcess
    | ToAttester
    | Start
    | Ping
    | Load
    | EngineUp
    | EngineDown
    | EngineHold
    | Rehearse
    | TakePolicy
    | Attach
    | ToVault
    | WrapKey
)
ChildToAgent = (
    FromAnyChild | FromAttester | FromLinkProcess | FromVault | Loaded | LoadFailed | EngineStuck | Rehearsed | Used
)
ToEngine = Generate | Cancel
FromEngine = Chunk | Done | Failed
VaultToEngine = Weights
ToJournal = Append
FromJournal = Appended | NotAppended
ToLink = Join
FromLink = Joined
CommandToAgent = Ask | WrapKey
UpdateToAgent = Ask | ToVault
FromAgent = Answer | FromVault
ToVaultProcess = Load | WrapKey | ToVault
ToSpawner = Spawn | Kill | Fence | ShredKeyfile
FromSpawner = Spawned | Served | Ended

_encoder = msgspec.json.Encoder()


def encode(message: Message) -> bytes:
    """Make one frame.

    Raises:
        ValueError: the frame would pass `FRAME_LIMIT`.

    """
    body = _encoder.encode(message)
    if len(body) > FRAME_LIMIT:
        raise ValueError(f"a frame of {len(body)} bytes is over the limit")
    return _LENGTH.pack(len(body)) + body


class FrameReader:
    """Sans-I/O: feed bytes in, take checked messages of one union out."""

    def __init__(self, union: Any, *, limit: int = FRAME_LIMIT) -> None:
        """Decode only members of *union*; refuse frames over *limit* bytes before buffering them."""
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(union)
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """Take *data*, return every message now complete, in order.

        Raises:
            UntrustedDataError: a frame is oversize or is not a message of this link. The link must be closed.

        """
        self._buffer += data
        out: list[Any] = []
        start = 0
        while len(self._buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if length > self._limit:
                raise UntrustedDataError(f"a frame of {length} bytes is over the limit", check="ipc-frame-size")
            end = start + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            try:
                out.append(self._decoder.decode(memoryview(self._buffer)[start + _LENGTH.size : end]))
            except MALFORMED as error:
                raise UntrustedDataError(f"a frame does not fit this link: {error}", check="ipc-frame") from error
            start = end
        if start:
            del self._buffer[:start]
        return out

    @property
    def pending(self) -> int:
        """How many bytes of an unfinished frame are held."""
        return len(self._buffer)
