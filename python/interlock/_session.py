"""Signing in, sending again when that is safe, and turning refusals into typed errors."""

import json
import threading
import urllib.parse
import uuid

from . import errors
from ._display import clean
from ._http import parse_json
from ._wire import to_wire

_BY_CODE = {
    "device_busy": errors.DeviceBusy,
    "emergency_stop_engaged": errors.EmergencyStop,
    "device_needs_attention": errors.DeviceNeedsAttention,
    "run_cancelled": errors.RunWasCancelled,
    "run_uncertain": errors.RunUncertain,
    "run_not_started": errors.RunNotStarted,
    "task_failed": errors.TaskFailed,
    "task_canceled": errors.TaskCanceled,
    "duplicate_dedupe_key": errors.DuplicateTask,
    "second_factor_required": errors.SecondFactorRequired,
    "step_up_required": errors.StepUpRequired,
    "worker_crashed": errors.TaskFailed,
    "task_timed_out": errors.TaskTimedOut,
}
_BY_STATUS = {
    400: errors.InvalidParameters, 401: errors.AuthenticationError, 403: errors.PermissionDenied,
    404: errors.NotFound, 409: errors.Conflict, 413: errors.RequestTooLarge, 422: errors.InvalidParameters,
    429: errors.RateLimited, 500: errors.TaskFailed, 503: errors.DeviceUnavailable, 504: errors.TaskTimedOut,
}
_BY_STATE = {"failed": errors.TaskFailed, "cancelled": errors.RunWasCancelled, "timed_out": errors.TaskTimedOut,
             "uncertain": errors.RunUncertain}
_SENTENCES = {"failed": "the action failed", "cancelled": "the run was cancelled",
              "timed_out": "the run passed its deadline", "uncertain": "it is not known how the run ended"}


def new_key():
    """A fresh idempotency key: one per thing that should happen."""
    return uuid.uuid4().hex


def error_from(response):
    """The typed error for a response that is not a success."""
    try:
        problem = json.loads(response.body.decode("utf-8"))
    except (ValueError, RecursionError):
        problem = {}
    if not isinstance(problem, dict):
        problem = {}
    code = problem.get("code") or problem.get("error")
    kind = _BY_CODE.get(code) or _BY_STATUS.get(response.status, errors.RequestError)
    message = problem.get("message") or problem.get("detail") or problem.get("title")
    if not isinstance(message, str):
        message = "the server answered with status %d" % response.status
    listed = problem.get("errors")
    listed = [dict(one, msg=clean(one.get("msg", "refused"))) for one in listed if isinstance(one, dict)] if isinstance(
        listed, list) else None
    return kind(clean(message), response.status, code if isinstance(code, str) else None,
                problem.get("request_id") or response.headers.get("X-Request-ID"),
                retry_after=_seconds(response.headers.get("Retry-After") or problem.get("retry_after")),
                errors=listed, run_id=response.headers.get("Interlock-Run"))


def error_of_run(run):
    """The typed error for a run that has ended without success."""
    problem = run.get("error") or {}
    state = run.get("state")
    code = problem.get("code")
    kind = _BY_CODE.get(code) or _BY_STATE.get(state, errors.RequestError)
    return kind(clean(problem.get("message") or _SENTENCES.get(state, "the run ended as %s" % state)), None, code,
                run.get("request_id"), run_id=run.get("id"))


def _seconds(text):
    try:
        return float(text) if text is not None else None
    except (TypeError, ValueError):
        return None


class Session:
    """Requests to one server as one user.

    With a user name and a password it signs in by itself, at the first request; when the token has run out it renews it
    (the session of a second factor goes on for weeks that way) or signs in again. With a token alone it can not, and a
    401 is final. ``otp`` is a code for one sign-in or step-up, or a function that asks for one whenever one is needed.
    """

    def __init__(self, transport, username=None, password=None, token=None, otp=None):
        self.transport = transport
        self.username = username
        self._password = password
        self._token = token
        self._refresh = None
        self._otp = otp
        self._login_lock = threading.Lock()

    def __repr__(self):
        return "<Session %s as %s>" % (self.transport.base_url, self.username or "token")

    def close(self):
        """Close the connection and forget the password and the token."""
        self._password = self._token = self._refresh = self._otp = None
        self.transport.close()

    def _code(self):
        """A code, if there is one to be had. One that was given as text counts once."""
        otp = self._otp
        if callable(otp):
            return otp()
        self._otp = None
        return otp

    def login(self):
        """Sign in and keep the token. Raises :class:`interlock.errors.AuthenticationError`."""
        if self.username is None or self._password is None:
            raise errors.AuthenticationError(
                "no credentials for %s" % self.transport.base_url, code="no_credentials",
                advice="Pass username= and password=, or sign in once with `interlock login`.")
        self.transport.refuse_plain_credentials()
        # A function is asked only if the server wants a code; a text that was given goes along at once.
        code = None if callable(self._otp) else self._code()
        response = self._send_login(code)
        if response.status == 401 and code is None and callable(self._otp):
            if isinstance(error_from(response), errors.SecondFactorRequired):
                code = self._code()
                response = self._send_login(code) if code else response
        if response.status != 200:
            raise error_from(response)
        self._keep(response)

    def _send_login(self, code):
        form = {"username": self.username, "password": self._password}
        if code:
            form["otp"] = str(code)
        # A code counts once, so a request with one is not sent again.
        return self.transport.request("POST", "/auth/login", urllib.parse.urlencode(form).encode("ascii"), {
            "Content-Type": "application/x-www-form-urlencoded"}, resend=not code)

    def _keep(self, response):
        answer = parse_json(response)
        answer = answer if isinstance(answer, dict) else {}
        if not _is_token(answer.get("access_token")):
            raise errors.ProtocolError("the server did not answer with a token", response.status)
        self._token = answer["access_token"]
        refresh = answer.get("refresh_token")
        self._refresh = refresh if _is_token(refresh) else None

    def _renew(self):
        """A new token for the refresh token. False when there is none or it is not taken any more."""
        refresh, self._refresh = self._refresh, None
        if refresh is None:
            return False
        body = json.dumps({"refresh_token": refresh}).encode("ascii")
        # Repeated within 10 s by the same client it gives the same pair, so a lost answer may be asked for again.
        response = self.transport.request("POST", "/auth/refresh", body, {"Content-Type": "application/json"}, resend=True)
        if response.status == 401:
            return False
        if response.status != 200:
            self._refresh = refresh
            raise error_from(response)
        self._keep(response)
        return True

    def step_up(self, otp=None, password=None):
        """Prove again who is there, by a code or, without a second factor, by the password. The session goes on."""
        body = {"otp": str(otp)} if otp is not None else {"password": password}
        if otp is None and password is None:
            raise ValueError("give a code (otp=) or the password")
        authorization = self.authorization()
        response = self.transport.request("POST", "/auth/step-up", json.dumps(body).encode("utf-8"),
                                          dict(authorization, **{"Content-Type": "application/json"}))
        if response.status != 200:
            raise error_from(response)
        with self._login_lock:
            refresh = self._refresh
            self._keep(response)
            self._refresh = self._refresh or refresh

    def authorization(self, rejected=None):
        """The headers that carry the token; signs in when there is none or when ``rejected`` is the current one."""
        with self._login_lock:
            if self._token is None or self._token == rejected:
                self._token = None
                if not self._renew():
                    self.login()
            self.transport.refuse_plain_credentials()
            return {"Authorization": "Bearer " + self._token}

    def can_sign_in(self):
        """True when a rejected token can be replaced."""
        return self._refresh is not None or self.username is not None and self._password is not None

    def send(self, method, path, body=None, headers=None, key=None, timeout=None):
        """Send a request and return the Response of a success; raise a typed error otherwise.

        The same ``key`` goes with every copy, so re-sending after a 401 or a lost connection can not act twice.
        """
        headers = dict(headers or {})
        content = None
        if body is not None:
            content = json.dumps(to_wire(body), ensure_ascii=False, allow_nan=False).encode("utf-8")
            headers["Content-Type"] = "application/json"
        if key is not None:
            headers["Idempotency-Key"] = key
        resend = method == "GET" or key is not None
        authorization = self.authorization()
        response = self.transport.request(method, path, content, dict(headers, **authorization), resend, timeout)
        if response.status == 403 and isinstance(error_from(response), errors.StepUpRequired):
            code = self._code()
            if not code:
                raise error_from(response)
            self.step_up(code)
            authorization = self.authorization()
            response = self.transport.request(method, path, content, dict(headers, **authorization), resend, timeout)
        elif response.status == 401 and self.can_sign_in():
            authorization = self.authorization(rejected=authorization["Authorization"][len("Bearer "):])
            response = self.transport.request(method, path, content, dict(headers, **authorization), resend, timeout)
        if not 200 <= response.status < 300:
            raise error_from(response)
        return response

    def json(self, method, path, body=None, headers=None, key=None, timeout=None):
        """Like :meth:`send`, with the body parsed."""
        return parse_json(self.send(method, path, body, headers, key, timeout))


def _is_token(text):
    return isinstance(text, str) and bool(text) and all(32 < ord(character) < 127 for character in text)


def quote(segment):
    """One path segment."""
    return urllib.parse.quote(str(segment), safe="")
