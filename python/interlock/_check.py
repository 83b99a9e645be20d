"""The part of JSON Schema 2020-12 that action parameters use, compiled to a function.

``compile_schema(schema)`` returns ``check(value)``, which returns None or the reason why the value is refused. A
keyword outside of docs/reference/worker-protocol.md is an error, so that no limit is silently ignored. As in JSON
Schema, a keyword about numbers says nothing about texts, and so on; ``format`` is checked, not only noted.
"""

import math

from ._wire import parse_date, parse_date_time, parse_duration

_ANNOTATIONS = {"title", "description", "default"}
_FORMATS = {"date": parse_date, "date-time": parse_date_time, "duration": parse_duration}
_STEP_TOLERANCE = 1e-9


def is_number(value):
    """True for a finite JSON number; a boolean is not a number."""
    kind = type(value)
    if kind is int:
        return True
    if kind is float:
        return value - value == 0
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_integer(value):
    """True for a JSON number without a fractional part: 5 and 5.0."""
    return is_number(value) and (isinstance(value, int) or float(value).is_integer())


_KINDS = {
    "null": lambda value: value is None,
    "boolean": lambda value: value is True or value is False,
    "integer": is_integer,
    "number": is_number,
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}
_ARTICLES = {"null": "nothing", "boolean": "true or false", "integer": "a whole number", "number": "a number",
             "string": "a text", "array": "a list", "object": "an object"}


def json_equal(left, right):
    """Equality of JSON values: numbers by value, and true is not 1."""
    if is_number(left) and is_number(right):
        return left == right
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(json_equal(one, two) for one, two in zip(left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(json_equal(left[key], right[key]) for key in left)
    return type(left) is type(right) and left == right


def compile_schema(schema):
    """Compile a schema. Raises ``ValueError`` for an unknown keyword or a malformed one."""
    if schema is True:
        return _accept
    if schema is False:
        return lambda value: "is not allowed here"
    if not isinstance(schema, dict):
        raise ValueError("a schema must be an object")
    checks = []
    for keyword in sorted(schema, key=lambda name: (name != "type", name)):
        if keyword in _ANNOTATIONS:
            continue
        builder = _BUILDERS.get(keyword)
        if builder is None:
            raise ValueError("the schema keyword %r is not supported" % keyword)
        check = builder(schema[keyword], schema)
        if check is not None:
            checks.append(check)
    if not checks:
        return _accept
    if len(checks) == 1:
        return checks[0]

    def check_all(value):
        for check in checks:
            problem = check(value)
            if problem is not None:
                return problem
        return None

    return check_all


def _accept(value):
    return None


def _type(names, schema):
    names = [names] if isinstance(names, str) else list(names)
    unknown = [name for name in names if name not in _KINDS]
    if unknown or not names:
        raise ValueError("unknown type %r" % (unknown or names))
    kinds = [_KINDS[name] for name in names]
    problem = "must be " + " or ".join(_ARTICLES[name] for name in names)
    if len(kinds) == 1:
        kind = kinds[0]
        return lambda value: None if kind(value) else problem
    return lambda value: None if any(kind(value) for kind in kinds) else problem


def _show(value):
    return value if isinstance(value, str) else repr(value)


def _enum(values, schema):
    if not isinstance(values, list):
        raise ValueError("enum must be a list")
    problem = "must be one of " + ", ".join(_show(value) for value in values)
    return lambda value: None if any(json_equal(value, one) for one in values) else problem


def _const(constant, schema):
    problem = "must be %s" % _show(constant)
    return lambda value: None if json_equal(value, constant) else problem


def _any_of(schemas, schema):
    checks = [compile_schema(one) for one in schemas]

    def check(value):
        problems = []
        for one in checks:
            problem = one(value)
            if problem is None:
                return None
            problems.append(problem)
        return " or ".join(dict.fromkeys(problems))

    return check


def _number_limit(holds, words):
    def build(limit, schema):
        if not is_number(limit):
            raise ValueError("a limit must be a number, not %r" % (limit,))
        problem = words % _plain(limit)
        return lambda value: problem if is_number(value) and not holds(value, limit) else None

    return build


def _plain(number):
    return "%d" % number if is_integer(number) and abs(number) < 1e15 else repr(number)


def _multiple_of(step, schema):
    if not is_number(step) or step <= 0:
        raise ValueError("multipleOf must be a number above 0, not %r" % (step,))
    base = schema.get("minimum", 0)
    problem = "must be in steps of %s" % _plain(step)
    if base:
        problem += " from %s" % _plain(base)

    def check(value):
        if not is_number(value):
            return None
        try:
            steps = (value - base) / step
            return None if abs(steps - round(steps)) <= _STEP_TOLERANCE else problem
        except OverflowError:
            return problem

    return check


def _size_limit(kind, at_least, words):
    def build(limit, schema):
        if not is_integer(limit) or limit < 0:
            raise ValueError("a size must be a whole number, 0 or more, not %r" % (limit,))
        limit = int(limit)
        problem = words % limit
        if at_least:
            return lambda value: problem if isinstance(value, kind) and len(value) < limit else None
        return lambda value: problem if isinstance(value, kind) and len(value) > limit else None

    return build


def _items(item_schema, schema):
    check_item = compile_schema(item_schema)

    def check(value):
        if isinstance(value, list):
            for index, item in enumerate(value):
                problem = check_item(item)
                if problem is not None:
                    return "item %d %s" % (index, problem)
        return None

    return check


def _properties(members, schema):
    checks = {name: compile_schema(one) for name, one in members.items()}

    def check(value):
        if isinstance(value, dict):
            for name, one in checks.items():
                if name in value:
                    problem = one(value[name])
                    if problem is not None:
                        return "%s %s" % (name, problem)
        return None

    return check


def _required(names, schema):
    def check(value):
        if isinstance(value, dict):
            for name in names:
                if name not in value:
                    return "must have %s" % name
        return None

    return check


def _additional(rest, schema):
    known = schema.get("properties", {})
    check_rest = compile_schema(rest)

    def check(value):
        if isinstance(value, dict):
            for name, item in value.items():
                if name not in known:
                    problem = check_rest(item)
                    if problem is not None:
                        return "%s %s" % (name, problem)
        return None

    return check


def _format(name, schema):
    if name not in _FORMATS:
        raise ValueError("unknown format %r" % (name,))
    parse = _FORMATS[name]

    def check(value):
        if isinstance(value, str):
            try:
                parse(value)
            except ValueError as problem:
                return "must be a %s: %s" % (name, problem)
        return None

    return check


_BUILDERS = {
    "type": _type,
    "enum": _enum,
    "const": _const,
    "anyOf": _any_of,
    "minimum": _number_limit(lambda value, limit: value >= limit, "must be at least %s"),
    "maximum": _number_limit(lambda value, limit: value <= limit, "must be at most %s"),
    "exclusiveMinimum": _number_limit(lambda value, limit: value > limit, "must be above %s"),
    "exclusiveMaximum": _number_limit(lambda value, limit: value < limit, "must be below %s"),
    "multipleOf": _multiple_of,
    "minLength": _size_limit(str, True, "must have at least %d characters"),
    "maxLength": _size_limit(str, False, "must have at most %d characters"),
    "minItems": _size_limit(list, True, "must have at least %d items"),
    "maxItems": _size_limit(list, False, "must have at most %d items"),
    "items": _items,
    "properties": _properties,
    "required": _required,
    "additionalProperties": _additional,
    "format": _format,
}
