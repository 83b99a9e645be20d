"""The wire contract of the device family: what clients of the earlier system send, and what they must get."""

import base64
import json
import os
import subprocess
import sys
import time
import unittest

import httpx

from support import ADMIN_PASSWORD, EXAMPLES, PASSWORD, ROOT, Case, token_parts

PUBLIC = {"/", "/health", "/health/live", "/health/ready", "/auth/login", "/docs", "/docs/app.js", "/docs/app.css",
          "/panel", "/openapi.json", "/metrics", "/auth/refresh", "/auth/methods", "/auth/oidc/login", "/auth/oidc/callback",
          "/auth/oidc/exchange", "/auth/oidc/logout", "/agents/auth/token", "/agents/auth/refresh", "/agents/auth/revoke", "/oauth/token",
          "/oauth/revoke", "/oauth/device_authorization", "/auth/invitations/accept", "/auth/passkeys/begin", "/auth/passkeys/sign-in", "/device-code",
          "/device-code/app.js", "/auth/certificate", "/auth/reset", "/page-reports",
          "/oauth/jwks", "/.well-known/jwks.json", "/.well-known/oauth-authorization-server",
          "/.well-known/security.txt"}
MIX = {"r": 255, "g": 128, "b": 64, "well": "A1"}


class SecureExample(Case):
    """examples/ot2_secure.py: names and texts that clients of the earlier server rely on."""

    FILE = os.path.join(EXAMPLES, "ot2_secure.py")
    ADD_USERS = ("ada", "olaf", "vera", "adam", "audrey")

    def test_login_with_a_form(self):
        status, headers, body = self.server.curl("/auth/login", "-d", "username=admin", "-d", "password=" + ADMIN_PASSWORD)
        self.assertEqual(status, 200, body)
        answer = json.loads(body)
        # Another test of this class may have done something that the administrator is told of.
        self.assertEqual(set(answer) - {"notices"}, {"access_token", "refresh_token", "token_type", "expires_in", "user", "roles"})
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


if __name__ == "__main__":
    unittest.main()
