"""What stands behind ``ctx`` in a worker: during a call, and between calls."""

import os
import re
import threading
import time

from . import _artifact
from ._context import NoRun
from ._report import fit
from ._wire import encode
from .errors import RunCancelled

_OTHER_THREAD_SLICE = 0.05
"""Seconds after which a sleeping thread other than the main one looks again whether the run was cancelled."""
_LABEL_LIMIT = 200


class BetweenCalls(NoRun):
    """While the file is loaded and while hooks run: log lines belong to no run, the rest has no meaning."""

    def __init__(self, link, simulated):
        self.simulated = simulated
        self._link = link

    def log(self, level, message):
        send(self._link, {"type": "log", "run": None, "level": level, "message": fit(message)})


class LiveRun:
    """One call. Messages after its end, from threads it left behind, are dropped."""

    def __init__(self, link, run_id, simulated, timeout_seconds, artifact_directory, limits):
        self.run_id = run_id
        self.simulated = simulated
        self.timeout_seconds = timeout_seconds
        self.cancel_reason = None
        self._link = link
        self._directory = artifact_directory
        self._limits = limits
        self._artifacts = 0
        self._ended = False
        self._lock = None

    def end(self):
        """Nothing is sent for this run any more."""
        self._ended = True

    def progress(self, current, total, message):
        self._tell({"type": "progress", "run": self.run_id, "current": current, "total": total,
                    "message": None if message is None else fit(message)})

    def log(self, level, message):
        self._tell({"type": "log", "run": self.run_id, "level": level, "message": fit(message)})

    def metric(self, name, value, unit, labels):
        labels = {fit(label, _LABEL_LIMIT): fit(text, _LABEL_LIMIT) for label, text in labels.items()}
        self._tell({"type": "metric", "run": self.run_id, "name": fit(name, _LABEL_LIMIT), "value": value,
                    "unit": unit, "labels": labels})

    def artifact(self, name, value, media_type):
        if self._ended or self._link.in_child:
            return
        if not self._directory:
            raise ValueError("the server offers no place for artifacts")
        self._artifacts += 1
        stem = re.sub(r"[^A-Za-z0-9_-]", "_", str(self.run_id))[:80]
        file_name = "%s-%d-%s" % (stem, self._artifacts, re.sub(r"[^A-Za-z0-9._-]", "_", name)[-80:])
        size = _artifact.write(self._directory, file_name, name, value, self._limits.get("artifact_bytes"))
        self._tell({"type": "artifact", "run": self.run_id, "name": name,
                    "media_type": media_type or _artifact.media_type_of(name), "bytes": size, "path": file_name})

    def checkpoint(self):
        self.look()
        if self.cancel_reason is not None:
            raise RunCancelled(self.cancel_reason)

    def look(self):
        """Read waiting commands; True when this run is cancelled."""
        link = self._link
        link.look()
        if self.cancel_reason is None:
            if link.queue:
                self.cancel_reason = link.take_cancel(self.run_id)
            if link.interrupted and self.cancel_reason is None:
                self.cancel_reason = "interrupted"
        return self.cancel_reason is not None

    def sleep(self, seconds):
        deadline = time.monotonic() + seconds
        in_main = threading.current_thread() is threading.main_thread()
        while True:
            self.checkpoint()
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return
            if self._link.in_child:
                time.sleep(remaining)
            else:
                self._link.readable(min(remaining, 3600.0) if in_main else min(remaining, _OTHER_THREAD_SLICE))

    def _tell(self, message):
        if not self._ended:
            send(self._link, message)


def send(link, message):
    """Send a message that holds no text of unknown length."""
    link.send(encode(message).encode("utf-8", "replace") + b"\n")


def make_private(directory):
    """Create the artifact directory if it is not there."""
    if directory:
        os.makedirs(directory, mode=0o700, exist_ok=True)
