"""Settings: one row each, parsed once, from TOML files, the environment and flags; unknown keys are errors.

Order, later wins: built-in default, /etc/casemate/casemate.toml, the user's casemate.toml, `CASEMATE_*`, flags.
Loading has no side effects. `Settings.origin` says where each value came from (`casemate config show --origin`).
"""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from casemate.errors import ConfigError

SYSTEM_FILE: Final = Path("/etc/casemate/casemate.toml")
_WINDOW: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-3]|24):([0-5][0-9])\Z")
_WINDOW_LIMIT: Final = 8
_DAY_MINUTES: Final = 24 * 60


@dataclasses.dataclass(frozen=True)
class Setting:
    """One row: the TOML key (dots are tables), how its text is parsed, its default and what it does."""

    key: str
    parse: Callable[[Any], Any]
    default: Any
    help: str

    @property
    def variable(self) -> str:
        """Return the environment variable of this row."""
        return "CASEMATE_" + self.key.upper().replace(".", "_")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("must be text")
    return value


def _whole(low: int, high: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise TypeError("must be a whole number")
        if isinstance(value, str) and not value.strip().isdecimal():
            raise ValueError("must be a whole number")
        number = int(value)
        if not low <= number <= high:
            raise ValueError(f"must be from {low} to {high}")
        return number

    return parse


def _at_least(least: int, most: int) -> Callable[[Any], int]:
    whole = _whole(0, most)

    def parse(value: Any) -> int:
        number = whole(value)
        if 0 < number < least:
            raise ValueError(f"must be 0, or from {least} to {most}")
        return number

    return parse


def _names(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise TypeError("must be a list of texts")


def _address(value: Any) -> str:
    text = _text(value)
    parse_address(text)
    return text


def parse_address(text: str) -> tuple[str, int]:
    """Split HOST:PORT ([v6]:PORT too); port 0 asks the kernel for a free one.

    Raises:
        ValueError: not of that form.

    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:  # noqa: PLR2004 - the largest port
        raise ValueError("must be HOST:PORT, as in 127.0.0.1:8080")
    return host, int(port)


def _switch(value: Any) -> bool:
    named = {"true": True, "false": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value in named:
        return named[value]
    raise TypeError("must be true or false")


def _hours(value: Any) -> str:
    text = _text(value)
    parse_hours(text)
    return text


def parse_hours(text: str) -> tuple[tuple[int, int], ...]:
    """Read allowed hours: `22:00-06:00`, or several with commas; an empty text allows every hour.

    Returns pairs of minutes of the day, each with its begin before its end.

    Raises:
        ValueError: not of that form.

    """
    windows: list[tuple[int, int]] = []
    for part in text.split(",") if text.strip() else []:
        match = _WINDOW.match(part.strip())
        if match is None:
            raise ValueError("must be like 22:00-06:00, or several with commas")
        begin, end = int(match[1]) * 60 + int(match[2]), int(match[3]) * 60 + int(match[4])
        if end > _DAY_MINUTES or begin == end:
            raise ValueError("must be like 22:00-06:00, or several with commas")
        windows += [(begin, end)] if begin < end else [(begin, _DAY_MINUTES), (0, end)]
    windows = [window for window in windows if window[0] < window[1]]
    if len(windows) > _WINDOW_LIMIT:
        raise ValueError(f"may name at most {_WINDOW_LIMIT} spans of hours")
    return tuple(sorted(windows))


SETTINGS: Final = (
    Setting("listen", _address, "127.0.0.1:8080", "where the API listens; off loopback needs tls.*"),
    Setting("metrics_listen", _address, "127.0.0.1:0", "where /metrics listens (loopback only)"),
    Setting("models", _names, (), "models to serve; empty: the demo model, or every model added"),
    Setting("hosts", _names, (), "further names clients may use in the Host header"),
    Setting("tls.certificate", _text, "", "PEM file of the server's certificate chain"),
    Setting("tls.key", _text, "", "PEM file of its private key"),
    Setting("keystore.tpm", _text, "", "the TPM that opens a new keystore, as in device:/dev/tpmrm0; empty: none"),
    Setting("engine.slots", _whole(1, 16), 2, "requests an engine works on at the same time"),
    Setting("engine.queue", _whole(0, 256), 8, "requests that may wait for a slot before 429"),
    Setting("engine.context", _whole(0, 1 << 20), 0, "tokens of context per slot; 0: 2048"),
    Setting("engine.threads", _whole(0, 64), 0, "engine threads; 0: calibrate, never more than cores-1"),
    Setting("engine.deadline", _whole(1, 3600), 120, "seconds one request may take"),
    Setting("engine.load_deadline", _whole(1, 3600), 300, "seconds a model may take to load"),
    Setting("telemetry.usage", _switch, False, "usage reports to the fleet, with noise; see `casemate usage show`"),
    Setting("update.rate", _whole(0, 1 << 20), 0, "KiB a second that updates may use; 0: as fast as it goes"),
    Setting("update.daily", _at_least(8, 1 << 24), 0, "MiB a day that updates may use; 0: no limit, else at least 8"),
    Setting("update.hours", _hours, "", "when updates may be fetched, local time, as in 22:00-06:00; empty: always"),
    Setting("update.soak", _whole(0, 30 * 86_400), 86_400, "seconds a new generation must be good before floors rise"),
    Setting("update.proxy", _text, "", "HTTP proxy for updates, as in http://proxy:3128; empty: none"),
    Setting("update.allow_http", _switch, False, "updates over plain http, also off loopback"),
)
_ROWS: Final = {row.key: row for row in SETTINGS}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Checked values by key, and the origin of each."""

    values: Mapping[str, Any]
    origin: Mapping[str, str]

    def __getitem__(self, key: str) -> Any:
        """Return the value of *key* (a row of `SETTINGS`)."""
        return self.values[key]


def home_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the home: $CASEMATE_HOME, else /var/lib/casemate for root, else ~/.local/share/casemate."""
    if environ.get("CASEMATE_HOME"):
        return Path(environ["CASEMATE_HOME"]).expanduser().absolute()
    return Path("/var/lib/casemate") if os.geteuid() == 0 else Path.home() / ".local/share/casemate"


def user_file(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the user's settings file: $CASEMATE_CONFIG, else $XDG_CONFIG_HOME/casemate/casemate.toml."""
    if environ.get("CASEMATE_CONFIG"):
        return Path(environ["CASEMATE_CONFIG"])
    base = environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "casemate" / "casemate.toml"


def load(flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read every layer once.

    Raises:
        ConfigError: an unknown key, a wrong value or broken TOML; the message names the file and the key.

    """
    values = {row.key: row.default for row in SETTINGS}
    origin = dict.fromkeys(values, "default")
    layers: list[tuple[str, Mapping[str, Any]]] = [
        (str(path), _read(path)) for path in (SYSTEM_FILE, user_file(environ)) if path.exists()
    ]
    layers.append(("environment", {row.key: environ[row.variable] for row in SETTINGS if row.variable in environ}))
    layers.append(("flag", {key: value for key, value in (flags or {}).items() if value is not None}))
    for name, layer in layers:
        for key, value in layer.items():
            values[key] = _check(key, value, name)
            origin[key] = name
    return Settings(values, origin)


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(_flatten(tomllib.loads(path.read_text(encoding="utf-8"))))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _flatten(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in table.items():
        rows += _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return rows


def _check(key: str, value: Any, where: str) -> Any:
    row = _ROWS.get(key)
    if row is None:
        raise ConfigError(f"{where}: unknown setting {key!r}", hint=f"known settings: {', '.join(_ROWS)}")
    try:
        return row.parse(value)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{_place(row, where)} {error}", hint=f"it is: {row.help}") from error


def _place(row: Setting, where: str) -> str:
    """Name the setting as whoever set it wrote it."""
    typed = {"flag": f"--{row.key}", "environment": row.variable}
    return typed.get(where, f"{where}: {row.key}")
