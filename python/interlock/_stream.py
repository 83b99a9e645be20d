"""Any stream of server-sent events, resumed where it broke off."""

import asyncio
import http.client
import json
import time

from ._http import Response
from ._session import error_from
from .errors import ConnectionFailed, DeviceUnavailable, RateLimited

_SILENCE_SECONDS = 45.0
_PAUSES = (0.1, 0.3, 1.0, 2.0, 5.0)
_FINAL_FAILURES = ("certificate_not_trusted", "insecure_transport", "unknown_host")
_MAX_LINE = 40 * 1024 * 1024


class Stream:
    """Iterate (also with ``async for``) over the events of a path: ``(id, document)`` each, JSON objects only.

    It has no end of its own. A broken connection is opened again behind the last event that was seen, for ``patience`` seconds in a
    row; then :class:`interlock.errors.ConnectionFailed` is raised. With a ``deadline`` (of ``time.monotonic()``) the iteration ends
    there.
    """

    _what = "the stream"
    # Refusals that pass: the server says when to come again.
    _waits_for = (RateLimited, DeviceUnavailable)

    def __init__(self, session, path, last=None, patience=60.0, deadline=None):
        self._session = session
        self._path = path
        self.last = last
        self._patience = patience
        self._deadline = deadline
        self._iterator = None
        self._connection = None
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
        """Stop listening."""
        if self._iterator is not None:
            self._iterator.close()
        if self._connection is not None:
            self._connection.close()

    def _follow(self):
        failures = 0
        while self._remaining() > 0:
            pause = _PAUSES[min(failures, len(_PAUSES) - 1)]
            try:
                for name, document in self._events():
                    failures = 0
                    self.last = name or self.last
                    yield name, document
            except self._waits_for as problem:
                pause = problem.retry_after or _PAUSES[-1]
            except (ConnectionFailed, OSError, http.client.HTTPException) as problem:
                if isinstance(problem, ConnectionFailed) and problem.code in _FINAL_FAILURES:
                    raise
                now = time.monotonic()
                self._failing_since = self._failing_since or now
                if now - self._failing_since > self._patience and self._remaining() > 0:
                    raise ConnectionFailed("%s could not be read: %s" % (self._what, problem), code="connection_lost") from None
            time.sleep(max(0.0, min(self._remaining(), pause)))
            failures += 1

    def _remaining(self):
        """Seconds until the deadline, or the longest silence when there is none."""
        if self._deadline is None:
            return _SILENCE_SECONDS
        return min(_SILENCE_SECONDS, self._deadline - time.monotonic())

    def _events(self):
        """The events of one connection."""
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-cache"}
        if self.last:
            headers["Last-Event-ID"] = str(self.last)
        authorization = self._session.authorization()
        response = self._open(dict(headers, **authorization))
        if response.status == 401 and self._session.can_sign_in():
            self._connection.close()
            rejected = authorization["Authorization"][len("Bearer "):]
            response = self._open(dict(headers, **self._session.authorization(rejected=rejected)))
        try:
            if response.status != 200:
                raise error_from(Response(response.status, response.headers, response.read(1 << 20)))
            self._failing_since = None
            yield from parse(response)
        finally:
            self._connection.close()

    def _open(self, headers):
        remaining = max(0.01, self._remaining())
        self._connection, response = self._session.transport.open_stream(self._path, headers, remaining)
        return response


def parse(stream):
    """``(id, JSON object)`` of each event of an open stream; comments, other fields and other documents are skipped."""
    data, name = [], None
    while True:
        line = stream.readline(_MAX_LINE)
        if not line:
            return
        line = line.rstrip(b"\r\n")
        field, _, value = line.partition(b":")
        value = value[1:] if value.startswith(b" ") else value
        if field == b"data":
            data.append(value)
        elif field == b"id" and b"\0" not in value:
            name = value.decode("utf-8", "replace")
        elif not line and data:
            text, data = b"\n".join(data), []
            try:
                document = json.loads(text.decode("utf-8"))
            except (ValueError, RecursionError):
                continue
            if isinstance(document, dict):
                yield name, document
