"""Interlock: run laboratory devices over a network.

On the robot::

    from interlock import task, Param, ctx

    @task
    def dispense(volume: float = Param(unit="uL", min=0, max=300)) -> dict:
        "Dispense into the current well."
        ctx.progress(0, 1, "dispensing")
        ...

In a notebook::

    from interlock import Client
    run = Client().device().dispense(volume=50)

Only the standard library is used, on every Python from 3.7 on. The client side is imported on first use, so that a
robot does not pay for it.
"""

import importlib

from ._context import ctx
from ._declare import action, on_start, safe_state, task
from ._param import Param
from .errors import DeclarationError, InterlockError, PublicError, RunCancelled

__version__ = "0.1.0"

_LAZY = {
    "Client": "client",
    "Device": "client",
    "Run": "client",
    "RunSet": "client",
    "OrchestratorClient": "orchestrator",
    "Task": "tasks",
    "TaskRun": "tasks",
    "SecureOrchestratorClient": "orchestrator",
    "DeviceServer": "server",
    "errors": None,
    "testing": None,
}

__all__ = [
    "Client",
    "DeclarationError",
    "DeviceServer",
    "InterlockError",
    "OrchestratorClient",
    "Param",
    "PublicError",
    "RunCancelled",
    "SecureOrchestratorClient",
    "Task",
    "TaskRun",
    "__version__",
    "action",
    "ctx",
    "errors",
    "on_start",
    "safe_state",
    "task",
    "testing",
]


def __getattr__(name):
    if name not in _LAZY:
        raise AttributeError("module 'interlock' has no attribute %r" % name)
    module_name = _LAZY[name]
    if module_name is None:
        return importlib.import_module("." + name, __name__)
    value = getattr(importlib.import_module("." + module_name, __name__), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(set(globals()) | set(_LAZY))
