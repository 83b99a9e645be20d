"""The device file that several tests serve. Nothing here touches a machine."""

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
