"""Server-sent events of one run, resumed where they broke off."""

import asyncio
import collections
import http.client
import json
import time

from ._http import Response
from ._session import error_from, quote
from .errors import ConnectionFailed, RateLimited

FINAL_STATES = ("succeeded", "failed", "cancelled", "timed_out", "uncertain")
_SILENCE_SECONDS = 45.0
_PAUSES = (0.1, 0.3, 1.0, 2.0, 5.0)
_FINAL_FAILURES = ("certificate_not_trusted", "insecure_transport", "unknown_host")
_MAX_LINE = 40 * 1024 * 1024

Event = collections.namedtuple("Event", "seq at kind data")
"""seq: its number in the run; at: RFC 3339; kind: state, progress, log, metric, artifact or rung; data: dict."""


class Events:
    """Iterate (also with ``async for``) over the events of a run until it ends.

    A broken connection is opened again after the last event that was seen, for ``patience`` seconds in a row; then
    :class:`interlock.errors.ConnectionFailed` is raised. With a ``deadline`` (of ``time.monotonic()``) the iteration
    ends there, whether the run has ended or not.
    """

    def __init__(self, session, run_id, after=0, patience=60.0, deadline=None):
        self._session = session
        self._path = "/runs/%s/events" % quote(run_id)
        self._last = after
        self._patience = patience
        self._deadline = deadline
        self._iterator = None
        self._connection = None
        self._rejected = None
        self._failing_since = None

    def __iter__(self):
        return self

    def __next__(self):
        if self._iterator is None:
            self._iterator = self._follow()
        return next(self._iterator)

    def __aiter__(self):
        return self

    async def __anext__(self):
        loop = asyncio.get_event_loop()
        event = await loop.run_in_executor(None, next, self, None)
        if event is None:
            raise StopAsyncIteration
        return event

    def close(self):
        """Stop listening. The run goes on."""
        if self._iterator is not None:
            self._iterator.close()
        if self._connection is not None:
            self._connection.close()

    def _follow(self):
        failures = 0
        while self._remaining() > 0:
            try:
                for event in self._stream():
                    failures = 0
                    self._last = event.seq
                    yield event
                    if event.kind == "state" and event.data.get("state") in FINAL_STATES:
                        return
            except RateLimited as problem:
                time.sleep(max(0.0, min(self._remaining(), problem.retry_after or _PAUSES[-1])))
            except (ConnectionFailed, OSError, http.client.HTTPException) as problem:
                if isinstance(problem, ConnectionFailed) and problem.code in _FINAL_FAILURES:
                    raise
                now = time.monotonic()
                self._failing_since = self._failing_since or now
                if now - self._failing_since > self._patience:
                    raise ConnectionFailed("the events of the run could not be read: %s" % problem,
                                           code="connection_lost") from None
            time.sleep(max(0.0, min(self._remaining(), _PAUSES[min(failures, len(_PAUSES) - 1)])))
            failures += 1

    def _remaining(self):
        """Seconds until the deadline, or the longest silence when there is none."""
        if self._deadline is None:
            return _SILENCE_SECONDS
        return min(_SILENCE_SECONDS, self._deadline - time.monotonic())

    def _stream(self):
        """The events of one connection."""
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-cache"}
        if self._last:
            headers["Last-Event-ID"] = str(self._last)
        response = self._open(dict(headers, **self._session.authorization()))
        if response.status == 401 and self._session.can_sign_in():
            self._connection.close()
            rejected = self._rejected
            response = self._open(dict(headers, **self._session.authorization(rejected=rejected)))
        try:
            if response.status != 200:
                raise error_from(Response(response.status, response.headers, response.read(1 << 20)))
            self._failing_since = None
            for event in parse_events(response):
                if event.seq > self._last:
                    yield event
        finally:
            self._connection.close()

    def _open(self, headers):
        self._rejected = headers["Authorization"][len("Bearer "):]
        self._connection, response = self._session.transport.open_stream(self._path, headers,
                                                                             max(0.01, self._remaining()))
        return response


def parse_events(stream):
    """The :class:`Event` objects of an open event stream; comments and unknown fields are skipped."""
    data = []
    while True:
        line = stream.readline(_MAX_LINE)
        if not line:
            return
        line = line.rstrip(b"\r\n")
        if line.startswith(b"data:"):
            part = line[5:]
            data.append(part[1:] if part.startswith(b" ") else part)
        elif not line and data:
            text, data = b"\n".join(data), []
            try:
                document = json.loads(text.decode("utf-8"))
            except (ValueError, RecursionError):
                continue
            if isinstance(document, dict) and isinstance(document.get("seq"), int):
                yield event_from(document)


def event_from(document):
    """An :class:`Event` from its JSON object."""
    data = document.get("data")
    return Event(document["seq"], document.get("at"), document.get("kind"), data if isinstance(data, dict) else {})
