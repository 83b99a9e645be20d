"""The clients against a small local server: signing in, sending again, typed errors, runs, events, TLS."""

import asyncio
import inspect
import json
import os
import socket
import ssl
import subprocess
import tempfile
import time
import unittest
import warnings
from unittest import mock

import support  # noqa: F401  (sets the path)
from fake_server import FakeServer, problem
from interlock import Client, OrchestratorClient, SecureOrchestratorClient, errors
from interlock._contexts import find_target
from interlock._display import run_html, run_text
from interlock._http import Transport, is_loopback

CREDENTIALS = {"username": "ada", "password": "se cret&ü"}
NO_SETTINGS = {name: "" for name in ("INTERLOCK_URL", "INTERLOCK_TOKEN", "INTERLOCK_CA_FILE", "INTERLOCK_USERNAME",
                                     "INTERLOCK_PASSWORD", "OT2_USERNAME", "OT2_PASSWORD")}


class WithServer(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        patch = mock.patch.dict(os.environ, dict(NO_SETTINGS, INTERLOCK_CONFIG_DIR=folder.name))
        patch.start()
        self.addCleanup(patch.stop)
        self.fake = FakeServer()
        self.fake.__enter__()
        self.addCleanup(self.fake.__exit__)

    def orchestrator(self, **options):
        client = OrchestratorClient(self.fake.url + "/", **dict(CREDENTIALS, **options))
        self.addCleanup(client.close)
        return client

    def device(self):
        client = Client(self.fake.url, **CREDENTIALS)
        self.addCleanup(client.close)
        return client.device()

    def keys(self):
        return [headers["Idempotency-Key"] for _, path, headers, _ in self.fake.requests if path.startswith("/execute")]


class Orchestrator(WithServer):
    def test_executes_and_returns_the_result(self):
        self.assertIs(SecureOrchestratorClient, OrchestratorClient)
        with OrchestratorClient(self.fake.url + "/", **CREDENTIALS) as client:
            self.assertEqual(client.base_url, self.fake.url)
            self.assertEqual(client.execute_task("mix", r=1, name="x")["mixed"], {"r": 1, "name": "x"})
            client.execute_task("mix", r=2)
        self.assertEqual(self.fake.logins, 1)
        self.assertEqual(len(set(self.keys())), 2)
        self.assertEqual({headers["User-Agent"] for _, _, headers, _ in self.fake.requests}, {"OT2-Orchestrator/1.0"})
        login = self.fake.requests[0]
        self.assertEqual(login[2]["Content-Type"], "application/x-www-form-urlencoded")

    def test_one_connection_is_kept(self):
        client = self.orchestrator()
        first = client._session.transport._connection
        for number in range(3):
            client.execute_task("mix", r=number)
        self.assertIs(client._session.transport._connection, first)

    def test_secrets_are_dropped_and_never_shown(self):
        client = self.orchestrator()
        self.assertNotIn("se cret", repr(client) + repr(vars(client)))
        client.close()
        self.assertNotIn("se cret&ü", repr(vars(client._session)))
        with self.assertRaises(errors.AuthenticationError):
            client.execute_task("mix", r=1)

    def test_credentials_from_the_environment(self):
        with mock.patch.dict(os.environ, {"OT2_USERNAME": "ada", "OT2_PASSWORD": "se cret&ü"}):
            OrchestratorClient(self.fake.url).close()
        with self.assertRaises(errors.AuthenticationError) as caught:
            OrchestratorClient(self.fake.url)
        self.assertIn("OT2_USERNAME", str(caught.exception))

    def test_a_code_goes_along_and_one_that_is_missing_or_wrong_says_so(self):
        self.fake.codes = {"111111", "222222"}
        self.assertEqual(self.orchestrator(otp="111111").execute_task("mix", r=1)["mixed"], {"r": 1})
        for otp in (None, "111111", "000000", lambda: "000000", lambda: ""):
            with self.assertRaises(errors.SecondFactorRequired) as caught:
                self.orchestrator(otp=otp)
            self.assertIsInstance(caught.exception, errors.AuthenticationError)
            self.assertIn("otp=", str(caught.exception))

    def test_a_function_is_asked_only_when_a_code_is_wanted(self):
        asked = []

        def ask():
            asked.append(None)
            return "111111"

        self.orchestrator(otp=ask)
        self.assertEqual(len(asked), 0)
        self.fake.codes = {"111111"}
        self.orchestrator(otp=ask)
        self.assertEqual(len(asked), 1)

    def test_a_session_goes_on_without_another_code(self):
        self.fake.codes = {"111111"}
        client = self.orchestrator(otp="111111")
        for fault in ("expire", "expire"):
            self.fake.faults = [fault]
            client.execute_task("mix", r=1)
        self.assertEqual((self.fake.logins, self.fake.issued), (1, 3))
        self.fake.refresh_tokens.clear()
        self.fake.faults = ["expire"]
        with self.assertRaises(errors.SecondFactorRequired):
            client.execute_task("mix", r=1)

    def test_a_request_with_a_code_is_not_sent_twice(self):
        self.fake.codes = {"111111"}
        with mock.patch.object(Transport, "request", autospec=True, side_effect=Transport.request) as sent:
            self.orchestrator(otp="111111")
        self.assertEqual([call[1].get("resend") for call in sent.call_args_list], [False])

    def test_a_fresh_proof_is_given_when_it_is_wanted(self):
        self.fake.codes = {"111111", "222222", "333333"}
        codes = ["222222", "111111"]
        client = Client(self.fake.url, otp=codes.pop, **CREDENTIALS)
        self.addCleanup(client.close)
        self.assertEqual(client.device().release("all clear"), {"engaged": False})
        # The first login finds out that a code is wanted.
        self.assertEqual((codes, self.fake.logins), ([], 2))

        self.fake.fresh = False
        other = Client(self.fake.url, otp="333333", **CREDENTIALS)
        self.addCleanup(other.close)
        device = other.device()
        with self.assertRaises(errors.StepUpRequired) as caught:
            device.release("all clear")
        self.assertIn("step_up", str(caught.exception))
        self.fake.codes = {"444444"}
        with self.assertRaises(errors.AuthenticationError):
            other.step_up("000000")
        other.step_up("444444")
        self.assertEqual(device.release("all clear"), {"engaged": False})
        with self.assertRaises(ValueError):
            other.step_up()

    def test_wrong_password(self):
        with self.assertRaises(errors.AuthenticationError) as caught:
            OrchestratorClient(self.fake.url, "ada", "wrong")
        self.assertEqual((caught.exception.status, caught.exception.request_id), (401, "req-1"))

    def test_an_expired_token_means_one_login_and_the_same_key(self):
        client = self.orchestrator()
        self.fake.faults = ["expire"]
        self.assertEqual(client.execute_task("mix", r=1)["mixed"], {"r": 1})
        self.assertEqual(self.fake.logins, 2)
        self.assertEqual(len(self.keys()), 2)
        self.assertEqual(len(set(self.keys())), 1)
        self.assertEqual(len(self.fake.executed), 1)

    def test_no_endless_login(self):
        client = self.orchestrator()
        refusal = problem(401, "unauthorized", "no")
        self.fake.faults = [refusal, refusal, refusal]
        with self.assertRaises(errors.AuthenticationError):
            client.execute_task("mix", r=1)
        self.assertEqual(len(self.fake.faults), 1)
        self.assertEqual(self.fake.logins, 2)

    def test_a_lost_answer_is_asked_for_again_with_the_same_key(self):
        for fault in ("drop", "reset"):
            with self.subTest(fault=fault):
                client = self.orchestrator()
                before, sent = len(self.fake.executed), len(self.keys())
                self.fake.faults = [fault, fault]
                self.assertEqual(client.execute_task("mix", r=3)["mixed"], {"r": 3})
                self.assertEqual(len(self.fake.executed), before + 1)
                self.assertEqual(len(self.keys()[sent:]), 3)
                self.assertEqual(len(set(self.keys()[sent:])), 1)

    def test_it_gives_up_in_the_end(self):
        client = self.orchestrator()
        self.fake.faults = ["drop"] * 10
        with self.assertRaises(errors.ConnectionFailed) as caught:
            client.execute_task("mix", r=3)
        self.assertEqual(caught.exception.code, "connection_lost")
        self.assertEqual(len(self.fake.executed), 1)

    def test_a_connection_closed_while_idle_is_replaced(self):
        client = self.orchestrator()
        client._session.transport._connection.sock.shutdown(2)
        self.assertEqual(client.execute_task("mix", r=3)["mixed"], {"r": 3})

    def test_typed_errors(self):
        client = self.orchestrator()
        cases = [
            (403, "forbidden", errors.PermissionDenied), (404, "task_not_found", errors.NotFound),
            (400, "invalid_parameters", errors.InvalidParameters), (422, "invalid_request", errors.InvalidParameters),
            (409, "device_busy", errors.DeviceBusy), (409, "emergency_stop_engaged", errors.EmergencyStop),
            (409, "run_uncertain", errors.RunUncertain), (409, "run_cancelled", errors.RunWasCancelled),
            (409, "device_needs_attention", errors.DeviceNeedsAttention), (409, "other", errors.Conflict),
            (429, "rate_limited", errors.RateLimited), (500, "task_failed", errors.TaskFailed),
            (500, "worker_crashed", errors.TaskFailed), (504, "task_timed_out", errors.TaskTimedOut),
            (503, "device_unavailable", errors.DeviceUnavailable), (418, "teapot", errors.RequestError)]
        for status, code, kind in cases:
            with self.subTest(code=code):
                _, body, headers = problem(status, code, "words", errors=[{"loc": ["body", "r"], "msg": "too much"}])
                self.fake.faults = [(status, body, dict(headers, **{"Retry-After": "7", "Interlock-Run": "run-5"}))]
                with self.assertRaises(kind) as caught:
                    client.execute_task("mix", r=1)
                error = caught.exception
                self.assertIs(type(error), kind)
                self.assertEqual((error.code, error.request_id, error.retry_after, error.run_id),
                                 (code, "req-1", 7.0, "run-5"))
                for text in ("words", "r: too much", "What to do: ", code, "req-1"):
                    self.assertIn(text, str(error))

    def test_an_answer_that_is_no_problem_document(self):
        client = self.orchestrator()
        self.fake.faults = [(502, b"<html>", {}), (200, b"<html>", {})]
        with self.assertRaises(errors.RequestError) as caught:
            client.execute_task("mix", r=1)
        self.assertEqual(caught.exception.status, 502)
        with self.assertRaises(errors.ProtocolError):
            client.execute_task("mix", r=1)

    def test_redirects_stay_on_this_server(self):
        client = self.orchestrator()
        self.fake.faults = [(307, b"", {"Location": "http://elsewhere.example/execute/mix"})]
        with self.assertRaises(errors.ProtocolError) as caught:
            client.execute_task("mix", r=1)
        self.assertEqual(caught.exception.code, "redirected")
        self.fake.faults = [(302, b"", {"Location": "/execute/mix"})]
        with self.assertRaises(errors.ProtocolError):
            client.execute_task("mix", r=1)
        self.fake.faults = [(307, b"", {"Location": self.fake.url + "/execute/mix"})]
        self.assertEqual(client.execute_task("mix", r=1)["mixed"], {"r": 1})

    def test_a_silent_server_is_given_up_in_time(self):
        silent = socket.socket()
        self.addCleanup(silent.close)
        silent.bind(("127.0.0.1", 0))
        silent.listen(1)
        begun = time.monotonic()
        with self.assertRaises(errors.ConnectionFailed) as caught:
            OrchestratorClient("http://127.0.0.1:%d" % silent.getsockname()[1], timeout=0.3, **CREDENTIALS)
        self.assertEqual(caught.exception.code, "timeout")
        self.assertLess(time.monotonic() - begun, 5)
        self.assertEqual(inspect.signature(OrchestratorClient).parameters["timeout"].default, 30.0)

    def test_nothing_listens(self):
        with self.assertRaises(errors.ConnectionFailed) as caught:
            OrchestratorClient("http://127.0.0.1:1", **CREDENTIALS)
        self.assertEqual(caught.exception.code, "refused")

    def test_no_credentials_in_clear_to_another_machine(self):
        with self.assertRaises(errors.ConnectionFailed) as caught:
            OrchestratorClient("http://192.0.2.1:8000", timeout=0.2, **CREDENTIALS)
        self.assertEqual(caught.exception.code, "insecure_transport")
        self.assertTrue(is_loopback("127.8.8.8") and is_loopback("localhost") and is_loopback("::1"))
        self.assertFalse(is_loopback("localhost.example.org") or is_loopback("10.0.0.1"))
        for url in ("ftp://a", "a.example", "http://user:word@a", "https://a/?x=1"):
            with self.subTest(url=url), self.assertRaises(ValueError):
                Transport(url)


class Devices(WithServer):
    def test_actions_are_methods(self):
        device = self.device()
        self.assertIn("mix", dir(device))
        self.assertEqual(str(inspect.signature(device.mix).replace(return_annotation=inspect.Signature.empty)),
                         "(r: float, well: str = 'A1')")
        self.assertIn("r: number, 0 to 300, uL, required. red stock", device.mix.__doc__)
        self.assertEqual((device.name, device.title, device.status["state"]), ("sim", "Simulated", "ready"))
        with self.assertRaises(AttributeError):
            device.missing
        with self.assertRaises(TypeError):
            device.mix(well="A1")
        with Client(self.fake.url, **CREDENTIALS) as client, self.assertRaises(errors.NotFound):
            client.device("other")
        self.assertEqual(device.stop("spill")["reason"], "spill")
        self.assertEqual(device["stop"].submit({}).action, "stop")

    def test_a_run_to_its_result(self):
        run = self.device().mix(1.5, well="B2")
        self.assertEqual(run.id, "run-1")
        self.assertEqual(run.result(timeout=5)["mixed"], {"r": 1.5, "well": "B2"})
        self.assertTrue(run.done)
        self.assertEqual([event.data["message"] for event in run.logs], ["line"])
        self.assertEqual(run.artifacts["a.txt"].read(), b"abc")
        path = run.artifacts["a.txt"].save(self.folder)
        with open(path, "rb") as opened:
            self.assertEqual(opened.read(), b"abc")
        bundle = run._repr_mimebundle_()
        self.assertIn("succeeded", bundle["text/html"])

    def test_simulate_and_check(self):
        device = self.device()
        self.assertTrue(device.mix(r=1, simulate=True).result()["simulated"])
        executed = len(self.fake.executed)
        self.assertTrue(device.mix(r=1, check=True)["ok"])
        with self.assertRaises(errors.InvalidParameters) as caught:
            device.mix(r=301, check=True)
        self.assertIn("must be at most 300", str(caught.exception))
        self.assertEqual(len(self.fake.executed), executed)

    def test_events_resume_after_a_break(self):
        self.fake.stream_breaks = 3
        run = self.device().mix(r=1)
        self.assertEqual([(event.seq, event.kind) for event in run.events()],
                         [(1, "state"), (2, "progress"), (3, "log"), (4, "state")])
        sent = [headers.get("Last-Event-ID") for _, path, headers, _ in self.fake.requests if path.endswith("/events")]
        self.assertEqual(sent, [None, "1", "2", "3"])

    def test_events_sign_in_again(self):
        run = self.device().mix(r=1)
        self.fake.faults = ["expire"]
        self.assertEqual(len(list(run.events())), 4)

    def test_await_and_async_for(self):
        run = self.device().mix(r=1)

        async def both():
            return await run, [event.seq async for event in run.events()]

        loop = asyncio.new_event_loop()
        try:
            result, seen = loop.run_until_complete(both())
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
        self.assertEqual((result["mixed"]["r"], seen), (1, [1, 2, 3, 4]))

    def test_ends_other_than_success(self):
        self.fake.hold.clear()
        device = self.device()
        for state, code, kind in (("failed", "task_failed", errors.TaskFailed),
                                  ("failed", "well_filled", errors.TaskFailed),
                                  ("timed_out", None, errors.TaskTimedOut),
                                  ("uncertain", None, errors.RunUncertain)):
            run = device.mix(r=1)
            with self.assertRaises(TimeoutError):
                run.result(timeout=0.05)
            self.fake.finish(run.id, None, state, {"code": code, "message": "words"})
            with self.assertRaises(kind) as caught:
                run.result()
            self.assertEqual((caught.exception.run_id, caught.exception.message), (run.id, "words"))
        run = device.mix(r=1)
        run.cancel("enough")
        with self.assertRaises(errors.RunWasCancelled):
            run.result()

    def test_map(self):
        device = self.device()
        runs = device.mix.map([{"r": 1}, {"r": 2, "well": "B1"}])
        self.assertEqual([result["mixed"]["r"] for result in runs.results(10)], [1, 2])
        self.assertEqual((len(runs), runs[-1].state), (2, "succeeded"))
        path = os.path.join(self.folder, "rows.csv")
        with open(path, "w") as opened:
            opened.write("r,well\n5,A1\n6.5,\n")
        self.assertEqual([result["mixed"] for result in device.mix.map(path).results(10)],
                         [{"r": 5.0, "well": "A1"}, {"r": 6.5}])
        executed = len(self.fake.executed)
        with self.assertRaises(errors.InvalidParameters) as caught:
            device.mix.map([{"r": 1}, {"r": 500}])
        self.assertIn("row 1", str(caught.exception))
        self.assertEqual(len(self.fake.executed), executed)

    def test_map_stops_after_a_failure(self):
        self.fake.hold.clear()
        runs = self.device().mix.map([{"r": 1}, {"r": 2}])
        self.fake.finish(runs[0].id, None, "failed", {"code": "task_failed", "message": "no"})
        runs.wait(10)
        self.assertEqual(len(runs.submitted), 1)
        with self.assertRaises(errors.RunNotStarted):
            runs[1]
        with self.assertRaises(errors.TaskFailed):
            runs.results()

    def test_cards_are_harmless(self):
        run = {"id": "1", "action": "<script>", "state": "failed", "error": {"message": "\033[31m<b>"}}
        self.assertNotIn("<script>", run_html(run))
        self.assertNotIn("\033", run_html(run) + run_text(run))


class Contexts(WithServer):
    def write(self, **contexts):
        path = os.path.join(self.folder, "contexts.json")
        with open(path, "w") as opened:
            json.dump({"current": "dev", "contexts": contexts}, opened)
        os.chmod(path, 0o600)

    def test_the_current_context(self):
        self.fake.tokens.add("from-cli")
        self.write(dev={"url": self.fake.url, "ca_file": None, "user": "admin", "token": "from-cli", "expires_at": "x"})
        with Client() as client:
            self.assertEqual(client.device().name, "sim")
            self.fake.tokens.clear()
            with self.assertRaises(errors.AuthenticationError):
                client.device()

    def test_a_token_stays_with_its_server(self):
        self.write(dev={"url": "https://one.example", "token": "one", "user": "a", "ca_file": "/ca.pem"},
                   other={"url": "https://two.example:8443", "token": "two", "user": "b"})
        self.assertEqual(find_target()[:4], ("https://one.example", "/ca.pem", "a", "one"))
        self.assertEqual(find_target(context="other").token, "two")
        self.assertEqual(find_target("https://two.example:8443/").token, "two")
        self.assertEqual(find_target("https://three.example")[:4], ("https://three.example", None, None, None))
        with mock.patch.dict(os.environ, {"INTERLOCK_URL": "https://three.example", "INTERLOCK_TOKEN": "three",
                                          "INTERLOCK_CA_FILE": "/three.pem"}):
            self.assertEqual(find_target()[:4], ("https://three.example", "/three.pem", None, "three"))
            self.assertIsNone(find_target("https://four.example").token)
        with self.assertRaises(LookupError):
            find_target(context="missing")

    def test_no_server_known(self):
        with self.assertRaises(LookupError):
            Client()

    def test_a_readable_file_is_warned_about(self):
        self.write(dev={"url": self.fake.url, "token": "t"})
        os.chmod(os.path.join(self.folder, "contexts.json"), 0o644)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            find_target()
        self.assertIn("chmod 600", str(caught[0].message))


class Tls(unittest.TestCase):
    def test_a_private_authority_must_be_named(self):
        with tempfile.TemporaryDirectory() as folder:
            certificate, key = os.path.join(folder, "cert.pem"), os.path.join(folder, "key.pem")
            subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                            "-keyout", key, "-out", certificate, "-days", "1", "-subj", "/CN=test", "-addext",
                            "subjectAltName=IP:127.0.0.1"], check=True, stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, key)
            with FakeServer(context) as fake:
                with self.assertRaises(errors.ConnectionFailed) as caught:
                    OrchestratorClient(fake.url, **CREDENTIALS)
                self.assertEqual(caught.exception.code, "certificate_not_trusted")
                self.assertIn("ca_file", str(caught.exception))
                self.assertEqual(fake.logins, 0)
                with OrchestratorClient(fake.url, ca_file=certificate, **CREDENTIALS) as client:
                    self.assertEqual(client.execute_task("mix", r=1)["mixed"], {"r": 1})
                with warnings.catch_warnings(record=True) as seen:
                    warnings.simplefilter("always")
                    OrchestratorClient(fake.url, verify=False, **CREDENTIALS).close()
                self.assertIn("verification is off", str(seen[0].message))


if __name__ == "__main__":
    unittest.main()
