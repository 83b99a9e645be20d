"""Exceptions as the ``Error`` object of docs/reference/worker-protocol.md."""

import os
import traceback

from .errors import DeclarationError, PublicError

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
MAX_TEXT = 64 * 1024


def fit(text, limit=MAX_TEXT):
    """Cut a text that is too long for a message."""
    text = str(text)
    return text if len(text) <= limit else text[:limit] + " … (cut, %d characters in all)" % len(text)


def error_of(exception, code=None, public=None, message=None, path=None):
    """Describe an exception. ``path`` is the device's file, whose lines are preferred as the place of the error."""
    frames = _frames(exception.__traceback__)
    file, line = _place(exception, frames, path)
    return {
        "class": type(exception).__name__,
        "message": fit(_text(exception) if message is None else message),
        "public": isinstance(exception, PublicError) if public is None else public,
        "code": code if code is not None else getattr(exception, "code", None) if isinstance(exception, PublicError)
        else None,
        "traceback": fit(_traceback(exception)),
        "file": file,
        "line": line,
    }


def _text(exception):
    try:
        return str(exception) or type(exception).__name__
    except Exception:
        return type(exception).__name__


def _is_ours(filename):
    return filename.startswith(_PACKAGE) or filename.startswith("<frozen importlib")


def _frames(trace):
    return [(frame.f_code.co_filename, number) for frame, number in traceback.walk_tb(trace)]


def _place(exception, frames, path):
    if isinstance(exception, SyntaxError) and exception.filename:
        return exception.filename, exception.lineno
    if isinstance(exception, DeclarationError) and exception.file:
        return exception.file, exception.line
    in_file = [place for place in frames if place[0] == path]
    outside = [place for place in frames if not _is_ours(place[0])]
    return (in_file or outside or [(None, None)])[-1]


def _traceback(exception):
    """The traceback without the frames of the worker itself."""
    trace = exception.__traceback__
    while trace is not None and _is_ours(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    try:
        return "".join(traceback.format_exception(type(exception), exception, trace))
    except Exception as problem:  # an exception whose __str__ raises
        return "%s (no traceback: %s)" % (type(exception).__name__, type(problem).__name__)
