from __future__ import annotations

import ctypes
import errno
import subprocess
import sys

import pytest

from casemate.device.sandbox import seccomp
from casemate.errors import HostError

NEVER = {
    "execve", "execveat", "fork", "vfork", "clone3", "connect", "socketpair", "ptrace", "process_vm_readv",
    "process_vm_writev", "open_by_handle_at", "unshare", "setns", "mount", "umount2", "chroot", "pivot_root", "keyctl",
    "add_key", "request_key", "bpf", "io_uring_setup", "perf_event_open", "userfaultfd", "memfd_create", "init_module",
    "finit_module", "kexec_load", "pidfd_open", "pidfd_getfd", "kill", "setuid", "setgid", "setresuid", "capset",
    "personality", "pkey_mprotect", "shmat", "mq_open", "landlock_restrict_self",
}  # fmt: skip
ONLY_LOADING = {
    "openat",
    "socket",
    "bind",
    "listen",
    "prctl",
    "seccomp",
    "setsockopt",
    "unlink",
    "getdents64",
    "readlink",
}


def names(rules):
    return {rule.name for rule in rules}


def test_no_list_names_what_must_never_be_allowed():
    assert not NEVER & names(seccomp.LOAD)
    assert not NEVER & names(seccomp.RUN)


def test_running_has_no_way_to_open_or_to_widen():
    assert names(seccomp.LOAD) >= ONLY_LOADING
    assert not ONLY_LOADING & names(seccomp.RUN)


def test_dangerous_calls_are_allowed_only_with_harmless_arguments():
    for rules in (seccomp.LOAD, seccomp.RUN):
        bounded = {rule.name for rule in rules if rule.argument is not None}
        free = {rule.name for rule in rules if rule.argument is None}
        assert not {"mmap", "mprotect", "clone", "socket", "prctl"} & free
        assert {"mmap", "mprotect", "clone"} <= bounded
    assert "ioctl" not in {rule.name for rule in seccomp.RUN if rule.argument is None}


def test_names_of_another_architecture_are_skipped():
    made = seccomp.Filter(seccomp.library())
    for name in ("no_such_call", "breakpoint"):  # unknown anywhere; known to 32-bit ARM only
        made.allow(seccomp.Rule(name))
        made.answer(name, errno.EPERM)
    assert set(made.skipped) == {"no_such_call", "breakpoint"}


def test_no_library_is_exit_12_with_the_fix(monkeypatch):
    def fails(*_args, **_options):
        raise OSError

    monkeypatch.setattr(ctypes, "CDLL", fails)
    with pytest.raises(HostError) as caught:
        seccomp.library()
    assert caught.value.exit_code == 12
    assert "libseccomp2" in caught.value.hint


PROGRAM = """
import mmap, os, socket, sys, threading
from casemate.device.sandbox import seccomp
filters = [seccomp.build(rules) for rules in (seccomp.LOAD, seccomp.RUN)]
go, done = threading.Event(), []
def other():
    go.wait()
    done.append(tried(lambda: os.open("/", os.O_RDONLY)))
def tried(call):
    try:
        call()
    except OSError as error:
        return error.errno
    return 0
thread = threading.Thread(target=other)
thread.start()
for made in filters[: int(sys.argv[1])]:
    made.load()
go.set()
thread.join()
late = []
threading.Thread(target=lambda: late.append(1)).start()
print(done[0], tried(lambda: os.open("/", os.O_RDONLY)), tried(lambda: socket.socket(socket.AF_UNIX).close()),
    tried(lambda: socket.socket(socket.AF_INET).close()), tried(os.fork), tried(lambda: mmap.mmap(-1, 4096, prot=7)),
    tried(lambda: mmap.mmap(-1, 4096)))
sys.stdout.flush()
os._exit(0)
"""


def run(stages):
    done = subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM, str(stages)], capture_output=True, text=True, check=True
    )
    return [int(word) for word in done.stdout.split()]


def test_the_load_filter_on_every_thread():
    assert run(1) == [0, 0, 0, errno.EPERM, errno.EPERM, errno.EPERM, 0]


def test_the_run_filter_on_every_thread():
    assert run(2) == [errno.EPERM, errno.EPERM, errno.EPERM, errno.EPERM, errno.EPERM, errno.EPERM, 0]
