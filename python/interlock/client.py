"""``Client``: a device's actions as Python methods, from a notebook or a script.

    from interlock import Client

    ot2 = Client().device()
    run = ot2.mix_color(r=120, y=60, b=30, well="B3")     # returns at once
    run.result()
"""

import csv
import inspect
import os

from . import errors
from ._contexts import find_target
from ._http import Transport
from ._runs import Run, RunSet
from ._session import Session, new_key, quote
from ._wire import to_wire
from .tasks import Tasking

_TYPES = {"integer": int, "number": float, "string": str, "boolean": bool, "array": list, "object": dict}
_MAX_LISTED = 12
_OPTIONS = ("simulate", "check", "idempotency_key")


def _client_cert():
    """The client certificate that the environment names."""
    files = [os.environ[name] for name in ("INTERLOCK_CLIENT_CERT", "INTERLOCK_CLIENT_KEY") if os.environ.get(name)]
    return files if os.environ.get("INTERLOCK_CLIENT_CERT") else None


class Client(Tasking):
    """A connection to a device server, or to an orchestrator: :attr:`tasks`, :attr:`task_runs`, :attr:`events`, :attr:`approvals`.

    base_url            address; INTERLOCK_URL or the CLI's current context when left out
    ca_file             PEM file of a private authority; INTERLOCK_CA_FILE or the context's when left out
    username, password  to sign in with; INTERLOCK_USERNAME and INTERLOCK_PASSWORD when left out
    otp                 code of the second factor of those who have one: a text, which counts once, or a function that is
                        called whenever the server wants a code, such as ``lambda: input("code: ")``
    token               instead of a password; INTERLOCK_TOKEN or the context's when left out. A token is never sent to
                        another server than the one it came with
    context             name of a context of the CLI, instead of the current one
    timeout             seconds for one request in all; runs may take as long as they like
    verify              False switches certificate verification off; only for a test
    allow_plain_http    True lets credentials travel unencrypted to another machine
    client_cert         PEM file of our TLS certificate with its key, or a pair of files; INTERLOCK_CLIENT_CERT and
                        INTERLOCK_CLIENT_KEY when left out, and then the context's

    Signs in when it is first used. Raises ``LookupError`` when no server is known.
    """

    def __init__(self, base_url=None, ca_file=None, username=None, password=None, token=None, context=None,
                 timeout=30.0, verify=True, allow_plain_http=False, client_cert=None, otp=None):
        from . import __version__
        target = find_target(base_url, ca_file, token, context)
        username = username or os.environ.get("INTERLOCK_USERNAME") or None
        password = password or os.environ.get("INTERLOCK_PASSWORD") or None
        if (username is None) != (password is None):
            raise ValueError("username and password belong together")
        agent = "interlock-python/%s" % __version__
        certificate = client_cert or _client_cert() or target.client_cert
        transport = Transport(target.url, timeout, target.ca_file, verify, agent, allow_plain_http, certificate)
        credentials = (username or target.username, password, None if password is not None and token is None else target.token, otp)
        self.base_url = transport.base_url
        self._session = Session(transport, *credentials)
        self._beside = None
        if target.tasks_url:
            transport = Transport(target.tasks_url, timeout, target.ca_file, verify, agent, allow_plain_http, certificate)
            self._beside = Session(transport, *credentials)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __repr__(self):
        return "<Client %s>" % self.base_url

    def close(self):
        """Close the connection and forget the credentials."""
        self._session.close()
        if self._beside is not None:
            self._beside.close()

    def _tasks_session(self):
        return self._beside or self._session

    def step_up(self, otp=None, password=None):
        """Prove again who is there, for acts that want a fresh proof: with a code of the second factor, or with the password
        of somebody who has none. Raises :class:`interlock.errors.RequestError` when it is not right."""
        self._session.step_up(otp, password)

    def device(self, name=None):
        """The device of this server. With a name, raises :class:`interlock.errors.NotFound` if it has another one."""
        found = Device(self._session)
        if name is not None and found.name != name:
            raise errors.NotFound("%s serves the device %r, not %r" % (self.base_url, found.name, name),
                                  code="device_not_found", advice="Leave the name out, or use the other address.")
        return found

    def run(self, run_id):
        """A run by its id, for example one that another program started."""
        return Run(self._session, self._session.json("GET", "/runs/" + quote(run_id)))

    def runs(self, limit=50, offset=0, state=None, action=None):
        """The latest runs, newest first."""
        query = "?limit=%d&offset=%d" % (limit, offset)
        query += "&state=%s" % quote(state) if state else ""
        query += "&action=%s" % quote(action) if action else ""
        return [Run(self._session, one) for one in self._session.json("GET", "/runs" + query)["items"]]

    def health(self):
        """``{status, timestamp, tasks_registered}``."""
        return self._session.json("GET", "/health")


class Device:
    """A device. Its actions are methods; ``device["name"]`` reaches one whose name is taken here."""

    def __init__(self, session):
        self._session = session
        self._actions = {}
        self._about = {}
        self.reload()

    def __repr__(self):
        return "<Device %s at %s: %s>" % (self.name, self._session.transport.base_url,
                                          ", ".join(self._actions) or "no actions")

    def __dir__(self):
        return sorted(set(super().__dir__()) | set(self._actions))

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return self._find(name, AttributeError)

    def __getitem__(self, name):
        return self._find(name, KeyError)

    def _find(self, name, missing):
        action = self._actions.get(name)
        if action is None:
            self.reload()
            action = self._actions.get(name)
        if action is None:
            raise missing("the device %s has no action %s; it has %s" % (self.name, name, ", ".join(self._actions)))
        return action

    def reload(self):
        """Ask the server again what the device offers."""
        catalogue = self._session.json("GET", "/actions")
        self._about = catalogue.get("device") or {}
        self._actions = {spec["name"]: DeviceAction(self._session, spec) for spec in catalogue.get("actions") or ()}
        return self

    @property
    def name(self):
        """The device's name."""
        return self._about.get("name")

    @property
    def title(self):
        """The device's title, or None."""
        return self._about.get("title")

    def actions(self):
        """The actions: name to :class:`DeviceAction`."""
        return dict(self._actions)

    @property
    def status(self):
        """The DeviceStatus of docs/reference/device-http.md, asked for now."""
        return self._session.json("GET", "/device")

    def stop(self, reason=None):
        """Emergency stop, now. Returns the StopReport: how many devices confirmed, and how long it took."""
        return self._session.json("POST", "/stop", {} if reason is None else {"reason": reason})

    def release(self, reason):
        """Release the emergency stop (administrators)."""
        return self._session.json("POST", "/stop/release", {"reason": reason})

    def clear_attention(self, reason):
        """Say that a person has looked at the machine and that it may be used again."""
        return self._session.json("POST", "/device/attention/clear", {"reason": reason})


class DeviceAction:
    """One action. Calling it starts a run and returns it at once; see ``help(device.action)`` for the parameters.

    ``simulate=True`` has the device go through the action without moving anything. ``check=True`` only asks whether the
    call would be accepted and returns the parameters as they would be sent. ``idempotency_key`` makes it safe to send
    the same call again from another process. If the action has a parameter of such a name, use :meth:`submit`.
    """

    def __init__(self, session, spec):
        self._session = session
        self.spec = spec
        self.__name__ = spec["name"]
        self.__doc__ = _document(spec)
        self.__signature__ = _signature(spec)
        self._options = [name for name in _OPTIONS if name not in self.__signature__.parameters]

    def __repr__(self):
        return "<Action %s%s>" % (self.__name__, self.__signature__)

    def __call__(self, *arguments, **parameters):
        options = {name: parameters.pop(name) for name in self._options if name in parameters}
        bound = self.__signature__.bind(*arguments, **parameters)
        return self.submit(bound.arguments, **options)

    def submit(self, parameters, simulate=False, check=False, idempotency_key=None):
        """Start a run with a dict of parameters; the options are those of the class."""
        parameters = to_wire(dict(parameters))
        headers = {"Interlock-Simulate": "true"} if simulate else {}
        if check:
            return self._session.json("POST", "/check/" + quote(self.__name__), parameters, headers)
        headers["Prefer"] = "respond-async"
        answer = self._session.json("POST", "/execute/" + quote(self.__name__), parameters, headers,
                                    idempotency_key or new_key())
        if isinstance(answer, dict) and "id" in answer:
            return Run(self._session, answer)
        if isinstance(answer, dict) and "run_id" in answer:
            return Run(self._session, self._session.json("GET", "/runs/" + quote(answer["run_id"])))
        raise errors.ProtocolError("the answer holds no run")

    def map(self, rows, max_parallel=1, keep_going=False, simulate=False):
        """Run the action for each row: dicts, a pandas table, or the path of a CSV file with a header line.

        Every row is checked by the server before the first one is executed, so a mistake in row 90 is found before the
        robot moves. Returns a :class:`RunSet` at once.
        """
        rows = [to_wire(self._converted(row)) for row in _rows(rows)]
        for index, row in enumerate(rows):
            try:
                self.submit(row, simulate, check=True)
            except errors.InvalidParameters as problem:
                problem.message = "row %d: %s" % (index, problem.message)
                problem.row = index
                raise
        return RunSet(lambda row: self.submit(row, simulate), rows, max_parallel, keep_going)

    def _converted(self, row):
        """A row with the texts of a CSV file turned into what the parameters want."""
        types = {one["name"]: one["type"] for one in self.spec["parameters"]}
        return {name: _from_text(value, types.get(name)) if isinstance(value, CsvText) else value
                for name, value in row.items() if not (isinstance(value, CsvText) and value == "")}


class CsvText(str):
    """A cell of a CSV file: text, whatever it means."""


def _rows(rows):
    if isinstance(rows, (str, os.PathLike)):
        with open(os.fspath(rows), newline="", encoding="utf-8-sig") as opened:
            return [{name: CsvText(cell or "") for name, cell in row.items() if name is not None}
                    for row in csv.DictReader(opened)]
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):
        return rows.to_dict(orient="records")
    return [dict(row) for row in rows]


def _from_text(text, type_name):
    text = text.strip()
    if type_name == "boolean" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        if type_name == "integer":
            return int(text)
        if type_name == "number":
            return float(text)
    except ValueError:
        pass
    return str(text)


def _signature(spec):
    """The Python signature; a required parameter behind one with a default can only be given by name."""
    empty, kind = inspect.Parameter.empty, inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters, optional_seen = [], False
    for one in spec["parameters"]:
        if one["required"] and optional_seen:
            kind = inspect.Parameter.KEYWORD_ONLY
        optional_seen = optional_seen or not one["required"]
        parameters.append(inspect.Parameter(one["name"], kind, default=empty if one["required"] else one.get("default"),
                                            annotation=_TYPES.get(one["type"], object)))
    return inspect.Signature(parameters, return_annotation=Run)


def _choices(values):
    words = [str(value) for value in values]
    return ", ".join(words if len(words) <= _MAX_LISTED else words[:3] + ["…"] + words[-1:])


def _document(spec):
    lines = [spec.get("doc") or spec.get("title") or spec["name"]]
    if spec["parameters"]:
        lines.append("")
    for one in spec["parameters"]:
        schema = one.get("schema") or {}
        facts = [one["type"]]
        if "minimum" in schema or "maximum" in schema:
            facts.append("%s to %s" % (schema.get("minimum", "…"), schema.get("maximum", "…")))
        if one.get("unit"):
            facts.append(one["unit"])
        if "enum" in schema:
            facts.append("one of %s" % _choices(schema["enum"]))
        facts.append("required" if one["required"] else "default %r" % (one.get("default"),))
        lines.append("%s: %s%s" % (one["name"], ", ".join(facts), ". " + one["help"] if one.get("help") else ""))
    for rule in spec.get("rules") or ():
        lines.append("Rule: %s" % rule["message"])
    return "\n".join(lines)
