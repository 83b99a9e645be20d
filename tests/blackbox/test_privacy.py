"""Secrets, sensitive values and personal data: each planted once with a mark of its own, then looked for wherever anything comes out.

A mark that turns up where it must not is named with the input through which it came and the place where it was found.
"""

import base64
import contextlib
import json
import os
import subprocess
import time
import unittest

from orchestra import SCOPES, SYSTEM, Orchestrator
from support import PASSWORD, Server, program, wait_for
from test_sdk import totp
from test_traces import Collector

SOURCE = """
    from interlock import Param, PublicError, ctx, task

    @task
    def connect(password: str = Param(sensitive=True, min_length=4, max_length=60), pin: int = Param(1, sensitive=True, min=0),
                keys: list = Param(None, sensitive=True), login: dict = Param(None, sensitive=True), how: str = "well", note: str = "") -> str:
        if how == "say":
            ctx.log("using " + password)
            ctx.progress(1, 2, "with " + password)
            print("printed", password, flush=True)
        elif how == "raise":
            raise ValueError("refused: %s %s %s" % (password, keys, login))
        elif how == "public":
            raise PublicError("refused: " + password, code="refused")
        return "connected"
"""
HEADERS = ("Authorization", "Proxy-Authorization", "X-API-Key", "Cookie", "X-Custom", "Referer", "X-CSRF-Token", "X-Interlock-Otp")
QUERY = ("token", "access_token", "api_key", "password", "client_secret", "code", "state", "q")


class Marks:
    """What was planted, through what, and where it may be found all the same."""

    def __init__(self):
        self.planted = {}

    def mark(self, through, allowed=()):
        """A new value that occurs nowhere else."""
        value = "Zq%03dx%s" % (len(self.planted), base64.b32encode(os.urandom(10)).decode().lower())
        return self.keep(through, value, allowed)

    def keep(self, through, value, allowed=()):
        """A value that somebody else made, such as a token."""
        self.planted[value] = (through, set(allowed))
        return value

    @staticmethod
    def forms(value):
        """The bytes as which it could turn up: as it is, in hexadecimal, in base64 at each of three offsets."""
        plain = value.encode()
        yield plain
        yield plain.hex().encode()
        for offset in range(3):
            text = base64.b64encode(b"\0" * offset + plain)
            # The characters that depend on nothing but the value.
            yield text[(offset * 8 + 5) // 6:(offset + len(plain)) * 8 // 6]

    def found(self, places):
        """What was found where it must not be."""
        problems = []
        for value, (through, allowed) in self.planted.items():
            for place, content in places.items():
                if place.partition(":")[0] in allowed:
                    continue
                if any(form in content for form in self.forms(value)):
                    at = max(content.find(form) for form in self.forms(value))
                    problems.append("%s is in %s: %r" % (through, place, content[max(0, at - 80):at + 60]))
        return problems


class Privacy(unittest.TestCase):
    """A device server and an orchestrator, with everything that holds a secret."""

    maxDiff = None

    def setUp(self):
        self.marks, self.places = Marks(), {}
        mark = self.marks.mark
        folder_secrets = {
            "LDAP_BIND_PASSWORD": mark("LDAP_BIND_PASSWORD"), "JWT_SECRET_KEY": mark("JWT_SECRET_KEY") + mark("JWT_SECRET_KEY, second half"),
            "JWT_SECRET_KEY_PREVIOUS": mark("JWT_SECRET_KEY_PREVIOUS") + "abcdefghijklmnopqrstuvwxyz", "METRICS_TOKEN": mark("METRICS_TOKEN"),
            "MASTER_KEY": self.marks.keep("MASTER_KEY", os.urandom(32).hex()), "OIDC_CLIENT_SECRET": mark("OIDC_CLIENT_SECRET"),
            "ACME_EAB_KEY": mark("ACME_EAB_KEY"), "BOOTSTRAP_ADMIN_SECRET": mark("BOOTSTRAP_ADMIN_SECRET"),
            "REDIS_URL": "redis://lab:%s@127.0.0.1:1/0" % mark("password in REDIS_URL"), "INSECURE_REDIS_PLAINTEXT": "true",
        }
        self.collector = Collector()
        self.addCleanup(self.collector.close)
        self.traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": self.collector.url, "OTEL_EXPORTER_OTLP_HEADERS": "x-api-key=" + mark("OTEL_EXPORTER_OTLP_HEADERS")}
        ldap = {"LDAP_URL": "ldaps://127.0.0.1:1", "LDAP_BIND_DN": "cn=search,dc=lab", "LDAP_USER_BASE": "ou=people,dc=lab", "LDAP_ROLE_MAP": "cn=ops,dc=lab=operator"}
        self.device = Server(SOURCE, variables={**folder_secrets, **ldap, **self.traced, "RATE_LIMIT_ENABLED": "false", "BAN_ALLOW": "127.0.0.1"})
        self.addCleanup(self.device.close)
        self.device.start()
        self.admin = folder_secrets["BOOTSTRAP_ADMIN_SECRET"]
        self.device.tokens["admin"] = self.device.login("admin", self.admin)
        self.heard = 0

    def hear(self, name, answer, allowed=False):
        """Keep an answer among what came out, unless it is the one that shows the value to its owner."""
        self.heard += 1
        self.places["%s:%d" % ("answer to its owner" if allowed else "answer", self.heard) + " " + name] = (
            str(dict(answer.headers)) + answer.text).encode()
        return answer

    # what is planted

    def plant_credentials(self):
        mark, server = self.marks.mark, self.device
        with server.http() as http:
            for name in ("admin", "nobody-here"):
                self.hear("wrong password", http.post("/auth/login", data={"username": name, "password": mark("wrong password of " + name)}))
                self.hear("wrong password", http.post("/auth/login", json={"username": name, "password": mark("wrong password in JSON"), "otp": mark("wrong code")}))
            self.hear("password as name", http.post("/auth/login", data={"username": mark("a password in the field for names"), "password": PASSWORD}))
            self.hear("login in the query", http.post("/auth/login", params={"username": "admin", "password": mark("password in the query of a sign-in")}))
            self.hear("broken JSON", http.post("/auth/login", content='{"username": "admin", "password": "%s' % mark("password in broken JSON"), headers={"Content-Type": "application/json"}))
            self.hear("attack", http.post("/auth/login", json={"username": "admin", "password": mark("password like an attack") + "' OR 1=1 UNION SELECT password FROM users--"}))
            self.hear("extra", http.post("/auth/login", json={"username": "admin", "password": "x", mark("name of an unknown member"): mark("value of an unknown member")}))
            for name in HEADERS:
                value = mark("header " + name)
                shown = {"Authorization": "Bearer " + value, "Proxy-Authorization": "Basic " + value, "Cookie": "session=" + value,
                         "Referer": "https://lab.example/?token=" + value}.get(name, value)
                self.hear("header " + name, http.get("/device", headers={name: shown}))
                self.hear("header with an attack", http.get("/device", headers={name: shown + "<script>alert(1)</script>"}))
            self.hear("Basic", http.get("/device", auth=("admin", mark("password as Basic"))))
            for name in QUERY:
                self.hear("query " + name, http.get("/runs", params={name: mark("query " + name)}))
                self.hear("query " + name, http.get("/runs", params={name: mark("query %s with an attack" % name) + "' UNION SELECT 1--"}))
            self.hear("path", http.get("/nowhere/" + mark("path that does not exist")))
            self.hear("path", http.get("/runs/" + mark("id that is none")))
            for path, body in (
                ("/auth/refresh", {"refresh_token": mark("refresh token")}), ("/agents/auth/token", {"agent_id": SYSTEM, "agent_secret": mark("agent secret, wrong")}),
                ("/agents/auth/refresh", {"refresh_token": mark("refresh token of an agent")}), ("/agents/auth/revoke", {"token": mark("token to revoke")}),
                ("/auth/invitations/accept", {"token": mark("invitation"), "password": mark("password with an invitation")}),
                ("/auth/oidc/exchange", {"code": mark("OpenID code"), "verifier": mark("PKCE verifier")}),
            ):
                self.hear(path, http.post(path, json=body))
            for form in (
                {"grant_type": "client_credentials", "client_id": SYSTEM, "client_secret": mark("client secret")},
                {"grant_type": "client_credentials", "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer", "client_assertion": mark("client assertion")},
                {"grant_type": "refresh_token", "refresh_token": mark("OAuth refresh token"), "client_id": SYSTEM},
                {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": mark("assertion")},
                {"grant_type": "urn:ietf:params:oauth:grant-type:token-exchange", "subject_token": mark("subject token"), "subject_token_type": "urn:ietf:params:oauth:token-type:jwt"},
                {"grant_type": "urn:ietf:params:oauth:grant-type:device_code", "device_code": mark("device code"), "client_id": "cli"},
                {"grant_type": mark("grant type")},
            ):
                self.hear("/oauth/token", http.post("/oauth/token", data=form))
        for request in ("GET /device HTTP/1.1\r\nHost: x\r\nX-A: %s\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" % mark("header of a request that is refused"),
                        "%s / HTTP/1.1\r\nHost: x\r\n\r\n" % mark("method").upper().replace("-", ""), "GET /%s HTTP/9.9\r\n\r\n" % mark("path of a broken request")):
            self.places["answer:raw %d" % len(self.places)] = server.raw(request.encode(), 3)

    def plant_people(self):
        mark, server = self.marks.mark, self.device
        person = mark("password of a person")
        self.assertEqual(self.hear("POST /users", server.post("/users", {"name": "ada", "password": person, "roles": ["operator", "viewer"]})).status_code, 201)
        self.hear("POST /users", server.post("/users", {"name": "weak", "password": mark("weak")[:9], "roles": []}))
        self.hear("POST /users", server.post("/users", {"name": "ada", "password": mark("password of a name that is taken"), "roles": []}))
        server.tokens["ada"] = self.marks.keep("access token", server.login("ada", person))
        new = mark("new password")
        self.hear("password", server.post("/auth/password", {"current_password": mark("current password, wrong"), "new_password": new}, user="ada"))
        self.hear("step-up", server.post("/auth/step-up", {"password": mark("password of a step-up"), "otp": mark("code of a step-up")}, user="ada"))
        self.hear("reset", server.post("/users/ada/password", {"password": mark("password set by an administrator") + "-Aa1"}))
        made = server.post("/users", {"name": "vera", "password": mark("password of another person"), "roles": ["operator"]})
        self.assertEqual(made.status_code, 201, made.text)
        server.tokens["vera"] = server.login("vera", next(value for value, (through, _) in self.marks.planted.items() if through == "password of another person"))
        app = server.post("/auth/factors/totp", {"name": "phone"}, user="vera")
        self.assertEqual(app.status_code, 201, app.text)
        secret = self.marks.keep("secret of an authenticator app", app.json()["secret"])
        self.marks.keep("bytes of that secret", base64.b32decode(secret + "=" * (-len(secret) % 8)).hex())
        done = server.post("/auth/factors/totp/confirm", {"code": totp(secret, int(time.time()) // 30)}, user="vera")
        self.assertEqual(done.status_code, 200, done.text)
        for code in done.json()["recovery_codes"][:3]:
            self.marks.keep("recovery code", code)
        key = server.post("/auth/keys", {"name": "script", "scopes": ["runs:read"], "expires_in_days": 5})
        self.assertEqual(key.status_code, 201, key.text)
        self.marks.keep("API key", key.json()["key"])
        invited = server.post("/users/invitations", {"name": "ivo", "roles": ["viewer"]})
        self.assertEqual(invited.status_code, 201, invited.text)
        for member in ("token", "secret", "code"):
            if invited.json().get(member):
                self.marks.keep("invitation that was made", invited.json()[member])
        agent = server.post("/agents", {"name": "mixer", "scopes": ["runs:read"]}).json()["id"]
        own = server.post("/agents/%s/credentials" % agent, {"password": mark("secret that an administrator chose") + "-Aa1-long-enough"})
        self.assertLess(own.status_code, 500, own.text)
        secret = server.post("/agents/%s/credentials" % agent).json()["agent_secret"]
        self.marks.keep("secret of an agent", secret)
        with server.http() as http:
            tokens = http.post("/agents/auth/token", json={"agent_id": agent, "agent_secret": secret})
            self.assertEqual(tokens.status_code, 200, tokens.text)
            for member in ("access_token", "refresh_token"):
                self.marks.keep(member + " of an agent", tokens.json()[member])

    def plant_parameters(self):
        mark, server = self.marks.mark, self.device
        pin = 918273645546372819
        self.marks.keep("sensitive number", str(pin))
        well = {"password": mark("sensitive text"), "pin": pin, "keys": [mark("in a sensitive list")], "login": {"name": {"inner": mark("in a sensitive object")}}}
        done = self.hear("run", server.run("connect", well, key="once"))
        self.assertEqual(done.status_code, 200, done.text)
        self.hear("run again", server.run("connect", well, key="once"))
        self.hear("check", server.post("/check/connect", well))
        for how, status in (("say", 200), ("raise", 500), ("public", 500)):
            answer = self.hear(how, server.run("connect", {**well, "how": how, "password": mark("sensitive text: " + how)}))
            self.assertEqual(answer.status_code, status, answer.text)
            runs = server.get("/runs?limit=1").json()["items"]
            self.hear("events", server.get("/runs/%s/events" % runs[0]["id"]))
        for name, parameters in (
            ("too long", {"password": mark("sensitive text that is too long") * 4}), ("wrong kind", {"password": {"a": mark("sensitive value of a wrong kind")}}),
            ("number as text", {"password": "good", "pin": mark("sensitive number that is a text")}), ("unknown", {"password": "good", "secret": mark("parameter that is not declared")}),
            ("attack", {"password": mark("sensitive text like an attack") + "; cat /etc/passwd"}), ("list", {"password": "good", "keys": mark("sensitive list that is a text")}),
        ):
            self.hear("run " + name, server.run("connect", parameters))
            self.hear("check " + name, server.post("/check/connect", parameters))
        self.hear("broken", server.post("/execute/connect", content='{"password": "%s"' % mark("sensitive text in broken JSON")))

    def plant_tasks(self):
        mark, orchestrator = self.marks.mark, self.orchestrator
        # Whoever may read a task sees what it does, so the database holds it as it is; no record, log or backup does.
        made = orchestrator.post("/agents", {"name": "mixer", "scopes": [*SCOPES, "tasks:*", "devices:execute"]})
        self.assertEqual(made.status_code, 201, made.text)
        agent = made.json()["id"]
        orchestrator.secrets[agent] = self.marks.keep("secret of an agent of tasks", orchestrator.post("/agents/%s/credentials" % agent).json()["agent_secret"])
        stored = {
            "url": "https://127.0.0.1:1/?token=" + mark("query of a step", ["state"]), "method": "POST",
            "headers": {"Authorization": "Bearer " + mark("header of a step", ["state"])}, "json": {"password": mark("body of a step", ["state"])},
        }
        made = orchestrator.over(orchestrator.now(orchestrator.task(agent, [{"uses": "http.request", "with": stored}], params={}), agent), agent=agent)
        self.places["run:http"] = json.dumps(made).encode()
        step = {"uses": "device.lab.connect", "with": {"password": mark("sensitive parameter in a pipeline", ["state"]), "login": {"a": mark("sensitive object in a pipeline", ["state"])}, "how": "raise"}}
        wait_for(lambda: "device.lab.connect" in orchestrator.ask("GET", "/tools", agent=agent).json(), "the tools of the device")
        made = orchestrator.over(orchestrator.now(orchestrator.task(agent, [step]), agent), agent=agent)
        self.assertEqual(made["state"], "failed", made)
        self.places["run:device"] = json.dumps(made).encode()
        bad = {"uses": "device.lab.connect", "with": {"password": {"a": mark("sensitive parameter of a wrong kind in a pipeline", ["state", "answer to its owner"])}}}
        self.hear("POST /tasks", orchestrator.ask("POST", "/tasks", orchestrator.body(agent, [bad]), agent), allowed=True)
        self.hear("POST /tasks", orchestrator.ask("POST", "/tasks", orchestrator.body(agent, [{"uses": mark("address of a tool", ["answer"]), "with": {}}], title=mark("title of a bad task")), agent))
        answer = orchestrator.ask("POST", "/agents/%s/webhook/secret" % agent)
        changed = orchestrator.ask("PUT", "/agents/" + agent, {"webhook_url": "https://127.0.0.1:1/hooks?key=" + mark("query of a webhook", ["state", "answer"])})
        self.assertEqual((answer.status_code, changed.status_code), (409, 200), changed.text)
        self.marks.keep("webhook secret", orchestrator.ask("POST", "/agents/%s/webhook/secret" % agent).json()["webhook_secret"])
        orchestrator.over(orchestrator.now(orchestrator.task(agent), agent), agent=agent)
        wait_for(lambda: orchestrator.ask("GET", "/agents/%s/webhook/deliveries" % agent).json()["total"], "a delivery")
        orchestrator.publish("lab.note", {"text": mark("payload of an event", ["state"])}, agent)
        for value in orchestrator.tokens.values():
            self.marks.keep("access token of the orchestrator", value)

    # where it is looked for

    def commands(self, server, name, kind):
        """What the command line says on the server's machine, and what it writes."""
        def said(*arguments, path=None):
            done = subprocess.run([program(), *arguments], capture_output=True, timeout=60, env=server.variables, check=False)
            self.places["command:%s %s" % (name, " ".join(arguments[:3]))] = done.stdout + done.stderr
            if path:
                self.assertEqual(done.returncode, 0, done.stderr)
                with open(path, "rb") as opened:
                    self.places["file:%s %s" % (name, " ".join(arguments[:6]))] = opened.read()
            return done

        folder = server.folder
        said("doctor", "--state", server.state)
        said("config", "show")
        said("config", "show", "-o", "json")
        said("config", "check")
        for key in ("identity.jwt_secret_key", "ldap.bind_password", "redis.url", "metrics.token", "identity.master_key"):
            said("config", "explain", key)
        exported = os.path.join(folder, "audit.jsonl")
        said("audit", "export", exported, "--state", server.state, path=exported)
        for form in ("rfc5424", "cef", "ocsf"):
            exported = os.path.join(folder, "audit." + form)
            said("audit", "export", exported, "--state", server.state, "--form", form, path=exported)
        private = os.path.join(folder, "private")
        public = said("backup", "key", private).stdout.decode().strip()
        kept = os.path.join(folder, "backup")
        said("backup", "create", kept, "--state", server.state, "--for", public, path=kept)

    def look(self, server, name):
        """Everything that comes out of a running server, then of what it left."""
        for path in ("/metrics", "/audit?limit=200", "/health", "/health/ready", "/openapi.json", "/bans", "/security/access", "/security/lockouts", "/agents",
                     "/users", "/runs?limit=200", "/auth/sessions?all=true", "/auth/keys", "/auth/notices"):
            answer = server.get(path) if server is self.device else server.ask("GET", path)
            self.places["answer:%s %s" % (name, path)] = answer.text.encode()
        for pid in (server.process.pid, *server.workers()):
            with open("/proc/%d/cmdline" % pid, "rb") as opened:
                self.places["process:%s %d" % (name, pid)] = opened.read()
        for pid in server.workers():
            with open("/proc/%d/environ" % pid, "rb") as opened:
                self.places["process:%s environment of %d" % (name, pid)] = opened.read()
        self.commands(server, name, "running")
        server.stop()
        self.places["log:" + name], self.places["output:" + name] = server.log().encode(), server.output().encode()
        for folder, _, names in os.walk(server.state):
            for file in names:
                with contextlib.suppress(OSError), open(os.path.join(folder, file), "rb") as opened:
                    self.places["state:%s %s" % (name, file)] = opened.read()

    def test_no_marked_value_comes_out_anywhere(self):
        self.plant_credentials()
        self.plant_people()
        self.plant_parameters()
        key = self.device.post("/auth/keys", {"name": "orchestrator", "scopes": ["actions:read", "devices:execute", "runs:read", "runs:cancel"], "expires_in_days": 5})
        self.assertEqual(key.status_code, 201, key.text)
        token = os.path.join(self.device.folder, "token")
        with open(token, "w", encoding="utf-8") as opened:
            opened.write(self.marks.keep("token for a device", key.json()["key"]))
        tools = os.path.join(self.device.folder, "tools.toml")
        with open(tools, "w", encoding="utf-8") as opened:
            opened.write('[[device]]\nname = "lab"\nurl = "%s"\ntoken_file = "%s"\n' % (self.device.url, token))
        self.orchestrator = Orchestrator(variables={**self.traced, "TOOLS_FILE": tools, "HTTP_TOOL_HOSTS": "127.0.0.1:1", "HTTP_TOOL_NETWORKS": "127.0.0.1"})
        self.addCleanup(self.orchestrator.close)
        self.orchestrator.start()
        self.plant_tasks()
        self.assertGreaterEqual(len(self.marks.planted), 60)
        self.look(self.device, "device")
        self.look(self.orchestrator, "orchestrator")
        self.assertGreaterEqual(len(self.places), 100)
        self.places["traces"] = b"".join(body for _, _, body in self.collector.seen)
        self.assertIn(b"POST /execute/{task}", self.places["traces"])
        # The search finds what is there.
        state = b"".join(content for place, content in self.places.items() if place.startswith("state:orchestrator"))
        self.assertIn(next(value for value, (through, _) in self.marks.planted.items() if through == "header of a step").encode(), state)
        problems = self.marks.found(self.places)
        self.assertFalse(problems, "%d marks, %d places:\n" % (len(self.marks.planted), len(self.places)) + "\n".join(problems))


if __name__ == "__main__":
    unittest.main()
