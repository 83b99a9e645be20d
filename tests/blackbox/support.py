"""What the black-box tests share: a device server as a process of its own, driven through its network port only.

``INTERLOCK_BIN`` names the program. Everything lives in temporary folders; every wait is for a condition and has an end.
"""

import base64
import contextlib
import glob
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import unittest

import httpx

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
EXAMPLES = os.path.join(ROOT, "examples")
ADMIN_PASSWORD = "Kestrel-lantern-plinth-42"
PASSWORD = "Marmot-violin-harbour-17"
USERS = {"ada": ["operator", "viewer"], "olaf": ["operator"], "vera": ["viewer"], "adam": ["admin"], "audrey": ["auditor"]}
"""Users that ``add_users`` makes: name and roles. ``admin`` itself has admin, operator and viewer."""
START_SECONDS = 30
STOP_SECONDS = 20
CALL_SECONDS = 30


def program():
    """The program under test."""
    path = os.environ.get("INTERLOCK_BIN", "")
    if not path or not os.access(path, os.X_OK):
        raise RuntimeError("set INTERLOCK_BIN to the interlock program; %r can not be executed" % path)
    return os.path.abspath(path)


def tool(name):
    """The path of a tool that a test needs. A missing one fails the test."""
    found = shutil.which(name)
    if found is None:
        raise AssertionError("the tool %r is needed and is not installed" % name)
    return found


def faked_time():
    """Variables with which a program asks libfaketime for the time of day. The time that passes stays the true one."""
    library = glob.glob("/usr/lib/*/faketime/libfaketime.so.1")
    if not library:
        raise AssertionError("libfaketime is needed and is not installed")
    return {"LD_PRELOAD": library[0], "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


@contextlib.contextmanager
def small_disk(megabytes):
    """A folder on a file system of its own."""
    prefix = [] if os.geteuid() == 0 else [tool("sudo"), "--non-interactive"]
    with tempfile.TemporaryDirectory(prefix="interlock-disk-") as folder:
        options = "size=%dm,mode=0700,uid=%d" % (megabytes, os.getuid())
        subprocess.run(prefix + [tool("mount"), "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True, timeout=10)
        try:
            yield folder
        finally:
            wait_for(lambda: subprocess.run(prefix + [tool("umount"), folder], timeout=10, check=False).returncode == 0, "umount", 10, 0.2)


def fill(folder):
    """Take what is left of a file system; the file that takes it."""
    path = os.path.join(folder, "filler")
    with open(path, "ab", buffering=0) as filler:
        for size in (65536, 4096, 512, 1):
            with contextlib.suppress(OSError):
                while True:
                    filler.write(b"x" * size)
    return path


def wait_for(condition, what, seconds=10.0, pause=0.02):
    """The first true value of ``condition()``; fails the test with ``what`` when there is none in time."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError("not within %g s: %s" % (seconds, what))
        time.sleep(pause)


def processes_with(text):
    """Ids of the processes whose command line holds ``text``, without this one and without zombies."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            with open("/proc/%s/cmdline" % entry, "rb") as opened:
                line = opened.read().decode("utf-8", "replace")
            if text in line and is_running(int(entry)):
                found.append(int(entry))
        except OSError:
            continue
    return found


def is_running(pid):
    """True when there is such a process and it is not a zombie."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as opened:
            return opened.read().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False


def end_process(process):
    """SIGTERM, a bounded wait, SIGKILL. Returns the exit code."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS + 15)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait(STOP_SECONDS)


def token_parts(token):
    """Header and claims of a token, unverified."""
    return tuple(json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))) for part in token.split(".")[:2])


def certificate(folder, name, days="1", key_of=None):
    """A self-signed certificate and its key as files. ``days`` may be negative: then it has expired."""
    certificate_file, key_file = (os.path.join(folder, name + ending) for ending in (".crt", ".key"))
    request = os.path.join(folder, name + ".csr")
    extensions = os.path.join(folder, name + ".ext")
    with open(extensions, "w", encoding="utf-8") as opened:
        opened.write("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    for arguments in (["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key_file,
                       "-out", request, "-subj", "/CN=localhost"],
                      ["x509", "-req", "-in", request, "-signkey", key_file, "-days", days, "-extfile", extensions,
                       "-out", certificate_file]):
        subprocess.run([tool("openssl"), *arguments], check=True, capture_output=True, timeout=30)
    return certificate_file, key_file


class Server:
    """A device server. Use it as a context manager; it is started by ``with`` and everything it left is removed after.

    source     text of the device file; ``file`` names one instead
    options    more options of ``device serve``
    variables  environment variables; ``None`` takes one away
    state      a state folder to use; it is not removed then
    """

    def __init__(self, source=None, file=None, options=(), variables=None, state=None, listen="127.0.0.1:0"):
        self.folder = tempfile.mkdtemp(prefix="interlock-bb-")
        self.file = file or os.path.join(self.folder, "device.py")
        if source is not None:
            self.write(source)
        self.state = state or os.path.join(self.folder, "state")
        self.ready_file = os.path.join(self.folder, "ready.json")
        self.options = list(options)
        self.listen = listen
        self.variables = {
            "PATH": os.environ["PATH"], "HOME": self.folder, "LANG": "C.UTF-8", "TMPDIR": self.folder,
            "BOOTSTRAP_ADMIN_SECRET": ADMIN_PASSWORD, "RATE_LIMIT_ENABLED": "false", "INTERLOCK_PYTHON": sys.executable,
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.variables.update(variables or {})
        self.variables = {name: text for name, text in self.variables.items() if text is not None}
        self.process = None
        self.ready = None
        self.starts = 0
        self.tokens = {}

    # life

    def write(self, source):
        """Replace the device file."""
        with open(self.file, "w", encoding="utf-8") as opened:
            opened.write(textwrap.dedent(source))

    def command(self):
        command = [program(), "device", "serve", self.file, "--state", self.state, "--ready-file", self.ready_file]
        if self.listen:
            command += ["--listen", self.listen]
        return command + self.options

    def spawn(self):
        """Start the process without waiting for it."""
        self.starts += 1
        self.log_path = os.path.join(self.folder, "log-%d" % self.starts)
        self.out_path = os.path.join(self.folder, "out-%d" % self.starts)
        with open(self.log_path, "wb") as log, open(self.out_path, "wb") as out:
            self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=out, stderr=log,
                                            env=self.variables, cwd=self.folder, start_new_session=True)
        return self

    def start(self):
        """Start and wait until it answers."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.ready_file)
        self.spawn()

        def answered():
            if self.process.poll() is not None:
                raise AssertionError("the server ended with %s:\n%s" % (self.process.returncode, self.log()))
            return os.path.exists(self.ready_file)

        wait_for(answered, "the ready file", START_SECONDS)
        with open(self.ready_file, encoding="utf-8") as opened:
            self.ready = json.load(opened)
        return self

    def refused(self, seconds=START_SECONDS):
        """Start it, expect that it ends by itself with an error; returns ``(exit code, what it said)``."""
        self.spawn()
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError("the server started, or hangs, although it must refuse:\n" + self.log()) from None
        with open(self.out_path, encoding="utf-8", errors="replace") as opened:
            said = opened.read()
        return code, said + self.log()

    def stop(self):
        """SIGTERM; returns the exit code."""
        return end_process(self.process)

    def kill(self):
        """SIGKILL to the server alone."""
        self.process.kill()
        self.process.wait(STOP_SECONDS)

    def restart(self):
        """Stop if needed and start again on the same state. Tokens stay as they are."""
        if self.process.poll() is None:
            self.stop()
        return self.start()

    def close(self):
        """End everything and remove every file."""
        if self.process is not None:
            end_process(self.process)
        for pid in processes_with(self.file) if self.file.startswith(self.folder) else []:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_):
        self.close()

    # what it says

    def log(self):
        """The log of the present process."""
        with open(self.log_path, encoding="utf-8", errors="replace") as opened:
            return opened.read()

    def output(self):
        """What the present process printed on standard output."""
        with open(self.out_path, encoding="utf-8", errors="replace") as opened:
            return opened.read()

    def log_lines(self):
        """The log's JSON objects. Whether every line is one is a test of its own."""
        return [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]

    def events(self, name):
        """Security events of this name in the log."""
        return [line for line in self.log_lines() if line.get("event_type") == name]

    def workers(self):
        """Ids of the processes that hold the device file, without the server itself."""
        return [pid for pid in processes_with(self.file) if pid != self.process.pid]

    # talking to it

    @property
    def url(self):
        return self.ready["url"]

    @property
    def address(self):
        host, _, port = self.url.partition("://")[2].rpartition(":")
        return host.strip("[]"), int(port)

    def http(self, token=None, **options):
        """A fresh httpx client. It makes a connection for each request; how connections are reused is tested by itself."""
        options.setdefault("limits", httpx.Limits(max_keepalive_connections=0))
        headers = {"Authorization": "Bearer " + token} if token else {}
        # Over plain HTTP there is nothing to verify, and loading the system's authorities for each client takes long.
        options.setdefault("verify", ssl.create_default_context(cafile=self.ready["ca_file"]) if self.url.startswith("https") else False)
        return httpx.Client(base_url=self.url, headers=headers, timeout=CALL_SECONDS, trust_env=False, **options)

    def login(self, user="admin", password=None):
        """A new token."""
        password = password or (ADMIN_PASSWORD if user == "admin" else PASSWORD)
        with self.http() as client:
            answer = client.post("/auth/login", data={"username": user, "password": password})
        assert answer.status_code == 200, (user, answer.status_code, answer.text)
        return answer.json()["access_token"]

    def token(self, user="admin"):
        """A token of this user, made once."""
        if user not in self.tokens:
            self.tokens[user] = self.login(user)
        return self.tokens[user]

    def add_users(self, *names):
        """Make these of ``USERS`` (all of them without a name)."""
        with self.http(self.token()) as client:
            for name in names or USERS:
                answer = client.post("/users", json={"name": name, "password": PASSWORD, "roles": USERS[name]})
                assert answer.status_code == 201, answer.text
        return self

    def as_user(self, user="admin"):
        """An httpx client that is signed in."""
        return self.http(self.token(user))

    def run(self, task, parameters=None, user="admin", key=None, headers=None, timeout=CALL_SECONDS):
        """POST /execute/{task}; the answer."""
        headers = dict(headers or {})
        if key is not None:
            headers["Idempotency-Key"] = key
        with self.as_user(user) as client:
            return client.post("/execute/" + task, json=parameters or {}, headers=headers, timeout=timeout)

    def begin(self, task, parameters=None, user="admin", key=None):
        """Start a run and return at once; its id."""
        answer = self.run(task, parameters, user, key, {"Prefer": "respond-async"})
        assert answer.status_code == 202, (answer.status_code, answer.text)
        return answer.json()["id"]

    def get(self, path, user="admin", **options):
        with self.as_user(user) as client:
            return client.get(path, **options)

    def post(self, path, body=None, user="admin", **options):
        with self.as_user(user) as client:
            return client.post(path, json=body if body is not None else {}, **options)

    def run_of(self, run_id, user="admin"):
        """The run as it is now."""
        return self.get("/runs/" + run_id, user).json()

    def ended(self, run_id, seconds=20, user="admin"):
        """The run, once it has ended."""
        final = ("succeeded", "failed", "cancelled", "timed_out", "uncertain")

        def look():
            run = self.run_of(run_id, user)
            return run if run.get("state") in final else None

        return wait_for(look, "the end of run %s" % run_id, seconds)

    def run_events(self, run_id, user="admin"):
        """All events of a run so far."""
        return self.get("/runs/%s/events?limit=1000" % run_id, user).json()["items"]

    def audit(self, **query):
        """Audit rows, oldest first."""
        answer = self.get("/audit", params=dict(query, limit=200))
        assert answer.status_code == 200, answer.text
        return answer.json()["items"][::-1]

    def raw(self, data, seconds=10.0, address=None):
        """Send bytes on a fresh connection; what came back until the end or the time is over."""
        with socket.create_connection(address or self.address, timeout=seconds) as connection:
            connection.sendall(data)
            return read_all(connection, seconds)

    def curl(self, *arguments):
        """curl with these arguments and the server's base address for paths; ``(status, headers, body)``."""
        arguments = [self.url + argument if argument.startswith("/") else argument for argument in arguments]
        done = subprocess.run([tool("curl"), "--silent", "--show-error", "--include", "--max-time", "30", "--noproxy", "*",
                               *arguments], capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr.decode()
        head, _, body = done.stdout.partition(b"\r\n\r\n")
        while head.startswith(b"HTTP/1.1 100"):
            head, _, body = body.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = http.client.HTTPMessage()
        for line in lines[1:]:
            name, _, text = line.partition(":")
            headers[name] = text.strip()
        return int(lines[0].split()[1]), headers, body.decode("utf-8", "replace")


def read_all(connection, seconds=10.0):
    """What comes until the peer closes or the time is over. A reset counts as the end."""
    end, received = time.monotonic() + seconds, b""
    try:
        while time.monotonic() < end:
            connection.settimeout(max(0.01, end - time.monotonic()))
            part = connection.recv(65536)
            if not part:
                break
            received += part
    except (TimeoutError, ConnectionError):
        pass
    return received


def status_of(answer):
    """The status code of a raw HTTP/1.1 answer; None when nothing was answered."""
    return int(answer.split()[1]) if answer.startswith(b"HTTP/1.1 ") else None


def together(count, work):
    """Run ``work(number)`` in so many threads that begin at once; their values in order."""
    values, problems = [None] * count, []
    barrier = threading.Barrier(count)

    def one(number):
        try:
            barrier.wait(20)
            values[number] = work(number)
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=one, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    if problems:
        raise problems[0]
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    return values


class Case(unittest.TestCase):
    """Tests that share one server. ``SOURCE`` or ``FILE`` says what it serves."""

    SOURCE = None
    FILE = None
    OPTIONS = ()
    VARIABLES = {}
    ADD_USERS = ()
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.server = Server(cls.SOURCE, cls.FILE, cls.OPTIONS, cls.VARIABLES)
        cls.addClassCleanup(cls.server.close)
        cls.server.start()
        if cls.ADD_USERS:
            cls.server.add_users(*cls.ADD_USERS)

    def assertHealthy(self, server=None):
        """The server still answers and has not panicked."""
        server = server or self.server
        with server.http() as client:
            answer = client.get("/health")
        self.assertEqual(answer.status_code, 200, answer.text)
        self.assertEqual(answer.json()["status"], "healthy")
        self.assertNotIn("panic", server.log())

    def assertProblem(self, answer, status, code=None):
        """An error in the one shape that all errors have; returns its body."""
        self.assertEqual(answer.status_code, status, answer.text)
        self.assertEqual(answer.headers["content-type"], "application/problem+json")
        body = answer.json()
        self.assertLessEqual({"type", "title", "status", "detail", "error", "message", "code", "details", "request_id",
                              "timestamp"}, set(body))
        self.assertEqual((body["status"], body["detail"], body["error"]), (status, body["message"], body["code"]))
        self.assertEqual(body["request_id"], answer.headers["x-request-id"])
        if code is not None:
            self.assertEqual(body["code"], code)
        return body
