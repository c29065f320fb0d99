"""What the vault does for an update: everything that needs a release's content key, which never leaves it.

The key comes out of a grant with the home's owner key and is wiped when the request is done. A grant proves nothing
about who made it: whether a release is genuine was decided by whoever asks, from signed metadata. What is done here
cannot overwrite a model that is there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec

from casemate.clock import Clock
from casemate.crypto.secret import Secret
from casemate.device import containers, store
from casemate.device.home import Home
from casemate.durable import sync_directory, write_all
from casemate.errors import CasemateError, OperationError, PolicyDeniedError, UntrustedDataError
from casemate.formats import event, grant, ipc
from casemate.formats import manifest as fmt
from casemate.formats.gate import require_key
from casemate.formats.lease import LeasedKey
from casemate.formats.manifest import Manifest
from casemate.formats.payload import PayloadCipher
from casemate.keystores import UnlockedKeystore

_GENERATION: Final = re.compile(r"\.g[1-9][0-9]{0,15}\Z")


class _Keys(NamedTuple):
    """What opens a release, and what wraps the container of a gated one."""

    content: Secret
    leased: LeasedKey | None


class Releases:
    """Answers requests about releases."""

    def __init__(self, home: Home, keystore: UnlockedKeystore, journal: Callable[..., Any], clock: Clock) -> None:
        """Work in *home*; *journal* makes events durable before it returns."""
        self._home = home
        self._keystore = keystore
        self._journal = journal
        self._clock = clock

    def answer(
        self, request: ipc.ToVault, fds: list[int], tick: Callable[[], None], leased: LeasedKey | None = None
    ) -> ipc.FromVault:
        """Carry out one request; *leased* is the key of a gated model that came with it."""
        try:
            if isinstance(request, ipc.ListContainers | ipc.RemoveContainer):
                return self._containers(request)
            manifest = fmt.parse(request.manifest).claimed
            with self._content_key(manifest, request.grant, leased) as key:
                if isinstance(request, ipc.OpenRelease):
                    part = fmt.open_sealed(manifest, request.sealed, key)
                    return ipc.ReleaseOpened(request.id, msgspec.json.encode(part))
                if isinstance(request, ipc.OpenPayload):
                    return self._open_payload(request, manifest, key, fds, tick)
                return self._transcode(request, manifest, _Keys(key, leased), fds[0], tick)
        except CasemateError as error:
            return self.refused(request, error)

    def _content_key(self, manifest: Manifest, raw: bytes, leased: LeasedKey | None) -> Secret:
        """Open a grant: with this home's key, or a gated release's with what the fleet leased and nothing else."""
        if manifest.gate:
            with require_key(manifest.gate, leased) as private:
                return grant.open_grant(raw, manifest.release, private, manifest.gate.recipient)
        with self._keystore.owner_private() as private:
            return grant.open_grant(raw, manifest.release, private, self._keystore.owner_public)

    def _open_payload(
        self, request: ipc.OpenPayload, manifest: Manifest, key: Secret, fds: list[int], tick: Callable[[], None]
    ) -> ipc.PayloadOpened:
        from casemate.device.transcode import open_stream  # noqa: PLC0415 - costs memory that a load needs

        if manifest.kind == "model":
            raise PolicyDeniedError("a model is never decrypted to a file", hint="ask for a container")
        payload = manifest.payload(request.payload)
        source, target = fds
        try:
            for piece in open_stream(source, payload, PayloadCipher(key, manifest.release, payload.id), tick):
                write_all(target, piece)
        except OSError as error:
            raise OperationError(f"cannot write the payload: {error.strerror}", hint="free space") from error
        return ipc.PayloadOpened(request.id, payload.bytes)

    def _transcode(
        self, request: ipc.Transcode, manifest: Manifest, keys: _Keys, fd: int, tick: Callable[[], None]
    ) -> ipc.Transcoded:
        from casemate.device import transcode  # noqa: PLC0415 - costs memory that a load needs

        started, now = self._clock.monotonic(), self._clock.wall()
        payload = manifest.payload(request.payload)
        job = _job(request, manifest, fmt.open_sealed(manifest, request.sealed, keys.content), int(now))
        cipher = PayloadCipher(keys.content, manifest.release, payload.id)
        stream = transcode.open_stream(fd, payload, cipher, tick)
        made = transcode.transcode(self._home, self._keystore, job, stream, keys.leased)
        if not made.existed:
            if job.gate and keys.leased:
                self._journal(event.key_used(key=keys.leased.key, purpose=f"gate {request.model}", now=now))
            self._record(request.model, made.digest, made.bytes, job.licence)
        seconds = round(self._clock.monotonic() - started, 3)
        return ipc.Transcoded(request.id, request.model, made.digest, made.bytes, seconds)

    def _containers(self, request: ipc.ListContainers | ipc.RemoveContainer) -> ipc.Containers:
        """List the containers, without one that an update asks to remove: only those that updates made can be."""
        if isinstance(request, ipc.RemoveContainer):
            if not _GENERATION.search(request.model):
                raise PolicyDeniedError(f"{request.model!r} is not a generation's", hint="this is a bug")
            path = store.path_of(self._home, request.model)
            try:
                path.unlink(missing_ok=True)
                containers.remove_records(path)
                sync_directory(self._home.models)
            except OSError as error:
                raise OperationError(f"cannot remove {path}: {error.strerror}", hint="check its owner") from error
            self._journal(event.model_removed(model=request.model, now=self._clock.wall()))
        return ipc.Containers(request.id, tuple(store.names(self._home)))

    def _record(self, model: str, digest: str, size: int, licence: str) -> None:
        try:
            self._journal(
                event.model_added(model=model, digest=digest, size=size, licence=licence, now=self._clock.wall())
            )
        except BaseException:
            store.path_of(self._home, model).unlink(missing_ok=True)  # what the journal does not know is not there
            raise

    def refused(self, request: ipc.ToVault, error: CasemateError) -> ipc.ReleaseRefused:
        """Say that *request* was refused; what a release is refused for is journaled."""
        check = error.check if isinstance(error, UntrustedDataError) else ""
        if check and isinstance(request, ipc.Transcode):
            now = self._clock.wall()
            self._journal(event.model_refused(model=request.model, check=check, reason=error.message, now=now))
        return ipc.ReleaseRefused(request.id, error.code, error.message, error.hint, error.exit_code, check)


def _job(request: ipc.Transcode, manifest: Manifest, part: fmt.SealedPart, now: int) -> Any:
    from casemate.device.transcode import Job  # noqa: PLC0415 - costs memory that a load needs

    if manifest.kind != "model":
        raise UntrustedDataError("only a model becomes a container", check="release-kind", hint="this is a bug")
    skip = 0
    for step, file in zip(part.plan(request.payload).steps, part.files, strict=True):
        if step.path == request.path:
            return Job(
                request.model,
                request.base,
                file,
                step,
                skip,
                part.licence,
                manifest.security_version,
                now,
                gate=manifest.gate,
            )
        skip += step.bytes
    raise UntrustedDataError("the release has no such file", check="release-file", hint="this is a bug")
