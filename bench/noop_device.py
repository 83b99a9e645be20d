"""The device under measurement: functions that do nothing, and a hook that does nothing."""

from interlock import safe_state, task


@task
def noop() -> None:
    """Nothing, once."""


@task(idempotent=True)
def noop_repeatable() -> None:
    """Nothing, as often as one likes."""


@safe_state
def rest():
    """Nothing to switch off."""
