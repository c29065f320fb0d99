"""Floors held by a TPM: a counter that rises with each good update, so that an older copy of the floors is refused.

    commit      floors written, then the counter raised to what they say (by the attester, while the device runs)
    start       counter above what they say: an older state was put back, refused;  below: caught up, a cut came between
    first use   no base yet and no counter in the TPM: the counter is made and becomes the base
    no TPM      refused when the floors have a base: the setting was taken out, or the TPM

A TPM keeps one such counter. Whoever deletes it and makes it again finds it higher than any it ever had, so that blocks
and never rewinds. Only commits count: NV memory wears.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from casemate.device.ownership import rights_of_owner
from casemate.device.update.floors import FileFloorStore, Floors
from casemate.errors import HostError, NotFoundError, UntrustedDataError
from casemate.keystores import tss

COUNTER: Final = tss.COUNTER + 1
MOST_AHEAD: Final = 16
"""Commits that a TPM can be behind: each start catches up."""
_ANEW: Final = "give first trust again with `casemate update trust ROOT.json --url U --forget-floors`"
_WAY_OUT: Final = f"an older state was put back: find out who; then {_ANEW}"


def require_held(floors: Floors, shown: int | None) -> int:
    """Return how often the counter, which shows *shown* (None: there is none), has to be raised for *floors*.

    Raises:
        UntrustedDataError: `floors-old`: it has counted more commits than *floors* know of, or was taken away.

    """
    wanted = floors.counter
    if wanted is None and shown is None:
        return 0
    if wanted is None or shown is None or not 0 <= wanted - shown <= MOST_AHEAD:
        raise UntrustedDataError("the TPM knows of updates that these floors do not", check="floors-old", hint=_WAY_OUT)
    return wanted - shown


def hold(directory: Path, tcti: str) -> None:
    """Hold the floors in *directory* against the counter of the TPM at *tcti*: before a start serves any generation.

    Nothing happens on a device without floors, or whose floors no TPM ever counted and none is named. That one did is
    written in the floors, under their MAC: a setting that is taken out does not make them a file's word again.

    Raises:
        UntrustedDataError: `floors-old`, `floors-uncounted`, or as `FloorStore.read`.
        HostError: no TPM answers.

    """
    floors = FileFloorStore(directory)
    if not floors.exists:
        return
    if not tcti:
        with rights_of_owner(directory):
            _require_never_counted(floors.read())
        return
    with _needed(tcti) as chip:
        shown = _shown(chip)
        with rights_of_owner(directory):
            known = floors.read()
        if known.base is None and shown is None:
            chip.define_counter(COUNTER)
            base = chip.counter(COUNTER)
            with rights_of_owner(directory):
                floors.rebase(base)
            return
        reach(chip, (shown or 0) + require_held(known, shown))


def _require_never_counted(floors: Floors) -> None:
    if floors.counter is not None:
        raise UntrustedDataError(
            "a TPM counts this device's updates, and the settings name none",
            check="floors-uncounted",
            hint=f"set keystore.tpm as it was; if that TPM is gone for good: {_ANEW}",
        )


def begin_anew(directory: Path, tcti: str) -> None:
    """Take the counter as it is for the base of new floors: a person gave first trust again.

    Raises:
        HostError: no TPM answers.

    """
    floors = FileFloorStore(directory)
    if not tcti or not floors.exists:
        return
    with tss.open_tpm(tcti) as chip:
        chip.define_counter(COUNTER)
        base = chip.counter(COUNTER)
    with rights_of_owner(directory):
        floors.rebase(base)


def reach(chip: tss.Tpm, number: int) -> int:
    """Raise the counter to *number*, by `MOST_AHEAD` at most; returns what it shows then.

    Raises:
        NotFoundError: there is none.

    """
    shown = chip.counter(COUNTER)
    for _ in range(min(number - shown, MOST_AHEAD)):
        chip.increment(COUNTER)
    return chip.counter(COUNTER)


@contextlib.contextmanager
def _needed(tcti: str) -> Iterator[tss.Tpm]:
    try:
        with tss.open_tpm(tcti) as chip:
            yield chip
    except HostError as error:
        why = f"{error.message}; it counts this device's updates, and nothing starts without it"
        raise HostError(why, hint=error.hint) from error


def _shown(chip: tss.Tpm) -> int | None:
    try:
        return chip.counter(COUNTER)
    except NotFoundError:
        return None
