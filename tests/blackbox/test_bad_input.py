"""Whatever callers and device files do wrong: a clear refusal, and a server that goes on."""

import contextlib
import os
import socket
import tempfile
import threading
import time
import unittest

from lab import BAD
from support import CALL_SECONDS, Case, Server, fill, read_all, small_disk, status_of, together, wait_for

HEAD_SECONDS, BODY_SECONDS, MARGIN = 10, 30, 8


class Slow:
    """Connections that send next to nothing, on a server of their own. They run beside the other tests of this file."""

    def __init__(self):
        self.server = Server(BAD).start()
        self.seconds = {}
        token = self.server.token().encode()
        starts = {"head": b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
                  "body": b"POST /auth/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 200\r\n\r\n{",
                  "chunks": b"POST /execute/good HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + token + b"\r\nTransfer-Encoding: chunked\r\n\r\n",
                  "silent": b""}
        self.threads = [threading.Thread(target=self.drip, args=item, daemon=True) for item in starts.items()]
        for thread in self.threads:
            thread.start()

    def drip(self, name, start):
        """Send a byte now and then; note how long the server took to end it."""
        begun = time.monotonic()
        with socket.create_connection(self.server.address, timeout=1) as connection:
            try:
                connection.sendall(start)
                while time.monotonic() - begun < BODY_SECONDS + 2 * MARGIN:
                    try:
                        if not connection.recv(4096):
                            break
                    except TimeoutError:
                        if start:
                            connection.sendall(b"1\r\n1\r\n" if name == "chunks" else b"a")
            except ConnectionError:
                pass
        self.seconds[name] = time.monotonic() - begun


def setUpModule():
    global slow
    slow = Slow()
    unittest.addModuleCleanup(slow.server.close)


class Bodies(Case):
    """Bodies, headers and framing."""

    SOURCE = BAD

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.token = cls.server.token()

    def tearDown(self):
        self.assertHealthy()

    def send(self, content, path="/execute/good", kind="application/json"):
        with self.server.http(self.token) as client:
            return client.post(path, content=content, headers={"Content-Type": kind})

    def test_parameters(self):
        for body, status, code in (
                (b'{"x": "1"}', 400, "invalid_parameters"), (b'{"n": 1.5}', 400, "invalid_parameters"), (b'{"n": true}', 400, "invalid_parameters"),
                (b'{"x": 11}', 400, "invalid_parameters"), (b'{"x": -0.1}', 400, "invalid_parameters"), (b'{"x": null}', 400, "invalid_parameters"),
                (b'{"x": 1e999}', None, None), (b'{"n": 99999999999999999999999}', None, None), (b'{"unknown": 1}', 400, "invalid_parameters"),
                (b'{"": 1}', 400, "invalid_parameters"), (b'{"data": []}', 400, "invalid_parameters"), (b'{"data": "x"}', 400, "invalid_parameters"),
                (b'{"x": NaN}', 422, "invalid_request"), (b'{"x": Infinity}', 422, "invalid_request"), (b'{"x": -Infinity}', 422, "invalid_request"),
                (b'{"x": 1, "x": 2}', 422, "invalid_request"), (b'{"data": {"a": 1, "a": 2}}', 422, "invalid_request"),
                (b'{"data": {"a": "\xff\xfe"}}', 422, "invalid_request"), (b'{"data": {"a": "\\ud800"}}', 422, "invalid_request"),
                (b'{"x": 1', 422, "invalid_request"), (b'{"x": 1}}', 422, "invalid_request"), (b"{'x': 1}", 422, "invalid_request"),
                (b'{"x": 01}', 422, "invalid_request"), (b'{"x": 1,}', 422, "invalid_request"), (b'\xef\xbb\xbf{"x": 1}', 422, "invalid_request"),
                (b'{"x": 1 /* no */}', 422, "invalid_request"), (b"\x00", 422, "invalid_request"), (b"[1]", 422, "invalid_request"),
                (b"null", 422, "invalid_request"), (b'{"data": ' + b'{"a":' * 64 + b"1" + b"}" * 64 + b"}", 422, "invalid_request"),
                (b"[" * 100000, 422, "invalid_request")):
            answer = self.send(body)
            if status is None:
                self.assertIn(answer.status_code, (400, 422), body)
            else:
                self.assertProblem(answer, status, code)
            self.assertNotIn("99999999999", answer.text)
        nested = b'{"data": ' + b'{"a":' * 62 + b"1" + b"}" * 62 + b"}"
        self.assertEqual(self.send(nested).status_code, 200, "63 levels are allowed")
        self.assertEqual(self.send(b'{"x": 2, "n": 3}').json()["result"], 6)

    def test_unknown_tasks(self):
        for name in ("nothing", "x" * 65, "x" * 5000, "..%2f..%2fetc", "%00", "good%0d%0aX-Evil:%201", "<script>", "good%20", "gööd", "%ff"):
            with self.server.http(self.token) as client:
                answer = client.post("/execute/" + name)
            self.assertIn(answer.status_code, (400, 404, 414), name)
            self.assertNotIn("x-evil", answer.headers)
            self.assertNotIn("script", answer.text)

    def test_ten_megabytes(self):
        big = b'{"data": {"a": "' + b"x" * (10 << 20) + b'"}}'
        with self.server.http(self.token) as client:
            self.assertProblem(client.post("/execute/good", content=big, headers={"Content-Type": "application/json"}), 413, "payload_too_large")
            chunks = (big[start:start + 65536] for start in range(0, len(big), 65536))
            self.assertProblem(client.post("/execute/good", content=chunks, headers={"Content-Type": "application/json"}), 413, "payload_too_large")
            self.assertEqual(client.post("/execute/good").status_code, 200)
        with tempfile.NamedTemporaryFile() as body:
            body.write(big)
            body.flush()
            for header in ("Expect:", "Expect: 100-continue", "Transfer-Encoding: chunked"):
                status, _, _ = self.server.curl("/execute/good", "-H", "Authorization: Bearer " + self.token, "-H", header,
                                                "-H", "Content-Type: application/json", "--data-binary", "@" + body.name)
                self.assertEqual(status, 413, header)

    def test_headers_that_contradict(self):
        with self.server.http() as client:
            good = ("Authorization", "Bearer " + self.token)
            self.assertEqual(client.get("/auth/me", headers=[good]).status_code, 200)
            for pair in ((good, good), (good, ("Authorization", "Bearer x")), (("Authorization", "Basic eA=="), good)):
                self.assertProblem(client.get("/auth/me", headers=list(pair)), 401, "unauthorized")
            for keys in (["a", "b"], ["a", "a"], [""], ["x" * 256], ["with space"]):
                answer = client.post("/execute/good", headers=[good] + [("Idempotency-Key", key) for key in keys])
                self.assertProblem(answer, 400, "invalid_request")
            answer = client.post("/execute/good", headers=[good, ("Interlock-Simulate", "perhaps")])
            self.assertIn(answer.status_code, (400, 422))
            self.assertProblem(client.post("/execute/good", content=b"\x1f\x8b", headers=[good, ("Content-Encoding", "gzip")]), 415)
            for number in range(200):
                client.headers["X-Pad-%d" % number] = "y" * 400
            self.assertProblem(client.get("/health"), 431, "invalid_request")

    def test_framing_tricks(self):
        token = b"Authorization: Bearer " + self.token.encode() + b"\r\n"
        host = b"Host: localhost\r\n"
        hidden = b"POST /stop HTTP/1.1\r\nHost: localhost\r\n" + token + b"Content-Length: 0\r\n\r\n"
        refused = {
            "two different content-lengths": b"POST /execute/good HTTP/1.1\r\n" + host + token + b"Content-Length: 2\r\nContent-Length: 0\r\n\r\n{}" + hidden,
            "content-length list": b"POST /execute/good HTTP/1.1\r\n" + host + token + b"Content-Length: 2, 0\r\n\r\n{}" + hidden,
            "content-length with a sign": b"POST /execute/good HTTP/1.1\r\n" + host + token + b"Content-Length: +2\r\n\r\n{}",
            "content-length in hexadecimal": b"POST /execute/good HTTP/1.1\r\n" + host + token + b"Content-Length: 0x2\r\n\r\n{}",
            "negative content-length": b"POST /execute/good HTTP/1.1\r\n" + host + token + b"Content-Length: -1\r\n\r\n{}",
            "huge content-length": b"POST /execute/good HTTP/1.1\r\n" + host + token + b"Content-Length: 99999999999999999999999\r\n\r\n{}",
            "unknown transfer-encoding": b"POST /execute/good HTTP/1.1\r\n" + host + token + b"Transfer-Encoding: gzip\r\n\r\n0\r\n\r\n" + hidden,
            "chunked twice": b"POST /execute/good HTTP/1.1\r\n" + host + token + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + hidden,
            "bad chunk size": b"POST /execute/good HTTP/1.1\r\n" + host + token + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
            "chunk size overflow": b"POST /execute/good HTTP/1.1\r\n" + host + token + b"Transfer-Encoding: chunked\r\n\r\n10000000000000002\r\n{}\r\n0\r\n\r\n",
            "no host": b"GET /auth/me HTTP/1.1\r\n" + token + b"\r\n",
            "two hosts": b"GET /auth/me HTTP/1.1\r\n" + host + host + token + b"\r\n",
            "two names": b"GET http://localhost/auth/me HTTP/1.1\r\nHost: evil.example\r\n" + token + b"\r\n",
            "folded header": b"GET /auth/me HTTP/1.1\r\n" + host + b"X-A: 1\r\n  2\r\n" + token + b"\r\n",
            "space before the colon": b"GET /auth/me HTTP/1.1\r\n" + host + b"Authorization : Bearer " + self.token.encode() + b"\r\n\r\n",
            "nul in a header": b"GET /auth/me HTTP/1.1\r\n" + host + b"X-A: a\x00b\r\n" + token + b"\r\n",
            "carriage return in a header": b"GET /auth/me HTTP/1.1\r\n" + host + b"X-A: a\rb\r\n" + token + b"\r\n",
            "no version": b"GET /auth/me\r\n" + host + token + b"\r\n",
            "version 3": b"GET /auth/me HTTP/3.0\r\n" + host + token + b"\r\n",
            "http/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "a space in the path": b"GET /auth /me HTTP/1.1\r\n" + host + token + b"\r\n",
            "noise": bytes(range(256)) * 4,
            "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        }
        before = self.server.get("/runs").json()["total"]
        answers = dict(zip(refused, together(len(refused), lambda number: self.server.raw(list(refused.values())[number], 6))))
        for name, answer in answers.items():
            with self.subTest(name):
                self.assertEqual(status_of(answer), 400, answer[:200])
                self.assertEqual(answer.count(b"HTTP/1.1 "), 1, answer[:200])
        self.assertFalse(self.server.get("/device").json()["emergency_stop"]["engaged"], "a hidden request was carried out")
        self.assertEqual(self.server.get("/runs").json()["total"], before, "a request that was refused has executed")

    def test_after_a_refusal_the_connection_works_or_is_said_to_close(self):
        """A client that reuses a connection must not lose its next request without a word."""
        for head in (b"POST /execute/good HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n",
                     b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n"):
            with socket.create_connection(self.server.address, timeout=5) as connection:
                connection.sendall(head)
                first = connection.recv(65536)
                self.assertIn(status_of(first), (401, 404))
                if b"connection: close" in first.lower():
                    continue
                connection.sendall(b"{}GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                self.assertEqual(status_of(read_all(connection, 2)), 200, "closed without notice after %r" % first[:30])

    def test_idle_connections_of_another_address(self):
        with contextlib.ExitStack() as stack:
            for _ in range(300):
                stack.enter_context(socket.create_connection(self.server.address, timeout=5, source_address=("127.0.0.2", 0)))
            begun = time.monotonic()
            self.assertEqual(self.send(b"{}").status_code, 200)
            self.assertLess(time.monotonic() - begun, 5)

    def test_idle_connections_of_the_same_address(self):
        """Behind a proxy or NAT everyone is one address: what idles must give way to a call, above all to a stop."""
        with contextlib.ExitStack() as stack:
            for _ in range(300):
                stack.enter_context(socket.create_connection(self.server.address, timeout=5))
            begun = time.monotonic()
            answer = self.server.raw(b"POST /execute/good HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\nAuthorization: Bearer "
                                     + self.token.encode() + b"\r\n\r\n", 10)
            self.assertEqual(status_of(answer), 200)
            self.assertLess(time.monotonic() - begun, 5)


class Functions(Case):
    """Device files whose functions misbehave: a truthful answer, and the next call works."""

    SOURCE = BAD

    def tearDown(self):
        self.assertEqual(self.server.run("good").status_code, 200)
        self.assertHealthy()

    def clear(self):
        if self.server.get("/device").json()["attention"]:
            self.assertEqual(self.server.post("/device/attention/clear", {"reason": "test"}).status_code, 200)

    def test_results_that_can_not_be_sent(self):
        for task, code in (("object_result", "result_not_serialisable"), ("nan_result", "result_not_serialisable"),
                           ("deep_result", "result_not_serialisable"), ("surrogate_result", "result_not_serialisable"),
                           ("huge_result", "result_too_large")):
            answer = self.server.run(task)
            body = self.assertProblem(answer, 500, code)
            self.assertNotIn("0x", body["detail"])
            self.assertEqual(self.server.run_of(answer.headers["interlock-run"])["state"], "failed")

    def test_what_is_printed_becomes_log_and_harms_nothing(self):
        answer = self.server.run("chatty")
        self.assertEqual((answer.status_code, answer.json()["result"]), (200, "honest"))
        logged = [event["data"]["message"] for event in self.server.run_events(answer.json()["run_id"]) if event["kind"] == "log"]
        text = "\n".join(logged)
        for part in ("forged", "to the old stdout", "to stderr", "not utf-8"):
            self.assertIn(part, text)

    def test_functions_that_leave_or_crash(self):
        for task, code in (("leaves", "task_failed"), ("segfault", "worker_crashed"), ("hard_exit", "worker_crashed"),
                           ("kills_its_group", "worker_crashed"), ("raises_strangely", "task_failed")):
            answer = self.server.run(task)
            self.assertProblem(answer, 500, code)
            run = self.server.run_of(answer.headers["interlock-run"])
            self.assertEqual((run["state"], run["error"]["code"]), ("failed", code))
            self.assertEqual(self.server.run("good").status_code, 200, "after " + task)
            if code == "worker_crashed":
                self.assertIsNotNone(self.server.get("/device").json()["attention"], task)
            self.clear()

    def test_forks_and_threads(self):
        answer = self.server.run("forks")
        self.assertEqual(answer.json()["result"], "parent")
        states = [event for event in self.server.run_events(answer.json()["run_id"]) if event["kind"] == "state"]
        self.assertEqual([event["data"]["state"] for event in states][-1], "succeeded")
        self.assertEqual(self.server.run("threads").json()["result"], "left behind")

    def test_functions_that_do_not_end(self):
        for task in ("endless", "hung_in_c"):
            begun = time.monotonic()
            answer = self.server.run(task)
            self.assertProblem(answer, 504, "task_timed_out")
            self.assertLess(time.monotonic() - begun, 15)
            self.assertEqual(self.server.run_of(answer.headers["interlock-run"])["state"], "timed_out")
            self.assertEqual(self.server.run("good").status_code, 200, "after " + task)
            self.clear()

    def test_functions_that_close_what_is_not_theirs(self):
        self.assertEqual(self.server.run("closes_everything").json().get("result"), "closed")
        answer = self.server.run("closes_by_number")
        self.assertIn(answer.json().get("result", answer.json().get("code")), ("closed", "worker_crashed"))
        self.clear()


class Files(unittest.TestCase):
    """Device files that can not be served, or vanish."""

    def test_files_that_can_not_be_loaded(self):
        for source, words in (("def f(:\n    pass\n", ["device.py:1", "SyntaxError"]), ("\n\nimport no_such_module_xyz\n", ["device.py:3", "no_such_module_xyz"]),
                              ("import sys\nsys.exit(4)\n", []), ("import os\nos._exit(4)\n", []), ("1/0\n", ["device.py:1", "ZeroDivisionError"]),
                              ("x = '\\0'\n" + "from interlock import task\n@task\ndef f(a, b: int = 'no'): pass\n", ["device.py"]),
                              ("from interlock import task\n@task\ndef f(): pass\n@task(name='f')\ndef g(): pass\n", ["f"]),
                              ("from interlock import task, on_start\n@task\ndef f(): pass\n@on_start\ndef go():\n    raise OSError('no robot')\n", ["no robot"])):
            server = Server(source)
            try:
                code, said = server.refused(20)
                self.assertGreater(code, 0, source)
                self.assertNotIn("panic", said)
                for word in words:
                    self.assertIn(word, said)
                self.assertEqual(server.workers(), [], "a worker was left behind")
            finally:
                server.close()

    def test_a_file_that_deletes_itself(self):
        with Server(BAD) as server:
            self.assertEqual(server.run("deletes_itself").json()["result"], "deleted")
            self.assertEqual(server.run("good").status_code, 200)
            for _ in range(3):
                begun = time.monotonic()
                answer = server.run("hard_exit", timeout=60)
                self.assertIn(answer.json()["code"], ("worker_crashed", "device_unavailable", "device_needs_attention"), answer.text)
                self.assertLess(time.monotonic() - begun, 20)
            with server.http() as client:
                self.assertIn(client.get("/health").status_code, (200, 503))
                self.assertEqual(client.get("/health/live").status_code, 200)
            self.assertEqual(server.post("/stop").status_code, 200)
            self.assertNotIn("panic", server.log())


class FullDisk(unittest.TestCase):
    """No space: calls are refused in words, the stop works, and everything goes on when there is space."""

    def test_a_full_disk(self):
        source = """
            import os
            from interlock import safe_state, task
            ACTED = os.environ["ACTED"]
            @task
            def move(key: str) -> str:
                with open(ACTED, "a") as opened:
                    opened.write(key + "\\n")
                return key
            @safe_state
            def rest(reason):
                with open(ACTED, "a") as opened:
                    opened.write("rest:" + reason + "\\n")
        """
        with small_disk(4) as disk, tempfile.TemporaryDirectory() as elsewhere:
            acted = os.path.join(elsewhere, "acted")

            def lines():
                with open(acted, encoding="utf-8") as opened:
                    return opened.read().split()

            with Server(source, state=os.path.join(disk, "state"), options=["--env", "ACTED=" + acted]) as server:
                token = server.token()
                before = server.run("move", {"key": "before"}, key="before")
                self.assertEqual(before.status_code, 200)
                filler = fill(disk)
                refused = {}

                def full():
                    fill(disk)
                    number = len(refused)
                    answer = server.run("move", {"key": "full%d" % number}, key="full%d" % number, timeout=CALL_SECONDS)
                    refused[number] = answer
                    return answer.status_code == 503

                wait_for(full, "a call is refused because the disk is full", 30)
                answer = refused[max(refused)]
                self.assertIn(answer.json()["code"], ("unavailable", "device_unavailable"))
                self.assertIn("retry-after", answer.headers)
                for number, answer in refused.items():
                    self.assertEqual("full%d" % number in lines(), answer.status_code == 200, "a refused call acted")
                with server.http(token) as client:
                    begun = time.monotonic()
                    stop = client.post("/stop", json={"reason": "full disk"})
                    self.assertEqual(stop.status_code, 200, stop.text)
                    self.assertLess(time.monotonic() - begun, 10)
                    self.assertEqual((stop.json()["confirmed"], stop.json()["of"]), (1, 1))
                    self.assertIn("rest:emergency_stop", lines())
                    self.assertIs(client.get("/device").json()["emergency_stop"]["engaged"], True)
                    self.assertEqual(client.get("/health/live").status_code, 200)
                os.unlink(filler)
                wait_for(lambda: server.post("/stop/release", {"reason": "space again"}).status_code == 200, "the release", 20, 0.3)
                last = max(refused)
                wait_for(lambda: server.run("move", {"key": "full%d" % last}, key="full%d" % last).status_code == 200, "calls again", 20, 0.3)
                self.assertEqual(lines().count("full%d" % last), 1)
                self.assertEqual(server.run("move", {"key": "before"}, key="before").json(), before.json())
                self.assertEqual(lines().count("before"), 1)
                self.assertNotIn("panic", server.log())
                server.restart()
                self.assertEqual(server.run_of(before.json()["run_id"])["state"], "succeeded")
                self.assertEqual(server.run("move", {"key": "after"}).status_code, 200)


class SlowConnections(unittest.TestCase):
    def test_slow_connections_are_ended(self):
        for thread in slow.threads:
            thread.join(BODY_SECONDS + 2 * MARGIN + 5)
        self.assertEqual(set(slow.seconds), {"head", "body", "chunks", "silent"})
        for name, limit in (("head", HEAD_SECONDS), ("silent", HEAD_SECONDS), ("body", BODY_SECONDS), ("chunks", BODY_SECONDS)):
            with self.subTest(name):
                self.assertLess(slow.seconds[name], limit + MARGIN, "a slow %s kept its connection" % name)
        self.assertNotIn("panic", slow.server.log())


if __name__ == "__main__":
    unittest.main()
