"""Server-sent events of one run, resumed where they broke off."""

import collections

from ._session import quote
from ._stream import Stream
from .errors import RateLimited

FINAL_STATES = ("succeeded", "failed", "cancelled", "timed_out", "uncertain")

Event = collections.namedtuple("Event", "seq at kind data")
"""seq: its number in the run; at: RFC 3339; kind: state, progress, log, metric, artifact or rung; data: dict."""


class Events(Stream):
    """Iterate (also with ``async for``) over the events of a run until it ends.

    A broken connection is opened again after the last event that was seen, for ``patience`` seconds in a row; then
    :class:`interlock.errors.ConnectionFailed` is raised. With a ``deadline`` (of ``time.monotonic()``) the iteration
    ends there, whether the run has ended or not.
    """

    _what = "the events of the run"
    _waits_for = (RateLimited,)

    def __init__(self, session, run_id, after=0, patience=60.0, deadline=None):
        super().__init__(session, "/runs/%s/events" % quote(run_id), after or None, patience, deadline)
        self._after = after

    def _follow(self):
        for _, document in super()._follow():
            seq = document.get("seq")
            if not isinstance(seq, int) or seq <= self._after:
                continue
            self._after = self.last = seq
            event = event_from(document)
            yield event
            if event.kind == "state" and event.data.get("state") in FINAL_STATES:
                return


def event_from(document):
    """An :class:`Event` from its JSON object."""
    data = document.get("data")
    return Event(document.get("seq"), document.get("at"), document.get("kind"), data if isinstance(data, dict) else {})


def history(session, path, after, limit):
    """Every event that a paged list has after a number, without waiting for more."""
    found = []
    while True:
        page = session.json("GET", "%s?after=%d&limit=%d" % (path, after, limit))
        items = [event_from(one) for one in page.get("items") or ()]
        found += items
        following = page.get("next_after")
        if not items or not isinstance(following, int) or following <= after:
            return found
        after = following
