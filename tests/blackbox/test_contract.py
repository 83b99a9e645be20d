"""The wire contract of the device family: what clients of the earlier system send, and what they must get."""

import base64
import json
import os
import statistics
import subprocess
import sys
import time
import unittest

import httpx

from lab import LAB
from support import ADMIN_PASSWORD, CALL_SECONDS, EXAMPLES, PASSWORD, ROOT, Case, Server, together, token_parts, wait_for

HEADERS = {
    "x-content-type-options": "nosniff", "x-frame-options": "DENY", "x-xss-protection": "0",
    "referrer-policy": "strict-origin-when-cross-origin",
    "permissions-policy": "geolocation=(), microphone=(), camera=()",
}
STRICT_POLICY = "default-src 'none'; frame-ancestors 'none'"
PUBLIC = {"/", "/health", "/health/live", "/health/ready", "/auth/login", "/docs", "/docs/app.js", "/docs/app.css",
          "/panel", "/openapi.json", "/metrics"}
MIX = {"r": 255, "g": 128, "b": 64, "well": "A1"}


class SecureExample(Case):
    """examples/ot2_secure.py: names and texts that clients of the earlier server rely on."""

    FILE = os.path.join(EXAMPLES, "ot2_secure.py")
    ADD_USERS = ("ada", "olaf", "vera", "adam", "audrey")

    def test_login_with_a_form(self):
        status, headers, body = self.server.curl("/auth/login", "-d", "username=admin", "-d", "password=" + ADMIN_PASSWORD)
        self.assertEqual(status, 200, body)
        answer = json.loads(body)
        self.assertEqual(set(answer), {"access_token", "token_type", "expires_in", "user", "roles"})
        self.assertEqual((answer["token_type"], answer["expires_in"], answer["user"]), ("bearer", 3600, "admin"))
        self.assertEqual(sorted(answer["roles"]), ["admin", "operator", "viewer"])
        self.assertEqual(headers["cache-control"], "no-store")

    def test_login_with_json(self):
        status, _, body = self.server.curl("/auth/login", "-H", "Content-Type: application/json", "-d",
                                           json.dumps({"username": "ada", "password": PASSWORD}))
        self.assertEqual(status, 200, body)
        with self.server.http() as client:
            answer = client.post("/auth/login", json={"username": "ada", "password": PASSWORD})
        self.assertEqual(answer.json()["roles"], ["operator", "viewer"])

    def test_login_in_the_query_string_is_refused(self):
        with self.server.http() as client:
            query = {"username": "ada", "password": PASSWORD}
            for answer in (client.post("/auth/login", params=query),
                           client.post("/auth/login", params=query, data=query),
                           client.post("/auth/login?PASSWORD=x", data=query)):
                self.assertProblem(answer, 400, "invalid_request")
        self.assertNotIn(PASSWORD, self.server.log())

    def test_claims_of_a_token(self):
        header, claims = token_parts(self.server.token("ada"))
        self.assertLessEqual({"sub", "type", "scopes", "roles", "name", "iat", "exp", "nbf", "jti", "iss", "aud"}, set(claims))
        self.assertEqual((claims["sub"], claims["type"], claims["roles"]), ("ada", "access", ["operator", "viewer"]))
        self.assertEqual(claims["exp"] - claims["iat"], 3600)
        self.assertLessEqual(abs(claims["iat"] - time.time()), 60)
        self.assertEqual((header["alg"], bool(header["kid"])), ("EdDSA", True))

    def test_logout_ends_the_token(self):
        token = self.server.login("ada")
        with self.server.http(token) as client:
            answer = client.post("/auth/logout")
            self.assertEqual(answer.status_code, 200)
            self.assertEqual(set(answer.json()), {"success", "message", "details"})
            self.assertIs(answer.json()["success"], True)
            self.assertProblem(client.get("/auth/me"), 401, "unauthorized")

    def test_who_am_i(self):
        answer = self.server.get("/auth/me", "ada").json()
        self.assertEqual((answer["user"], answer["roles"]), ("ada", ["operator", "viewer"]))
        self.assertRegex(answer["expires_at"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$")

    def test_tasks_have_the_old_shape(self):
        status, _, body = self.server.curl("/tasks", "-H", "Authorization: Bearer " + self.server.token("vera"))
        self.assertEqual(status, 200)
        tasks = json.loads(body)
        self.assertEqual(set(tasks), {"secure_mix_colors", "secure_get_status"})
        mix = tasks["secure_mix_colors"]
        self.assertEqual(set(mix), {"name", "doc", "parameters", "is_async"})
        self.assertEqual(mix["parameters"]["r"], {"type": "integer", "default": None, "required": True})
        self.assertEqual(mix["parameters"]["well"]["type"], "string")
        self.assertIs(mix["is_async"], False)

    def test_execute_answers_with_the_exact_text(self):
        status, _, body = self.server.curl("/execute/secure_mix_colors", "-H", "Content-Type: application/json",
                                           "-H", "Authorization: Bearer " + self.server.token("ada"), "-d", json.dumps(MIX))
        self.assertEqual(status, 200, body)
        answer = json.loads(body)
        self.assertEqual(answer["result"], "Securely mixed RGB(255,128,64) in well A1")
        self.assertEqual((answer["task_name"], answer["parameters"], answer["status"], answer["executed_by"]),
                         ("secure_mix_colors", MIX, "success", "ada"))
        self.assertEqual(set(answer), {"task_name", "parameters", "result", "status", "executed_by",
                                       "execution_time_seconds", "timestamp", "run_id"})
        self.assertRegex(answer["timestamp"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$")

    def test_execute_without_a_body(self):
        with self.server.as_user("ada") as client:
            answer = client.post("/execute/secure_get_status")
        self.assertEqual(answer.status_code, 200, answer.text)
        result = answer.json()["result"]
        self.assertEqual(set(result), {"status", "security", "timestamp"})
        self.assertEqual((result["status"], result["security"]), ("ready", "enabled"))
        self.assertRegex(result["timestamp"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")
        self.assertEqual(answer.headers["interlock-run"], answer.json()["run_id"])

    def test_execute_needs_the_operator_role(self):
        with self.server.http() as client:
            self.assertProblem(client.post("/execute/secure_get_status"), 401, "unauthorized")
        with self.server.http("garbage") as client:
            self.assertProblem(client.post("/execute/secure_get_status"), 401, "unauthorized")
        for user in ("vera", "adam", "audrey"):
            body = self.assertProblem(self.server.run("secure_get_status", user=user), 403, "forbidden")
            self.assertEqual(body["detail"], "Role 'operator' required")
        self.assertEqual(self.server.run("secure_get_status", user="olaf").status_code, 200)

    def test_tasks_need_the_viewer_role(self):
        for user in ("olaf", "adam", "audrey"):
            self.assertEqual(self.server.get("/tasks", user).status_code, 403, user)
        self.assertEqual(self.server.get("/tasks", "vera").status_code, 200)

    def test_a_missing_role_comes_before_the_body_and_the_name(self):
        with self.server.as_user("vera") as client:
            for path in ("/execute/secure_mix_colors", "/execute/no_such_task"):
                answer = client.post(path, content=b"{not json", headers={"Content-Type": "application/json"})
                self.assertProblem(answer, 403, "forbidden")
                self.assertIn('error="insufficient_scope"', answer.headers["www-authenticate"])
        with self.server.http() as client:
            for path in ("/execute/secure_mix_colors", "/execute/no_such_task"):
                self.assertProblem(client.post(path, content=b"{not json"), 401, "unauthorized")

    def test_unknown_task_names_no_other(self):
        body = self.assertProblem(self.server.run("open_the_door", user="ada"), 404, "task_not_found")
        self.assertEqual(body["detail"], "Task 'open_the_door' not found")
        self.assertNotIn("secure_", json.dumps(body))

    def test_parameters_that_are_refused_are_named(self):
        for change, name in (({"r": 256}, "r"), ({"r": -1}, "r"), ({"r": "255"}, "r"), ({"r": 1.5}, "r"), ({"r": True}, "r"),
                             ({"r": None}, "r"), ({"well": "Z9"}, "well"), ({"well": 1}, "well")):
            body = self.assertProblem(self.server.run("secure_mix_colors", dict(MIX, **change), "ada"), 400, "invalid_parameters")
            self.assertEqual([error["loc"] for error in body["errors"]], [["body", name]], change)
            self.assertEqual(set(body["errors"][0]), {"loc", "type", "msg"})
            self.assertIn(name, body["detail"])
        self.assertProblem(self.server.run("secure_mix_colors", dict(MIX, extra=1), "ada"), 400, "invalid_parameters")
        missing = {name: value for name, value in MIX.items() if name != "g"}
        body = self.assertProblem(self.server.run("secure_mix_colors", missing, "ada"), 400, "invalid_parameters")
        self.assertEqual(body["errors"][0]["loc"], ["body", "g"])
        for content in (b"[]", b"1", b'"r"', b"null"):
            with self.server.as_user("ada") as client:
                answer = client.post("/execute/secure_mix_colors", content=content, headers={"Content-Type": "application/json"})
            self.assertIn(answer.status_code, (400, 422))

    def test_an_extra_parameter_is_named(self):
        body = self.assertProblem(self.server.run("secure_mix_colors", dict(MIX, extra=1), "ada"), 400, "invalid_parameters")
        self.assertEqual([error["loc"] for error in body["errors"]], [["body", "extra"]])

    def test_health_and_banner_tell_strangers_little(self):
        status, _, body = self.server.curl("/health")
        self.assertEqual(status, 200)
        health = json.loads(body)
        self.assertEqual(set(health), {"status", "timestamp", "tasks_registered"})
        self.assertEqual((health["status"], health["tasks_registered"]), ("healthy", 2))
        status, _, body = self.server.curl("/")
        self.assertEqual((status, json.loads(body)["available_tasks"], json.loads(body)["docs"]), (200, [], "/docs"))
        self.assertEqual(set(json.loads(body)), {"message", "available_tasks", "docs"})
        listed = self.server.get("/", "vera").json()["available_tasks"]
        self.assertEqual(sorted(listed), ["secure_get_status", "secure_mix_colors"])
        with self.server.http() as client:
            self.assertEqual(client.get("/health/live").json()["status"], "alive")
            self.assertEqual(client.get("/health/ready").status_code, 200)
            self.assertNotIn("secure_mix_colors", client.get("/openapi.json").text)

    def test_every_route_that_is_not_public_wants_a_token(self):
        document = self.server.get("/openapi.json").json()
        self.assertEqual(document["info"]["title"], "ot2-secure")
        guarded = [(path, method) for path, methods in document["paths"].items() for method in methods
                   if path not in PUBLIC and method in ("get", "post", "put", "patch", "delete")]
        self.assertGreaterEqual(len(guarded), 18)
        for token in (None, "invalid-token", "Bearer x", "00000000-0000-0000-0000-000000000001"):
            with self.server.http(token) as client:
                for path, method in guarded:
                    concrete = path.replace("{", "").replace("}", "")
                    answer = client.request(method, concrete)
                    self.assertProblem(answer, 401, "unauthorized")
                    self.assertEqual(answer.json()["detail"], "Invalid authentication credentials")
                    challenge = "Bearer" if token is None else 'Bearer error="invalid_token"'
                    self.assertEqual(answer.headers["www-authenticate"], challenge)

    def test_bearer_in_any_case_and_no_other_scheme(self):
        token = self.server.token("vera")
        with self.server.http() as client:
            for scheme in ("Bearer", "bearer", "BEARER"):
                self.assertEqual(client.get("/tasks", headers={"Authorization": scheme + " " + token}).status_code, 200)
            basic = base64.b64encode(("ada:" + PASSWORD).encode()).decode()
            for text in ("Basic " + basic, token, "Bearer", "Bearer " + token + " x", "Token " + token):
                self.assertEqual(client.get("/tasks", headers={"Authorization": text}).status_code, 401, text)
            self.assertEqual(client.get("/tasks", params={"access_token": token}).status_code, 401)

    def test_slash_head_and_other_methods(self):
        with self.server.as_user("ada") as client:
            self.assertEqual(client.get("/tasks/").status_code, 200)
            self.assertEqual(client.post("/execute/secure_get_status/").status_code, 200)
            self.assertEqual(client.get("/health//").status_code, 200)
            head = client.head("/tasks")
            self.assertEqual((head.status_code, head.content), (200, b""))
            for method, path, allowed in (("DELETE", "/tasks", "GET"), ("GET", "/execute/secure_get_status", "POST"),
                                          ("PUT", "/auth/login", "POST"), ("BREW", "/health", "GET")):
                answer = client.request(method, path)
                self.assertProblem(answer, 405, "method_not_allowed")
                self.assertIn(allowed, answer.headers["allow"])
            self.assertProblem(client.get("/nothing/here"), 404, "not_found")

    def test_one_connection_serves_many_requests(self):
        with self.server.http(self.server.token("ada"), limits=httpx.Limits(max_connections=1)) as client:
            statuses = [client.request(method, path).status_code for _ in range(10)
                        for method, path in (("GET", "/tasks"), ("GET", "/nowhere"), ("POST", "/execute/secure_get_status"), ("GET", "/users"))]
        self.assertEqual(statuses, [200, 404, 200, 403] * 10)

    def test_request_ids(self):
        with self.server.http() as client:
            self.assertEqual(client.get("/health", headers={"X-Request-ID": "lab.A_1-b"}).headers["x-request-id"], "lab.A_1-b")
            for text in ("", "a" * 65, "a b", "x;y", "é".encode().decode("latin-1")):
                given = client.get("/health", headers={"X-Request-ID": text.encode("latin-1")}).headers["x-request-id"]
                self.assertRegex(given, r"^req-[0-9a-f]{16,}$")
            one, two = (client.get("/nowhere").headers["x-request-id"] for _ in range(2))
            self.assertNotEqual(one, two)

    def test_error_type_follows_accept(self):
        with self.server.http() as client:
            plain = client.get("/tasks", headers={"Accept": "application/json"})
            self.assertEqual((plain.status_code, plain.headers["content-type"]), (401, "application/json"))
            self.assertEqual(plain.json()["code"], "unauthorized")

    def test_body_types(self):
        token = self.server.token("ada")
        with self.server.http(token) as client:
            for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
                         "application/json; charset=latin-1", "application/xml"):
                answer = client.post("/execute/secure_mix_colors", content=json.dumps(MIX), headers={"Content-Type": kind})
                self.assertProblem(answer, 415, "unsupported_media_type")
            for kind in ("application/json", "application/json; charset=utf-8", "APPLICATION/JSON"):
                answer = client.post("/execute/secure_mix_colors", content=json.dumps(MIX), headers={"Content-Type": kind})
                self.assertEqual(answer.status_code, 200)
            request = client.build_request("POST", "/execute/secure_mix_colors", content=json.dumps(MIX))
            request.headers.pop("content-type", None)
            self.assertEqual(client.send(request).status_code, 200)

    def test_unknown_fields_are_refused_when_asked_for(self):
        body = {"reason": "looked at it", "bogus": 1}
        with self.server.as_user("adam") as client:
            strict = client.post("/stop/release", json=body, headers={"Prefer": "handling=strict"})
            self.assertProblem(strict, 422, "invalid_request")
            self.assertEqual(client.post("/stop/release", json=body).status_code, 200)

    def test_pages(self):
        with self.server.as_user("ada") as client:
            client.post("/execute/secure_get_status")
            page = client.get("/runs", params={"limit": 1}).json()
            self.assertEqual(set(page), {"items", "total", "limit", "offset", "has_more"})
            self.assertEqual((len(page["items"]), page["limit"], page["offset"]), (1, 1, 0))
            for query in ({"limit": 0}, {"limit": 201}, {"offset": -1}, {"limit": "x"}, {"state": "nonsense"}):
                self.assertProblem(client.get("/runs", params=query), 422, "invalid_request")

    def test_a_hostile_query_is_blocked(self):
        with self.server.as_user("vera") as client:
            for path in ("/tasks?filter=';%20DROP%20TABLE%20tasks;%20--", "/tasks?x=%00", "/tasks?x=%3Cscript%3Ealert(1)%3C/script%3E"):
                self.assertProblem(client.get(path), 400, "request_blocked")

    def test_hosts(self):
        with self.server.http() as client:
            for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1", ""):
                answer = client.get("/health", headers={"Host": host})
                self.assertProblem(answer, 400, "invalid_request")
                self.assertNotIn("127.0.0.1", answer.text)
            for host in ("localhost", "127.0.0.1:8000", "LOCALHOST:1"):
                self.assertEqual(client.get("/health", headers={"Host": host}).status_code, 200)

    def test_proxy_headers_and_no_user_agent_are_harmless(self):
        with self.server.as_user("vera") as client:
            del client.headers["user-agent"]
            for number in range(30):
                answer = client.get("/tasks", headers={"X-Real-IP": "203.0.113.7", "X-Forwarded-For": "203.0.113.7, 10.0.0.%d" % number,
                                                       "X-Forwarded-Proto": "https"})
                self.assertEqual(answer.status_code, 200)
                self.assertNotIn("strict-transport-security", answer.headers)
        rows = self.server.audit(actor="vera")
        self.assertEqual({row["client_ip"] for row in rows}, {"127.0.0.1"})

    def test_documents_load_nothing_from_elsewhere(self):
        with self.server.http() as client:
            for path in ("/docs", "/panel"):
                page = client.get(path)
                self.assertEqual(page.status_code, 200)
                policy = page.headers["content-security-policy"]
                self.assertNotIn("unsafe-inline", policy)
                self.assertNotIn("*", policy)
                self.assertNotRegex(page.text, r"""(src|href)=["'](https?:)?//""")
                self.assertEqual(page.headers["x-frame-options"], "DENY")
            for path in ("/docs/app.js", "/docs/app.css"):
                asset = client.get(path)
                self.assertEqual(asset.status_code, 200)
                self.assertNotRegex(asset.text, r"""(url\(|import |from )["']?https?://""")

    def test_the_old_client_class(self):
        code = ("import sys; from interlock import SecureOrchestratorClient as Client\n"
                "with Client(sys.argv[1] + '/', 'ada', sys.argv[2]) as client:\n"
                "    print(client.execute_task('secure_mix_colors', r=255, g=128, b=64, well='A1'))\n"
                "    print(client.execute_task('secure_get_status')['security'])\n")
        before = len(self.server.audit(action="device.login", actor="ada"))
        done = subprocess.run([sys.executable, "-c", code, self.server.url, PASSWORD], capture_output=True, text=True,
                              timeout=60, env={"PYTHONPATH": os.path.join(ROOT, "python"), "PATH": os.environ["PATH"]}, check=False)
        self.assertEqual(done.stdout.splitlines(), ["Securely mixed RGB(255,128,64) in well A1", "enabled"], done.stderr)
        self.assertEqual(len(self.server.audit(action="device.login", actor="ada")), before + 1)


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
