"""What the tests share: the package's path, and a worker driven through real pipes."""

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PACKAGE = os.path.join(ROOT, "python")
EXAMPLES = os.path.join(ROOT, "examples")
for folder in (EXAMPLES, PACKAGE):
    if folder not in sys.path:
        sys.path.insert(0, folder)
sys.dont_write_bytecode = True

LIMITS = {"line_bytes": 32 << 20, "result_bytes": 16 << 20, "artifact_bytes": 1 << 20}
SECONDS = 20


class Worker:
    """A worker process with the host's end of its pipes. Use it as a context manager."""

    def __init__(self, source, file_name="device.py", variables=None):
        self.folder = tempfile.mkdtemp(prefix="interlock-test-")
        self.path = os.path.join(self.folder, file_name)
        with open(self.path, "w", encoding="utf-8") as opened:
            opened.write(textwrap.dedent(source))
        self.errors = open(os.path.join(self.folder, "stderr"), "w+b")
        environment = dict(os.environ, PYTHONPATH=PACKAGE, PYTHONDONTWRITEBYTECODE="1", **(variables or {}))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "interlock.worker", "--file", self.path], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self.errors, env=environment, start_new_session=True, cwd=self.folder)
        self.messages = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except OSError:
                pass
        self.process.wait(SECONDS)
        if not self.process.stdin.closed:
            self.process.stdin.close()
        self.reader.join(SECONDS)
        self.process.stdout.close()
        self.errors.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self):
        for line in self.process.stdout:
            self.messages.put(json.loads(line.decode("utf-8")))
        self.messages.put(None)

    def send(self, kind, **members):
        members["type"] = kind
        self.process.stdin.write(json.dumps(members).encode("utf-8") + b"\n")
        self.process.stdin.flush()

    def next(self):
        """The next message; None at the end of the stream."""
        return self.messages.get(timeout=SECONDS)

    def until(self, *kinds):
        """Messages up to and including the first of one of these kinds."""
        seen = []
        while True:
            message = self.next()
            if message is None:
                raise AssertionError("the worker ended; it had sent %r and printed %s" % (seen, self.printed()))
            seen.append(message)
            if message["type"] in kinds:
                return seen

    def hello(self, role="worker", simulate=False, limits=None):
        self.send("hello", protocol=1, role=role, simulate=simulate, limits=limits or LIMITS,
                  artifact_dir=os.path.join(self.folder, "artifacts"))
        return self.until("ready", "load_failed")[-1]

    def start(self):
        self.send("start")
        return self.until("started", "start_failed")[-1]

    def up(self, **options):
        """Load and start."""
        ready = self.hello(**options)
        if ready["type"] != "ready":
            raise AssertionError(ready)
        self.start()
        return self

    def begin(self, action, run="run-1", **parameters):
        self.send("call", run=run, action=action, parameters=parameters, simulated=False, timeout_ms=None)

    def end(self):
        """The message that ends the call."""
        return self.until("returned", "raised", "cancelled")[-1]

    def call(self, action, run="run-1", **parameters):
        self.begin(action, run, **parameters)
        return self.end()

    def lose_host(self):
        """What a worker sees when its host dies."""
        self.process.stdin.close()

    def printed(self):
        self.errors.flush()
        with open(self.errors.name, "rb") as opened:
            return opened.read().decode("utf-8")

    def wait(self):
        return self.process.wait(SECONDS)
