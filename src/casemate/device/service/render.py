"""From the table to files: unit files, sysusers.d and tmpfiles.d. Pure: the same place gives the same bytes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Final

from casemate.device.service.table import ENGINE_ROOT, TPM_GROUP, UNITS, USERS, Rows, Unit, Value
from casemate.errors import UsageError

UNIT_DIRECTORY: Final = "/etc/systemd/system"
SYSUSERS_FILE: Final = "/etc/sysusers.d/casemate.conf"
TMPFILES_FILE: Final = "/etc/tmpfiles.d/casemate.conf"
WANTS_LINK: Final = f"{UNIT_DIRECTORY}/multi-user.target.wants/casemate.target"
FENCE_LINK: Final = f"{UNIT_DIRECTORY}/sysinit.target.wants/casemate-fence.service"
_PLAIN_PATH: Final = re.compile(r"/[A-Za-z0-9._+@/-]*\Z")
_HOME_PARTS: Final = (
    # part, mode, user, group
    ("", "0755", "root", "root"),
    ("/keystore", "0700", "casemate-vault", "casemate-vault"),
    ("/models", "0700", "casemate-vault", "casemate-vault"),
    ("/apps", "0750", "root", "casemate-gateway"),
    ("/journal", "0700", "casemate-journal", "casemate-journal"),
    ("/update", "0700", "casemate-update", "casemate-update"),
    ("/fleet", "0700", "casemate-agent", "casemate-agent"),
    ("/link", "0700", "casemate-link", "casemate-link"),
    ("/attester", "0700", "casemate-attester", "casemate-attester"),
    ("/run", "0711", "casemate-agent", "casemate-agent"),
    ("/run/link", "0711", "casemate-agent", "casemate-agent"),
)
_SYSTEM_PLACES: Final = (("/etc/casemate", "0755"), ("/etc/casemate/keys", "0700"), (ENGINE_ROOT, "0755"))


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the product lives on the machine that will run it: absolute paths there, not under an image's root.

    *interpreter* are the directories outside /usr that hold Python and the packages. *loopback*: the API listens on
    loopback only, so the agent needs no other address.
    """

    python: str
    interpreter: tuple[str, ...] = ()
    home: str = "/var/lib/casemate"
    loopback: bool = True

    def check(self) -> None:
        """Refuse paths that would mean something else inside a unit file.

        Raises:
            UsageError: a path has a space, a quote, a `%`, or is not absolute.

        """
        for path in (self.python, self.home, *self.interpreter):
            if not _PLAIN_PATH.match(path):
                raise UsageError(
                    f"{path!r} cannot stand in a unit file", hint="install below a plain path such as /opt/casemate"
                )


def files(place: Place) -> dict[str, str]:
    """Return the text of every file of an installation by absolute path.

    Raises:
        UsageError: as `Place.check`.

    """
    place.check()
    made = {f"{UNIT_DIRECTORY}/{unit.name}": unit_file(unit, place) for unit in UNITS}
    return {**made, SYSUSERS_FILE: _sysusers(place), TMPFILES_FILE: _tmpfiles(place)}


def unit_file(unit: Unit, place: Place) -> str:
    """Return one unit file."""
    sections: list[tuple[str, Rows]] = [("Unit", {"Description": unit.description, **unit.unit})]
    if unit.service is not None:
        sections.append(("Service", unit.service))
    if unit.timer is not None:
        sections.append(("Timer", unit.timer))
    if unit.path is not None:
        sections.append(("Path", unit.path))
    if unit.install:
        sections.append(("Install", unit.install))
    body = "\n".join(f"[{name}]\n" + "".join(_lines(rows, place)) for name, rows in sections)
    return f"# Made by `casemate service install`; change it with a drop-in, not here.\n{body}"


def _lines(rows: Rows, place: Place) -> Iterator[str]:
    for key, value in rows.items():
        for text in _filled(value, place):
            yield f"{key}={text}\n"


def _filled(value: Value, place: Place) -> Iterator[str]:
    for text in (value,) if isinstance(value, str) else value:
        if text == "{interpreter}":
            yield from place.interpreter
        else:
            yield text.format(
                python=place.python,
                home=place.home,
                deny="any" if place.loopback else "",
                allow="localhost" if place.loopback else "",
            )


def _sysusers(place: Place) -> str:
    rows = [f'u casemate-{role} - "Casemate {role}" {place.home} -\n' for role in USERS]
    rows += [f"g {TPM_GROUP} -\n", f"m casemate-attester {TPM_GROUP}\n"]
    return "# Made by `casemate service install`.\n" + "".join(rows)


def _tmpfiles(place: Place) -> str:
    rows = [f"d {path} {mode} root root -\n" for path, mode in _SYSTEM_PLACES]
    rows += [f"d {place.home}{part} {mode} {user} {group} -\n" for part, mode, user, group in _HOME_PARTS]
    return "# Made by `casemate service install`.\n" + "".join(rows)
