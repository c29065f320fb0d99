"""The first thing that touches a model file: a short-lived child in the engine's sandbox that only reads its header.

The parent passes an open descriptor and the size; the child gives up every right (namespaces, Landlock, both seccomp
filters, limits on memory and CPU), then runs `formats.gguf.check_header`, which reviews the chat template too. The
child says which leading bytes its answer rests on, and their hash: the parent checks that hash when it reads the file
for real, so a file that changes in between is refused.
"""

from __future__ import annotations

import hashlib
import os
import resource
import select
import sys
import time
from typing import Final

import msgspec

from casemate.device.home import owner_of
from casemate.device.sandbox import Limits, SandboxPlan, enter_load, spawn
from casemate.errors import CasemateError, OperationError, UntrustedDataError
from casemate.formats.gguf import CheckedHeader, GgufFacts, check_header

FILE_VARIABLE: Final = "CASEMATE_FILE_FD"
RESULT_VARIABLE: Final = "CASEMATE_RESULT_FD"
MEMORY_LIMIT: Final = 256 << 20  # address space, the interpreter included
CPU_SECONDS: Final = 10
DEADLINE: Final = 60.0
_RESULT_LIMIT: Final = 64 * 1024


class Refusal(msgspec.Struct, frozen=True, tag="refusal"):
    """The child: why not. `check` is empty when it failed by itself."""

    message: str
    check: str
    hint: str


class Inspection(msgspec.Struct, frozen=True, tag="inspection"):
    """The child: what the header says, and the hash of the *checked* leading bytes it rests on."""

    facts: GgufFacts
    checked: int
    sha256: bytes


_decoder: Final = msgspec.json.Decoder(Inspection | Refusal)


def inspect_file(fd: int, size: int) -> Inspection:
    """Check the header of the GGUF file open at *fd* in a sandboxed child. *fd* may hold less than the *size* bytes.

    Raises:
        UntrustedDataError: the file is refused; `check` names the rule.
        HostError: the host cannot build the sandbox.
        OperationError: the child could not do its work.

    """
    os.lseek(fd, 0, os.SEEK_SET)  # the child shares the position, and only reads
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    try:
        child = spawn(plan(fd, theirs, size))
    finally:
        os.close(theirs)
    try:
        answer = _read_answer(ours)
    finally:
        os.close(ours)
        child.kill()
        child.wait()
    return _judge(answer)


def plan(fd: int, result: int, size: int) -> SandboxPlan:
    """Return how the child is started: it has two descriptors and nothing else."""
    owner = owner_of("engine")
    return SandboxPlan(
        module="casemate.device.inspector",
        arguments=(str(size),),
        fds={FILE_VARIABLE: fd, RESULT_VARIABLE: result},
        uid=owner.uid if owner else None,
        gid=owner.gid if owner else None,
    )


def _read_answer(fd: int) -> bytes:
    deadline = time.monotonic() + DEADLINE
    answer = b""
    while len(answer) <= _RESULT_LIMIT:
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        piece = os.read(fd, _RESULT_LIMIT) if ready else b""
        if not piece:
            break
        answer += piece
    return answer


def _judge(answer: bytes) -> Inspection:
    """Believe nothing but a well-formed answer: a child that was taken over can at worst lie about facts."""
    try:
        result = _decoder.decode(answer)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise UntrustedDataError(
            "the header check did not finish: it was stopped by its limits, or crashed",
            check="inspector",
            hint="do not use this file; if it is genuine, report this",
        ) from None
    if isinstance(result, Inspection):
        return result
    if result.check:
        raise UntrustedDataError(result.message, check=result.check, hint=result.hint)
    raise OperationError(f"the header check could not run: {result.message}", hint=result.hint)


# --- the child ------------------------------------------------------------------------------------------------------


def main() -> int:
    """Check one file and write one answer."""
    file, out, size = int(os.environ[FILE_VARIABLE]), int(os.environ[RESULT_VARIABLE]), int(sys.argv[1])
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        enter_load(Limits(memory=MEMORY_LIMIT, tasks=1)).enter_run()
        answer: Inspection | Refusal = examine(file, size)
    except UntrustedDataError as error:
        answer = Refusal(error.message, error.check, error.hint)
    except CasemateError as error:
        answer = Refusal(error.message, "", error.hint)
    os.write(out, msgspec.json.encode(answer))
    return 0


def examine(fd: int, size: int) -> Inspection:
    """Read the header with plain sequential reads (all that the run filter allows), hashing what passes."""
    digest = hashlib.sha256()

    def read(offset: int, length: int) -> bytes:
        del offset  # check_header reads strictly forwards
        pieces = b""
        while len(pieces) < length:
            piece = os.read(fd, length - len(pieces))
            if not piece:
                break
            pieces += piece
        digest.update(pieces)
        return pieces

    checked: CheckedHeader = check_header(read, size)
    return Inspection(checked.facts, checked.bytes_read, digest.digest())


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)
