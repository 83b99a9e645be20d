"""The wire contract, continued: failures, sign-in, headers, limits and switches."""

import json
import os
import statistics
import time
import unittest

from lab import LAB
from support import ADMIN_PASSWORD, CALL_SECONDS, EXAMPLES, PASSWORD, Case, Server, together, token_parts, wait_for

HEADERS = {
    "x-content-type-options": "nosniff", "x-frame-options": "DENY", "x-xss-protection": "0",
    "referrer-policy": "strict-origin-when-cross-origin",
    "permissions-policy": "geolocation=(), microphone=(), camera=()",
}
STRICT_POLICY = "default-src 'none'; frame-ancestors 'none'"


class Actions(Case):
    """Execution, failure and audit with a device made for the purpose."""

    SOURCE = LAB
    VARIABLES = {"EXECUTE_QUEUE_SECONDS": "1"}
    ADD_USERS = ("ada", "vera")

    def test_type_names_defaults_and_units(self):
        tasks = self.server.get("/tasks", "vera").json()
        kinds = {name: spec["type"] for name, spec in tasks["mix"]["parameters"].items()}
        self.assertEqual(kinds, {"volume": "number", "wells": "integer", "name": "string", "dry": "boolean",
                                 "stocks": "array", "extra": "object"})
        self.assertEqual(tasks["mix"]["parameters"]["wells"], {"type": "integer", "default": 3, "required": False})
        self.assertIs(tasks["later"]["is_async"], True)
        answer = self.server.run("mix", {"volume": "0.2 mL"}, "ada").json()
        self.assertEqual(answer["result"], {"volume": 200.0, "wells": 3, "name": "plate", "dry": False, "stocks": None, "extra": None})
        for change in ({"volume": "1 mL"}, {"volume": "3 mm"}, {"volume": "many"}, {"wells": 2.5}, {"dry": "true"}, {"dry": 1},
                       {"name": 3}, {"stocks": {}}, {"extra": []}, {"name": "x" * 21}):
            self.assertProblem(self.server.run("mix", dict({"volume": 1}, **change), "ada"), 400, "invalid_parameters")

    def test_sync_and_async_actions_run(self):
        self.assertEqual(self.server.run("later", user="ada").json()["result"], "later")
        self.assertEqual(self.server.run("mix", {"volume": 1}, "ada").status_code, 200)

    def test_failures_show_nothing_of_the_inside(self):
        answer = self.server.run("fail", user="ada")
        body = self.assertProblem(answer, 500, "task_failed")
        for word in ("boom-in-the-robot", "ValueError", "Traceback", "device.py", self.server.folder):
            self.assertNotIn(word, answer.text)
        lines = [line for line in self.server.log_lines() if line.get("request_id") == body["request_id"]]
        self.assertIn("boom-in-the-robot", json.dumps(lines))
        self.assertEqual(self.assertProblem(self.server.run("refuse", user="ada"), 500)["detail"], "the well is full")
        rows = [row for row in self.server.audit(action="device.executed") if row["request_id"] == body["request_id"]]
        self.assertEqual([row["details"]["phase"] for row in rows], ["intent", "outcome"])
        self.assertEqual((rows[1]["details"]["status"], rows[1]["details"]["error_class"]), ("failed", "ValueError"))
        self.assertEqual(rows[1]["actor_agent_id"], "ada")

    def test_a_busy_device_says_when_to_come_back(self):
        run = self.server.begin("move", {"seconds": 30}, "ada")
        begun = time.monotonic()
        answer = self.server.run("move", user="ada")
        self.assertProblem(answer, 409, "device_busy")
        self.assertGreaterEqual(int(answer.headers["retry-after"]), 1)
        self.assertLess(time.monotonic() - begun, 6)
        self.server.post("/runs/%s/cancel" % run, user="ada")
        self.assertEqual(self.server.ended(run)["state"], "cancelled")

    def test_an_endless_action_is_504_and_asks_for_attention(self):
        self.assertProblem(self.server.run("endless", user="ada"), 504, "task_timed_out")
        self.assertIsNotNone(self.server.get("/device", "ada").json()["attention"])
        self.assertEqual(self.server.run("later", user="ada", key="after-endless").status_code, 200)
        self.assertEqual(self.server.post("/device/attention/clear", {"reason": "looked"}, "ada").status_code, 200)
        self.assertIsNone(self.server.get("/device", "ada").json()["attention"])

    def test_the_task_s_own_role_decides(self):
        body = self.assertProblem(self.server.run("restricted", user="ada"), 403, "forbidden")
        self.assertEqual(body["detail"], "Role 'chemist' required")
        answer = self.server.post("/users", {"name": "carl", "password": PASSWORD, "roles": ["chemist"]})
        self.assertEqual(answer.status_code, 201, answer.text)
        self.assertEqual(self.server.run("restricted", user="carl").json()["result"], "done")
        self.assertEqual(self.server.run("later", user="carl").status_code, 403)

    def test_a_right_taken_away_is_gone_for_tokens_that_exist(self):
        self.server.post("/users", {"name": "rosa", "password": PASSWORD, "roles": ["operator", "viewer"]})
        self.assertEqual(self.server.run("later", user="rosa").status_code, 200)
        with self.server.as_user() as client:
            self.assertEqual(client.patch("/users/rosa", json={"roles": ["viewer"]}).status_code, 200)
            wait_for(lambda: self.server.run("later", user="rosa").status_code in (401, 403), "the right is gone", 5)
            self.assertEqual(client.patch("/users/rosa", json={"disabled": True}).status_code, 200)
            wait_for(lambda: self.server.get("/tasks", "rosa").status_code == 401, "the token is dead", 5)

    def test_no_answer_holds_a_password_or_a_hash(self):
        users = self.server.get("/users")
        self.assertEqual(users.status_code, 200)
        self.assertNotRegex(users.text, r"argon2|\$2[aby]\$|hash|password")
        self.assertEqual(set(users.json()[0]), {"name", "roles", "disabled", "created_at", "updated_at"})

    def test_passwords_are_not_on_disk(self):
        for folder, _, names in os.walk(self.server.state):
            for name in names:
                with open(os.path.join(folder, name), "rb") as opened:
                    content = opened.read()
                self.assertNotIn(PASSWORD.encode(), content, name)
                self.assertNotIn(ADMIN_PASSWORD.encode(), content, name)

    def test_audit_names_who_did_what_to_whom(self):
        self.server.run("later", user="ada")
        row = self.server.audit(action="device.executed", actor="ada")[-1]
        self.assertLessEqual({"id", "at", "actor_agent_id", "action", "subject_id", "details", "client_ip", "request_id"}, set(row))
        self.assertEqual((row["details"]["task"], row["details"]["status"]), ("later", "succeeded"))
        created = [row for row in self.server.audit(action="user.created") if row["details"]["name"] == "vera"]
        self.assertEqual([(row["actor_agent_id"], row["subject_id"]) for row in created], [("admin", "vera")])


class SignIn(Case):
    """Wrong passwords: one answer, equal time, slow guessing, everything on record."""

    FILE = os.path.join(EXAMPLES, "ot2_secure.py")
    ADD_USERS = ("ada", "vera", "olaf", "adam", "audrey")

    def attempt(self, name, password="Wrong-wrong-wrong-11"):
        with self.server.http() as client:
            begun = time.monotonic()
            answer = client.post("/auth/login", data={"username": name, "password": password})
        return answer, time.monotonic() - begun

    def test_1_every_refusal_looks_the_same_and_takes_the_same_time(self):
        with self.server.as_user() as client:
            client.post("/users", json={"name": "dora", "password": PASSWORD, "roles": ["viewer"]})
            client.patch("/users/dora", json={"disabled": True})
        before = len(self.server.audit(action="device.login"))
        tries = [(name, None) for name in ("ada", "vera", "olaf", "adam", "audrey") * 2]
        strangers = [("nobody%d" % number, None) for number in range(10)]
        known, unknown, bodies = [], [], set()
        for (name, _), (stranger, _) in zip(tries, strangers):
            for who, times in ((name, known), (stranger, unknown)):
                answer, seconds = self.attempt(who)
                times.append(seconds)
                body = self.assertProblem(answer, 401, "unauthorized")
                self.assertEqual(answer.headers["www-authenticate"], "Bearer")
                bodies.add((body["detail"], body["title"], tuple(sorted(body))))
        answer, _ = self.attempt("dora", PASSWORD)
        body = self.assertProblem(answer, 401, "unauthorized")
        bodies.add((body["detail"], body["title"], tuple(sorted(body))))
        self.assertEqual(len(bodies), 1)
        self.assertEqual(body["detail"], "Incorrect username or password")
        ratio = statistics.median(known) / statistics.median(unknown)
        self.assertTrue(0.5 < ratio < 2, "known users take %.2f times as long as unknown ones" % ratio)
        wait_for(lambda: len(self.server.audit(action="device.login")) == before + 21, "a row for each attempt", 5)
        self.assertEqual(len(self.server.events("authentication_failed")), 21)
        self.assertEqual(len(self.server.events("authentication_succeeded")), 1)
        self.assertNotIn("Wrong-wrong-wrong-11", self.server.log())

    def test_2_guessing_is_delayed_for_known_and_unknown_names_alike(self):
        for name in ("vera", "ghost"):
            answers = [self.attempt(name)[0] for _ in range(8)]
            delayed = [answer for answer in answers if answer.status_code == 429]
            self.assertTrue(delayed, name)
            body = self.assertProblem(delayed[0], 429, "rate_limited")
            self.assertGreaterEqual(int(delayed[0].headers["retry-after"]), 1)
            self.assertEqual(body["retry_after"], int(delayed[0].headers["retry-after"]))
        right = wait_for(lambda: self.attempt("vera", PASSWORD)[0].status_code == 200, "the owner signs in after the delay", 15, 0.5)
        self.assertTrue(right)

    def test_3_strange_bodies(self):
        with self.server.http() as client:
            for data in ({"username": "ada"}, {"password": "x"}, {}, {"username": "ada", "password": ["x"]}):
                answer = client.post("/auth/login", json=data)
                self.assertProblem(answer, 422, "invalid_request")
            for content in (b"username=ada&username=bo&password=x", b"username=%ff&password=x", b"username=%zz&password=y"):
                answer = client.post("/auth/login", content=content, headers={"Content-Type": "application/x-www-form-urlencoded"})
                self.assertProblem(answer, 422)
            echoed = client.post("/auth/login", json={"username": 5, "password": "do-not-echo-this"})
            self.assertNotIn("do-not-echo-this", echoed.text)


class Headers(Case):
    """The same headers on every status."""

    SOURCE = LAB
    VARIABLES = {"RATE_LIMIT_ENABLED": "true", "MAX_REQUESTS_PER_MINUTE": "60", "MAX_REQUEST_SIZE": "2048", "EXECUTE_QUEUE_SECONDS": "1"}

    def test_headers_on_every_status(self):
        with self.server.as_user() as client:
            busy = client.post("/execute/move", json={"seconds": 30}, headers={"Prefer": "respond-async"})
            answers = [
                client.get("/health"), busy, client.post("/users", json={"name": "eve", "password": PASSWORD, "roles": ["viewer"]}),
                client.post("/auth/login?password=x"), client.get("/health", headers={"Host": "evil.example"}),
                client.get("/tasks", headers={"Authorization": ""}), client.get("/tasks", headers={"Authorization": "Bearer x"}),
                client.get("/nowhere"), client.put("/health"), client.post("/execute/later"),
                client.post("/execute/later", content=b"x" * 3000), client.post("/execute/later", content=b"{}", headers={"Content-Type": "a/b"}),
                client.post("/execute/later", content=b"{", headers={"Content-Type": "application/json"}),
                client.post("/execute/later", json={"seconds": "no"}),
            ]
            client.post("/runs/%s/cancel" % busy.json()["id"], json={})
            self.server.ended(busy.json()["id"])
            answers += [client.post("/execute/fail"), client.post("/execute/endless")]
            self.server.tokens["eve"] = self.server.login("eve")
            answers.append(client.post("/execute/later", headers={"Authorization": "Bearer " + self.server.tokens["eve"]}))
            limited = wait_for(lambda: next((answer for answer in (client.get("/runs") for _ in range(80))
                                             if answer.status_code == 429), None), "a 429", 20)
            answers.append(limited)
        statuses = {answer.status_code for answer in answers}
        self.assertEqual(statuses, {200, 202, 201, 400, 401, 403, 404, 405, 409, 413, 415, 422, 429, 500, 504})
        for answer in answers:
            for name, text in HEADERS.items():
                self.assertEqual(answer.headers.get(name), text, (answer.status_code, name))
            self.assertEqual(answer.headers["content-security-policy"], STRICT_POLICY)
            self.assertTrue(answer.headers["x-request-id"])
            self.assertNotIn("strict-transport-security", answer.headers)
            self.assertNotRegex(answer.headers.get("server", ""), r"\d")
            if answer.status_code >= 400:
                self.assertEqual(answer.headers["content-type"], "application/problem+json")
        self.assertGreaterEqual(int(limited.headers["retry-after"]), 1)
        self.assertIn("q=60", limited.headers["ratelimit-policy"])
        self.assertTrue(limited.headers["ratelimit"])
        self.assertEqual(self.assertProblem(limited, 429, "rate_limited")["retry_after"], int(limited.headers["retry-after"]))


class Limits(unittest.TestCase):
    """Settings that change the contract's surface, each on a server of its own."""

    def test_a_hundred_quick_health_calls_meet_the_limit_and_probes_do_not(self):
        with Server(file=os.path.join(EXAMPLES, "hello.py"), variables={"RATE_LIMIT_ENABLED": None}) as server:
            with server.http() as client:
                statuses = [client.get("/health").status_code for _ in range(100)]
                self.assertGreater(statuses.count(429), 0)
                self.assertEqual(set(statuses), {200, 429})
                for path in ("/health/live", "/health/ready", "/metrics"):
                    self.assertEqual({client.get(path).status_code for _ in range(100)}, {200}, path)
                token = server.token()
                self.assertIn(429, {client.get("/tasks").status_code for _ in range(80)})
                stop = client.post("/stop", headers={"Authorization": "Bearer " + token})
                self.assertEqual(stop.status_code, 200, "the emergency stop must never be limited")
                self.assertIn("orchestrator_rate_limit_violations_total", client.get("/metrics").text)
            self.assertTrue(server.events("rate_limit_exceeded"))

    def test_sign_in_has_a_budget_of_ten_a_minute(self):
        with Server(file=os.path.join(EXAMPLES, "hello.py"), variables={"RATE_LIMIT_ENABLED": "true"}) as server:
            statuses = []
            for number in range(12):
                with server.http() as client:
                    statuses.append(client.post("/auth/login", data={"username": "u%d" % number, "password": "x"}).status_code)
            self.assertEqual(statuses, [401] * 10 + [429] * 2)

    def test_switches_of_the_earlier_system(self):
        variables = {"COMPAT_HEADERS": "true", "HSTS": "always", "ERROR_FORMAT": "legacy", "ACCESS_TOKEN_EXPIRE_HOURS": "2",
                     "CORS_ALLOW_ORIGINS": "https://dash.example", "ALLOWED_HOSTS": "ot2.lab.example"}
        with Server(file=os.path.join(EXAMPLES, "hello.py"), variables=variables) as server:
            with server.as_user() as client:
                answer = client.get("/health", headers={"Host": "ot2.lab.example", "Origin": "https://dash.example"})
                self.assertEqual((answer.status_code, answer.headers["x-xss-protection"]), (200, "1; mode=block"))
                self.assertRegex(answer.headers["strict-transport-security"], r"^max-age=(\d{8,}); includeSubDomains$")
                self.assertEqual(answer.headers["access-control-allow-origin"], "https://dash.example")
                self.assertEqual(answer.headers["access-control-allow-credentials"], "true")
                for origin in ("null", "https://dash.example.evil", "http://dash.example", "https://x.dash.example"):
                    self.assertNotIn("access-control-allow-origin", client.get("/health", headers={"Origin": origin}).headers)
                legacy = client.get("/runs", params={"limit": 0})
                self.assertEqual((legacy.status_code, list(legacy.json())), (422, ["detail"]))
                self.assertEqual(set(legacy.json()["detail"][0]), {"type", "loc", "msg"})
            self.assertEqual(token_parts(server.token())[1]["exp"] - token_parts(server.token())[1]["iat"], 7200)

    def test_a_body_over_the_limit_is_413_announced_or_not(self):
        with Server(file=os.path.join(EXAMPLES, "hello.py"), variables={"MAX_REQUEST_SIZE": "4096"}) as server:
            big = json.dumps({"name": "x" * 5000}).encode()
            with server.as_user() as client:
                for content in (big, iter([big[:100], big[100:]])):
                    answer = client.post("/execute/greet", content=content, headers={"Content-Type": "application/json"})
                    self.assertEqual((answer.status_code, answer.json()["code"]), (413, "payload_too_large"))
                    self.assertNotIn("xxxx", answer.text)
                self.assertEqual(client.post("/execute/greet", json={"name": "Ada"}).json()["result"], "Hello, Ada!")

    def test_one_act_although_the_token_dies_in_between(self):
        with Server(LAB) as server:
            server.options += ["--env", "ACTED=" + os.path.join(server.folder, "acted")]
            server.restart()
            first = server.run("move", {"key": "once"}, key="k-1")
            server.post("/auth/logout")
            self.assertEqual(server.run("move", {"key": "once"}, key="k-1").status_code, 401)
            server.tokens.clear()
            second = server.run("move", {"key": "once"}, key="k-1", timeout=CALL_SECONDS)
            self.assertEqual((first.status_code, second.status_code), (200, 200))
            self.assertEqual(first.json(), second.json())
            self.assertEqual(second.headers["idempotency-replayed"], "true")
            with open(os.path.join(server.folder, "acted"), encoding="utf-8") as opened:
                self.assertEqual(opened.read(), "once\n")

    def test_an_idle_device_is_never_busy(self):
        with Server(LAB, variables={"EXECUTE_QUEUE_SECONDS": "0"}) as server:
            statuses = [server.run("move").status_code for _ in range(30)]
        self.assertEqual(statuses, [200] * 30)

    def test_twenty_callers_at_once_are_served_in_turn(self):
        with Server(file=os.path.join(EXAMPLES, "hello.py")) as server:
            server.token()
            answers = together(20, lambda number: server.run("greet", {"name": "n%d" % number}, key="g%d" % number).json()["result"])
            self.assertEqual(sorted(answers), sorted("Hello, n%d!" % number for number in range(20)))


if __name__ == "__main__":
    unittest.main()
