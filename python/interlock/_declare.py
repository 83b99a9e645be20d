"""The decorators: ``@task`` (``@action`` is the same), ``@on_start`` and ``@safe_state``.

Decorating a function notes it and gives its ``Param`` defaults their plain values; the function itself stays what it
was, so calling it in a test just calls it. What callers see (:meth:`Action.spec`) is worked out when the file has been
loaded, so that annotations may refer to classes further down.
"""

import copy
import datetime
import functools
import inspect
import re

from ._check import compile_schema
from ._param import MISSING, Param
from ._rules import RuleBroken, RuleNameError, RuleSyntaxError, compile_rule, split_rule
from ._types import UnsupportedType, accepts_null, describe, resolved_hints, split_annotated, with_null
from ._wire import to_wire
from .errors import DeclarationError

EFFECTS = ("moves", "heats", "doses", "reads", "none")
MAX_TIMEOUT_SECONDS = 7 * 86400
APPROVALS = ("never", "agents", "always")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}\Z")
_MUTABLE = (list, dict, set)


class BadParameters(ValueError):
    """The parameters of a call were refused."""


class RuleNotKept(BadParameters):
    """A rule across parameters does not hold."""


class Registry:
    """What the files loaded so far have declared, in order.

    ``strict`` (set by the worker) refuses a second action of the same name. Elsewhere it replaces the first, because
    cells of a notebook are run again.
    """

    def __init__(self):
        self.strict = False
        self.actions = {}
        self.start_hooks = []
        self.safe_hooks = []
        self.title = None
        self.description = None

    def add(self, declared):
        """Note an action."""
        other = self.actions.get(declared.name)
        if other is not None and self.strict:
            raise declared.error("there is already an action of this name (%s, line %s)" % (other.file, other.line))
        self.actions[declared.name] = declared


registry = Registry()


class _Parameter:
    """One parameter of an action, ready to check and convert."""

    def __init__(self, name, annotation, default, is_annotated):
        declared, own = split_annotated(annotation)
        if isinstance(default, Param):
            param = default
        else:
            param = own or Param()
            if default is not MISSING:
                param = _with_default(param, default)
        self.name = name
        self.param = param
        self.is_annotated = is_annotated
        kind = describe(declared, param)
        if param.default is None and kind.schema and not accepts_null(kind.schema):
            kind = with_null(kind)
        self.schema = dict(kind.schema)
        self.type = kind.name
        self.check = compile_schema(self.schema)
        self.convert = kind.convert
        self.required = param.required
        self.default = None
        self.pass_default = False
        if not self.required:
            self.default = to_wire(param.default)
            problem = self.check(self.default)
            if problem is not None:
                raise UnsupportedType("the default %r %s" % (self.default, problem))
            self.pass_default = kind.convert is not None or isinstance(param.default, _MUTABLE)

    def spec(self):
        param = self.param
        return {"name": self.name, "title": param.title, "help": param.help, "required": self.required,
                "default": self.default, "type": self.type, "unit": param.unit or None, "widget": param.widget,
                "sensitive": param.sensitive, "schema": self.schema}


def _with_default(param, default):
    values = {name: getattr(param, name) for name in Param.__slots__ if name != "default"}
    return Param(default, **values)


class Action:
    """A declared function: its description for callers and the way from JSON parameters to a call."""

    def __init__(self, function, name, title, effects, duration, idempotent, resources, rules, approve, role, timeout):
        self.function = function
        inner = inspect.unwrap(function)
        if not inspect.isfunction(inner):
            raise DeclarationError("@task goes on a function, not on %r" % (function,))
        self.inner = inner
        self.file = inner.__code__.co_filename
        self.line = inner.__code__.co_firstlineno
        self.name = name or function.__name__
        if not _NAME.match(self.name):
            raise self.error("the name %r must be ASCII letters, digits and _, at most 64" % self.name)
        if effects is not None and effects not in EFFECTS:
            raise self.error("effects must be one of %s" % ", ".join(EFFECTS))
        if isinstance(resources, str) or not all(isinstance(one, str) for one in resources):
            raise self.error("resources must be a list of names")
        self.title = title
        self.effects = effects
        self.duration = duration
        self.idempotent = bool(idempotent)
        self.resources = list(resources)
        self.approve = approve
        self.role = role
        self.timeout_seconds = self._seconds(timeout)
        self.is_async = inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(function)
        self.rule_texts = [split_rule(rule) if isinstance(rule, str) else tuple(rule) for rule in rules]
        self.signature = inspect.signature(inner)
        self.parameters = None
        self.rules = None
        self._refuse_open_ended()
        self._plain_defaults()

    def error(self, message):
        return DeclarationError("%s: %s" % (getattr(self, "name", "action"), message), self.file, self.line)

    def _seconds(self, timeout):
        if timeout is None:
            return None
        seconds = timeout.total_seconds() if isinstance(timeout, datetime.timedelta) else float(timeout)
        if not 0 < seconds <= MAX_TIMEOUT_SECONDS:
            raise self.error("timeout must be above 0 seconds and at most a week")
        return seconds

    def _refuse_open_ended(self):
        for parameter in self.signature.parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
                raise self.error("the parameter %s can not be passed by name" % parameter)
            if not _NAME.match(parameter.name):
                raise self.error("the parameter name %r must be ASCII letters, digits and _" % parameter.name)

    def _plain_defaults(self):
        """Replace the ``Param`` objects in the function's own defaults, so that plain Python calls work."""
        inner = self.inner
        positional, keyword = [], {}
        for parameter in self.signature.parameters.values():
            default = parameter.default
            if isinstance(default, Param):
                default = default.default
            elif default is parameter.empty:
                default = MISSING
            if parameter.kind is parameter.KEYWORD_ONLY:
                if default is not MISSING:
                    keyword[parameter.name] = default
            elif default is not MISSING:
                positional.append(default)
            elif positional:
                raise self.error("the required parameter %s must come before those with a default, or after a lone *"
                                 % parameter.name)
        inner.__defaults__ = tuple(positional) or None
        inner.__kwdefaults__ = keyword or None

    def resolve(self):
        """Work out types, schemas and rules; once. Raises :class:`DeclarationError`."""
        if self.parameters is not None:
            return self
        try:
            hints = resolved_hints(self.inner)
        except Exception as problem:
            raise self.error("an annotation can not be resolved: %s" % problem)
        parameters = {}
        for parameter in self.signature.parameters.values():
            default = MISSING if parameter.default is parameter.empty else parameter.default
            annotation = hints.get(parameter.name, object)
            try:
                parameters[parameter.name] = _Parameter(parameter.name, annotation, default, parameter.name in hints)
            except (UnsupportedType, TypeError, ValueError) as problem:
                raise self.error("parameter %s: %s" % (parameter.name, problem))
        self.rules = [self._rule(rule, parameters) for rule in self.rule_texts]
        if self.approve not in APPROVALS:
            self._compiled(self.approve, parameters, "approve")
        self.parameters = parameters
        return self

    def _rule(self, rule, parameters):
        if len(rule) != 2 or not all(isinstance(part, str) for part in rule):
            raise self.error("a rule is \"expression : message\" or (expression, message), not %r" % (rule,))
        return self._compiled(rule[0], parameters, "rule"), rule[1]

    def _compiled(self, text, parameters, what):
        try:
            return compile_rule(text, parameters)
        except (RuleSyntaxError, RuleNameError, TypeError) as problem:
            raise self.error("%s %r: %s" % (what, text, problem))

    def spec(self):
        """The ActionSpec of docs/reference/worker-protocol.md."""
        self.resolve()
        return {
            "name": self.name, "title": self.title, "doc": inspect.getdoc(self.function), "is_async": self.is_async,
            "role": self.role, "idempotent": self.idempotent, "effects": self.effects,
            "timeout_seconds": self.timeout_seconds, "duration": self.duration, "resources": self.resources,
            "approve": self.approve,
            "rules": [{"expr": expression, "message": message} for expression, message in self.rule_texts],
            "parameters": [parameter.spec() for parameter in self.parameters.values()],
        }

    def arguments(self, given):
        """The keyword arguments for the function from the JSON parameters of a call.

        Raises :class:`BadParameters`, or :class:`RuleNotKept` when a rule does not hold.
        """
        parameters = self.parameters
        arguments = {}
        for name, value in given.items():
            parameter = parameters.get(name)
            if parameter is None:
                raise BadParameters("%s has no parameter %s" % (self.name, name))
            problem = parameter.check(value)
            if problem is not None:
                raise BadParameters("%s %s" % (name, problem))
            arguments[name] = value if parameter.convert is None else _converted(parameter, value)
        if len(given) != len(parameters):
            for name, parameter in parameters.items():
                if name not in given:
                    if parameter.required:
                        raise BadParameters("%s is required" % name)
                    if parameter.pass_default:
                        arguments[name] = _fresh_default(parameter)
        if self.rules:
            self._check_rules(given)
        return arguments

    def _check_rules(self, given):
        values = {name: given[name] if name in given else parameter.default
                  for name, parameter in self.parameters.items()}
        for holds, message in self.rules:
            try:
                kept = holds(values) is True
            except RuleBroken as problem:
                raise RuleNotKept("%s (%s)" % (message, problem))
            if not kept:
                raise RuleNotKept(message)


def _converted(parameter, value):
    try:
        return parameter.convert(value)
    except (TypeError, ValueError, OverflowError) as problem:
        raise BadParameters("%s: %s" % (parameter.name, problem))


def _fresh_default(parameter):
    """A default that no earlier call has had in its hands."""
    if parameter.convert is not None and parameter.default is not None:
        return _converted(parameter, parameter.default)
    if isinstance(parameter.default, (list, dict)):
        return copy.deepcopy(parameter.param.default)
    return parameter.param.default


def task(function=None, *, name=None, title=None, effects=None, duration=None, idempotent=False, resources=(),
         rules=(), approve="never", role=None, timeout=None):
    """Offer a function to callers. Works bare (``@task``) and with arguments; ``action`` is another name for it.

    name        name for callers; the function's own when left out
    title       label in forms
    effects     "moves", "heats", "doses", "reads" or "none": what it does to the world
    duration    usual duration in words, for example "3 min"
    idempotent  True when doing it twice is the same as once
    resources   names of what it needs for itself, for example ["deck", "p300"]
    rules       ``"expression : message"`` across parameters, checked before every call
    approve     "never", "agents", "always", or an expression that says when a person must approve
    role        the role that may call it, when that is not "operator"
    timeout     seconds, or a ``timedelta``, at most a week; the server's own limit when left out

    Raises :class:`DeclarationError`.
    """
    def declare(function):
        registry.add(Action(function, name, title, effects, duration, idempotent, resources, rules, approve, role,
                            timeout))
        return function

    return declare if function is None else declare(function)


action = task


def on_start(function=None, *, order=0):
    """Run the function once after the file was loaded, before the first action: open the connection here.

    It takes no parameter, or one that is True when the device is simulated. Hooks run by ``order``, then in the order
    of the file; the first one that raises ends the start.
    """
    return _hook(function, order, registry.start_hooks)


def safe_state(function=None, *, order=0):
    """Run the function whenever the device must be brought to rest: after a cancellation, a timeout, a crash, an
    emergency stop, or when the server has disappeared.

    It takes no parameter, or one with the reason: "cancelled", "timed_out", "crashed", "emergency_stop",
    "host_lost" or "test". Hooks run by ``order``, then in the order of the file; every hook runs even if an earlier
    one raised. It may run in a new process, right after ``@on_start``.
    """
    return _hook(function, order, registry.safe_hooks)


def _hook(function, order, hooks):
    def declare(function):
        takes_argument = _takes_argument(function)
        runner = functools.partial(_call_hook, function, takes_argument)
        if not registry.strict:
            hooks[:] = [entry for entry in hooks if _full_name(entry[2]) != _full_name(function)]
        hooks.append((order, runner, function))
        hooks.sort(key=lambda entry: entry[0])
        return function

    return declare if function is None else declare(function)


def _full_name(function):
    return function.__module__, function.__qualname__


def _takes_argument(function):
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        raise DeclarationError("a hook must be a function, not %r" % (function,))
    code = getattr(inspect.unwrap(function), "__code__", None)
    needed = [one for one in parameters if one.default is one.empty and one.kind is not one.VAR_POSITIONAL
              and one.kind is not one.VAR_KEYWORD]
    if len(needed) > 1 or any(one.kind is one.KEYWORD_ONLY for one in needed):
        raise DeclarationError("the hook %s must take no parameter or one" % function.__name__,
                               code and code.co_filename, code and code.co_firstlineno)
    return any(one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) for one in parameters)


def _call_hook(function, takes_argument, argument):
    """Call a hook; for an ``async def`` hook this returns the coroutine."""
    return function(argument) if takes_argument else function()
