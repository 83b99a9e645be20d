"""Annotations of parameters: the JSON Schema a caller sees and the conversion from JSON to the Python value.

``describe(annotation, param)`` returns ``Type(schema, name, convert)``. ``convert`` is None when JSON and Python agree;
otherwise it is a function that takes a value which satisfies the schema and returns the Python value, or raises
``ValueError``.
"""

import collections
import collections.abc
import dataclasses
import datetime
import enum
import sys
import typing

from ._check import compile_schema
from ._param import Param
from ._wire import parse_date, parse_date_time, parse_duration, to_wire

Type = collections.namedtuple("Type", "schema name convert")

SUPPORTED = ("int, float, bool, str, Enum, Literal, Optional, Union, List, Dict, Tuple, a dataclass, date, datetime, "
             "timedelta or Any")
_NO_PARAM = Param()
_NONE = type(None)


class UnsupportedType(Exception):
    """The annotation, or a limit on it, can not be offered to callers."""


def describe(annotation, param=None):
    """Translate one annotation. Raises :class:`UnsupportedType` with the reason."""
    param = param or _NO_PARAM
    annotation, inner = split_annotated(annotation)
    if inner is not None and param is _NO_PARAM:
        param = inner
    while hasattr(annotation, "__supertype__"):
        annotation = annotation.__supertype__
    if annotation is typing.Any or annotation is object:
        return Type(_with_choices({}, param), "any", None)
    simple = _SIMPLE.get(annotation) if isinstance(annotation, type) else None
    if simple is not None:
        return simple(param)
    origin = getattr(annotation, "__origin__", None)
    arguments = getattr(annotation, "__args__", None) or ()
    if is_literal(annotation):
        return _literal(list(arguments), param)
    if origin is typing.Union or _is_pipe_union(annotation):
        return _union(arguments, param)
    if annotation in (list, collections.abc.Sequence) or origin in (list, collections.abc.Sequence):
        return _list(arguments, param)
    if annotation is tuple or origin is tuple:
        return _tuple(arguments, param)
    if annotation in (dict, collections.abc.Mapping) or origin in (dict, collections.abc.Mapping):
        return _dict(arguments, param)
    if origin is None and isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return _enum(annotation, param)
    if origin is None and isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return _dataclass(annotation, param)
    raise UnsupportedType("the type %s is not supported; use %s" % (_show(annotation), SUPPORTED))


def split_annotated(annotation):
    """``Annotated[T, ..., Param(...)]`` as ``(T, Param)``; anything else as ``(annotation, None)``."""
    metadata = getattr(annotation, "__metadata__", None)
    if metadata is None:
        return annotation, None
    found = [item for item in metadata if isinstance(item, Param)]
    return annotation.__origin__, (found[-1] if found else None)


def resolved_hints(thing):
    """The annotations of a function or class with forward references resolved, ``Annotated`` kept."""
    options = {"include_extras": True} if sys.version_info >= (3, 9) else {}
    return typing.get_type_hints(thing, **options)


def with_null(kind):
    """The same type, or nothing."""
    schema = dict(kind.schema)
    if not schema or accepts_null(schema):
        return kind
    if "anyOf" in schema:
        schema["anyOf"] = schema["anyOf"] + [{"type": "null"}]
    else:
        names = schema.get("type")
        if names is not None:
            schema["type"] = ([names] if isinstance(names, str) else names) + ["null"]
        if "enum" in schema:
            schema["enum"] = schema["enum"] + [None]
    inner = kind.convert
    convert = None if inner is None else (lambda value: None if value is None else inner(value))
    return Type(schema, kind.name, convert)


def accepts_null(schema):
    """True when null satisfies the schema."""
    return compile_schema(schema)(None) is None


def is_literal(annotation):
    """True for ``typing.Literal[...]`` and for that of ``typing_extensions``."""
    origin = getattr(annotation, "__origin__", None)
    return getattr(origin, "_name", None) == "Literal" or type(annotation).__name__ == "_LiteralGenericAlias"


def _is_pipe_union(annotation):
    return type(annotation).__module__ == "types" and type(annotation).__name__ == "UnionType"


def _show(annotation):
    return getattr(annotation, "__name__", None) or str(annotation)


def _refuse(param, names, kind):
    for name in names:
        if getattr(param, name) is not None:
            raise UnsupportedType("%s= does not apply to %s" % (name, kind))


_NUMBER_LIMITS = ("min", "max", "step")
_TEXT_LIMITS = ("min_length", "max_length")
_LIST_LIMITS = ("min_items", "max_items")


def _with_choices(schema, param):
    if param.choices is not None:
        schema["enum"] = [to_wire(choice) for choice in param.choices]
        check = compile_schema({key: value for key, value in schema.items() if key != "enum"})
        for choice in schema["enum"]:
            problem = check(choice)
            if problem is not None:
                raise UnsupportedType("the choice %r %s" % (choice, problem))
    return schema


def _number(json_type, convert):
    def build(param):
        _refuse(param, _TEXT_LIMITS + _LIST_LIMITS, "a number")
        schema = {"type": json_type}
        for keyword, limit in (("minimum", param.min), ("maximum", param.max), ("multipleOf", param.step)):
            if limit is not None:
                if isinstance(limit, bool) or not isinstance(limit, (int, float)):
                    raise UnsupportedType("a limit of a number must be a number, not %r" % (limit,))
                schema[keyword] = limit
        return Type(_with_choices(schema, param), json_type, convert)

    return build


def _to_int(value):
    return value if type(value) is int else int(value)


def _to_float(value):
    return value if type(value) is float else float(value)


def _boolean(param):
    _refuse(param, _NUMBER_LIMITS + _TEXT_LIMITS + _LIST_LIMITS, "a truth value")
    return Type(_with_choices({"type": "boolean"}, param), "boolean", None)


def _text(param):
    _refuse(param, _NUMBER_LIMITS + _LIST_LIMITS, "a text; use min_length= and max_length=")
    schema = {"type": "string"}
    if param.min_length is not None:
        schema["minLength"] = param.min_length
    if param.max_length is not None:
        schema["maxLength"] = param.max_length
    return Type(_with_choices(schema, param), "string", None)


def _moment(format_name, convert):
    def build(param):
        _refuse(param, _NUMBER_LIMITS + _TEXT_LIMITS + _LIST_LIMITS, "a date, time or duration")
        return Type(_with_choices({"type": "string", "format": format_name}, param), "string", convert)

    return build


_SIMPLE = {
    bool: _boolean,
    int: _number("integer", _to_int),
    float: _number("number", _to_float),
    str: _text,
    datetime.datetime: _moment("date-time", parse_date_time),
    datetime.date: _moment("date", parse_date),
    datetime.timedelta: _moment("duration", parse_duration),
    _NONE: lambda param: Type({"type": "null"}, "any", None),
}


def _kind_of(values):
    """The JSON type that all values share, and its plain name; ``(None, "any")`` when they differ."""
    kinds = set()
    for value in values:
        if isinstance(value, bool):
            kinds.add("boolean")
        elif isinstance(value, int):
            kinds.add("integer")
        elif isinstance(value, float):
            kinds.add("number")
        elif isinstance(value, str):
            kinds.add("string")
        elif value is not None:
            raise UnsupportedType("the choice %r must be a text, a number or a truth value" % (value,))
    if kinds == {"integer", "number"}:
        kinds = {"number"}
    return (kinds.pop(),) * 2 if len(kinds) == 1 else (None, "any")


def _choice(values, param, extra):
    _refuse(param, _NUMBER_LIMITS + _TEXT_LIMITS + _LIST_LIMITS + ("choices",), "a fixed choice")
    json_type, name = _kind_of(values)
    schema = {}
    if json_type is not None:
        schema["type"] = [json_type, "null"] if None in values else json_type
    schema["enum"] = values
    schema.update(extra)
    return schema, name


def _literal(values, param):
    members = {id(value): value for value in values if isinstance(value, enum.Enum)}
    if members:
        pairs = [(to_wire(value), value) for value in values]
        schema, name = _choice([wire for wire, _ in pairs], param, {})
        return Type(schema, name, lambda value: next(member for wire, member in pairs if wire == value))
    schema, name = _choice(values, param, {})
    return Type(schema, name, None)


def _enum(annotation, param):
    members = list(annotation)
    if not members:
        raise UnsupportedType("the Enum %s has no members" % annotation.__name__)
    values = [member.value for member in members]
    try:
        _kind_of(values)
    except UnsupportedType:
        raise UnsupportedType("the members of %s must have texts, numbers or truth values" % annotation.__name__)
    words = ", ".join("%s = %s" % (member.value, member.name) for member in members)
    plain = all(member.value == member.name for member in members)
    schema, name = _choice(values, param, {} if plain else {"description": words})
    return Type(schema, name, lambda value: value if isinstance(value, annotation) else annotation(value))


def _union(arguments, param):
    members = [argument for argument in arguments if argument is not _NONE]
    kinds, refusals = [], []
    for member in members:
        try:
            kinds.append(describe(member, param))
        except UnsupportedType as refusal:
            # With several members a limit needs to fit one of them only: Union[float, str] with max=.
            if len(members) == 1 or param is _NO_PARAM:
                raise
            kinds.append(describe(member))
            refusals.append(refusal)
    if refusals and len(refusals) == len(members):
        raise refusals[0]
    kind = kinds[0] if len(kinds) == 1 else _any_of(kinds)
    return with_null(kind) if len(members) < len(arguments) else kind


def _any_of(kinds):
    branches = [(compile_schema(kind.schema), kind.convert) for kind in kinds]

    def convert(value):
        for check, inner in branches:
            if check(value) is None:
                return value if inner is None else inner(value)
        raise ValueError("no member of the union takes this value")

    plain = all(kind.convert is None for kind in kinds)
    return Type({"anyOf": [kind.schema for kind in kinds]}, "any", None if plain else convert)


def _item_param(param):
    """What a Param on a list says about each item."""
    return Param(min=param.min, max=param.max, step=param.step, choices=param.choices, min_length=param.min_length,
                 max_length=param.max_length)


def _list(arguments, param):
    arguments = [item for item in arguments if not isinstance(item, typing.TypeVar)]
    schema = {"type": "array"}
    inner = None
    if arguments:
        _, own = split_annotated(arguments[0])
        item = describe(arguments[0], None if own is not None else _item_param(param))
        if item.schema:
            schema["items"] = item.schema
        inner = item.convert
    else:
        _refuse(param, _NUMBER_LIMITS + _TEXT_LIMITS + ("choices",), "a list of unknown items")
    if param.min_items is not None:
        schema["minItems"] = param.min_items
    if param.max_items is not None:
        schema["maxItems"] = param.max_items
    return Type(schema, "array", None if inner is None else (lambda value: [inner(item) for item in value]))


def _tuple(arguments, param):
    if arguments == ((),):
        arguments = ()
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        kind = _list(arguments[:1], param)
    elif arguments and len(set(arguments)) == 1:
        kind = _list(arguments[:1], param)
        kind.schema["minItems"] = kind.schema["maxItems"] = len(arguments)
    elif arguments:
        raise UnsupportedType("a tuple of different types is not supported; use a dataclass")
    else:
        kind = _list((), param)
    inner = kind.convert
    return Type(kind.schema, "array", tuple if inner is None else (lambda value: tuple(inner(value))))


def _dict(arguments, param):
    arguments = [item for item in arguments if not isinstance(item, typing.TypeVar)]
    _refuse(param, _LIST_LIMITS, "an object")
    if not arguments:
        _refuse(param, _NUMBER_LIMITS + _TEXT_LIMITS + ("choices",), "an object of unknown members")
        return Type({"type": "object"}, "object", None)
    if arguments[0] is not str:
        raise UnsupportedType("the keys of a dict must be str, as in JSON")
    _, own = split_annotated(arguments[1])
    item = describe(arguments[1], None if own is not None else _item_param(param))
    inner = item.convert
    schema = {"type": "object"}
    if item.schema:
        schema["additionalProperties"] = item.schema
    convert = None if inner is None else (lambda value: {key: inner(one) for key, one in value.items()})
    return Type(schema, "object", convert)


def _dataclass(annotation, param):
    _refuse(param, _NUMBER_LIMITS + _TEXT_LIMITS + _LIST_LIMITS + ("choices",), "a dataclass")
    hints = resolved_hints(annotation)
    members, required, converters = {}, [], {}
    for field in dataclasses.fields(annotation):
        if not field.init:
            continue
        if isinstance(field.default, Param):
            raise UnsupportedType("in the dataclass %s write %s: Annotated[..., Param(...)] or field(metadata="
                                  "{\"param\": Param(...)})" % (annotation.__name__, field.name))
        member, own = split_annotated(hints[field.name])
        own = field.metadata.get("param", own) or _NO_PARAM
        kind = describe(member, own)
        schema = dict(kind.schema)
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if not has_default and own.required:
            required.append(field.name)
        elif field.default is not dataclasses.MISSING:
            schema["default"] = to_wire(field.default)
        elif not own.required and not has_default:
            raise UnsupportedType("in the dataclass %s give %s its default with = , not in Param" % (
                annotation.__name__, field.name))
        title = own.title
        words = "; ".join(part for part in (own.help, "unit: " + own.unit if own.unit else None) if part)
        if title:
            schema["title"] = title
        if words:
            schema["description"] = words
        members[field.name] = schema
        if kind.convert is not None:
            converters[field.name] = kind.convert

    def convert(value):
        return annotation(**{name: converters[name](item) if name in converters else item
                             for name, item in value.items()})

    schema = {"type": "object", "properties": members, "required": required, "additionalProperties": False}
    return Type(schema, "object", convert)
