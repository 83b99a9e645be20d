"""The process that runs one device file: ``python -m interlock.worker --file FILE``.

It speaks the worker protocol (docs/reference/worker-protocol.md) with the device server that started it. Calls are
executed one after another in the main thread, so that SIGINT can interrupt them; a second thread does nothing but
notice that the server has gone.
"""

import argparse
import atexit
import contextlib
import gc
import importlib.machinery
import importlib.util
import inspect
import os
import signal
import sys
import time

from . import __version__
from ._context import ctx
from ._declare import BadParameters, RuleNotKept, registry
from ._link import Link, claim_streams, die_with_parent, flush_prints, kill_marked, silence_output
from ._live import BetweenCalls, LiveRun, make_private, send
from ._report import error_of
from ._wire import encode
from .errors import RunCancelled

PROTOCOL = 1
LOAD_FAILED_EXIT = 3
MODULE_NAME = "interlock_device_file"
FILE_VARIABLE = "INTERLOCK_DEVICE_FILE"


class _UncachedLoader(importlib.machinery.SourceFileLoader):
    """Always compiles the source: byte code is matched by whole seconds, and files are saved faster than that."""

    def path_stats(self, path):
        raise OSError("not cached")


def load_file(path):
    """Execute the device file as the module ``interlock_device_file``, with its folder first on the search path."""
    folder = os.path.dirname(path)
    if sys.path[:1] != [folder]:
        sys.path.insert(0, folder)
    loader = _UncachedLoader(MODULE_NAME, path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(MODULE_NAME, loader))
    sys.modules[MODULE_NAME] = module
    loader.exec_module(module)
    return module


class Worker:
    """Loads a file, answers the host's commands, runs hooks and calls."""

    def __init__(self, path, link):
        self.path = path
        self.link = link
        self.pid = os.getpid()
        self.role = "worker"
        self.loaded = False
        self.started = False
        self.simulate = False
        self.limits = {}
        self.artifact_directory = None
        self.guarded = None
        self.guarded_mark = None
        self.asynchronous = None
        self.handlers = {"hello": self.hello, "start": self.start, "call": self.call, "ping": self.ping,
                         "safe_state": self.safe_state, "guard": self.guard, "exit": self.exit}

    def serve(self):
        """Answer commands until the host says so or has gone. Never returns."""
        while True:
            command = self.link.next_command()
            if command is None:
                break
            handler = self.handlers.get(command.get("type"))
            if handler is not None:
                handler(command)
        if self.loaded and self.role == "standby":
            self.host_lost()
        self.exit(None)

    def tell(self, kind, **members):
        members["type"] = kind
        send(self.link, members)

    def between_calls(self):
        ctx._run = BetweenCalls(self.link, self.simulate)

    @contextlib.contextmanager
    def expendable(self):
        """Inside, losing the host ends this process and its group at once; a standby goes on, to reach its hooks."""
        self.link.executing = self.role == "worker"
        try:
            if self.link.lost and self.link.executing:
                self.exit(None)
            yield
        finally:
            self.link.executing = False

    # life

    def hello(self, command):
        """Load the file and say what it offers."""
        begun = time.perf_counter()
        self.role = "standby" if command.get("role") == "standby" else "worker"
        self.simulate = bool(command.get("simulate"))
        self.limits = command.get("limits") or {}
        if self.limits.get("lost_ms"):
            self.link.lost_seconds = self.limits["lost_ms"] / 1000.0
        self.artifact_directory = command.get("artifact_dir")
        if self.role == "worker":
            die_with_parent()
        self.between_calls()
        try:
            if command.get("protocol") != PROTOCOL:
                raise RuntimeError("the server speaks worker protocol %r, this worker %d" % (command.get("protocol"),
                                                                                           PROTOCOL))
            make_private(self.artifact_directory)
            registry.strict = True
            with self.expendable():
                load_file(self.path)
            actions = [action.spec() for action in registry.actions.values()]
            ready = encode(actions)
        except BaseException as problem:
            self.leave_if_child(1)
            flush_prints()
            self.tell("load_failed", error=error_of(problem, path=self.path))
            self.exit(None, LOAD_FAILED_EXIT)
        self.leave_if_child(0)
        self.loaded = True
        flush_prints()
        head = encode({
            "type": "ready", "protocol": PROTOCOL, "worker": "interlock-python %s" % __version__,
            "language": "python %d.%d.%d" % sys.version_info[:3], "title": registry.title,
            "description": registry.description,
            "hooks": {"on_start": bool(registry.start_hooks), "safe_state": bool(registry.safe_hooks)},
            "load_ms": _milliseconds(begun)})
        self.link.send(("%s,\"actions\":%s}\n" % (head[:-1], ready)).encode("utf-8", "replace"))
        gc.collect()
        gc.freeze()

    def start(self, command):
        """Run the ``@on_start`` hooks."""
        begun = time.perf_counter()
        with self.expendable():
            problem = self.run_start_hooks()
        if problem is None:
            self.tell("started", duration_ms=_milliseconds(begun))
        else:
            self.tell("start_failed", error=error_of(problem, path=self.path), duration_ms=_milliseconds(begun))

    def ping(self, command):
        self.tell("pong", id=command.get("id"))

    def exit(self, command, code=0):
        """Leave without waiting for threads that actions left behind."""
        with contextlib.suppress(Exception):
            atexit._run_exitfuncs()
        flush_prints()
        os._exit(code)

    def leave_if_child(self, code):
        """A process forked by the device's code must not go on as a second worker."""
        if os.getpid() != self.pid:
            flush_prints()
            os._exit(code)

    # hooks

    def run_start_hooks(self):
        """The exception of the first hook that failed, or None."""
        if self.started:
            return None
        for _, run_hook, _ in registry.start_hooks:
            problem = self.run_hook(run_hook, self.simulate)
            if problem is not None:
                return problem
        self.started = True
        return None

    def run_hook(self, run_hook, argument):
        """Run one hook, sync or async; the exception it raised, or None."""
        self.between_calls()
        try:
            value = run_hook(argument)
            if inspect.iscoroutine(value):
                self.async_runner().run_hook(value)
        except BaseException as problem:
            self.leave_if_child(1)
            return problem
        finally:
            flush_prints()
        self.leave_if_child(0)
        return None

    def safe_state(self, command):
        """Bring the device to rest. A standby connects first and becomes the worker by this."""
        begun = time.perf_counter()
        reason = str(command.get("reason") or "test")
        self.role = "worker"
        self.tell("safe_state_entered", duration_ms=0)
        problems = self.run_safe_hooks(reason)
        self.tell("safe_state_done", ok=not problems, duration_ms=_milliseconds(begun),
                  error=error_of(problems[0], path=self.path) if problems else None)

    def run_safe_hooks(self, reason):
        """The exceptions of every hook that failed. All hooks run, also when the connection could not be opened."""
        problems = [self.run_start_hooks()] + [self.run_hook(run_hook, reason)
                                               for _, run_hook, _ in registry.safe_hooks]
        return [problem for problem in problems if problem is not None]

    # standby

    def guard(self, command):
        """Remember which process group to kill if the host disappears, since when its leader runs, and its mark."""
        pid = command.get("worker_pid")
        mark = command.get("worker_mark")
        self.guarded_mark = mark if isinstance(mark, str) and mark else None
        self.guarded = (pid, _start_time(pid)) if isinstance(pid, int) and pid > 1 else None

    def host_lost(self):
        """The host is gone: end the worker it can no longer end itself, then bring the device to rest."""
        if self.guarded is not None:
            pid, started = self.guarded
            now = _start_time(pid)
            if pid != os.getpid() and (now is None or now == started):
                try:
                    os.killpg(pid, signal.SIGKILL)
                except OSError:
                    pass
        if self.guarded_mark is not None:
            kill_marked(self.guarded_mark)
        silence_output()
        self.link.set_alarm()
        self.run_safe_hooks("host_lost")

    # calls

    def call(self, command):
        """Execute one action and say how it ended."""
        begun = time.perf_counter()
        run_id = command.get("run")
        link = self.link
        self.role = "worker"
        try:
            action = registry.actions.get(command.get("action"))
            if action is None:
                raise BadParameters("there is no action %r" % (command.get("action"),))
            arguments = action.arguments(command.get("parameters") or {})
        except RuleNotKept as problem:
            return self.refuse(run_id, begun, problem, "rule_broken")
        except BadParameters as problem:
            return self.refuse(run_id, begun, problem, "bad_parameters")
        except Exception as problem:  # the author's own type refused with something unusual
            return self.tell("raised", run=run_id, error=error_of(problem, "bad_parameters", path=self.path),
                             duration_ms=_milliseconds(begun))
        if not self.started:
            with self.expendable():
                problem = self.run_start_hooks()
            if problem is not None:
                return self.tell("raised", run=run_id, error=error_of(problem, path=self.path),
                                 duration_ms=_milliseconds(begun))
        timeout = command.get("timeout_ms")
        run = LiveRun(link, run_id, bool(command.get("simulated")) or self.simulate,
                      None if timeout is None else timeout / 1000.0, self.artifact_directory, self.limits)
        ctx._run = run
        link.interrupted = False
        link.executing = True
        if link.lost:
            self.exit(None)
        value, problem = None, None
        asynchronous = None
        if action.is_async:
            asynchronous = self.async_runner()
            asynchronous.event_loop()
        try:
            try:
                link.interruptible = True
                if asynchronous is None:
                    value = action.function(**arguments)
                else:
                    value = asynchronous.run_action(action.function, arguments, run)
            finally:
                link.interruptible = False
        except BaseException as raised:
            problem = raised
        link.interruptible = False
        if os.getpid() != self.pid:
            _leave_child(problem)
        flush_prints()
        run.end()
        link.executing = False
        ctx._run = BetweenCalls(link, self.simulate)
        if problem is None:
            self.returned(run_id, value, begun)
        else:
            self.ended_with(run, problem, begun)

    def refuse(self, run_id, begun, problem, code):
        """The call was not entered; the text says why and is meant for the caller."""
        error = error_of(problem, code, True, path=self.path)
        error["traceback"] = None
        self.tell("raised", run=run_id, error=error, duration_ms=_milliseconds(begun))

    def returned(self, run_id, value, begun):
        """Send the result, or say why it can not be sent."""
        try:
            result = encode(value).encode("utf-8")
        except (TypeError, ValueError, RecursionError, OverflowError) as problem:
            return self.tell("raised", run=run_id, duration_ms=_milliseconds(begun), error=error_of(
                problem, "result_not_serialisable", True, "the action ended, but its result can not be sent: %s"
                % _why_not(problem), self.path))
        limit = min(self.limits.get("result_bytes") or len(result),
                    (self.limits.get("line_bytes") or len(result) + 1024) - 1024)
        if len(result) > limit:
            problem = ValueError("the action ended, but its result has %d bytes and at most %d are allowed; keep it as "
                                 "an artifact" % (len(result), limit))
            return self.refuse(run_id, begun, problem, "result_too_large")
        self.link.send(b'{"type":"returned","run":%s,"duration_ms":%.3f,"result":%s}\n'
                       % (encode(run_id).encode("utf-8"), (time.perf_counter() - begun) * 1000, result))

    def ended_with(self, run, problem, begun):
        """The function raised: a cancellation, an interrupt, or a failure."""
        duration = _milliseconds(begun)
        if self.link.interrupted:
            rung = "interrupt"
        elif run.cancel_reason is not None and _comes_from_cancel(problem):
            rung = "checkpoint"
        else:
            code = "exited" if isinstance(problem, SystemExit) else None
            message = "the action called sys.exit(%s)" % problem if code else None
            return self.tell("raised", run=run.run_id, error=error_of(problem, code, None, message, self.path),
                             duration_ms=duration)
        if not isinstance(problem, (KeyboardInterrupt,) + _cancellations()):
            self.tell("log", run=run.run_id, level="warning",
                      message="while ending: %s" % error_of(problem)["message"])
        return self.tell("cancelled", run=run.run_id, rung=rung, duration_ms=duration)

    def async_runner(self):
        if self.asynchronous is None:
            from ._async import AsyncRunner
            self.asynchronous = AsyncRunner(self.link)
        return self.asynchronous


def _milliseconds(begun):
    return round((time.perf_counter() - begun) * 1000, 3)


def _leave_child(problem):
    """End a forked child that came back from the action, the way the child itself would have ended."""
    code = 0
    if isinstance(problem, SystemExit):
        code = problem.code if isinstance(problem.code, int) else int(problem.code is not None)
    elif problem is not None:
        sys.excepthook(type(problem), problem, problem.__traceback__)
        code = 1
    flush_prints()
    os._exit(code & 0xFF)


def _why_not(problem):
    text = str(problem)
    if "Out of range float" in text:
        return "it holds NaN or Infinity, which JSON does not have"
    if isinstance(problem, RecursionError):
        return "it is nested too deeply"
    if isinstance(problem, UnicodeEncodeError):
        return "it holds text that is not valid Unicode"
    return text


def _cancellations():
    """The exceptions that mean "cancelled"."""
    asynchronous = sys.modules.get("asyncio")
    return (RunCancelled,) if asynchronous is None else (RunCancelled, asynchronous.CancelledError)


def _comes_from_cancel(problem):
    """True when the exception is a cancellation or was raised while one was on its way out."""
    seen, cancellations = set(), _cancellations()
    while problem is not None and id(problem) not in seen:
        if isinstance(problem, cancellations):
            return True
        seen.add(id(problem))
        problem = problem.__cause__ or problem.__context__
    return False


def _start_time(pid):
    """When a process started, in ticks since boot; None when there is no such process or no /proc."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as opened:
            return opened.read().rpartition(b")")[2].split()[19]
    except (OSError, IndexError):
        return None


def main(arguments=None):
    """Entry point of ``python -m interlock.worker``."""
    parser = argparse.ArgumentParser(prog="python -m interlock.worker", description="Runs a device file for interlock.")
    parser.add_argument("--file", required=True, help="the Python file that declares the actions")
    path = os.path.abspath(parser.parse_args(arguments).file)
    os.environ["INTERLOCK_WORKER"] = "1"
    os.environ[FILE_VARIABLE] = path
    if os.getpgrp() != os.getpid() and not os.isatty(0):
        try:
            os.setpgid(0, 0)
        except OSError:
            pass
    sys.argv = [path]
    commands, messages = claim_streams()
    Worker(path, Link(commands, messages)).serve()


if __name__ == "__main__":
    main()
elif __name__ == "__mp_main__" and os.environ.get(FILE_VARIABLE):
    # A child of ``multiprocessing`` with the start method "spawn": functions of the device file must be found there.
    load_file(os.environ[FILE_VARIABLE])
