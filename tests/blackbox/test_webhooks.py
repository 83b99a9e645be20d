"""Outcomes of runs are told to agents: signed, at least once, whatever crashes in between."""

import base64
import hashlib
import hmac
import http.server
import json
import ssl
import threading
import time

from orchestra import NAP, NOBODY, SCOPES, SYSTEM, Orchestrator
from support import Case, certificate, wait_for

FAILS = [{"uses": "http.request", "with": {"url": "https://127.0.0.1:1/"}}]
SLOW = [{"uses": "orchestrator.sleep", "with": {"seconds": 600}}]


class Receiver(http.server.ThreadingHTTPServer):
    """Takes messages over HTTPS, says no with ``status``, or keeps them waiting while ``held``."""

    daemon_threads = True

    def handle_error(self, *_):
        """Whoever is killed hangs up."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.seen.append((self.path, dict((name.lower(), text) for name, text in self.headers.items()), body))
            if self.server.held.is_set():
                self.server.released.wait(60)
                return
            self.send_response(self.server.status)
            self.end_headers()

        def log_message(self, *_):
            pass

    def __init__(self, chain, key):
        super().__init__(("127.0.0.1", 0), self.Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain, key)
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.seen, self.status, self.held, self.released = [], 204, threading.Event(), threading.Event()
        self.url = "https://localhost:%d" % self.server_address[1]
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self):
        self.released.set()
        self.shutdown()
        self.server_close()

    def told(self, path):
        """Messages to one address: id, body, headers."""
        return [(headers["webhook-id"], json.loads(body), headers) for at, headers, body in list(self.seen) if at == path]


def signatures(secrets, headers, body):
    """What the header must hold (Standard Webhooks)."""
    signed = ("%s.%s." % (headers["webhook-id"], headers["webhook-timestamp"])).encode() + body
    keys = [base64.b64decode(secret[len("whsec_"):]) for secret in secrets]
    return " ".join("v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode() for key in keys)


class Webhooks(Case):
    @classmethod
    def setUpClass(cls):
        cls.server = Orchestrator()
        cls.addClassCleanup(cls.server.close)
        chain, key = certificate(cls.server.folder, "localhost")
        cls.receiver = Receiver(chain, key)
        cls.addClassCleanup(cls.receiver.close)
        cls.server.variables.update({"HTTP_TOOL_CA_FILE": chain, "HTTP_TOOL_NETWORKS": "127.0.0.1,::1", "HTTP_TOOL_HOSTS": "127.0.0.1:1"})
        cls.server.start()

    def listener(self, name, secret=True, url=None):
        """A new agent that is told at an address of its own: id, address, secret."""
        agent = self.server.new_agent(name, [*SCOPES, "tasks:*"])
        path = "/hooks/" + name
        answer = self.server.ask("PUT", "/agents/" + agent, {"webhook_url": url or self.receiver.url + path})
        self.assertEqual(answer.status_code, 200, answer.text)
        return agent, path, self.rotated(agent) if secret else None

    def rotated(self, agent):
        answer = self.server.ask("POST", "/agents/%s/webhook/secret" % agent)
        self.assertEqual(answer.status_code, 200, answer.text)
        self.assertEqual(answer.headers["cache-control"], "no-store")
        return answer.json()["webhook_secret"]

    def deliveries(self, agent, reader=None, **query):
        answer = self.server.ask("GET", "/agents/%s/webhook/deliveries" % agent, agent=reader or agent, params=query)
        self.assertEqual(answer.status_code, 200, answer.text)
        return answer.json()["items"]

    def test_every_outcome_is_told_once_and_signed(self):
        agent, path, secret = self.listener("outcomes")
        good = self.server.carried_out([NAP], agent=agent)
        bad = self.server.carried_out(FAILS, agent=agent, max_retries=0)
        twice = self.server.task(agent, FAILS, max_retries=1, backoff_strategy="fixed")
        first = self.server.over(self.server.now(twice, agent), agent=agent)
        ended = self.server.now(self.server.task(agent, SLOW), agent)
        self.server.reaches(ended, ("running", "queued"), agent=agent)
        self.assertEqual(self.server.ask("POST", "/runs/%s/cancel" % ended, agent=agent).status_code, 202)

        wait_for(lambda: len(self.receiver.told(path)) >= 4, "four messages")
        told = {body["data"]["run_id"]: (name, body, headers) for name, body, headers in self.receiver.told(path)}
        retried = [run for run in self.server.runs(twice, agent) if run["id"] != first["id"]]
        self.assertEqual(len(self.receiver.told(path)), 4)
        expected = {good["id"]: "succeeded", bad["id"]: "failed", retried[0]["id"]: "failed", ended: "cancelled"}
        self.assertEqual({run: body["data"]["state"] for run, (_, body, _) in told.items()}, expected)
        name, body, headers = told[bad["id"]]
        self.assertEqual((name, body["type"], body["timestamp"]), ("msg_" + bad["id"], "run.failed", bad["finished_at"]))
        self.assertEqual((body["data"]["error"], body["data"]["success"], body["data"]["attempt"]), (bad["error"], False, 1))
        self.assertLess(abs(time.time() - int(headers["webhook-timestamp"])), 60)
        for at, headers, raw in list(self.receiver.seen):
            if at == path:
                self.assertEqual(headers["webhook-signature"], signatures([secret], headers, raw))
        wait_for(lambda: all(one["state"] == "delivered" for one in self.deliveries(agent)), "all are delivered")
        rows = self.deliveries(agent)
        self.assertEqual({row["run_id"] for row in rows}, set(told))
        self.assertTrue(all(row["attempts"] == 1 and row["error"] is None for row in rows))
        sent = [row for row in self.server.trail(action="webhook.sent") if row["subject_id"] == bad["id"]]
        self.assertEqual([row["details"]["delivered"] for row in sent], [True])
        self.assertGreaterEqual(self.server.series()['orchestrator_webhook_deliveries_total{result="delivered"}'], 4)

    def test_both_secrets_sign_while_one_is_exchanged(self):
        agent, path, old = self.listener("rotating")
        new = self.rotated(agent)
        self.assertNotEqual(old, new)
        self.server.carried_out([NAP], agent=agent)
        wait_for(lambda: self.receiver.told(path), "a message")

        raw, headers = next((raw, headers) for at, headers, raw in self.receiver.seen if at == path)
        self.assertEqual(headers["webhook-signature"], signatures([new, old], headers, raw))
        shown = self.server.ask("GET", "/agents/" + agent)
        self.assertTrue(shown.json()["has_webhook_secret"])
        self.assertNotIn("whsec_", shown.text + json.dumps(self.server.trail(subject=agent)))

    def test_a_server_that_is_killed_before_the_receiver_has_it_tells_it_again_under_the_same_id(self):
        agent, path, _ = self.listener("crash")
        task = self.server.task(agent, [NAP])
        self.receiver.held.set()
        self.addCleanup(self.receiver.held.clear)
        runs = [self.server.over(self.server.now(task, agent), agent=agent)["id"] for _ in range(8)]
        wait_for(lambda: self.receiver.told(path), "a message under way")
        self.server.kill()
        before = {name for name, _, _ in self.receiver.told(path)}
        self.receiver.held.clear()
        self.server.start()

        wait_for(lambda: {"msg_" + run for run in runs} <= {name for name, _, _ in self.receiver.told(path)[len(before):]}, "all are told", 10)
        wait_for(lambda: all(one["state"] == "delivered" for one in self.deliveries(agent)), "all are delivered")
        attempts = {one["webhook_id"]: one["attempts"] for one in self.deliveries(agent)}
        self.assertEqual(attempts, {"msg_" + run: 2 if "msg_" + run in before else 1 for run in runs})
        bodies = {}
        for name, body, _ in self.receiver.told(path):
            self.assertEqual(bodies.setdefault(name, body), body)

    def test_a_receiver_that_says_no_is_asked_again_and_a_person_can_have_it_told_once_more(self):
        agent, path, _ = self.listener("again")
        self.receiver.status = 503
        self.addCleanup(setattr, self.receiver, "status", 204)
        run = self.server.carried_out([NAP], agent=agent)["id"]
        row = wait_for(lambda: next((one for one in self.deliveries(agent) if one["error"]), None), "a failed attempt")
        self.assertEqual((row["state"], row["attempts"], row["error"]), ("pending", 1, "localhost answered 503"))
        self.assertGreater(row["next_attempt_at"], row["last_attempt_at"])

        self.receiver.status = 410
        wait_for(lambda: self.deliveries(agent, state="failed"), "it is given up", 15)
        self.receiver.status = 200
        again = "/agents/%s/webhook/deliveries/%s/retry" % (agent, run)
        self.assertEqual(self.server.ask("POST", again, agent=agent).status_code, 403)
        answer = self.server.ask("POST", again)
        self.assertEqual(answer.status_code, 200)
        record, = self.server.trail(action="webhook.repeated")
        self.assertEqual((record["actor_agent_id"], record["subject_id"], record["details"], record["request_id"]),
                         (SYSTEM, run, {"agent_id": agent}, answer.headers["x-request-id"]))
        wait_for(lambda: self.deliveries(agent, state="delivered"), "it is told")
        self.assertEqual({name for name, _, _ in self.receiver.told(path)}, {"msg_" + run})
        for wrong, status in [(NOBODY, 404), ("x", 422)]:
            self.assertEqual(self.server.ask("POST", again.replace(run, wrong)).status_code, status, wrong)

    def test_nothing_is_told_unsigned_or_to_the_inner_network(self):
        silent, path, _ = self.listener("silent", secret=False)
        inner, _, _ = self.listener("inner", url="https://169.254.169.254/latest/")
        other = self.server.new_agent("other", SCOPES)
        self.server.carried_out([NAP], agent=silent)
        self.server.carried_out([NAP], agent=inner)

        row = wait_for(lambda: next((one for one in self.deliveries(silent) if one["error"]), None), "why it is not told")
        self.assertIn("no secret", row["error"])
        self.assertEqual(self.receiver.told(path), [])
        row = wait_for(lambda: next(iter(self.deliveries(inner, state="failed")), None), "it is given up")
        self.assertEqual(row["attempts"], 1)
        self.assertIn("HTTP_TOOL_NETWORKS", row["error"])
        self.assertEqual(self.server.ask("GET", "/agents/%s/webhook/deliveries" % inner, agent=other).status_code, 404)
        self.assertEqual(self.server.ask("POST", "/agents/%s/webhook/secret" % inner, agent=inner).status_code, 403)
        self.assertEqual(self.server.ask("POST", "/agents/%s/webhook/secret" % other).status_code, 409)
        self.assertEqual(self.server.ask("GET", "/agents/%s/webhook/deliveries?state=odd" % inner).status_code, 422)
