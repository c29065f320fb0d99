"""Every unit as data: who it runs as, what it may see, what it may do.

`COMMON` is what no unit needs; a unit's own rows replace common ones of the same key. `{python}`, `{home}` and
`{interpreter}` are filled in when the files are made. Scores (`systemd-analyze security`, lower is tighter) are tested
against `Unit.ceiling`. Why each opening is there stands beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final

Value = str | tuple[str, ...]
Rows = Mapping[str, Value]

USERS: Final = ("agent", "vault", "engine", "gateway", "journal", "update", "link", "attester")
"""Roles that are a system user `casemate-<role>` of their own."""

ENGINE_ROOT: Final = "/var/lib/casemate-engine"
"""An empty directory: the engine's `/`, filled with what its unit binds there."""

TPM: Final = "/dev/tpmrm0"
"""The kernel's resource manager: several programs may take turns."""

TPM_GROUP: Final = "tss"

OWN_FENCES: Final = "seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self"
"""What the engine confines itself with; the group @sandbox is younger than systemd 252."""

COMMON: Final[Rows] = {
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "AmbientCapabilities": "",
    "SecureBits": "noroot-locked",
    "UMask": "0077",
    "KeyringMode": "private",
    "LimitCORE": "0",
    "Delegate": "no",
    # what it can see
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "PrivateMounts": "yes",
    "ProtectProc": "invisible",
    "ProcSubset": "pid",
    "PrivateUsers": "yes",
    "PrivateIPC": "yes",
    "RemoveIPC": "yes",
    "PrivateNetwork": "yes",
    "IPAddressDeny": "any",
    "DevicePolicy": "closed",
    "InaccessiblePaths": ("-/boot", "-/etc/ssh", "-/etc/casemate/keys"),
    # what it can change
    "ProtectClock": "yes",
    "ProtectHostname": "yes",
    "ProtectKernelLogs": "yes",
    "ProtectKernelModules": "yes",
    "ProtectKernelTunables": "yes",
    "ProtectControlGroups": "yes",
    "LockPersonality": "yes",
    "MemoryDenyWriteExecute": "yes",
    "RestrictRealtime": "yes",
    "RestrictSUIDSGID": "yes",
    "RestrictNamespaces": "yes",
    "RestrictAddressFamilies": "AF_UNIX",
    "SystemCallArchitectures": "native",
    "SystemCallFilter": ("@system-service", "~@privileged @resources"),
    "SystemCallErrorNumber": "EPERM",
    # how it runs
    "Environment": ("CASEMATE_HOME={home}", "PYTHONUNBUFFERED=1"),
    "TemporaryFileSystem": "{home}:ro,mode=0755",
    "BindReadOnlyPaths": ("{home}/home.json", "{home}/run/link"),
}

LINKED: Final[Rows] = {
    "Type": "exec",
    "Restart": "always",
    "RestartSec": "500ms",
    # The agent ends its processes in order, over their links; SIGCONT leaves them running until it has, and sends
    # home those that only wait for it.
    "KillSignal": "SIGCONT",
    "TimeoutStopSec": "10s",
}
"""Units that join the agent over its link socket and live as long as it wants them."""


@dataclasses.dataclass(frozen=True)
class Unit:
    """One unit file. *ceiling* is the worst `systemd-analyze security` score it may have; None: not a service."""

    name: str
    description: str
    unit: Rows = dataclasses.field(default_factory=dict)
    service: Rows | None = None
    timer: Rows | None = None
    install: Rows = dataclasses.field(default_factory=dict)
    path: Rows | None = None
    ceiling: float | None = None


def _linked(role: str, description: str, own: Rows, *, ceiling: float = 1.5, unit: Rows | None = None) -> Unit:
    template = role == "engine"
    return Unit(
        name=f"casemate-{role}{'@' if template else ''}.service",
        description=description,
        unit={
            "After": "casemate-setup.service",
            "PartOf": "casemate.target",  # not of the agent: when it restarts, its leashes end what it had
            "StartLimitIntervalSec": "0",  # the agent decides how often: a process it does not want only waits
            **(unit or {}),
        },
        service={
            **COMMON,
            **LINKED,
            "User": f"casemate-{role}",
            "ExecStart": f"{{python}} -P -m casemate.device.attach {role}{' %i' if template else ''}",
            **own,
        },
        ceiling=ceiling,
    )


SETUP: Final = Unit(
    name="casemate-setup.service",
    description="Casemate: prepare the home",
    unit={"After": "local-fs.target systemd-tmpfiles-setup.service", "PartOf": "casemate.target"},
    service={
        **COMMON,
        "Type": "oneshot",  # not RemainAfterExit: every start of the target asks it what to serve
        "ExecStart": "{python} -P -m casemate.device.service setup",
        # Root: it hands each part of the home to the uid that owns it, and writes there with that uid's rights.
        # Short-lived, parses nothing from outside.
        "CapabilityBoundingSet": "CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_SETUID CAP_SETGID",
        "SecureBits": "",
        "PrivateUsers": "no",
        "SystemCallFilter": ("@system-service", "~@privileged @resources", "@chown @setuid"),
        "LoadCredential": "casemate-passphrase",
        "TemporaryFileSystem": (),
        "BindReadOnlyPaths": (),
        "InaccessiblePaths": ("-/boot", "-/etc/ssh"),
        "ReadWritePaths": ("{home}", "/etc/casemate/keys"),
        # Where a TPM counts updates its counter is asked before a generation is chosen, which is before the attester
        # runs. Bound into the private /dev, where nothing else of the machine is.
        "DeviceAllow": f"{TPM} rw",
        "BindPaths": f"-{TPM}",
    },
    ceiling=1.5,
)

AGENT: Final = Unit(
    name="casemate-agent.service",
    description="Casemate: the device's supervisor",
    unit={
        "Requires": "casemate-setup.service",
        "After": "casemate-setup.service network-online.target",
        "Wants": "network-online.target",
        "PartOf": "casemate.target",
        "StartLimitIntervalSec": "300",
        "StartLimitBurst": "5",
    },
    service={
        **COMMON,
        "Type": "notify",
        "User": "casemate-agent",
        "ExecStart": "{python} -P -m casemate.device.service agent",
        "Restart": "on-failure",
        "RestartPreventExitStatus": "2 4 5 10 11 12",  # settings, secrets, damage, the host: for a person
        "RestartSec": "2s",
        "TimeoutStopSec": "10s",
        "PrivateUsers": "no",  # inside a user namespace every peer on the link socket would look like nobody
        # It binds the API's address; the gateway gets the socket and has no network of its own.
        "PrivateNetwork": "no",
        "RestrictAddressFamilies": "AF_UNIX AF_INET AF_INET6",
        "IPAddressDeny": "{deny}",
        "IPAddressAllow": "{allow}",
        "BindReadOnlyPaths": "{home}/home.json",
        "BindPaths": ("{home}/run", "{home}/fleet"),
    },
    ceiling=1.5,
)

JOURNAL: Final = _linked(
    "journal",
    "Casemate: the tamper-evident log",
    {"BindPaths": "{home}/journal"},
)

VAULT: Final = _linked(
    "vault",
    "Casemate: keys and encrypted models",
    {
        "BindReadOnlyPaths": ("{home}/home.json", "{home}/run/link"),
        "BindPaths": ("{home}/keystore", "{home}/models"),  # updates make containers, a fleet's wipe destroys keys
        "LimitMEMLOCK": "infinity",  # keys stay out of swap
        "ProcSubset": "all",  # /proc/meminfo: is there room for the model
        "MemorySwapMax": "0",
        "LoadCredential": ("casemate-passphrase", "casemate-keys:/etc/casemate/keys"),
    },
)

GATEWAY: Final = _linked(
    "gateway",
    "Casemate: the API, app keys and the guard",
    {"BindReadOnlyPaths": ("{home}/home.json", "{home}/run/link", "{home}/apps")},
)

ENGINE: Final = _linked(
    "engine",
    "Casemate: the engine of model %i",
    {
        # The unit is the namespace layer here: nothing of the host but /usr and the interpreter, no network, no
        # device, no writable place but 64 KiB. `attach` adds a pid namespace, which systemd 252 cannot make; the
        # engine itself adds Landlock and both seccomp filters, as everywhere.
        "RestrictNamespaces": "user pid",
        "RootDirectory": ENGINE_ROOT,
        "MountAPIVFS": "yes",
        "TemporaryFileSystem": "/tmp:size=64k,mode=1777",  # noqa: S108 - its own tmpfs
        "PrivateTmp": "no",
        "BindReadOnlyPaths": ("/usr", "/lib", "-/lib64", "-/etc/ld.so.cache", "{interpreter}", "{home}/run/link"),
        "InaccessiblePaths": (),
        "SystemCallFilter": ("@system-service", "~@privileged @resources", OWN_FENCES, "sched_setaffinity"),
        "MemorySwapMax": "0",
        "LimitMEMLOCK": "infinity",
        "TasksMax": "256",
        "OOMScoreAdjust": "500",
        "StandardOutput": "null",  # what an engine prints may hold a prompt; it lets go of standard error itself
    },
    ceiling=1.0,
)

UPDATE: Final = Unit(
    name="casemate-update.service",
    description="Casemate: take updates",
    unit={"After": "casemate-agent.service network-online.target", "PartOf": "casemate.target"},
    service={
        **COMMON,
        "Type": "oneshot",
        "User": "casemate-update",
        "ExecStart": "{python} -P -m casemate.device.service update",
        "Nice": "10",  # answers come first
        "TimeoutStartSec": "infinity",  # a large model over a thin line; the transport bounds every request
        # The only unit that reaches other machines. It has no key, no model and no prompt: what it brings is sealed.
        "PrivateNetwork": "no",
        "RestrictAddressFamilies": "AF_UNIX AF_INET AF_INET6",
        "IPAddressDeny": "",
        "BindPaths": "{home}/update",
    },
    ceiling=1.5,
)

UPDATE_TIMER: Final = Unit(
    name="casemate-update.timer",
    description="Casemate: look for updates",
    unit={"PartOf": "casemate.target"},
    timer={
        "OnActiveSec": "30s",  # a trial that this start is wants to be judged
        "OnCalendar": "hourly",
        "RandomizedDelaySec": "1h",
        "FixedRandomDelay": "yes",  # each device has its minute
        "Persistent": "yes",
    },
)

LINK: Final = _linked(
    "link",
    "Casemate: the device's link to its fleet",
    {
        # The only unit with a network of its own choosing: where the fleet is, enrolment said. It has no other file.
        "PrivateNetwork": "no",
        "RestrictAddressFamilies": "AF_UNIX AF_INET AF_INET6",
        "IPAddressDeny": "",
        "BindPaths": "{home}/link",
    },
)

ATTESTER: Final = _linked(
    "attester",
    "Casemate: the TPM",
    {
        # The one TPM node and no other; sysusers puts its user into the node's group. Beside it only setup reaches it.
        "PrivateDevices": "no",
        "DeviceAllow": f"{TPM} rw",
        "PrivateUsers": "no",  # inside a user namespace that group would mean nobody
        "BindPaths": "{home}/attester",
        "LimitMEMLOCK": "infinity",  # keys stay out of swap
        "MemorySwapMax": "0",
    },
    unit={"ConditionPathExists": TPM},
)

FENCE: Final = Unit(
    name="casemate-fence.service",
    description="Casemate: the network of a device in quarantine",
    unit={
        # Like a firewall: in force before there is a network, at every boot.
        "DefaultDependencies": "no",
        "After": "local-fs.target systemd-sysusers.service",
        "Before": "network-pre.target shutdown.target",
        "Wants": "network-pre.target",
        "Conflicts": "shutdown.target",
    },
    service={
        **COMMON,
        "Type": "oneshot",
        "User": "casemate-agent",  # whose file says what is wanted; the capability is this process's alone
        "ExecStart": "{python} -P -m casemate.device.service fence",
        "CapabilityBoundingSet": "CAP_NET_ADMIN",
        "AmbientCapabilities": "CAP_NET_ADMIN",
        "PrivateUsers": "no",
        "PrivateNetwork": "no",
        "RestrictAddressFamilies": "AF_NETLINK",
        "RuntimeDirectory": "casemate-fence",
        "RuntimeDirectoryPreserve": "yes",
        "BindReadOnlyPaths": ("{home}/home.json", "{home}/fleet"),
    },
    ceiling=1.5,
)

FENCE_PATH: Final = Unit(
    name="casemate-fence.path",
    description="Casemate: a fleet changed the quarantine",
    unit={"PartOf": "casemate.target"},
    path={"PathChanged": "{home}/fleet/fence.json"},
)

TARGET: Final = Unit(
    name="casemate.target",
    description="Casemate: a language model, kept safe",
    unit={
        "Wants": " ".join(
            unit.name for unit in (SETUP, AGENT, JOURNAL, VAULT, GATEWAY, LINK, ATTESTER, UPDATE_TIMER, FENCE_PATH)
        ),
        "After": "casemate-agent.service",
    },
    install={"WantedBy": "multi-user.target"},
)

UNITS: Final = (
    TARGET,
    SETUP,
    AGENT,
    JOURNAL,
    VAULT,
    GATEWAY,
    LINK,
    ATTESTER,
    ENGINE,
    UPDATE,
    UPDATE_TIMER,
    FENCE,
    FENCE_PATH,
)
