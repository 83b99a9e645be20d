"""Errors raised by the parts of the SDK that run beside the robot and by the client.

Every client error carries ``code`` (stable, machine readable), ``request_id`` (quote it when asking for help),
``status`` (the HTTP status, or None) and ``advice`` (one sentence saying what to do next).
"""


class InterlockError(Exception):
    """Base class of every error of this package, except :class:`RunCancelled`."""


class PublicError(InterlockError):
    """Raise this in an action when its text may be shown to whoever called the action.

    Any other exception is kept in the server's log; the caller only learns that the action failed.

    ``code`` is an optional stable word for programs, for example ``"well_already_filled"``.
    """

    def __init__(self, message, code=None):
        super().__init__(message)
        self.code = code


class DeclarationError(InterlockError):
    """A decorator or a parameter declaration is wrong; raised while the file is loaded.

    ``file`` and ``line`` point at the function that was being declared, where known.
    """

    def __init__(self, message, file=None, line=None):
        super().__init__(message)
        self.file = file
        self.line = line


class RunCancelled(BaseException):
    """Raised by ``ctx.checkpoint()`` and ``ctx.sleep()`` when the run was cancelled.

    It is not an ``Exception``, so that ``except Exception`` in an action does not swallow a cancellation. Use
    ``try``/``finally`` to tidy up; do not catch it to carry on.
    """


class RequestError(InterlockError):
    """A request did not succeed. Subclasses say which way."""

    default_advice = "Look up the request id in the server's log."

    def __init__(self, message, status=None, code=None, request_id=None, advice=None, retry_after=None, errors=None,
                 run_id=None):
        self.message = message
        self.status = status
        self.code = code
        self.request_id = request_id
        self.advice = advice or self.default_advice
        self.retry_after = retry_after
        self.errors = errors or []
        self.run_id = run_id
        super().__init__(message)

    def __str__(self):
        parts = [self.message]
        for error in self.errors:
            location = ".".join(str(part) for part in error.get("loc", ()) if part != "body")
            parts.append("  %s: %s" % (location or "request", error.get("msg", "refused")))
        if self.advice:
            parts.append("What to do: %s" % self.advice)
        labels = []
        if self.code:
            labels.append("code %s" % self.code)
        if self.request_id:
            labels.append("request %s" % self.request_id)
        if self.run_id:
            labels.append("run %s" % self.run_id)
        if labels:
            parts.append("(%s)" % ", ".join(labels))
        return "\n".join(parts)


class AuthenticationError(RequestError):
    """401: the credentials or the token were not accepted."""

    default_advice = "Check the user name and the password, or sign in again."


class SecondFactorRequired(AuthenticationError):
    """401 ``second_factor_required``: the password is right, and a code is needed as well, or the given one is not right."""

    default_advice = "Pass otp= with a fresh code of the authenticator app, or a function that asks for one."


class PermissionDenied(RequestError):
    """403: signed in, but not allowed to do this."""

    default_advice = "Ask an administrator for the role that this action needs."


class StepUpRequired(PermissionDenied):
    """403 ``step_up_required``: this act wants a fresh proof of who is there; nothing was done."""

    default_advice = "Call step_up() with a fresh code, or pass otp= a function that asks for one, and call again."


class NotFound(RequestError):
    """404: no such action, run or artifact."""

    default_advice = "List what there is with device.actions()."


class InvalidParameters(RequestError):
    """400 or 422: the request was understood and refused. ``errors`` names each parameter."""

    default_advice = "Correct the parameters named above and call again; nothing was executed."


class RequestTooLarge(RequestError):
    """413: the parameters are larger than the server accepts."""

    default_advice = "Send less data in one call."


class Conflict(RequestError):
    """409: the device is in a state in which it does not do this."""

    default_advice = "Look at the device's status."


class DeviceBusy(Conflict):
    """409 ``device_busy``: another run holds the device. ``retry_after`` is in seconds."""

    default_advice = "Wait for the running action to end and call again; nothing was executed."


class EmergencyStop(Conflict):
    """409 ``emergency_stop_engaged``: the device is stopped until an administrator releases it."""

    default_advice = "Check the machine, then have an administrator release the stop; nothing was executed."


class DeviceNeedsAttention(Conflict):
    """409 ``device_needs_attention``: the device could not be brought to its safe state."""

    default_advice = "Look at the machine itself, then clear the mark on the device."


class RunWasCancelled(Conflict):
    """409 ``run_cancelled``: the run was cancelled while this call waited for it."""

    default_advice = "Check what was already done before calling again."


class RunUncertain(Conflict):
    """409 ``run_uncertain``: the action was started and its end is not known. It is never repeated by itself."""

    default_advice = "Look at the machine, decide whether the action happened, and only then call again with a new key."


class RunNotStarted(Conflict):
    """409 ``run_not_started``: the server stopped before the action started."""

    default_advice = "Nothing happened; call again."


class TaskCanceled(Conflict):
    """``task_canceled``: the task was canceled, which is final."""

    default_advice = "Make a new task."


class DuplicateTask(Conflict):
    """``duplicate_dedupe_key``: another task of the same creator has this key and is not canceled."""

    default_advice = "Use the task that there is, or cancel it first."


class RateLimited(RequestError):
    """429: too many requests. ``retry_after`` says how many seconds to wait."""

    default_advice = "Wait for the given number of seconds and call again."


class TaskFailed(RequestError):
    """500: the action was executed and failed."""

    default_advice = "Read the run's log; check the machine before calling again."


class DeviceUnavailable(RequestError):
    """503: the device's worker could not be started."""

    default_advice = "Read the server's log; the file that declares the actions may not load."


class TaskTimedOut(RequestError):
    """504: the deadline passed; the action was stopped and the device brought to its safe state."""

    default_advice = "Check the machine, then call again with a longer timeout if the action needs it."


class ConnectionFailed(RequestError):
    """No answer: the server is not there, the connection broke, or its certificate was not accepted."""

    default_advice = "Check the address, the network and that the server runs."


class ProtocolError(RequestError):
    """The answer is not what an Interlock server sends."""

    default_advice = "Check that the address belongs to an Interlock server."
