"""Starts a device server with examples/hello.py and runs the browser tests against it."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
PASSWORD = "seven purple pipettes"


def main():
    binary = os.environ.get("INTERLOCK_BIN") or os.path.join(ROOT, "target", "debug", "interlock")
    with tempfile.TemporaryDirectory() as work:
        ready = os.path.join(work, "ready.json")
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        # Passkeys belong to a name, so the server has one.
        environment = dict(os.environ, BOOTSTRAP_ADMIN_SECRET=PASSWORD, PUBLIC_URL="http://localhost:%d" % port,
                           MAX_REQUESTS_PER_MINUTE="6000", MAX_REQUESTS_PER_HOUR="100000")
        with open(os.path.join(work, "log"), "wb") as log:
            server = subprocess.Popen(
                [binary, "device", "serve", os.path.join(ROOT, "examples", "hello.py"), "--listen", "127.0.0.1:%d" % port,
                 "--state", os.path.join(work, "state"), "--ready-file", ready],
                env=environment, stdout=log, stderr=log)
        try:
            end = time.monotonic() + 60
            while not os.path.exists(ready):
                if server.poll() is not None or time.monotonic() > end:
                    with open(os.path.join(work, "log")) as log:
                        sys.exit("the server did not start:\n" + log.read()[-2000:])
                time.sleep(0.05)
            with open(ready) as file:
                url = json.load(file)["url"]
            environment = dict(os.environ, INTERLOCK_URL=url, INTERLOCK_USER="admin", INTERLOCK_PASSWORD=PASSWORD)
            return subprocess.call([sys.executable, "-m", "unittest", "discover", "--start-directory", HERE], env=environment)
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()


if __name__ == "__main__":
    sys.exit(main())
