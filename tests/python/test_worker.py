"""The worker protocol, spoken with a real worker process through real pipes."""

import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
import unittest

from support import LIMITS, SECONDS, Worker

ACTIONS = '''
import asyncio, ctypes, math, multiprocessing, os, subprocess, sys, threading, time
from interlock import task, ctx, safe_state, on_start, Param, PublicError

STARTED = []

@on_start
def connect(sim):
    STARTED.append(sim)

@safe_state
def rest(reason):
    print("resting", reason, STARTED, flush=True)
    path = os.environ.get("REST_FILE")
    if path:
        with open(path, "a") as opened:
            opened.write("%s %s\\n" % (reason, os.getpid()))

@task(rules=["r + y <= 3 : at most 3"])
def add(r: float = 0, y: float = 0): return r + y
@task
def started(): return STARTED
@task
def echo(value=None): return value
@task
def noisy():
    print("from print")
    os.write(1, b"from descriptor 1\\n")
    subprocess.check_call(["echo", "from a program"])
    sys.stdout.write("without a newline")
    return os.read(0, 10) == b""
@task
def say():
    ctx.progress(1, 2, "half"); ctx.log("note", level="warning"); ctx.metric("m", 1.5, unit="uL", stock="red")
    ctx.artifact("note.txt", "text"); ctx.artifact("big.bin", bytes(2 << 20))
@task
def leave(): sys.exit(4)
@task
def refuse(): raise PublicError("not today", code="closed")
@task
def fail(): raise KeyError("secret")
@task
def crash(): ctypes.string_at(0)
@task
def forked():
    pid = os.fork()
    if pid == 0:
        ctx.log("from the child")
        return "child"
    return os.waitpid(pid, 0)[1]
@task
def forked_failing():
    pid = os.fork()
    if pid == 0:
        raise ValueError("child")
    return os.WEXITSTATUS(os.waitpid(pid, 0)[1])
@task
def wait(seconds: float = 30):
    try:
        ctx.progress(0, 1)
        ctx.sleep(seconds)
    finally:
        ctx.log("tidied up")
@task
def stubborn():
    ctx.progress(0, 1)
    time.sleep(60)
@task
def swallow():
    try:
        ctx.progress(0, 1)
        time.sleep(60)
    except KeyboardInterrupt:
        return "kept going"
@task
def chatty():
    ctx.progress(0, 1)
    while True: ctx.progress(0, 1)
@task
async def later(seconds: float = 0):
    try:
        ctx.progress(0, 1)
        await asyncio.sleep(seconds)
    finally:
        ctx.log("tidied up")
    return "later"
@task
async def later_blocking():
    ctx.progress(0, 1)
    time.sleep(60)
@task
def not_a_number(): return {"value": math.nan}
@task
def large(megabytes: int = 50): return "x" * (megabytes << 20)
@task
def cyclic():
    value = []; value.append(value); return value
@task
def thread_sleeps():
    outcome = []
    def body():
        ctx.progress(0, 1)
        try: ctx.sleep(60)
        except BaseException as problem: outcome.append(type(problem).__name__)
    thread = threading.Thread(target=body); thread.start(); thread.join()
    return outcome
@task
def straggler():
    def body():
        time.sleep(0.05)
        ctx.log("too late")
    threading.Thread(target=body, daemon=True).start()
def square(n): return n * n
@task
def pool(method: str = "spawn"):
    with multiprocessing.get_context(method).Pool(1) as workers: return workers.map(square, [2, 3])
@task
def module(): return __name__, sys.modules[__name__].square(3), sys.path[0], sys.argv
@task
def child_pid():
    child = subprocess.Popen(["sleep", "600"])
    ctx.progress(child.pid)
    time.sleep(600)
'''


def exists(pid):
    """True while the process runs; a zombie has ended."""
    try:
        with open("/proc/%d/stat" % pid) as opened:
            return opened.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pid):
    deadline = time.monotonic() + SECONDS
    while exists(pid):
        if time.monotonic() > deadline:
            raise AssertionError("process %d still runs" % pid)
        time.sleep(0.005)


class Loading(unittest.TestCase):
    def failure(self, source, **options):
        with Worker(source, **options) as worker:
            message = worker.hello()
            self.assertEqual(message["type"], "load_failed")
            self.assertEqual(worker.wait(), 3)
            return message["error"], worker.path

    def test_syntax_error_names_file_and_line(self):
        error, path = self.failure("x = 1\ndef broken(:\n")
        self.assertEqual((error["class"], error["file"], error["line"]), ("SyntaxError", path, 2))

    def test_import_error_names_file_and_line(self):
        error, path = self.failure("import os\n\nimport no_such_module\n")
        self.assertEqual((error["class"], error["file"], error["line"]), ("ModuleNotFoundError", path, 3))
        self.assertNotIn("_link.py", error["traceback"])
        self.assertFalse(error["public"])

    def test_declaration_error_names_the_function(self):
        error, path = self.failure("""
            from interlock import task
            @task
            def odd(value: bytes): pass
            """)
        self.assertEqual((error["class"], error["file"]), ("DeclarationError", path))
        self.assertIn(error["line"], (3, 4))
        self.assertIn("bytes", error["message"])

    def test_exit_and_print_while_loading(self):
        error, _ = self.failure("print('loading')\nraise SystemExit('no')\n")
        self.assertEqual(error["class"], "SystemExit")

    def test_other_protocol_is_refused(self):
        with Worker("") as worker:
            worker.send("hello", protocol=2, role="worker", simulate=False, limits=LIMITS, artifact_dir="")
            self.assertEqual(worker.until("load_failed", "ready")[-1]["type"], "load_failed")

    def test_ready_describes_the_file(self):
        source = """
            from helper import LIMIT
            from interlock import task, Param, DeviceServer
            @task
            def go(r: float = Param(1, max=LIMIT)) -> None:
                "Go."
            DeviceServer(title="Thing", description="A thing.").run()
            if __name__ == "__main__": raise SystemExit
            """
        with Worker(source) as worker:
            with open(os.path.join(worker.folder, "helper.py"), "w") as opened:
                opened.write("LIMIT = 7\n")
            ready = worker.hello()
            self.assertEqual(ready["type"], "ready", ready)
            self.assertEqual((ready["protocol"], ready["title"], ready["description"]), (1, "Thing", "A thing."))
            self.assertEqual(ready["hooks"], {"on_start": False, "safe_state": False})
            self.assertEqual(ready["actions"][0]["parameters"][0]["schema"]["maximum"], 7)
            self.assertTrue(ready["language"].startswith("python %d.%d." % sys.version_info[:2]))

    def test_failing_start_hook(self):
        source = """
            from interlock import on_start, task
            @on_start
            def connect(): raise OSError("no robot")
            @task
            def go(): pass
            """
        with Worker(source) as worker:
            worker.hello()
            message = worker.start()
            self.assertEqual((message["type"], message["error"]["message"]), ("start_failed", "no robot"))
            self.assertEqual(worker.call("go")["error"]["class"], "OSError")


class Calls(unittest.TestCase):
    """One worker for many calls, which is also what a worker is for."""

    @classmethod
    def setUpClass(cls):
        cls.worker = Worker(ACTIONS).up()

    @classmethod
    def tearDownClass(cls):
        cls.worker.send("exit")
        assert cls.worker.wait() == 0
        cls.worker.__exit__()

    def error(self, action, **parameters):
        message = self.worker.call(action, **parameters)
        self.assertEqual(message["type"], "raised", message)
        return message["error"]

    def result(self, action, **parameters):
        message = self.worker.call(action, **parameters)
        self.assertEqual(message["type"], "returned", message)
        return message["result"]

    def test_results(self):
        self.assertEqual(self.result("add", r=1, y=1.5), 2.5)
        for value in (None, True, 0, -1.5, "µL \u2603 \U0001f9ea", [1, [2]], {"a": {"b": None}}):
            self.assertEqual(self.result("echo", value=value), value)
        self.assertEqual(self.result("started"), [False])

    def test_module_and_path(self):
        name, nine, first, arguments = self.result("module")
        self.assertEqual((name, nine, first), ("interlock_device_file", 9, self.worker.folder))
        self.assertEqual(arguments, [self.worker.path])

    def test_refusals(self):
        self.assertEqual(self.error("add", r=2, y=2)["code"], "rule_broken")
        for action, parameters in (("add", {"r": "1"}), ("add", {"q": 1}), ("missing", {})):
            error = self.error(action, **parameters)
            self.assertEqual((error["code"], error["public"]), ("bad_parameters", True))

    def test_prints_never_reach_the_messages(self):
        self.assertTrue(self.result("noisy"))
        printed = self.worker.printed()
        for text in ("from print", "from descriptor 1", "from a program", "without a newline"):
            self.assertIn(text, printed)

    def test_reports(self):
        self.worker.begin("say")
        progress, log, metric, artifact, end = self.worker.until("returned", "raised")
        self.assertEqual((progress["current"], progress["total"], progress["message"]), (1, 2, "half"))
        self.assertEqual((log["level"], log["message"]), ("warning", "note"))
        self.assertEqual((metric["value"], metric["unit"], metric["labels"]), (1.5, "uL", {"stock": "red"}))
        self.assertEqual((artifact["name"], artifact["media_type"], artifact["bytes"]), ("note.txt", "text/plain", 4))
        with open(os.path.join(self.worker.folder, "artifacts", artifact["path"])) as opened:
            self.assertEqual(opened.read(), "text")
        self.assertIn("at most", end["error"]["message"])
        self.assertEqual(len(os.listdir(os.path.join(self.worker.folder, "artifacts"))), 1)

    def test_exceptions(self):
        error = self.error("fail")
        self.assertEqual((error["class"], error["public"], error["code"]), ("KeyError", False, None))
        self.assertEqual(error["file"], self.worker.path)
        self.assertNotIn("worker.py", error["traceback"])
        error = self.error("refuse")
        self.assertEqual((error["message"], error["public"], error["code"]), ("not today", True, "closed"))
        self.assertEqual(self.error("leave")["code"], "exited")

    def test_results_that_can_not_be_sent(self):
        self.assertEqual(self.error("not_a_number")["code"], "result_not_serialisable")
        self.assertEqual(self.error("cyclic")["code"], "result_not_serialisable")
        self.assertEqual(self.error("echo", value="\ud800")["code"], "result_not_serialisable")
        error = self.error("large", megabytes=50)
        self.assertEqual(error["code"], "result_too_large")
        self.assertEqual(len(self.result("large", megabytes=15)), 15 << 20)

    def test_a_forked_child_never_speaks(self):
        self.worker.begin("forked")
        self.assertEqual([message["type"] for message in self.worker.until("returned")], ["returned"])
        self.assertEqual(self.result("forked_failing"), 1)
        self.assertEqual(self.result("pool", method="fork"), [4, 9])
        self.assertEqual(self.result("pool", method="spawn"), [4, 9])

    def test_cancel_at_a_checkpoint(self):
        for action in ("wait", "later"):
            with self.subTest(action=action):
                self.worker.begin(action, run="run-9", seconds=60)
                self.worker.until("progress")
                self.worker.send("cancel", run="another", reason="not me")
                self.worker.send("cancel", run="run-9", reason="enough")
                log, end = self.worker.until("cancelled", "returned", "raised")
                self.assertEqual((log["message"], end["type"], end.get("rung")),
                                 ("tidied up", "cancelled", "checkpoint"))
                self.assertLess(end["duration_ms"], 5000)
        self.assertEqual(self.result("add", r=1), 1)

    def test_cancel_that_came_with_the_call(self):
        lines = [{"type": "call", "run": "x", "action": "wait", "parameters": {}, "simulated": False,
                  "timeout_ms": None}, {"type": "cancel", "run": "x", "reason": "r"}, {"type": "ping", "id": 7}]
        self.worker.process.stdin.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        self.worker.process.stdin.flush()
        self.assertEqual(self.worker.end()["type"], "cancelled")
        self.assertEqual(self.worker.until("pong")[-1]["id"], 7)

    def test_cancel_reaches_other_threads(self):
        self.worker.begin("thread_sleeps", run="t")
        self.worker.until("progress")
        self.worker.send("cancel", run="t", reason="r")
        end = self.worker.end()
        self.assertEqual(end.get("result"), ["RunCancelled"], end)

    @contextlib.contextmanager
    def interrupting(self):
        """SIGINT now, and again while nothing happens: a signal that comes right before a blocking system call is seen
        by Python only after it. The host does not wait for that: its next rung is the kill.
        """
        over = threading.Event()

        def send():
            while True:
                os.kill(self.worker.process.pid, signal.SIGINT)
                if over.wait(1.0):
                    return

        sender = threading.Thread(target=send)
        sender.start()
        try:
            yield
        finally:
            over.set()
            sender.join()

    def test_interrupt(self):
        for action in ("stubborn", "chatty", "later_blocking"):
            with self.subTest(action=action):
                self.worker.begin(action)
                self.worker.until("progress")
                with self.interrupting():
                    end = self.worker.end()
                self.assertEqual((end["type"], end.get("rung")), ("cancelled", "interrupt"))
        self.worker.begin("later", seconds=60)
        self.worker.until("progress")
        with self.interrupting():
            log, end = self.worker.until("cancelled")
        self.assertEqual((log["message"], end["rung"]), ("tidied up", "interrupt"))
        self.assertEqual(self.result("later"), "later")

    def test_interrupt_that_the_action_handles(self):
        self.worker.begin("swallow")
        self.worker.until("progress")
        with self.interrupting():
            self.assertEqual(self.worker.end()["result"], "kept going")

    def test_interrupt_between_calls_does_nothing(self):
        for number in range(20):
            os.kill(self.worker.process.pid, signal.SIGINT)
            self.worker.send("ping", id=number)
            self.assertEqual(self.worker.next(), {"type": "pong", "id": number})

    def test_interrupts_at_any_moment_never_disturb_the_protocol(self):
        stop = threading.Event()

        def interrupt():
            while not stop.wait(0.001):
                os.kill(self.worker.process.pid, signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        try:
            for number in range(150):
                action = ("add", "later", "chatty", "echo")[number % 4]
                end = self.worker.call(action, run="storm-%d" % number)
                self.assertEqual(end["run"], "storm-%d" % number)
                self.assertIn(end["type"], ("returned", "cancelled"), end)
        finally:
            stop.set()
            thread.join()
        self.assertEqual(self.result("later"), "later")

    def test_messages_after_the_end_are_dropped(self):
        self.result("straggler")
        self.assertIsNone(self.result("wait", seconds=0.2))

    def test_unknown_commands_are_ignored(self):
        self.worker.send("dance", steps=3)
        self.worker.process.stdin.write(b"not json\n[1]\n\n")
        self.assertEqual(self.result("add", r=1, y=2), 3)

    def test_safe_state(self):
        self.worker.send("safe_state", reason="test")
        entered, done = self.worker.until("safe_state_done")
        self.assertEqual((entered["type"], entered["duration_ms"], done["ok"]), ("safe_state_entered", 0, True))
        self.assertIn("resting test", self.worker.printed())


class Ends(unittest.TestCase):
    """Ways in which a worker or its host ends."""

    def test_a_crash_ends_the_process(self):
        with Worker(ACTIONS).up() as worker:
            worker.begin("crash")
            self.assertIsNone(worker.next())
            self.assertEqual(worker.wait(), -signal.SIGSEGV)

    def test_losing_the_host_while_idle_ends_it(self):
        with Worker(ACTIONS).up() as worker:
            worker.lose_host()
            self.assertEqual(worker.wait(), 0)

    def test_losing_the_host_kills_a_running_call_and_what_it_started(self):
        with Worker(ACTIONS).up() as worker:
            worker.begin("child_pid")
            child = worker.until("progress")[-1]["current"]
            self.assertTrue(exists(child))
            worker.lose_host()
            self.assertEqual(worker.wait(), -signal.SIGKILL)
            wait_until_gone(child)

    def test_losing_the_host_while_sleeping_in_a_checkpoint(self):
        with Worker(ACTIONS).up() as worker:
            worker.begin("wait")
            worker.until("progress")
            worker.lose_host()
            self.assertEqual(worker.wait(), -signal.SIGKILL)

    def test_a_failing_safe_state_hook_is_reported_and_the_others_run(self):
        source = """
            from interlock import safe_state
            @safe_state
            def first(): raise OSError("stuck")
            @safe_state
            def second(): print("second ran")
            """
        with Worker(source).up() as worker:
            worker.send("safe_state", reason="test")
            done = worker.until("safe_state_done")[-1]
            self.assertFalse(done["ok"])
            self.assertEqual(done["error"]["message"], "stuck")
            self.assertIn("second ran", worker.printed())

    def test_without_a_hook_the_safe_state_is_reached(self):
        with Worker("from interlock import task\n").up() as worker:
            worker.send("safe_state", reason="test")
            self.assertTrue(worker.until("safe_state_done")[-1]["ok"])


class Standby(unittest.TestCase):
    def test_it_takes_over(self):
        with Worker(ACTIONS) as standby:
            standby.hello(role="standby", simulate=True)
            standby.send("guard", worker_pid=None)
            standby.send("safe_state", reason="crashed")
            self.assertTrue(standby.until("safe_state_done")[-1]["ok"])
            self.assertEqual(standby.call("started")["result"], [True])
            standby.lose_host()
            self.assertEqual(standby.wait(), 0)
            self.assertEqual(standby.printed().count("resting"), 1)

    def test_losing_the_host_kills_the_guarded_worker_and_runs_the_hook(self):
        with Worker(ACTIONS).up() as worker, Worker(ACTIONS) as standby:
            worker.begin("stubborn")
            worker.until("progress")
            standby.hello(role="standby")
            standby.send("guard", worker_pid=worker.process.pid)
            standby.send("ping", id=1)
            standby.until("pong")
            standby.lose_host()
            self.assertEqual(standby.wait(), 0)
            self.assertEqual(worker.wait(), -signal.SIGKILL)

    def test_the_hook_runs_with_host_lost(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "rest")
            with Worker(ACTIONS, variables={"REST_FILE": path}) as standby:
                standby.hello(role="standby")
                standby.lose_host()
                self.assertEqual(standby.wait(), 0)
                with open(path) as opened:
                    self.assertEqual(opened.read().split(), ["host_lost", str(standby.process.pid)])

    def test_whatever_hangs_ends_soon_after_its_host(self):
        limits = dict(LIMITS, lost_ms=300)
        hook = "import ctypes, time\nfrom interlock import safe_state\n@safe_state\ndef hangs(reason):\n    %s\n"
        for source, ended in [
            (hook % "time.sleep(600)", -signal.SIGKILL),
            (hook % "ctypes.PyDLL(None).sleep(600)", -signal.SIGALRM),  # holds the interpreter
        ]:
            with Worker(source) as standby:
                standby.hello(role="standby", limits=limits)
                standby.lose_host()
                self.assertEqual(standby.wait(), ended)
        with Worker("import time\nprint('loading')\ntime.sleep(600)\n") as standby:
            standby.send("hello", protocol=1, role="standby", limits=limits)
            while "loading" not in standby.printed():
                time.sleep(0.01)
            standby.lose_host()
            self.assertEqual(standby.wait(), -signal.SIGKILL)

    def test_it_never_kills_itself_or_everything(self):
        for pid in (0, 1, -1):
            with Worker(ACTIONS) as standby:
                standby.hello(role="standby")
                standby.send("guard", worker_pid=pid)
                standby.lose_host()
                self.assertEqual(standby.wait(), 0)


if __name__ == "__main__":
    unittest.main()
