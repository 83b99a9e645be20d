"""The smallest useful device: no hardware, nothing to install.

    interlock dev examples/hello.py
    interlock run hello greet name=Ada
"""

from interlock import Param, ctx, safe_state, task


@task(title="Greet", effects="none", idempotent=True)
def greet(name: str = Param("world", max_length=80, help="who to greet")) -> str:
    """Say hello."""
    ctx.log("greeting %s" % name)
    return "Hello, %s!" % name


@task(title="Count", effects="none", duration="2 s", rules=["steps * pause <= 60 : at most one minute in all"])
def count(steps: int = Param(10, min=1, max=1000, unit="", help="how far to count"),
          pause: float = Param(0.2, min=0, max=10, unit="s", help="wait between two numbers")) -> dict:
    """Count slowly, with progress; cancel it half-way to see it stop."""
    for number in range(1, steps + 1):
        ctx.progress(number, steps, "at %d" % number)
        ctx.sleep(0 if ctx.simulated else pause)
    ctx.metric("counted", steps)
    return {"counted": steps}


@safe_state
def rest(reason):
    """There is nothing to switch off here; a real device stops its motors and heaters."""
    print("at rest (%s)" % reason)
