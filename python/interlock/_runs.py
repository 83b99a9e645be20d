"""Runs: what a call returns, and many of them."""

import asyncio
import os
import threading
import time

from . import errors
from ._display import run_html, run_text
from ._events import FINAL_STATES, Events, history
from ._session import error_of_run, quote

_PAGE = 200
_SETTLE_SECONDS = 0.2
"""Pause when the events say that a run has ended and its record does not yet."""


class WaitTimeout(errors.InterlockError, TimeoutError):
    """The run did not end in the time given to ``wait`` or ``result``. It goes on."""


class Artifact:
    """One file kept with a run. ``name``, ``media_type``, ``bytes`` (its size)."""

    def __init__(self, session, run_id, document):
        self.name = str(document.get("name"))
        self.media_type = document.get("media_type")
        self.bytes = document.get("bytes")
        self._session = session
        self._path = "/runs/%s/artifacts/%s" % (quote(run_id), quote(self.name))

    def __repr__(self):
        return "<Artifact %s, %s, %s bytes>" % (self.name, self.media_type, self.bytes)

    def read(self):
        """The content in bytes."""
        return self._session.send("GET", self._path, headers={"Accept": "*/*"}).body

    def save(self, path=None):
        """Write the content to ``path`` (a file or a folder; the current folder when left out); returns the path."""
        path = os.fspath(path) if path is not None else os.curdir
        if os.path.isdir(path):
            path = os.path.join(path, os.path.basename(self.name.replace("\\", "/")) or "artifact")
        with open(path, "wb") as opened:
            opened.write(self.read())
        return path


class Run:
    """One execution of an action. Attributes that ask the server do so each time, until the run has ended."""

    def __init__(self, session, document):
        self._session = session
        self._document = document
        self.id = document["id"]
        self.action = document.get("action")
        self._path = "/runs/" + quote(self.id)

    def __repr__(self):
        return run_text(self._document)

    def _repr_mimebundle_(self, include=None, exclude=None):
        document = self.refresh()._document
        return {"text/plain": run_text(document), "text/html": run_html(document)}

    def __await__(self):
        loop = asyncio.get_event_loop()
        return loop.run_in_executor(None, self.result).__await__()

    def refresh(self):
        """Ask the server for the present state, unless the run has ended."""
        if self._document.get("state") not in FINAL_STATES:
            self._document = self._session.json("GET", self._path)
        return self

    @property
    def document(self):
        """The run as the server last described it."""
        return dict(self._document)

    @property
    def state(self):
        """queued, running, succeeded, failed, cancelled, timed_out or uncertain."""
        return self.refresh()._document["state"]

    @property
    def done(self):
        """True when the run has ended, well or not."""
        return self.state in FINAL_STATES

    @property
    def simulated(self):
        """True when nothing really moved."""
        return bool(self._document.get("simulated"))

    @property
    def progress(self):
        """``{current, total, message}`` as last reported, or None."""
        return self.refresh()._document.get("progress")

    @property
    def logs(self):
        """The log lines so far, as events whose data is ``{level, message}``."""
        return [event for event in self.history() if event.kind == "log"]

    @property
    def metrics(self):
        """The numbers recorded so far, as events whose data is ``{name, value, unit, labels}``."""
        return [event for event in self.history() if event.kind == "metric"]

    @property
    def artifacts(self):
        """The files kept so far: name to :class:`Artifact`."""
        listed = self.refresh()._document.get("artifacts") or []
        return {one["name"]: Artifact(self._session, self.id, one) for one in listed}

    def history(self, after=0):
        """Every event so far, without waiting for more."""
        return history(self._session, self._path + "/events", after, _PAGE)

    def events(self, after=0):
        """Follow the events until the run ends, also with ``async for``; a lost connection is resumed."""
        return Events(self._session, self.id, after)

    def wait(self, timeout=None):
        """Wait for the end, well or not, at most ``timeout`` seconds. Raises :class:`WaitTimeout`.

        It follows the events, so that a long run costs two requests and not one a second.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.refresh()._document["state"] not in FINAL_STATES:
            for _ in Events(self._session, self.id, deadline=deadline):
                pass
            if deadline is not None and time.monotonic() >= deadline:
                if self.refresh()._document["state"] in FINAL_STATES:
                    break
                raise WaitTimeout("the run %s has not ended after %s s; it goes on" % (self.id, timeout))
            if self.refresh()._document["state"] not in FINAL_STATES:
                time.sleep(_SETTLE_SECONDS)
        return self

    def result(self, timeout=None):
        """Wait for the end and return what the action returned.

        Raises :class:`WaitTimeout` after ``timeout`` seconds, and otherwise what the run ended with:
        :class:`~interlock.errors.TaskFailed`, :class:`~interlock.errors.TaskTimedOut`,
        :class:`~interlock.errors.RunWasCancelled` or :class:`~interlock.errors.RunUncertain`.
        """
        document = self.wait(timeout)._document
        if document["state"] != "succeeded":
            raise error_of_run(document)
        return document.get("result")

    def cancel(self, reason=None):
        """Ask the run to stop; returns at once. ``wait()`` for what came of it."""
        self._document = self._session.json("POST", self._path + "/cancel", {} if reason is None else
                                            {"reason": reason})
        return self


class RunSet:
    """The runs of ``map``, in the order of its rows. Indexing or iterating waits until that run was submitted.

    A background thread keeps at most ``max_parallel`` runs going and stops submitting after the first that does not
    succeed, unless ``keep_going``.
    """

    def __init__(self, submit, rows, max_parallel=1, keep_going=False):
        if max_parallel < 1:
            raise ValueError("max_parallel must be at least 1")
        self.rows = rows
        self._submit = submit
        self._runs = []
        self._problem = None
        self._stopped = False
        self._closed = False
        self._keep_going = keep_going
        self._max_parallel = max_parallel
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._feed, name="interlock-map", daemon=True)
        self._thread.start()

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        with self._changed:
            self._changed.wait_for(lambda: len(self._runs) > index or self._closed)
            if len(self._runs) > index:
                return self._runs[index]
        raise self._problem or errors.RunNotStarted("row %d was not submitted: an earlier run did not succeed" % index,
                                                    code="not_submitted")

    def __iter__(self):
        return (self[index] for index in range(len(self)))

    def __repr__(self):
        with self._changed:
            return "<RunSet: %d of %d submitted%s>" % (len(self._runs), len(self.rows),
                                                       ", stopped" if self._stopped else "")

    @property
    def submitted(self):
        """The runs submitted so far."""
        with self._changed:
            return list(self._runs)

    def wait(self, timeout=None):
        """Wait until every submitted run has ended and no more will be. Raises :class:`WaitTimeout`."""
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise WaitTimeout("%r has not ended after %s s; it goes on" % (self, timeout))
        return self

    def results(self, timeout=None):
        """What every row returned, in order. Raises the error of the first row that did not succeed."""
        self.wait(timeout)
        return [run.result() for run in self]

    def cancel(self, reason=None):
        """Submit no more and cancel what has not ended."""
        self._stopped = True
        for run in self.submitted:
            if not run.done:
                run.cancel(reason)

    def _feed(self):
        going = []
        try:
            for row in self.rows:
                while len(going) >= self._max_parallel and not self._stopped:
                    going = self._still_going(going)
                if self._stopped:
                    break
                run = self._submit(row)
                going.append(run)
                with self._changed:
                    self._runs.append(run)
                    self._changed.notify_all()
            while going:
                going = self._still_going(going)
        except errors.InterlockError as problem:
            self._problem = problem
            self._stopped = True
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify_all()

    def _still_going(self, going):
        """Wait for the oldest run; the runs that have not ended."""
        going[0].wait()
        remaining = []
        for run in going:
            if run.document["state"] not in FINAL_STATES and not run.done:
                remaining.append(run)
            elif run.document["state"] != "succeeded" and not self._keep_going:
                self._stopped = True
        return remaining
