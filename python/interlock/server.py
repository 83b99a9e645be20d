"""``DeviceServer``: serve the file it is written in, for those who start devices with ``python file.py``."""

import os
import shutil
import sys
import warnings

from ._declare import registry

_WITHOUT_EFFECT = {"access_log", "forwarded_allow_ips", "log_config", "log_level", "loop", "proxy_headers", "reload",
                   "server_header", "timeout_keep_alive", "use_colors", "workers"}


class DeviceServer:
    """Serves the actions of the file that is being run::

        if __name__ == "__main__":
            DeviceServer(title="OT-2 in room 4").run(host="127.0.0.1", port=8000)

    The server itself is the ``interlock`` program; this process is replaced by it, and it starts the file's functions
    in a process of their own.

    require_auth is there for files written for earlier systems; sign-in can not be switched off, so ``False`` raises
    ``ValueError``.
    """

    def __init__(self, title=None, require_auth=True, description=None):
        if not require_auth:
            raise ValueError("sign-in can not be switched off; for work on one machine use `interlock dev FILE`, which "
                             "signs you in by itself")
        self.title = title
        self.description = description
        registry.title = title if title is not None else registry.title
        registry.description = description if description is not None else registry.description

    def run(self, host="127.0.0.1", port=8000, ssl_certfile=None, ssl_keyfile=None, **options):
        """Serve until stopped. Does not return; does nothing while the file is loaded by a worker.

        Raises ``FileNotFoundError`` when the ``interlock`` program is not installed, ``ValueError`` for a wrong port
        or half a certificate, ``TypeError`` for an unknown option.
        """
        if os.environ.get("INTERLOCK_WORKER") == "1":
            return
        for name in sorted(options):
            if name not in _WITHOUT_EFFECT:
                raise TypeError("run() has no option %r" % name)
            warnings.warn("the option %r has no effect here" % name, stacklevel=2)
        command = self.command(host, port, ssl_certfile, ssl_keyfile)
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(command[0], command, self.environment())

    def command(self, host="127.0.0.1", port=8000, ssl_certfile=None, ssl_keyfile=None):
        """The command line that :meth:`run` executes, as a list."""
        if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
            raise ValueError("port must be a number from 0 to 65535, not %r" % (port,))
        if bool(ssl_certfile) != bool(ssl_keyfile):
            raise ValueError("ssl_certfile and ssl_keyfile belong together")
        command = [find_program(), "device", "serve", served_file(), "--host", str(host), "--port", str(port)]
        if ssl_certfile:
            command += ["--tls-cert", os.fspath(ssl_certfile), "--tls-key", os.fspath(ssl_keyfile)]
        if self.title:
            command += ["--title", self.title]
        if self.description:
            command += ["--description", self.description]
        return command + ["--python", sys.executable]

    def environment(self):
        """The environment for the server: it and its workers must find this package."""
        environment = dict(os.environ)
        parent = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        if os.path.basename(parent) not in ("site-packages", "dist-packages"):
            paths = [parent] + [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
            environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
        return environment


def find_program():
    """The ``interlock`` program: INTERLOCK_BIN, else on PATH, else shipped inside this package."""
    named = os.environ.get("INTERLOCK_BIN")
    if named:
        if not os.access(named, os.X_OK):
            raise FileNotFoundError("INTERLOCK_BIN names %s, which is not a program" % named)
        return named
    found = shutil.which("interlock")
    shipped = os.path.join(os.path.dirname(os.path.abspath(__file__)), "bin", "interlock")
    if found is None and os.access(shipped, os.X_OK):
        found = shipped
    if found is None:
        raise FileNotFoundError("the interlock program is not installed; put it on PATH or set INTERLOCK_BIN")
    return found


def served_file():
    """The file that was started as the program."""
    path = getattr(sys.modules.get("__main__"), "__file__", None)
    if not path:
        raise RuntimeError("DeviceServer.run() serves the file it is called from; start it with `python FILE`")
    return os.path.abspath(path)
