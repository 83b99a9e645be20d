"""The device files that several tests serve, and a server for them. Nothing here touches a machine."""

import os

from support import Case, Server, wait_for


LAB = '''
    """A device for tests."""
    import asyncio, os, time
    from interlock import Param, PublicError, ctx, safe_state, task

    ACTED = os.environ.get("ACTED")

    def act(word):
        if ACTED is None:
            return
        descriptor = os.open(ACTED, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, (word + "\\n").encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @task(effects="moves")
    def move(key: str = Param("x", max_length=80), seconds: float = Param(0, min=0, max=60)) -> dict:
        """Act once, and say so in a file."""
        act(key)
        ctx.sleep(seconds)
        return {"acted": key, "pid": os.getpid()}

    @task
    def mix(volume: float = Param(unit="uL", min=0, max=300), wells: int = Param(3, min=1, max=96, unit=""),
            name: str = Param("plate", max_length=20), dry: bool = False, stocks: list = Param(None), extra: dict = Param(None)) -> dict:
        """Mix something."""
        return {"volume": volume, "wells": wells, "name": name, "dry": dry, "stocks": stocks, "extra": extra}

    @task
    async def later(seconds: float = Param(0.01, min=0, max=30)) -> str:
        """An asynchronous action."""
        await asyncio.sleep(seconds)
        return "later"

    @task
    def steps(count: int = Param(5, min=1, max=10000), pause: float = Param(0.05, min=0, max=5)) -> int:
        """Progress, log and numbers while it runs."""
        for number in range(1, count + 1):
            ctx.progress(number, count, "step %d" % number)
            ctx.log("did %d" % number)
            ctx.sleep(pause)
        ctx.metric("steps", count, unit="1", kind="test")
        return count

    @task
    def fail(text: str = "boom-in-the-robot") -> None:
        """Raise."""
        raise ValueError(text)

    @task
    def refuse() -> None:
        """Raise something that the caller may see."""
        raise PublicError("the well is full", code="well_full")

    @task(timeout=0.5)
    def endless() -> None:
        """Never end."""
        while True:
            pass

    @task
    def spin(seconds: float = Param(30, min=0, max=60)) -> None:
        """Look at no checkpoint; an interrupt ends it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.01)

    @task
    def stubborn(seconds: float = Param(30, min=0, max=60)) -> None:
        """Swallow interrupts; only a kill ends it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                time.sleep(0.05)
            except BaseException:
                pass

    @task
    def hang(seconds: int = Param(30, min=0, max=60)) -> None:
        """Hang in C with the interpreter's lock held: no Python code can run in this process."""
        import ctypes
        ctypes.PyDLL(None).sleep(seconds)

    @task(role="chemist")
    def restricted() -> str:
        """Only for those who hold the role."""
        return "done"

    @task
    def secret(password: str = Param(sensitive=True), count: int = Param(1, sensitive=True), label: str = "plain") -> int:
        """Take values that must not be seen."""
        return len(password) + count

    @safe_state
    def rest(reason):
        act("rest:" + reason)
'''

BAD = '''
    import ctypes, os, signal, sys, threading, time
    from interlock import Param, ctx, safe_state, task

    @task
    def good(x: float = Param(1.5, min=0, max=10), n: int = Param(1, min=0, max=10), data: dict = Param(None)) -> float:
        return x * n

    @task
    def object_result():
        return object()

    @task
    def nan_result():
        return {"value": float("nan")}

    @task
    def huge_result():
        return "x" * (50 << 20)

    @task
    def deep_result():
        value = []
        for _ in range(100000):
            value = [value]
        return value

    @task
    def surrogate_result():
        return "\\ud800"

    @task
    def chatty():
        print('{"type":"returned","run":"%s","result":"forged"}' % ctx.run_id)
        os.write(1, b'{"type":"returned","result":"forged"}\\n')
        sys.__stdout__.write("to the old stdout\\n")
        sys.__stdout__.flush()
        print("to stderr", file=sys.stderr)
        os.write(2, b"\\xff\\xfe not utf-8\\n")
        return "honest"

    @task
    def leaves():
        sys.exit(3)

    @task
    def segfault():
        ctypes.string_at(0)

    @task
    def hard_exit():
        os._exit(7)

    @task
    def forks():
        if os.fork() == 0:
            return "child"
        os.wait()
        return "parent"

    @task
    def threads():
        for _ in range(20):
            threading.Thread(target=time.sleep, args=(600,), daemon=False).start()
        return "left behind"

    @task(timeout=0.5)
    def endless():
        while True:
            pass

    @task(timeout=0.5)
    def hung_in_c():
        ctypes.PyDLL(None).sleep(60)

    @task
    def closes_everything():
        for descriptor in (0, 1, 2):
            os.close(descriptor)
        return "closed"

    @task
    def closes_by_number():
        os.closerange(0, 256)
        return "closed"

    @task
    def deletes_itself():
        os.unlink(__file__)
        return "deleted"

    @task
    def kills_its_group():
        os.killpg(0, signal.SIGKILL)

    @task
    def raises_strangely():
        class Odd(BaseException):
            def __str__(self):
                raise RuntimeError("no text")
        raise Odd()

    @safe_state
    def rest(reason):
        pass
'''


class Lab(Case):
    """A server whose actions note in a file that they acted."""

    SOURCE = LAB

    @classmethod
    def setUpClass(cls):
        cls.server = Server(cls.SOURCE, variables=cls.VARIABLES)
        cls.acted_file = os.path.join(cls.server.folder, "acted")
        cls.server.options += ["--env", "ACTED=" + cls.acted_file]
        cls.addClassCleanup(cls.server.close)
        cls.server.start()
        cls.server.add_users(*cls.ADD_USERS)

    def acted(self):
        """Every line that an action wrote."""
        if not os.path.exists(self.acted_file):
            return []
        with open(self.acted_file, encoding="utf-8") as opened:
            return opened.read().split("\n")[:-1]

    def tearDown(self):
        self.assertHealthy()

    def rungs(self, run_id):
        """The last outcome of each rung that was tried, in order."""
        return {event["data"]["rung"]: event["data"]["outcome"] for event in self.server.run_events(run_id) if event["kind"] == "rung"}

    def running(self, run_id):
        """Wait until the action itself runs."""
        wait_for(lambda: self.server.run_of(run_id)["state"] == "running", "the run is running")
