"""Testing a device file without a server.

An action is a plain function, so a test calls it. To look at what it reported, or to cancel it half-way::

    from interlock.testing import call, fake_run

    with fake_run(simulated=True) as run:
        mix_color(r=10)
    assert run.progress_reports[-1].current == 3

    call(mix_color, {"r": 10, "speed": 400})     # as the server would: checks, rules and conversions included
"""

import asyncio
import collections
import contextlib
import inspect

from . import _artifact
from ._context import ctx
from ._declare import registry
from .errors import RunCancelled

Progress = collections.namedtuple("Progress", "current total message")
Log = collections.namedtuple("Log", "level message")
Metric = collections.namedtuple("Metric", "name value unit labels")


class FakeRun:
    """Keeps what an action reports. Waiting takes no time.

    progress_reports, logs, metrics   lists of what was reported, in order
    artifacts                         name to content in bytes
    slept                             seconds that ``ctx.sleep`` was asked for, in all
    checkpoints                       how many checkpoints were passed
    """

    def __init__(self, run_id="test-run", simulated=False, cancel_at=None, timeout_seconds=None):
        self.run_id = run_id
        self.simulated = simulated
        self.timeout_seconds = timeout_seconds
        self.cancel_reason = None
        self.cancel_at = cancel_at
        self.progress_reports = []
        self.logs = []
        self.metrics = []
        self.artifacts = {}
        self.slept = 0.0
        self.checkpoints = 0

    def cancel(self, reason="cancelled"):
        """The next checkpoint raises :class:`interlock.RunCancelled`."""
        self.cancel_reason = reason

    def progress(self, current, total, message):
        self.progress_reports.append(Progress(current, total, message))

    def log(self, level, message):
        self.logs.append(Log(level, message))

    def metric(self, name, value, unit, labels):
        self.metrics.append(Metric(name, value, unit, labels))

    def artifact(self, name, value, media_type):
        content, path = _artifact.content_of(name, value)
        if content is None:
            with open(path, "rb") as opened:
                content = opened.read()
        self.artifacts[name] = content

    def checkpoint(self):
        self.checkpoints += 1
        if self.cancel_at is not None and self.checkpoints >= self.cancel_at:
            self.cancel()
        if self.cancel_reason is not None:
            raise RunCancelled(self.cancel_reason)

    def sleep(self, seconds):
        self.checkpoint()
        self.slept += seconds


@contextlib.contextmanager
def fake_run(simulated=False, cancel_at=None, run_id="test-run", timeout_seconds=None):
    """Make ``ctx`` report to a :class:`FakeRun` inside the ``with`` block.

    ``cancel_at=3`` cancels the run at its third checkpoint (``ctx.sleep`` counts as one).
    """
    run = FakeRun(run_id, simulated, cancel_at, timeout_seconds)
    before = ctx._run
    ctx._run = run
    try:
        yield run
    finally:
        ctx._run = before


def call(function, parameters=None):
    """Call an action with JSON parameters, checked and converted exactly as in a worker.

    ``function`` is the decorated function or the action's name. Raises ``ValueError`` when the parameters are refused
    or a rule does not hold.
    """
    found = [action for action in registry.actions.values()
             if action.function is function or action.name == function]
    if not found:
        raise LookupError("%r is not an action" % (function,))
    action = found[0].resolve()
    value = action.function(**action.arguments(dict(parameters or {})))
    if inspect.iscoroutine(value):
        loop = asyncio.new_event_loop()
        try:
            value = loop.run_until_complete(value)
        finally:
            loop.close()
    return value
