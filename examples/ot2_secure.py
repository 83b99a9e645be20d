"""Two small tasks with the names that clients of the earlier secure OT-2 server call. Nothing to install.

    interlock device serve examples/ot2_secure.py
"""

import datetime

from interlock import Param, ctx, safe_state, task

WELLS = [row + str(column) for row in "ABCDEFGH" for column in range(1, 13)]


@task(title="Mix colours", effects="moves")
def secure_mix_colors(r: int = Param(min=0, max=255, unit="", help="red"),
                      g: int = Param(min=0, max=255, unit="", help="green"),
                      b: int = Param(min=0, max=255, unit="", help="blue"),
                      well: str = Param(choices=WELLS, widget="plate96", help="where to mix")) -> str:
    """Mix a colour in one well and say so."""
    for step, colour in enumerate(("red", "green", "blue"), 1):
        ctx.progress(step, 3, "dispensing %s" % colour)
        ctx.checkpoint()
    return "Securely mixed RGB(%d,%d,%d) in well %s" % (r, g, b, well)


@task(title="Status", effects="reads", idempotent=True)
def secure_get_status() -> dict:
    """Say that the device is ready, and when that was."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return {"status": "ready", "security": "enabled", "timestamp": now.isoformat()}


@safe_state
def rest():
    """Nothing moves in this example."""
