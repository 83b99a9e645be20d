"""Turning what an action hands to ``ctx.artifact`` into a file, by what the object can do.

No third-party module is imported here: figures, pictures, arrays and tables bring their own way of being saved.
"""

import io
import os
import shutil
import sys

from ._wire import encode

_MEDIA_TYPES = {
    "csv": "text/csv", "gif": "image/gif", "html": "text/html", "jpeg": "image/jpeg", "jpg": "image/jpeg",
    "json": "application/json", "log": "text/plain", "md": "text/markdown", "mp4": "video/mp4",
    "npy": "application/x-npy", "parquet": "application/vnd.apache.parquet", "pdf": "application/pdf",
    "png": "image/png", "svg": "image/svg+xml", "tif": "image/tiff", "tiff": "image/tiff",
    "tsv": "text/tab-separated-values", "txt": "text/plain", "webp": "image/webp", "xml": "application/xml",
    "zip": "application/zip",
}


def check_name(name):
    """Raise ``ValueError`` unless ``name`` is a plain file name."""
    if not isinstance(name, str) or not name or name.startswith("."):
        raise ValueError("an artifact needs a file name such as \"well.png\", without a dot in front")
    if "/" in name or "\\" in name or any(ord(character) < 32 or ord(character) == 127 for character in name):
        raise ValueError("the artifact name %r must not hold a path or control characters" % name)
    if len(name.encode("utf-8", "surrogatepass")) > 200:
        raise ValueError("the artifact name is longer than 200 bytes")


def media_type_of(name):
    """The media type for a file name, ``application/octet-stream`` when it is not known."""
    return _MEDIA_TYPES.get(_ending(name), "application/octet-stream")


def _ending(name):
    return name.rpartition(".")[2].lower() if "." in name else ""


def content_of(name, value):
    """``(bytes, None)`` with the content, or ``(None, path)`` when ``value`` names a file to copy.

    bytes       as they are
    str         text, written as UTF-8 (not a path: use ``pathlib.Path`` for a file)
    path        the file
    figure      anything with ``savefig`` (matplotlib)
    picture     anything with ``save`` and a size (PIL)
    array       numpy: ``.csv`` and ``.txt`` as text, ``.json`` as lists, else ``.npy``
    table       anything with ``to_csv`` (pandas): ``.json``, ``.html``, ``.parquet``, else CSV
    dict, list  JSON

    Raises ``TypeError`` for anything else.
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value), None
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass"), None
    if isinstance(value, os.PathLike):
        return None, os.fspath(value)
    ending = _ending(name)
    if hasattr(value, "savefig"):
        buffer = io.BytesIO()
        value.savefig(buffer, format=ending or "png")
        return buffer.getvalue(), None
    if hasattr(value, "save") and hasattr(value, "size") and hasattr(value, "mode"):
        buffer = io.BytesIO()
        value.save(buffer, format={"jpg": "JPEG", "tif": "TIFF"}.get(ending, ending.upper() or "PNG"))
        return buffer.getvalue(), None
    if hasattr(value, "to_csv"):
        return _table(ending, value), None
    if hasattr(value, "__array_interface__"):
        return _array(ending, value), None
    if isinstance(value, io.StringIO):
        return value.getvalue().encode("utf-8"), None
    if hasattr(value, "getvalue"):
        return bytes(value.getvalue()), None
    if isinstance(value, (dict, list, tuple)):
        return encode(value).encode("utf-8"), None
    raise TypeError("an artifact must be bytes, text, a path, a figure, a picture, an array or a table, not %s"
                    % type(value).__name__)


def _table(ending, table):
    if ending == "json":
        return table.to_json(orient="records").encode("utf-8")
    if ending == "html":
        return table.to_html().encode("utf-8")
    buffer = io.BytesIO()
    if ending == "parquet":
        table.to_parquet(buffer)
        return buffer.getvalue()
    text = table.to_csv(index=False, sep="\t" if ending == "tsv" else ",")
    return text.encode("utf-8")


def _array(ending, array):
    if ending == "json":
        return encode(array.tolist()).encode("utf-8")
    numpy = sys.modules["numpy"]
    buffer = io.BytesIO()
    if ending in ("csv", "tsv", "txt"):
        numpy.savetxt(buffer, array, delimiter={"csv": ",", "tsv": "\t"}.get(ending, " "))
    else:
        numpy.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def write(directory, file_name, name, value, limit):
    """Write the artifact to ``directory/file_name`` and return its size in bytes.

    Raises ``ValueError`` when it is larger than ``limit`` bytes (None: no limit); nothing is left behind then.
    """
    content, source = content_of(name, value)
    size = os.stat(source).st_size if content is None else len(content)
    if limit is not None and size > limit:
        raise ValueError("the artifact %s has %d bytes; at most %d are allowed" % (name, size, limit))
    path = os.path.join(directory, file_name)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o600)
    try:
        with os.fdopen(descriptor, "wb") as target:
            if content is not None:
                target.write(content)
            else:
                with open(source, "rb") as opened:
                    shutil.copyfileobj(opened, target, 1 << 20)
                size = target.tell()
        if limit is not None and size > limit:
            raise ValueError("the artifact %s grew past %d bytes" % (name, limit))
    except BaseException:
        os.unlink(path)
        raise
    return size
