"""What a device says to a host or a person it must not run with: the code, the fix, no debris."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest

from support.device import cli, environment

UP = [sys.executable, "-m", "casemate", "up", "--listen", "127.0.0.1:0"]


@pytest.fixture
def env(tmp_path):
    tmp_path.chmod(0o755)
    return environment(tmp_path / "home")


def in_namespace(env, script: str, *unshare: str, prefix: str = "") -> subprocess.CompletedProcess[str]:
    """Run `up` after *script* in namespaces of its own, so that the host keeps what the script takes away."""
    return subprocess.run(
        ["unshare", *unshare, "sh", "-ec", f"{script}\nexec {prefix}{shlex.join(UP)}"],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_off_loopback_without_tls_is_refused_before_anything_is_made(env, tmp_path):
    done = cli(env, "up", "--listen", "0.0.0.0:0", check=False)
    assert done.returncode == 2
    assert "without TLS" in done.stderr
    assert "tls.certificate" in done.stderr
    assert not (tmp_path / "home").exists()


def test_metrics_never_leave_loopback(env):
    done = cli({**env, "CASEMATE_METRICS_LISTEN": "0.0.0.0:0"}, "up", "--listen", "127.0.0.1:0", check=False)
    assert done.returncode == 2
    assert "not loopback" in done.stderr


def test_an_unknown_model_is_not_found_and_names_what_there_is(env):
    done = cli(env, "up", "--model", "nothing", "--listen", "127.0.0.1:0", check=False)
    assert done.returncode == 5
    assert "no model 'nothing'" in done.stderr


@pytest.mark.root
def test_without_bubblewrap_the_device_refuses_with_the_fix(env, tmp_path):
    done = in_namespace(env, "mount --bind /dev/null $(command -v bwrap)", "--mount")
    assert done.returncode == 12
    assert "apt install bubblewrap" in done.stderr
    assert not (tmp_path / "home").exists()


def test_without_user_namespaces_the_device_refuses_with_the_fix(env, tmp_path):
    tmp_path.chmod(0o777)
    script = "echo 0 > /proc/sys/user/max_user_namespaces; set -- setpriv --ambient-caps -all --inh-caps -all"
    done = in_namespace(env, script, "--user", "--map-user=1000", "--keep-caps", prefix='"$@" ')
    assert done.returncode == 12
    assert "namespace" in done.stderr
    assert "hint:" in done.stderr
    assert not (tmp_path / "home").exists()


@pytest.mark.root
def test_a_full_disk_leaves_no_half_written_state(env, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    script = f"mount -t tmpfs -o size=1m none {home}"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", f"{script}\n{shlex.join(UP)} || echo exit=$?; find {home}/models -type f"],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "exit=1" in done.stdout, done.stderr
    assert done.stdout.split("exit=1")[1].split() == [], "a half-written container stayed"
    assert "free" in done.stderr
    assert "hint:" in done.stderr


@pytest.mark.root
def test_a_read_only_home_is_refused(env, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    done = in_namespace(env, f"mount -t tmpfs -o ro none {home}", "--mount")
    assert done.returncode == 1
    assert "Read-only file system" in done.stderr


def test_a_newer_home_is_refused(env, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "home.json").write_text('{"schema": 99, "id": "future"}')
    done = cli(env, "up", "--listen", "127.0.0.1:0", check=False)
    assert done.returncode == 2
    assert "upgrade casemate" in done.stderr
