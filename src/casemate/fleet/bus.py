"""NATS between many servers and one database: a buffer for check-ins (JetStream), and word that something changed.

Both are spare ways. A batch that the stream did not acknowledge goes into the database directly, under the same name,
and whichever of the two comes second is not counted. A nudge that got lost is made up for by reading (`changes`). So a
fleet whose NATS is gone goes on as one that has none; what the stream had acknowledged lies on NATS's disk and is
written when it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any, Final
from urllib.parse import urlsplit

import nats
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import APIError

from casemate.errors import ConfigError, OperationError, UntrustedDataError
from casemate.fleet.ingest import DatabaseSink
from casemate.fleet.metrics import Metrics
from casemate.fleet.shared_clock import FleetClock
from casemate.formats.ingest import MAX_BATCH, ROWS, Batch, HealthRow, SeenRow, open_batch, seal

STREAM_BYTES: Final = 1 << 30
"""What waits at most. NATS sets it aside when the stream is made; a full stream refuses, and batches go directly."""
_NO_ROOM: Final = 10047
"""JetStream's error for a stream that does not fit (`JSStorageResourcesExceededErr` in its server/errors.json)."""
_ACKNOWLEDGED_WITHIN: Final = 2.0
_CONNECT_SECONDS: Final = 2.0
_BACK_OFF: Final = 1.0
_FETCH: Final = 16
_FETCH_SECONDS: Final = 1.0
_REDELIVER_SECONDS: Final = 30.0
_SAME_SECONDS: Final = 120.0
_SCHEMES: Final = frozenset({"nats", "tls"})
_log = logging.getLogger("casemate.fleet")


def check_url(text: str) -> str:
    """Return *text* when it is the address of a NATS server.

    Raises:
        ConfigError: it is not.

    """
    place = urlsplit(text)
    if place.scheme not in _SCHEMES or not place.hostname:
        raise ConfigError("a bus is nats://[user:password@]HOST[:PORT]", hint="tls:// where the way to it is not yours")
    return text


class Bus:
    """One server's connection to NATS."""

    def __init__(
        self, url: str, *, fleet: str, key: bytes, sink: DatabaseSink, clock: FleetClock, metrics: Metrics
    ) -> None:
        """Speak for *fleet* at *url*, sealing with *key*; what arrives goes into *sink*."""
        self._url = check_url(url)
        self._key = key
        self._sink = sink
        self._clock = clock
        self._metrics = metrics
        self._batches = f"casemate.{fleet}.batches"
        self._changes = f"casemate.{fleet}.changes"
        self._stream = f"casemate-{fleet}"
        self._client: Client | None = None
        self._ready = asyncio.Event()

    @property
    def connected(self) -> bool:
        """Whether NATS answers."""
        return self._client is not None and self._client.is_connected

    # -- check-ins

    async def take(self, seen: list[SeenRow], health: list[HealthRow]) -> None:
        """Keep what devices said: in the stream, or, where that does not acknowledge, in the database (see `Sink`)."""
        for start in range(0, max(len(seen), len(health)), ROWS):
            rows = slice(start, start + ROWS)
            await self._take(Batch(uuid.uuid4().hex, seen[rows], health[rows]))

    async def _take(self, batch: Batch) -> None:
        if await self._published(batch):
            self._metrics.batches.labels("stream").inc()
        else:
            await self._sink.take_once(batch, self._clock.wall())
            self._metrics.batches.labels("direct").inc()

    async def _published(self, batch: Batch) -> bool:
        if not self.connected or not self._ready.is_set():
            return False
        assert self._client is not None
        sealed = seal(batch, self._key)
        if len(sealed) > MAX_BATCH:  # NATS might acknowledge it, and whoever fetches it would throw it away
            return False
        try:
            await self._client.jetstream().publish(
                self._batches, sealed, _ACKNOWLEDGED_WITHIN, headers={"Nats-Msg-Id": batch.name}
            )
        except (NatsError, OSError, TimeoutError) as error:
            _log.warning("bus: a batch goes into the database directly: %s", type(error).__name__)
            return False
        return True

    async def run(self, stopping: asyncio.Event) -> None:
        """Connect, and write what the stream holds into the database, until *stopping*."""
        while not stopping.is_set():
            try:
                client = await self._connect()
                await self._write_on(client, stopping)
            except Exception as error:  # noqa: BLE001 - whatever ended it, it is begun again: the server goes on without
                _log.warning("bus: %s", _reason(error))
            self._ready.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_BACK_OFF):
                    await stopping.wait()

    async def close(self) -> None:
        """Hang up."""
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(NatsError, OSError, TimeoutError):
                await client.close()

    async def _connect(self) -> Client:
        if self._client is None or self._client.is_closed:
            self._client = await nats.connect(
                self._url,
                connect_timeout=int(_CONNECT_SECONDS),
                max_reconnect_attempts=-1,
                reconnect_time_wait=1,
                error_cb=_quiet,
                allow_reconnect=True,
            )
        if not self._client.is_connected:
            raise OperationError("no connection to NATS")
        return self._client

    async def _write_on(self, client: Client, stopping: asyncio.Event) -> None:
        """Fetch batch after batch; one is acknowledged when the database has it."""
        stream = client.jetstream()
        await stream.add_stream(
            StreamConfig(
                name=self._stream,
                subjects=[self._batches],
                retention=RetentionPolicy.WORK_QUEUE,
                storage=StorageType.FILE,
                discard=DiscardPolicy.NEW,
                max_bytes=STREAM_BYTES,
                duplicate_window=_SAME_SECONDS,
            )
        )
        pull = await stream.pull_subscribe(
            self._batches,
            durable="writers",
            stream=self._stream,
            config=ConsumerConfig(ack_policy=AckPolicy.EXPLICIT, ack_wait=_REDELIVER_SECONDS, max_ack_pending=256),
        )
        self._ready.set()
        while not stopping.is_set():
            try:
                messages = await pull.fetch(_FETCH, timeout=_FETCH_SECONDS)
            except TimeoutError:
                if not client.is_connected:
                    raise OperationError("the connection to NATS broke") from None
                continue
            for message in messages:
                await self._write(message)

    async def _write(self, message: Any) -> None:
        try:
            batch = open_batch(message.data, self._key)
        except UntrustedDataError as error:
            _log.warning("bus: %s", error.message)
            self._metrics.batches.labels(error.check).inc()
            await message.term()
            return
        try:
            new = await self._sink.take_once(batch, self._clock.wall())
        except Exception:
            await message.nak(delay=_BACK_OFF)
            raise
        self._metrics.batches.labels("written" if new else "again").inc()
        await message.ack()

    # -- nudges

    def nudge(self) -> None:
        """Tell the other servers to read on; nothing waits for it."""
        if self.connected:
            assert self._client is not None
            task = asyncio.ensure_future(self._client.publish(self._changes))
            task.add_done_callback(_forget)

    @contextlib.asynccontextmanager
    async def listening(self, nudge: Callable[[], None]) -> AsyncIterator[asyncio.Future[None]]:
        """See `changes.Nudges.listening`."""
        await self._ready.wait()
        client = self._client
        if client is None:
            raise OperationError("no connection to NATS")

        async def heard(_message: object) -> None:
            nudge()

        subscription = await client.subscribe(self._changes, cb=heard)
        await client.flush(int(_CONNECT_SECONDS))
        watch = asyncio.create_task(_until_lost(client))
        try:
            yield watch
        finally:
            watch.cancel()
            with contextlib.suppress(NatsError, OSError, TimeoutError):
                await subscription.unsubscribe()


def _reason(error: Exception) -> str:
    """Return why there is no stream, in the server's own words where it gave any."""
    if isinstance(error, APIError):
        fix = f"; it needs {STREAM_BYTES >> 30} GiB (max_file_store)" if error.err_code == _NO_ROOM else ""
        return f"NATS refused the stream: {error.description}{fix}"
    return getattr(error, "message", "") or type(error).__name__


async def _until_lost(client: Client) -> None:
    while client.is_connected:  # noqa: ASYNC110 - the client has callbacks for all of it together, not for one listener
        await asyncio.sleep(_BACK_OFF / 2)


async def _quiet(_error: Exception) -> None:
    """Say nothing: what failed shows where it was asked for."""


def _forget(task: asyncio.Future[None]) -> None:
    if not task.cancelled():
        task.exception()
