"""``OrchestratorClient``: the short way to execute one task after another on a device server."""

import os

from ._http import Transport
from ._session import Session, new_key, quote
from .errors import AuthenticationError, ProtocolError
from .tasks import Tasking

USER_AGENT = "OT2-Orchestrator/1.0"


class OrchestratorClient(Tasking):
    """A signed-in connection to a device server::

        with OrchestratorClient("https://ot2.lab:8000", ca_file="lab-ca.pem") as client:
            client.execute_task("secure_mix_colors", r=255, g=128, b=64, well="A1")

    base_url            address of the server; a trailing slash does not matter
    username, password  from OT2_USERNAME and OT2_PASSWORD when left out
    otp                 code of the second factor of those who have one, or a function that asks for one
    timeout             seconds for one call in all
    ca_file             PEM file of a private certificate authority
    verify              False switches certificate verification off; only for a test
    allow_plain_http    True lets credentials travel unencrypted to another machine

    On an orchestrator it has ``tasks``, ``task_runs``, ``events`` and ``approvals``, as :class:`interlock.Client` has.

    Signs in on construction. Raises :class:`interlock.errors.AuthenticationError` when that is refused and
    :class:`interlock.errors.ConnectionFailed` when there is no server.
    """

    def __init__(self, base_url, username=None, password=None, timeout=30.0, ca_file=None, verify=True,
                 allow_plain_http=False, otp=None):
        username = username if username is not None else os.environ.get("OT2_USERNAME")
        password = password if password is not None else os.environ.get("OT2_PASSWORD")
        if not username or not password:
            raise AuthenticationError("a user name and a password are needed", code="no_credentials",
                                      advice="Pass them, or set OT2_USERNAME and OT2_PASSWORD.")
        transport = Transport(base_url, timeout, ca_file, verify, USER_AGENT, allow_plain_http)
        self.base_url = transport.base_url
        self.timeout = timeout
        self._session = Session(transport, username, password, otp=otp)
        try:
            self._session.login()
        except BaseException:
            self._session.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __repr__(self):
        return "<%s %s>" % (type(self).__name__, self.base_url)

    def close(self):
        """Close the connection and forget the credentials."""
        self._session.close()

    def execute_task(*arguments, **kwargs):
        """``execute_task(name, **parameters)``: execute a task and return its result.

        A fresh idempotency key goes with each call: signing in again after a 401 or sending again after a lost
        connection never executes the task twice. Raises the errors of :mod:`interlock.errors`.
        """
        self, *rest = arguments
        name = kwargs.pop("name") if not rest else rest[0]
        if len(rest) > 1:
            raise TypeError("execute_task() takes the task's name; pass parameters by name")
        return self.execute(name, kwargs)

    def execute(self, name, parameters, idempotency_key=None, timeout=None):
        """Like :meth:`execute_task`, for a key of your own, another time limit in seconds, or odd parameter names."""
        answer = self._session.json("POST", "/execute/" + quote(name), parameters,
                                    key=idempotency_key or new_key(), timeout=timeout)
        if not isinstance(answer, dict) or "result" not in answer:
            raise ProtocolError("the answer holds no result")
        return answer["result"]

    def list_tasks(self):
        """The tasks of the device: name to ``{name, doc, parameters, is_async}``."""
        return self._session.json("GET", "/tasks")

    def health(self):
        """``{status, timestamp, tasks_registered}``."""
        return self._session.json("GET", "/health")


SecureOrchestratorClient = OrchestratorClient
