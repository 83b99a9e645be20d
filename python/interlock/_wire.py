"""Values on the wire: how Python objects become JSON, and dates and durations become text."""

import dataclasses
import datetime
import enum
import json
import re

_DATE = re.compile(r"\d{4}-\d\d-\d\d\Z", re.ASCII)
_DATE_TIME = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)\Z", re.ASCII)
_DURATION = re.compile(
    r"P(?=.)(?:(\d{1,9})W|(?:(\d{1,9})D)?(?:T(?=.)(?:(\d{1,9})H)?(?:(\d{1,9})M)?(?:(\d{1,9}(?:\.\d{1,9})?)S)?)?)\Z",
    re.ASCII)


def parse_date(text):
    """``YYYY-MM-DD`` to a ``date``. Raises ``ValueError``."""
    if not _DATE.match(text):
        raise ValueError("expected a date such as 2026-01-31")
    return datetime.date(int(text[:4]), int(text[5:7]), int(text[8:10]))


def parse_date_time(text):
    """RFC 3339 text to an aware ``datetime``; digits past microseconds are cut. Raises ``ValueError``."""
    match = _DATE_TIME.match(text)
    if not match:
        raise ValueError("expected a time with an offset such as 2026-01-31T09:30:00Z")
    day, hour, minute, second, fraction, offset = match.groups()
    microsecond = int(((fraction or "") + "000000")[:6])
    if offset == "Z":
        zone = datetime.timezone.utc
    else:
        hours, minutes = int(offset[1:3]), int(offset[4:6])
        if hours > 23 or minutes > 59:
            raise ValueError("the offset %s does not exist" % offset)
        delta = datetime.timedelta(hours=hours, minutes=minutes)
        zone = datetime.timezone(-delta if offset[0] == "-" else delta)
    date = parse_date(day)
    return datetime.datetime(date.year, date.month, date.day, int(hour), int(minute), int(second), microsecond, zone)


def parse_duration(text):
    """ISO 8601 duration of weeks, or of days, hours, minutes and seconds, to a ``timedelta``.

    Years and months have no fixed length and are refused, as is a fraction of anything but a second. Raises
    ``ValueError``.
    """
    match = _DURATION.match(text)
    if not match:
        raise ValueError("expected a duration such as PT5M or PT0.5S")
    weeks, days, hours, minutes, seconds = match.groups()
    try:
        return datetime.timedelta(weeks=int(weeks or 0), days=int(days or 0), hours=int(hours or 0),
                                  minutes=int(minutes or 0), seconds=float(seconds or 0))
    except OverflowError:
        raise ValueError("the duration is too long")


def format_duration(delta):
    """A ``timedelta`` of 0 or more as ISO 8601, for example ``PT1H0.5S``. Raises ``ValueError`` for a negative one."""
    if delta < datetime.timedelta(0):
        raise ValueError("a duration must not be negative")
    hours, rest = divmod(delta.seconds, 3600)
    minutes, seconds = divmod(rest, 60)
    time = ""
    if hours:
        time += "%dH" % hours
    if minutes:
        time += "%dM" % minutes
    if delta.microseconds:
        time += ("%d.%06d" % (seconds, delta.microseconds)).rstrip("0") + "S"
    elif seconds:
        time += "%dS" % seconds
    days = "%dD" % delta.days if delta.days else ""
    if not days and not time:
        return "PT0S"
    return "P" + days + ("T" + time if time else "")


def format_date_time(moment):
    """A ``datetime`` as RFC 3339; one without a time zone is taken as local time."""
    if moment.tzinfo is None:
        moment = moment.astimezone()
    text = moment.isoformat()
    return text[:-6] + "Z" if text.endswith("+00:00") else text


def to_wire(value):
    """A Python value as JSON values only: members of enums become their values, dataclasses become objects, dates,
    times and durations become text, numpy and pandas objects become numbers and lists.

    Raises ``TypeError`` when there is no such form.
    """
    if value is None or isinstance(value, (bool, str, int, float)):
        return value.value if isinstance(value, enum.Enum) else value
    if isinstance(value, dict):
        return {_key(key): to_wire(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_wire(item) for item in value]
    return to_wire(_fallback(value))


def _key(key):
    if isinstance(key, enum.Enum):
        key = key.value
    if isinstance(key, str):
        return key
    if isinstance(key, (int, float)) and not isinstance(key, bool):
        return json.dumps(key)
    raise TypeError("the keys of an object must be text, not %s" % type(key).__name__)


def _fallback(value):
    """What the JSON encoder should write instead of ``value``, which it does not know."""
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, datetime.datetime):
        return format_date_time(value)
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return format_duration(value)
    if isinstance(value, (set, frozenset)):
        return list(value)
    if hasattr(value, "__fspath__"):
        return str(value.__fspath__())
    module = type(value).__module__.partition(".")[0]
    if module == "pandas" and hasattr(value, "to_dict"):
        return value.to_dict(orient="records") if hasattr(value, "columns") else value.to_dict()
    if module in ("numpy", "pandas", "cupy", "torch", "jax", "jaxlib") and hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError("a value of type %s has no JSON form" % type(value).__name__)


encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_fallback).encode
"""Compact JSON text. Raises ``TypeError`` for an unknown type and ``ValueError`` for NaN, Infinity or a cycle."""
