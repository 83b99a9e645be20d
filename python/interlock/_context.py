"""``ctx``: what an action says about its run while it runs, and how it hears of a cancellation.

``ctx`` is one object for the whole process that passes everything on to the current run. Outside of a run, for
example in a unit test that calls an action as a plain function, it does nothing and harms nothing; see
:mod:`interlock.testing` to look at what an action reported.
"""

import math
import time

from ._artifact import check_name, content_of

LEVELS = ("debug", "info", "warning", "error")


class NoRun:
    """Stands in for a run when there is none."""

    run_id = None
    simulated = False
    cancel_reason = None
    timeout_seconds = None

    def progress(self, current, total, message):
        """Nothing to tell anyone."""

    def log(self, level, message):
        """Nothing to tell anyone."""

    def metric(self, name, value, unit, labels):
        """Nothing to tell anyone."""

    def artifact(self, name, value, media_type):
        content_of(name, value)

    def checkpoint(self):
        """There is nobody who could cancel."""

    def sleep(self, seconds):
        time.sleep(seconds)


class Context:
    """The interface of ``ctx``. Every method may be called from any thread of the action."""

    def __init__(self):
        self._run = NoRun()

    @property
    def run_id(self):
        """The id of the run, or None outside of one."""
        return self._run.run_id

    @property
    def simulated(self):
        """True when nothing may move: the caller asked for a simulation, or the device runs as a simulator."""
        return self._run.simulated

    @property
    def cancel_requested(self):
        """True once somebody has asked to cancel this run. Looks without raising; see :meth:`checkpoint`."""
        return self._run.cancel_reason is not None

    @property
    def timeout_seconds(self):
        """Seconds this run may take in all, or None when there is no limit."""
        return self._run.timeout_seconds

    def progress(self, current, total=None, message=None):
        """Say how far the action is: ``current`` of ``total`` in any unit, and what it does now.

        Raises ``ValueError`` when a number is not finite.
        """
        self._run.progress(_finite("current", current), None if total is None else _finite("total", total),
                           None if message is None else str(message))

    def log(self, message, level="info"):
        """Add a line to the run's log. ``level``: debug, info, warning or error."""
        if level not in LEVELS:
            raise ValueError("level must be one of %s" % ", ".join(LEVELS))
        self._run.log(level, str(message))

    def metric(self, name, value, unit=None, **labels):
        """Record one number, drawn as a live chart: ``ctx.metric("volume", 50, unit="uL", stock="red")``.

        Raises ``ValueError`` when the value is not finite.
        """
        self._run.metric(str(name), _finite("value", value), unit,
                         {label: str(text) for label, text in labels.items()})

    def artifact(self, name, value, media_type=None):
        """Keep a file with the run. ``name`` is a plain file name; its ending decides the format.

        ``value``: bytes, text (``str`` is the text itself, not a path), ``pathlib.Path``, a matplotlib figure, a PIL
        picture, a numpy array, a pandas table, or a dict or list for JSON. Raises ``ValueError`` for a bad name or one
        that is too large, ``TypeError`` for another kind of value.
        """
        check_name(name)
        self._run.artifact(name, value, media_type)

    def checkpoint(self):
        """A place where the action can stop: raises :class:`interlock.RunCancelled` if the run was cancelled."""
        self._run.checkpoint()

    def sleep(self, seconds):
        """Wait; ends at once with :class:`interlock.RunCancelled` when the run is cancelled."""
        if not seconds >= 0:
            raise ValueError("seconds must be 0 or more")
        self._run.sleep(seconds)


def _finite(what, value):
    number = value if type(value) in (int, float) else _as_number(what, value)
    if type(number) is float and not math.isfinite(number):
        raise ValueError("%s must be a finite number, not %r" % (what, value))
    return number


def _as_number(what, value):
    if isinstance(value, (str, bytes)):
        raise TypeError("%s must be a number, not %r" % (what, value))
    return float(value)


ctx = Context()
