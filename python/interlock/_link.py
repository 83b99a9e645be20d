"""The worker's end of the two pipes to its host: private descriptors, commands in, messages out, loss of the host."""

import collections
import fcntl
import json
import os
import select
import signal
import stat
import sys
import threading
import time

# What a pipe holds. A larger buffer is never filled, and is mapped and unmapped anew at each read.
_CHUNK = 1 << 16
_FIRST_PRIVATE_DESCRIPTOR = 10
_INTERRUPT_PAUSE_SECONDS = 0.5
_LOST_SECONDS = 70.0
_MARKED_PASSES = 10
_MARKED_QUIET_PASSES = 2
_MARKED_PAUSE_SECONDS = 0.01
_decode = json.JSONDecoder().decode


def claim_streams():
    """Move the protocol away from the standard streams and return its private ``(commands, messages)`` descriptors.

    Afterwards descriptor 0 is /dev/null and descriptor 1 is descriptor 2, so that neither a ``print`` nor a library
    that writes to descriptor 1 can disturb the messages. Programs started by an action do not inherit the private ones.
    """
    commands = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, _FIRST_PRIVATE_DESCRIPTOR)
    messages = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, _FIRST_PRIVATE_DESCRIPTOR)
    os.set_blocking(messages, True)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")
    return commands, messages


def flush_prints():
    """Hand everything printed so far to the host."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            pass


def kill_marked(mark):
    """Kill every process but this one that has a worker's mark in its environment: what that worker started, wherever it
    went. Needs /proc. Looks again until nothing is found twice: one may start another meanwhile, and a process that is just
    becoming another program shows no environment."""
    wanted = b"INTERLOCK_WORKER_MARK=" + mark.encode("ascii", "replace")
    quiet = 0
    for _ in range(_MARKED_PASSES):
        found = 0
        for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
            if not name.isdigit() or int(name) == os.getpid():
                continue
            try:
                with open("/proc/%s/environ" % name, "rb") as opened:
                    if wanted in opened.read().split(b"\0"):
                        os.kill(int(name), signal.SIGKILL)
                        found += 1
            except OSError:  # it has ended, or is another user's
                pass
        quiet = 0 if found else quiet + 1
        if quiet == _MARKED_QUIET_PASSES:
            return
        time.sleep(_MARKED_PAUSE_SECONDS)


def kill_own_group():
    """End this process, its process group and everything else that it started. Does not return."""
    mark = os.environ.get("INTERLOCK_WORKER_MARK")
    if mark:
        kill_marked(mark)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


class Link:
    """Commands and messages. Only the main thread waits for commands; any thread may send.

    ``executing`` is true while a call runs; ``lost`` becomes true when the host is gone. The watching thread sets
    ``lost`` and then looks at ``executing``; the main thread sets ``executing`` and then looks at ``lost``: whichever
    comes second ends the call.
    """

    def __init__(self, commands, messages):
        self.commands = commands
        self.queue = collections.deque()
        self.executing = False
        self.lost = False
        self.lost_seconds = _LOST_SECONDS
        self.in_child = False
        self.interruptible = False
        self.interrupted = False
        self.divert_interrupt = None
        self._messages = messages
        self._partial = bytearray()
        self._read_lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._main_thread = threading.get_ident()
        self._sending = 0
        self._pending_interrupt = False
        self._interrupted_at = 0.0
        os.register_at_fork(after_in_child=self._forked)
        signal.signal(signal.SIGINT, self._on_interrupt)
        threading.Thread(target=self._watch, name="interlock-host-watch", daemon=True).start()

    # commands

    def next_command(self):
        """Wait for a command. None means that the host is gone and nothing is left to do."""
        while not self.queue:
            if not self._feed():
                return None
        return self.queue.popleft()

    def look(self):
        """Read what has arrived, without waiting. Safe from any thread."""
        if self.in_child:
            return
        with self._read_lock:
            if self.readable(0) and not self._feed() and self.executing:
                kill_own_group()

    def readable(self, seconds):
        """Wait at most ``seconds`` for something to read."""
        return bool(select.select([self.commands], [], [], seconds)[0])

    def take_cancel(self, run_id):
        """The reason of a waiting ``cancel`` for this run, or None. Other commands stay in the queue."""
        for command in list(self.queue):
            if command.get("type") == "cancel" and command.get("run") == run_id:
                self.queue.remove(command)
                return str(command.get("reason") or "cancelled")
        return None

    def _feed(self):
        """Read once; False at the end of the stream."""
        try:
            data = os.read(self.commands, _CHUNK)
        except OSError:
            data = b""
        if not data:
            self.lost = True
            return False
        self._partial += data
        if b"\n" in data:
            *lines, rest = self._partial.split(b"\n")
            self._partial = rest
            for line in lines:
                self._accept(line)
        return True

    def _accept(self, line):
        try:
            command = _decode(line.decode("utf-8"))
        except (ValueError, RecursionError) as problem:
            print("interlock worker: ignored a command that is not JSON: %s" % problem, file=sys.stderr)
            return
        if isinstance(command, dict):
            self.queue.append(command)

    # messages

    def send(self, line):
        """Send one message: the bytes of a JSON object and a final newline.

        An interrupt that arrives meanwhile takes effect right after, so that no line is ever cut in two.
        """
        if self.in_child or self.lost:
            return
        if threading.get_ident() != self._main_thread:
            self._write(line)
            return
        self._sending += 1
        try:
            self._write(line)
        finally:
            self._sending -= 1
            if self._pending_interrupt and not self._sending:
                self._pending_interrupt = False
                if self.interruptible:
                    self._interrupt()

    def _write(self, line):
        with self._write_lock:
            try:
                sent = os.write(self._messages, line)
                while sent < len(line):
                    line = memoryview(line)[sent:]
                    sent = os.write(self._messages, line)
            except OSError:
                self.lost = True
                if self.executing:
                    kill_own_group()

    # interrupts

    def _on_interrupt(self, number, frame):
        """SIGINT ends the running call with KeyboardInterrupt; between calls it does nothing.

        A second one counts only after a moment, so that the first is not interrupted in its ``finally`` blocks.
        """
        if self.in_child:
            raise KeyboardInterrupt
        if not self.interruptible:
            return
        if self.interrupted and time.monotonic() - self._interrupted_at < _INTERRUPT_PAUSE_SECONDS:
            return
        if self._sending:
            self._pending_interrupt = True
        else:
            self._interrupt()

    def _interrupt(self):
        """Raise, unless ``divert_interrupt`` (set while an event loop runs) takes care of it by returning True."""
        self.interrupted = True
        self._interrupted_at = time.monotonic()
        if self.divert_interrupt is None or not self.divert_interrupt():
            raise KeyboardInterrupt

    # loss of the host

    def _watch(self):
        """Wait for the hang-up of the command pipe; data does not wake this thread."""
        poller = select.poll()
        poller.register(self.commands, 0)
        poller.poll()
        self.lost = True
        if self.executing:
            kill_own_group()
        silence_output()
        # What is still going on may be a safe-state hook. One that hangs must not keep the machine from the next host.
        self.set_alarm()
        time.sleep(self.lost_seconds)
        kill_own_group()

    def set_alarm(self):
        """Have the kernel end this process soon, whatever it does: the watching thread waits for code that holds the interpreter."""
        signal.setitimer(signal.ITIMER_REAL, self.lost_seconds + 1)

    def _forked(self):
        """In a child made by ``fork``: it must never read commands or write messages."""
        self.in_child = True
        for descriptor in (self.commands, self._messages):
            try:
                os.close(descriptor)
            except OSError:
                pass


def silence_output():
    """Send prints to nowhere if their reader was the host, so that they can not fail in a safe-state hook."""
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    for descriptor in (1, 2):
        try:
            mode = os.fstat(descriptor).st_mode
            if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
                os.dup2(null, descriptor)
        except OSError:
            pass
    os.close(null)


def die_with_parent():
    """Second line behind the watching thread: have the kernel kill this process when its parent ends (Linux only).

    The kernel sends that signal when the *thread* that started this process ends. So it is only asked for when that was
    the parent's first thread: a server that starts workers from a pool must not lose them when a pool thread retires.
    """
    parent = os.getppid()
    try:
        with open("/proc/%d/task/%d/children" % (parent, parent)) as opened:
            if str(os.getpid()) not in opened.read().split():
                return
        import ctypes
        parent_death_signal = 1
        ctypes.CDLL(None, use_errno=True).prctl(parent_death_signal, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(0)
    except Exception:  # no /proc, no ctypes, no prctl: the watching thread does the work
        pass
