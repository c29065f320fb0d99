"""New keys for a home: a fresh KEK, every container's data key wrapped by it, no chunk touched.

    1  new KEK made, keystore.json written with the old KEK wrapped under the new one      both open everything
    2  each container's slot area re-wrapped, one durable change each                      both open everything
    3  keystore.json written without the old KEK; the old line leaves the key file         only the new one

A crash before 1 changes nothing; after 1 `rotate` goes on where it stopped. It needs the device stopped: a running
vault holds the old KEK.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable

from casemate import keystores
from casemate.clock import SystemClock
from casemate.device import containers, models, store
from casemate.device.home import Home
from casemate.device.record import record
from casemate.errors import CasemateError, NotAuthorisedError, NotFoundError, UntrustedDataError, UsageError
from casemate.formats import container as fmt
from casemate.formats import event
from casemate.formats.container import SlotArea
from casemate.formats.keystore import KeyfileSlot, TpmSlot
from casemate.keystores import Sources, UnlockedKeystore
from casemate.keystores.keyfile import KeyfileKeystore
from casemate.keystores.passphrase import PassphraseKeystore
from casemate.keystores.tpm import TpmKeystore


@dataclasses.dataclass(frozen=True)
class Rotation:
    """What was done: the new main way in, how many containers were re-wrapped, and which were refused and why."""

    kind: str
    level: str
    rewrapped: int
    refused: dict[str, str]
    resumed: bool


def rotate(
    home: Home, sources: Sources, new_sources: Sources, *, to: str | None, show: Callable[[str], None]
) -> Rotation:
    """Make a new KEK, reached by *to* (tpm, passphrase or keyfile; None: the same way as now), from *new_sources*.

    Finishes an earlier rotation instead, when there is one. *show* gets the new recovery code, if there was an old one.

    Raises:
        BusyError: a device runs on this home, or another command changes its models.
        NotAuthorisedError: the keystore does not open, or the new passphrase is missing.

    """
    with home.lock(), containers.models_lock(home.models, exclusive=True), keystores.unlock(home, sources) as keystore:
        if keystore.previous is not None:
            return _finish(home, keystore, sources, resumed=True)
        way = _new_way(keystore, new_sources, to)
        with keystores.begin_rotation(keystore, way, show) as renewed:
            return _finish(home, renewed, sources, resumed=False)


def _new_way(
    keystore: UnlockedKeystore, sources: Sources, to: str | None
) -> PassphraseKeystore | KeyfileKeystore | TpmKeystore:
    kind = to or keystores.main_kind(keystore.document)
    if keystore.opened_by == "recovery" and to is None:
        raise UsageError("a keystore opened with its recovery code needs a new way in", hint="add --to passphrase")
    if kind == "keyfile":
        return sources.keyfile_keystore()
    if kind == "tpm":
        chip = sources.tpm_keystore()
        if not isinstance(chip, TpmKeystore):
            raise UsageError("no TPM is named", hint="set keystore.tpm, as in device:/dev/tpmrm0")
        slot = _tpm_slot(keystore)
        if slot:  # so that the next sealing's limit is above this one's
            chip.retire_older(slot)
        return chip
    way = sources.passphrase_keystore(new=to is not None)
    if way is None:
        raise NotAuthorisedError(
            "no new passphrase was given", hint="run it on a terminal, or give --new-passphrase-file"
        )
    return way


def _tpm_slot(keystore: UnlockedKeystore) -> TpmSlot | None:
    return next((slot for slot in keystore.document.slots if isinstance(slot, TpmSlot)), None)


def _finish(home: Home, keystore: UnlockedKeystore, sources: Sources, *, resumed: bool) -> Rotation:
    done, refused = _rewrap_all(home, keystore)
    keystores.finish_rotation(keystore)
    _forget_old_keys(keystore, sources)
    record(home, event.key_rotated(key=keystore.key_id, now=SystemClock().wall()))
    return Rotation(keystores.main_kind(keystore.document), keystore.assurance.level, done, refused, resumed)


def _forget_old_keys(keystore: UnlockedKeystore, sources: Sources) -> None:
    """Take old keys out of the key file and the TPM. They open nothing any more: that it fails is no failure."""
    with contextlib.suppress(CasemateError):
        chip = sources.tpm_keystore()
        if isinstance(chip, TpmKeystore):
            slot = _tpm_slot(keystore)
            if slot:
                chip.retire_older(slot)
            else:
                chip.retire_all()
    current = [slot for slot in keystore.document.slots if isinstance(slot, KeyfileSlot)]
    with contextlib.suppress(CasemateError, OSError):
        sources.keyfile_keystore().keep_only(current[0] if current else None)


def _rewrap_all(home: Home, keystore: UnlockedKeystore) -> tuple[int, dict[str, str]]:
    done, refused = 0, {}
    for info in models.list_models(home):
        if info.gate:  # no key of this home opens it, old or new
            continue
        try:
            done += _rewrap(home, keystore, info.name)
        except UntrustedDataError as error:
            refused[info.name] = error.check
        except NotFoundError:
            continue  # removed meanwhile
    return done, refused


def _rewrap(home: Home, keystore: UnlockedKeystore, name: str) -> int:
    """Wrap one container's data key with the new KEK; 1 when that was needed. What is not proven is not blessed."""
    with store.opened_model(home, keystore, name, locked=True) as (opened, verified):
        if any(isinstance(slot, fmt.HomeSlot) and slot.key == keystore.key_id for slot in verified.slots):
            return 0
        with containers.unwrap_for_home(opened.container, keystore) as data_key:
            slot = containers.home_slot(verified.header, data_key, keystore)
            area = SlotArea(slots=(slot,), labels=verified.labels)
            containers.replace_area(opened.path, verified.header, area, data_key)
    return 1
