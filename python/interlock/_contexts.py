"""Where a client finds its server and its token: arguments, environment, or the contexts written by the CLI."""

import collections
import json
import os
import stat
import urllib.parse
import warnings

Target = collections.namedtuple("Target", "url ca_file username token client_cert tasks_url")
"""``tasks_url``: where the orchestrator of the same installation is, if that is another address."""


def contexts_path():
    """The file that ``interlock login`` and ``interlock dev`` write."""
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    folder = os.environ.get("INTERLOCK_CONFIG_DIR") or os.path.join(base, "interlock")
    return os.path.join(folder, "contexts.json")


def load_contexts():
    """``(current name or None, {name: context})``; empty without a file. Raises ``ValueError`` if it is broken."""
    path = contexts_path()
    try:
        with open(path, encoding="utf-8") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            document = json.load(opened)
    except FileNotFoundError:
        return None, {}
    except ValueError as problem:
        raise ValueError("%s is not valid JSON: %s" % (path, problem))
    if stat.S_IMODE(mode) & 0o077:
        warnings.warn("%s can be read by others; run: chmod 600 %s" % (path, path), stacklevel=4)
    contexts = document.get("contexts") if isinstance(document, dict) else None
    if not isinstance(contexts, dict):
        raise ValueError("%s holds no contexts" % path)
    return document.get("current"), {name: one for name, one in contexts.items() if isinstance(one, dict)}


def find_target(base_url=None, ca_file=None, token=None, context=None):
    """Decide where to connect: arguments first, then INTERLOCK_URL, then the named or current context.

    A token is only ever used for the server it was issued by: one from a context goes with that context's address, and
    INTERLOCK_TOKEN with INTERLOCK_URL when both are set. Raises ``LookupError`` when there is no address.
    """
    current, contexts = load_contexts()
    if context is not None and context not in contexts:
        raise LookupError("there is no context %r in %s" % (context, contexts_path()))
    chosen = contexts.get(context if context is not None else current) or {}
    environment_url = os.environ.get("INTERLOCK_URL") or None
    url = base_url or (None if context is not None else environment_url) or chosen.get("url")
    if not url:
        raise LookupError("no server is known: pass base_url=, set INTERLOCK_URL, or run `interlock login`")
    environment_token = os.environ.get("INTERLOCK_TOKEN") or None
    username = None
    if token is None and environment_token and (environment_url is None or _same(environment_url, url)):
        token = environment_token
    # Whoever names the address of a device means it for everything.
    named = base_url is not None or (context is None and environment_url is not None)
    tasks_url = None if named else chosen.get("tasks_url")
    if not _is_of(chosen, url):
        matching = [one for one in contexts.values() if _is_of(one, url)]
        chosen = matching[0] if matching else {}
    if token is None:
        token = chosen.get("token")
        username = chosen.get("user")
    ca_file = ca_file or os.environ.get("INTERLOCK_CA_FILE") or chosen.get("ca_file")
    client_cert = [chosen[name] for name in ("client_cert", "client_key") if chosen.get(name)]
    return Target(url, ca_file, username, token, client_cert if chosen.get("client_cert") else None, tasks_url)


def _is_of(context, url):
    """True when ``url`` is an address of the context."""
    return _same(context.get("url"), url) or _same(context.get("tasks_url"), url)


def _same(one, two):
    """True when two addresses name the same server."""
    if not one or not two:
        return False
    return _normal(one) == _normal(two)


def _normal(url):
    parts = urllib.parse.urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return parts.scheme, parts.hostname, port, parts.path.rstrip("/")
