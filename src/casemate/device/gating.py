"""Making a gated container: the running device's vault wraps its data key, under a key that only fleet and vault see.

The command that adds a model makes the data key and encrypts; it does not get the fleet's key. It hands the data key
over in a memory file and gets back the finished slot, so no container is ever there that something else opens.
"""

from __future__ import annotations

import os
from typing import Final

import msgspec

from casemate.crypto.secret import Secret
from casemate.device import admin
from casemate.device.channel import Channel, ChannelClosed
from casemate.device.home import Home
from casemate.errors import HostError, NotFoundError, OperationError, UntrustedDataError
from casemate.formats import ipc
from casemate.formats.container import BrokerSlot, Header, Slot
from casemate.formats.decoding import MALFORMED

_WITHIN: Final = 120.0
"""Seconds: the device proves itself to the fleet first, and a TPM is slow."""


class Gate:
    """Wraps data keys for a broker that asks for *min_assurance*; see `models.WrapForGate`."""

    def __init__(self, home: Home, min_assurance: str) -> None:
        """Ask the device that runs on *home*."""
        self._home = home
        self._min_assurance = min_assurance

    def require_running(self) -> None:
        """Refuse early: a model is encrypted for minutes.

        Raises:
            HostError: no device runs.

        """
        try:
            admin.connect(self._home.run).close()
        except NotFoundError:
            raise HostError(
                "a gated model is added by the running device: it proves itself to the fleet for the key",
                hint="start it (`casemate up`), then try again",
            ) from None

    def __call__(self, name: str, header: Header, data_key: Secret) -> Slot:
        """Return the container's only slot.

        Raises:
            CasemateError: the fleet gives no key, or something on the way failed.

        """
        memory = os.memfd_create("data-key", os.MFD_CLOEXEC)
        channel = Channel(admin.connect(self._home.run), ipc.FromAgent)
        try:
            os.pwrite(memory, data_key.view(), 0)
            channel.send(ipc.WrapKey(1, name, header.raw, self._min_assurance), [memory])
            reply, _ = channel.recv(_WITHIN)
        except (ChannelClosed, TimeoutError) as error:
            raise OperationError("the device did not answer", hint="see `casemate status`") from error
        finally:
            channel.close()
            os.close(memory)
        if isinstance(reply, ipc.KeyWrapped):
            try:
                return msgspec.json.decode(reply.slot, type=BrokerSlot)
            except MALFORMED as error:
                raise UntrustedDataError("the vault's slot does not parse", check="container-slots") from error
        if isinstance(reply, ipc.ReleaseRefused):
            raise admin.rebuilt(msgspec.structs.asdict(reply))
        raise admin.rebuilt(reply.data)
