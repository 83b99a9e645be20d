"""Tasks, their runs, events and approvals: what an orchestrator keeps and does by itself.

    from interlock import Client

    with Client("https://lab.example:8080") as client:
        task = client.tasks.create("Morning ph", [{"uses": "device.ot2.ph", "save_as": "ph"}], cron="30 7 * * 1-5",
                                   timezone="Europe/Berlin")
        print(task.run_now().result()["ph"])
        client.events.publish("plate.read", {"plate": "P7"})
        for event in client.events.stream(topic="plate.read"):
            ...
"""

import time

from . import errors
from ._display import clean
from ._events import FINAL_STATES, Event, event_from, history
from ._runs import WaitTimeout
from ._session import error_of_run, new_key, quote
from ._stream import Stream

_PAGE = 200
_SETTLE_SECONDS = 0.2
_SCHEDULES = (("cron", "cron"), ("rrule", "rrule"), ("once", "once"), ("on_event", "event"), ("condition", "condition"))


class Tasking:
    """What a signed-in client of an orchestrator has. For classes that have a session."""

    def _tasks_session(self):
        return self._session

    @property
    def tasks(self):
        """Make, find and change tasks: :class:`Tasks`."""
        return Tasks(self._tasks_session())

    @property
    def task_runs(self):
        """Find runs of tasks: :class:`TaskRuns`."""
        return TaskRuns(self._tasks_session())

    @property
    def events(self):
        """Publish and follow events: :class:`EventStream`."""
        return EventStream(self._tasks_session())

    @property
    def approvals(self):
        """Questions that wait for a person: :class:`Approvals`."""
        return Approvals(self._tasks_session())

    def tools(self):
        """The tools that steps may use: address to description."""
        listed = self._tasks_session().json("GET", "/tools")
        return {name: one.get("description") for name, one in listed.items()}


def _query(path, **members):
    texts = ((name, str(value).lower() if isinstance(value, bool) else str(value)) for name, value in members.items() if value is not None)
    found = "&".join("%s=%s" % (name, quote(text)) for name, text in texts)
    return path + "?" + found if found else path


def _pages(session, path, limit, **members):
    """Items of a paged list, newest first, at most ``limit`` (None: all); none is given twice when others come meanwhile."""
    if limit is not None and limit < 1:
        raise ValueError("limit must be at least 1")
    seen, offset = set(), 0
    while limit is None or len(seen) < limit:
        size = _PAGE if limit is None else min(_PAGE, limit - len(seen))
        page = session.json("GET", _query(path, limit=size, offset=offset, **members))
        items = page.get("items") or []
        offset += len(items)
        for item in items:
            if item.get("id") not in seen:
                seen.add(item.get("id"))
                yield item
        if not items or not page.get("has_more"):
            return


def _me(session):
    """The name under which the session is signed in."""
    return session.json("GET", "/auth/me")["user"]


def _schedule(members):
    """``schedule_kind`` and ``schedule_expr`` of the one schedule that was given, or None."""
    given = [(kind, members.pop(name)) for name, kind in _SCHEDULES if members.get(name) is not None]
    for name, _ in _SCHEDULES:
        members.pop(name, None)
    if len(given) > 1:
        raise ValueError("give one of %s" % ", ".join(name for name, _ in _SCHEDULES))
    if not given:
        return None
    kind, expression = given[0]
    return {"schedule_kind": kind, "schedule_expr": expression.isoformat() if hasattr(expression, "isoformat") else expression}


class Tasks:
    """The tasks of a server, as far as one may see them."""

    def __init__(self, session):
        self._session = session

    def __repr__(self):
        return "<Tasks at %s>" % self._session.transport.base_url

    def __iter__(self):
        return (Task(self._session, one) for one in _pages(self._session, "/tasks", None))

    def create(self, title, pipeline, description=None, cron=None, rrule=None, once=None, on_event=None, condition=None,
               params=None, created_by=None, idempotency_key=None, **options):
        """Make a task and return it. Without a schedule it runs when somebody asks for it.

        pipeline         list of steps: dicts with ``uses``, ``with``, ``save_as``, ``if``, …
        cron, rrule      five fields, or an RFC 5545 rule; ``timezone="Europe/Berlin"`` says where
        once             a ``datetime`` or an ISO 8601 text
        on_event         topic of events, each of which makes a run
        condition        expression that is tried on each event
        params           dict that steps see as ``params``
        created_by       whose task it is; you when left out
        idempotency_key  makes it safe to send the same call again from another process, for a day
        options          members of the task: ``priority``, ``max_retries``, ``concurrency_key``, ``dedupe_key``, …

        Raises :class:`interlock.errors.InvalidParameters`, whose ``errors`` name each member that is not right, and
        :class:`interlock.errors.DuplicateTask`.
        """
        payload = {"pipeline": list(pipeline)}
        if params is not None:
            payload["params"] = params
        schedule = _schedule({"cron": cron, "rrule": rrule, "once": once, "on_event": on_event, "condition": condition})
        body = {"title": title, "description": description or title, "payload": payload, "created_by": created_by or _me(self._session)}
        body.update(schedule or {"schedule_kind": "manual"})
        body.update(options)
        return Task(self._session, self._session.json("POST", "/tasks", body, key=idempotency_key or new_key()))

    def get(self, task_id):
        """A task by its id. Raises :class:`interlock.errors.NotFound`."""
        return Task(self._session, self._session.json("GET", "/tasks/" + quote(task_id)))

    def list(self, status=None, kind=None, created_by=None, limit=50):
        """Tasks, newest first, at most ``limit``; ``status`` is active, paused or canceled."""
        found = _pages(self._session, "/tasks", limit, status=status, schedule_kind=kind, created_by=created_by)
        return [Task(self._session, one) for one in found]

    def preview(self, cron=None, rrule=None, once=None, timezone=None, count=10):
        """When a schedule would be due: RFC 3339 texts, at most 100."""
        body = _schedule({"cron": cron, "rrule": rrule, "once": once})
        if body is None:
            raise ValueError("give one of cron, rrule, once")
        body["count"] = count
        if timezone is not None:
            body["timezone"] = timezone
        return self._session.json("POST", "/schedules/preview", body)["times"]


class _Described:
    """Something whose members, as the server last described them, are attributes."""

    def __init__(self, session, document):
        self._session = session
        self._document = document

    def __getattr__(self, name):
        if name.startswith("_") or name not in self._document:
            raise AttributeError(name)
        return self._document[name]

    def __dir__(self):
        return sorted(set(super().__dir__()) | set(self._document))

    @property
    def document(self):
        """It as the server last described it."""
        return dict(self._document)


class Task(_Described):
    """A task as the server last described it: its members are attributes (``title``, ``status``, ``payload``, …)."""

    def __init__(self, session, document):
        super().__init__(session, document)
        self._path = "/tasks/" + quote(document["id"])

    def __repr__(self):
        return "<Task %s: %s, %s>" % tuple(clean(self._document.get(name)) for name in ("id", "title", "status"))

    def refresh(self):
        """Ask the server for the present form."""
        self._document = self._session.json("GET", self._path)
        return self

    def update(self, **members):
        """Change members; ``cron=``, ``rrule=``, ``once=``, ``on_event=`` and ``condition=`` change the schedule."""
        schedule = _schedule(members)
        self._document = self._session.json("PUT", self._path, dict(members, **(schedule or {})))
        return self

    def run_now(self, idempotency_key=None):
        """Have it run now; returns the :class:`TaskRun` at once. Raises :class:`interlock.errors.TaskCanceled`."""
        done = self._session.json("POST", self._path + "/run_now", {}, key=idempotency_key or new_key())
        run_id = (done.get("details") or {}).get("run_id")
        if not isinstance(run_id, str):
            raise errors.ProtocolError("the answer names no run")
        return TaskRun(self._session, {"id": run_id, "task_id": self._document["id"], "state": "queued"})

    def pause(self):
        """Stop it from running by itself; what waits does not begin."""
        return self._change("pause", {})

    def resume(self):
        """Let it run by itself again."""
        return self._change("resume", {})

    def cancel(self):
        """End it for good: what waits is over, what runs is told to end."""
        return self._change("cancel", {})

    def snooze(self, seconds, reason=None):
        """Have what waits, or else the next occurrence, wait so much longer: 1 s to 7 days."""
        return self._change("snooze", {"delay_seconds": int(seconds), "reason": reason})

    def skip(self, reason=None):
        """Leave out the due time in ``next_due_at``; raises :class:`interlock.errors.Conflict` if it is another by now."""
        return self._change("skip", {"due_at": self._document.get("next_due_at"), "reason": reason})

    def _change(self, verb, body):
        self._session.json("POST", "%s/%s" % (self._path, verb), body)
        return self.refresh()

    def next(self, count=5):
        """When it is due next: RFC 3339 texts. A task without a calendar has none."""
        return self._session.json("GET", "%s/due?count=%d" % (self._path, int(count)))["times"]

    def runs(self, state=None, success=None, limit=50):
        """Its runs, newest first, at most ``limit``."""
        return TaskRuns(self._session).list(task=self._document["id"], state=state, success=success, limit=limit)

    def latest(self):
        """Its newest run, or None."""
        found = self._session.json("GET", "/runs/task/%s/latest" % quote(self._document["id"]))
        return None if found is None else TaskRun(self._session, found)

    def stats(self, days=30):
        """Figures of its last days: runs, rates from 0 to 1, mean time in seconds."""
        return self._session.json("GET", "/runs/task/%s/stats?days=%d" % (quote(self._document["id"]), days))


class TaskRuns:
    """The runs of tasks, as far as one may see them."""

    def __init__(self, session):
        self._session = session

    def __repr__(self):
        return "<TaskRuns at %s>" % self._session.transport.base_url

    def get(self, run_id):
        """A run by its id. Raises :class:`interlock.errors.NotFound`."""
        return TaskRun(self._session, self._session.json("GET", "/runs/" + quote(run_id)))

    def list(self, task=None, state=None, success=None, since=None, until=None, limit=50):
        """Runs, newest first, at most ``limit``; ``since`` and ``until`` are ``datetime`` or RFC 3339 texts."""
        times = {name: value.isoformat() if hasattr(value, "isoformat") else value
                 for name, value in (("start_time", since), ("end_time", until))}
        found = _pages(self._session, "/runs", limit, task_id=task, state=state, success=success, include_errors=True, **times)
        return [TaskRun(self._session, one) for one in found]

    def summary(self, days=7):
        """Figures of everything one may see."""
        return self._session.json("GET", "/runs/stats/summary?days=%d" % days)


class TaskRun:
    """One attempt to carry out a task. Attributes that ask the server do so each time, until the run has ended."""

    def __init__(self, session, document):
        self._session = session
        self._document = document
        self._whole = False
        self.id = document["id"]
        self.task_id = document.get("task_id")
        self._path = "/runs/" + quote(self.id)

    def __repr__(self):
        return "<TaskRun %s: %s>" % (clean(self.id), clean(self._document.get("state")))

    def refresh(self):
        """Ask the server for the present state, unless the run has ended and is known whole."""
        if not self._whole:
            self._document = self._session.json("GET", self._path)
            # Lists leave the output out.
            self._whole = self._document.get("state") in FINAL_STATES
        return self

    @property
    def document(self):
        """The run as the server last described it."""
        return dict(self._document)

    @property
    def state(self):
        """queued, leased, running, waiting_for_approval, succeeded, failed, cancelled, timed_out or uncertain."""
        return self.refresh()._document["state"]

    @property
    def done(self):
        """True when the run has ended, well or not."""
        return self.state in FINAL_STATES

    @property
    def output(self):
        """The whole output, or None."""
        return self.refresh()._document.get("output")

    @property
    def error(self):
        """Why it did not succeed, or None."""
        return self.refresh()._document.get("error")

    def log(self, after=0):
        """What it has reported so far, without waiting for more: events of the kinds step, progress, log, metric, artifact, rung."""
        return history(self._session, self._path + "/log", after, _PAGE)

    def events(self, deadline=None):
        """Follow what it reports and each change of its state until it ends, also with ``async for``. The data of a ``state`` is the
        run. A lost connection is resumed. With a ``deadline`` (of ``time.monotonic()``) it ends there."""
        return _RunEvents(self._session, self._path + "/events", deadline=deadline)

    def wait(self, timeout=None):
        """Wait for the end, well or not, at most ``timeout`` seconds. Raises :class:`WaitTimeout`; the run goes on."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.state not in FINAL_STATES:
            if deadline is not None and time.monotonic() >= deadline:
                raise WaitTimeout("the run %s has not ended after %s s; it goes on" % (self.id, timeout))
            for _ in self.events(deadline):
                pass
            if self._document["state"] not in FINAL_STATES and self.state not in FINAL_STATES:
                pause = _SETTLE_SECONDS if deadline is None else min(_SETTLE_SECONDS, max(0.0, deadline - time.monotonic()))
                time.sleep(pause)
        return self

    def result(self, timeout=None):
        """Wait for the end and return what the steps saved: name to value.

        Raises :class:`interlock.errors.TaskFailed`, :class:`interlock.errors.TaskTimedOut`,
        :class:`interlock.errors.RunWasCancelled` or :class:`interlock.errors.RunUncertain`.
        """
        self.wait(timeout)
        if self._document["state"] != "succeeded":
            problem = error_of_run(dict(self._document, error={"message": self._document.get("error") or ""}))
            problem.advice = "Look at run.log() and at the output of the run."
            raise problem
        return (self._document.get("output") or {}).get("steps") or {}

    def cancel(self, reason=None):
        """Ask it to end: at once if it waits, else its worker is told. Raises :class:`interlock.errors.Conflict` if it is over."""
        self._document = self._session.json("POST", self._path + "/cancel", {} if reason is None else {"reason": reason})
        return self


class _RunEvents(Stream):
    """The stream of a run, which ends with it."""

    def _follow(self):
        for _, document in super()._follow():
            if "kind" in document:
                yield event_from(document)
                continue
            at = document.get("finished_at") or document.get("started_at") or document.get("created_at")
            yield Event(None, at, "state", document)
            if document.get("state") in FINAL_STATES:
                return


class EventStream:
    """Events that tasks wait for."""

    def __init__(self, session):
        self._session = session

    def __repr__(self):
        return "<EventStream at %s>" % self._session.transport.base_url

    def publish(self, topic, payload=None, source=None):
        """Publish an event; returns ``{event_id, stream_id, topic, triggered_tasks, published_at}``. ``source`` is you when left
        out. It is not sent again by itself: whoever gets no answer looks at :meth:`recent`."""
        source = source or _me(self._session)
        body = {"topic": topic, "payload": {} if payload is None else payload, "source_agent_id": source}
        return self._session.json("POST", "/events", body)["details"]

    def recent(self, count=50):
        """The newest events, newest first, 1 to 1000."""
        return self._session.json("GET", "/events/stream/recent?count=%d" % count)["events"]

    def topics(self):
        """Topics that active tasks wait for: ``[{topic, active_tasks, task_ids}]``."""
        return self._session.json("GET", "/events/topics")["topics"]

    def stream(self, topic=None, after=None, timeout=None):
        """Follow events as they are published, also with ``async for``: dicts with ``stream_id``, ``topic``, ``payload``, …

        after    ``stream_id`` of the last event that was seen; from now on when left out
        timeout  seconds after which it ends; without one it goes on until it is closed
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        return _Published(self._session, topic, after, deadline)


class _Published(Stream):
    def __init__(self, session, topic, after, deadline):
        super().__init__(session, "/events/stream", after, deadline=deadline)
        self._topic = topic

    def _follow(self):
        for _, document in super()._follow():
            if self._topic is None or document.get("topic") == self._topic:
                yield document


class Approvals:
    """Questions of runs to people."""

    def __init__(self, session):
        self._session = session

    def __repr__(self):
        return "<Approvals at %s>" % self._session.transport.base_url

    def list(self, state="pending", limit=50):
        """Questions, newest first, at most ``limit``; ``state=None`` also gives what was decided."""
        return [Approval(self._session, one) for one in _pages(self._session, "/approvals", limit, state=state)]


class Approval(_Described):
    """A question. Its members are attributes: ``reason``, ``parameters``, ``requested_by``, ``expires_at``, ``state``, …"""

    def __repr__(self):
        return "<Approval %s: %s, %s>" % tuple(clean(self._document.get(name)) for name in ("id", "state", "reason"))

    def approve(self, note=None):
        """Say yes, once, to exactly the parameters of this object. Raises :class:`interlock.errors.Conflict` when they have changed or
        somebody has decided, and :class:`interlock.errors.PermissionDenied` to whoever asked."""
        return self._decide("approve", note)

    def deny(self, note=None):
        """Say no."""
        return self._decide("deny", note)

    def _decide(self, decision, note):
        body = {"decision": decision, "parameters_sha256": self._document["parameters_sha256"]}
        if note is not None:
            body["note"] = note
        self._document = self._session.json("POST", "/approvals/%s/decide" % quote(self._document["id"]), body)
        return self
