"""What a server does when nobody has set anything, and what single settings of the checklists do, with the real program."""

import csv
import io
import json
import os
import re
import secrets
import shutil
import socket
import ssl
import subprocess
import tempfile
import unittest
import urllib.parse

import httpx

from lab import LAB
from orchestra import SCOPES, Orchestrator
from support import ADMIN_PASSWORD, EXAMPLES, ROOT, Server, certificate, program, tool, wait_for
from test_shared import Redis, database
from test_tls import Authority

HELLO = os.path.join(EXAMPLES, "hello.py")
UNSET = {"RATE_LIMIT_ENABLED": None}


def shown(server):
    """`interlock config show --json` in the environment of a server."""
    done = subprocess.run([program(), "config", "show", "--json"], env=server.variables, capture_output=True, text=True, timeout=30, check=True)
    return {key: setting["value"] for key, setting in json.loads(done.stdout).items()}, done.stdout


class Defaults(unittest.TestCase):
    """Nothing is set: everything that protects is on."""

    def test_tokens_limits_detection_and_audit_are_on_together(self):
        for server in (Server(file=HELLO, variables=UNSET), Orchestrator(variables=UNSET)):
            with server:
                with server.http() as client:
                    # Tokens: nobody gets in without one.
                    self.assertEqual(client.get("/auth/me").status_code, 401)
                    # Threat detection.
                    attack = client.get("/tasks", params={"filter": "'; DROP TABLE tasks; --"})
                    self.assertEqual((attack.status_code, attack.json()["code"]), (400, "request_blocked"))
                    # Rate limits.
                    self.assertIn(429, {client.get("/nothing").status_code for _ in range(70)})
                # Audit: each of them is on record, and the record can be proven.
                server.stop()
                verified = subprocess.run([program(), "audit", "verify", "--state", server.state, "-o", "json"], env=server.variables,
                                          capture_output=True, text=True, timeout=60, check=True)
                self.assertTrue(json.loads(verified.stdout)["verified"])
                path = os.path.join(server.folder, "log.jsonl")
                subprocess.run([program(), "audit", "export", path, "--state", server.state], env=server.variables, capture_output=True,
                               timeout=60, check=True)
                with open(path, encoding="utf-8") as opened:
                    record = opened.read()
                self.assertIn("authentication.failed", record)
                self.assertIn("request.blocked", record)
                settings, _ = shown(server)
                self.assertEqual((settings["limits.enabled"], settings["limits.requests_per_minute"], settings["limits.requests_per_hour"],
                                  settings["screening.patterns"], settings["audit.retention_days"]), ("true", "60", "1000", "true", "90"))
                # There is no setting that switches tokens or the audit trail off.
                self.assertFalse([key for key in settings if re.search(r"(auth|jwt|token|audit).*(enabled|disable|require_auth)", key)])

    def test_the_ports_are_those_of_the_earlier_systems(self):
        # An address of this machine that nobody else listens on.
        for server, port in ((Orchestrator(listen=None), 8080), (Server(file=HELLO, listen=None), 8000)):
            server.variables["BIND"] = "127.%d.%d.%d" % tuple(2 + secrets.randbelow(250) for _ in range(3))
            command = server.command
            server.command = lambda command=command: [word for word in command() if word not in ("--listen", None)]
            with server:
                self.assertEqual(server.url, "http://%s:%d" % (server.variables["BIND"], port))
                with server.http() as client:
                    self.assertEqual(client.get("/health/live").status_code, 200)

    def test_lifetimes_of_tokens(self):
        with Orchestrator() as server:
            with server.http() as client:
                for path, body in (("/auth/login", {"username": "admin", "password": ADMIN_PASSWORD}),
                                   ("/agents/auth/token", {"agent_id": "00000000-0000-0000-0000-000000000001", "agent_secret": ADMIN_PASSWORD})):
                    answer = client.post(path, json=body).json()
                    self.assertLessEqual(answer["expires_in"], 3600)
                    claims = json.loads(subprocess.run(["python3", "-c", "import base64,sys; t=sys.argv[1].split('.')[1]; print(base64.urlsafe_b64decode(t+'=='  ).decode())",
                                                        answer["refresh_token"]], capture_output=True, text=True, check=True, timeout=30).stdout)
                    self.assertEqual(claims["exp"] - claims["iat"], 30 * 86400)


class Checklist(unittest.TestCase):
    """Settings that the checklists name."""

    def test_the_four_limits_hold_together(self):
        variables = {"RATE_LIMIT_ENABLED": "true", "MAX_REQUESTS_PER_MINUTE": "30", "MAX_REQUESTS_PER_HOUR": "40", "MAX_REQUEST_SIZE": "2048"}
        with Server(file=HELLO, variables=variables) as server:
            with server.http() as client:
                large = client.post("/auth/login", content=b"x" * 2049, headers={"Content-Type": "application/json"})
                self.assertEqual((large.status_code, large.json()["code"]), (413, "payload_too_large"))
                chunked = client.post("/auth/login", content=iter([b"x" * 1500] * 2), headers={"Content-Type": "application/json"})
                self.assertEqual(chunked.status_code, 413)
                answers = [client.get("/nothing") for _ in range(40)]
                self.assertEqual([answer.status_code for answer in answers], [404] * 30 + [429] * 10)
                self.assertIn("q=30;w=60", answers[0].headers["ratelimit-policy"])
            settings, _ = shown(server)
            self.assertEqual([settings[key] for key in ("limits.enabled", "limits.requests_per_minute", "limits.requests_per_hour", "server.max_request_size")],
                             ["true", "30", "40", "2048"])
        # The hour is the narrower one here.
        variables.update(MAX_REQUESTS_PER_MINUTE="60")
        with Server(file=HELLO, variables=variables) as server, server.http() as client:
            answers = [client.get("/nothing") for _ in range(50)]
            self.assertEqual([answer.status_code for answer in answers], [404] * 40 + [429] * 10)
            self.assertGreater(int(answers[-1].headers["retry-after"]), 60)

    def test_the_log_as_text(self):
        with Server(file=HELLO, variables={"INTERLOCK__LOG__FORMAT": "text"}) as server:
            server.run("greet", {"name": "Ada - ERROR - forged\nline"})
            with server.http() as client:
                client.get("/auth/me", headers={"User-Agent": "a - ERROR - b"})
            server.stop()
            lines = server.log().splitlines()
        form = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z - [a-z_:]+ - (ERROR|WARNING|INFO|DEBUG) - \S.*$")
        self.assertGreater(len(lines), 5)
        for line in lines:
            self.assertRegex(line, form)
        names = {line.split(" - ")[1] for line in lines}
        self.assertLessEqual({"access", "security"}, names)
        self.assertTrue(any(" - WARNING - authentication_failed" in line for line in lines))
        # At INFO: nothing below it, and INFO itself.
        self.assertEqual({line.split(" - ")[2] for line in lines} & {"DEBUG", "INFO"}, {"INFO"})

    def test_a_password_of_redis_is_used_and_shown_nowhere(self):
        redis = Redis()
        self.addCleanup(redis.close)
        redis.start()
        url = redis.where["url"]
        password = re.match(r"redis://[^:]*:([^@]+)@", url).group(1)
        for variables in ({"REDIS_URL": url + "/0"}, {"REDIS_URL_FILE": None}):
            server = Orchestrator(variables=variables)
            self.addCleanup(server.close)
            if "REDIS_URL_FILE" in variables:
                server.variables["REDIS_URL_FILE"] = os.path.join(server.folder, "redis")
                with open(server.variables["REDIS_URL_FILE"], "w", encoding="utf-8") as opened:
                    opened.write(url + "/0\n")
            server.start()
            wait_for(lambda server=server: "interlock_redis_up 1" in server.get("/metrics").text, "Redis is used")
            settings, text = shown(server)
            self.assertEqual(settings["redis.url"], "[redacted]")
            self.assertNotIn(password, text)
            server.stop()
            self.assertNotIn(password, server.log() + server.output())

    def test_a_password_of_postgresql_comes_from_a_file_and_is_shown_nowhere(self):
        url = database()
        password = re.match(r"postgres://[^:]*:([^@]+)@", url).group(1)
        server = Orchestrator(variables={"DATABASE_URL": url.replace(":" + password + "@", "@")})
        self.addCleanup(server.close)
        server.variables["POSTGRES_PASSWORD_FILE"] = os.path.join(server.folder, "password")
        with open(server.variables["POSTGRES_PASSWORD_FILE"], "w", encoding="utf-8") as opened:
            opened.write(password + "\n")
        server.start()
        self.assertEqual(server.get("/auth/me").status_code, 200)
        settings, text = shown(server)
        self.assertEqual((settings["database.url"], settings["database.password"]), ("[redacted]", "[redacted]"))
        server.stop()
        self.assertNotIn(password, text + server.log() + server.output())
        # A wrong one is told as such, without it.
        wrong = secrets.token_hex(16)
        with open(server.variables["POSTGRES_PASSWORD_FILE"], "w", encoding="utf-8") as opened:
            opened.write(wrong)
        code, said = server.refused()
        self.assertNotEqual(code, 0)
        self.assertIn("DATABASE_URL", said)
        self.assertNotIn(wrong, said)

    def test_an_unchecked_database_connection_is_checked_all_the_same_and_told(self):
        url = database()
        self.assertIn("sslrootcert=", url)
        with Orchestrator(variables={"DATABASE_URL": url + "&sslmode=require"}) as server:
            self.assertIn("sslmode=require does not check whom it talks to and is treated as verify-full", server.log())
        # Another authority than the server's: refused, although `require` would have taken it.
        folder = os.path.dirname(server.state)
        other = Orchestrator()
        self.addCleanup(other.close)
        chain, _ = certificate(other.folder, "other")
        other.variables["DATABASE_URL"] = re.sub(r"sslrootcert=[^&]*", "sslrootcert=" + chain, url) + "&sslmode=require"
        code, said = other.refused()
        self.assertNotEqual(code, 0, folder)
        self.assertIn("certificate", said.lower())


class Rotation(unittest.TestCase):
    """Secrets that live in settings: the new one counts after a restart, the old one no longer. The others have commands."""

    def test_the_token_of_the_monitoring_is_exchanged(self):
        old, new = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
        with Server(file=HELLO, variables={"TRUSTED_PROXIES": "127.0.0.1"}) as server:
            server.variables["METRICS_TOKEN_FILE"] = os.path.join(server.folder, "metrics")

            def status(token):
                # As from another machine: on this one /metrics needs no token.
                with server.http(token) as client:
                    return client.get("/metrics", headers={"X-Forwarded-For": "203.0.113.9"}).status_code

            for now, before in ((old, new), (new, old)):
                with open(server.variables["METRICS_TOKEN_FILE"], "w", encoding="utf-8") as opened:
                    opened.write(now)
                server.restart()
                self.assertEqual((status(now), status(before), status(None)), (200, 401, 401))
            server.stop()
            self.assertFalse([token for token in (old, new) if token in server.log() + server.output()])

    def test_the_password_of_redis_is_exchanged(self):
        redis = Redis()
        self.addCleanup(redis.close)
        redis.start()
        address = urllib.parse.urlsplit(redis.where["url"])
        one, two = address.password, secrets.token_hex(16)
        server = Orchestrator(variables={})
        self.addCleanup(server.close)
        server.variables["REDIS_URL_FILE"] = os.path.join(server.folder, "redis")

        def write(password):
            with open(server.variables["REDIS_URL_FILE"], "w", encoding="utf-8") as opened:
                opened.write("redis://:%s@%s:%d/0\n" % (password, address.hostname, address.port))

        def used():
            return "interlock_redis_up 1" in server.get("/metrics").text

        write(one)
        server.start()
        wait_for(used, "Redis is used")
        with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
            connection.sendall(("AUTH %s\r\nCONFIG SET requirepass %s\r\n" % (one, two)).encode())
            answer = b""
            while answer.count(b"\r\n") < 2:
                answer += connection.recv(4096)
        self.assertEqual(answer, b"+OK\r\n+OK\r\n")
        # Connections that are open go on until the restart.
        self.assertEqual(server.get("/users").status_code, 200)
        server.stop()
        code, said = server.refused()
        self.assertNotEqual(code, 0, "the password from before still counts")
        self.assertIn("redis", said.lower())
        write(two)
        server.start()
        wait_for(used, "Redis is used with the new password")
        server.stop()
        self.assertFalse([word for word in (one, two) if word in server.log() + server.output()])

    def test_the_password_of_the_database_is_exchanged(self):
        url = database()
        role, one, two = "rotating_" + secrets.token_hex(4), secrets.token_hex(16), secrets.token_hex(16)
        name = url.partition("?")[0].rpartition("/")[2]

        def sql(text):
            subprocess.run([tool("psql"), url, "--quiet", "--command", text], check=True, timeout=60, capture_output=True)

        sql("CREATE ROLE %s LOGIN PASSWORD '%s'" % (role, one))
        sql('ALTER DATABASE "%s" OWNER TO %s' % (name, role))
        sql("ALTER SCHEMA public OWNER TO %s" % role)
        server = Orchestrator(variables={"DATABASE_URL": re.sub(r"//[^@]*@", "//%s@" % role, url)})
        self.addCleanup(server.close)
        server.variables["POSTGRES_PASSWORD_FILE"] = os.path.join(server.folder, "password")

        def write(password):
            with open(server.variables["POSTGRES_PASSWORD_FILE"], "w", encoding="utf-8") as opened:
                opened.write(password + "\n")

        write(one)
        server.start()
        token = server.token()
        sql("ALTER ROLE %s PASSWORD '%s'" % (role, two))
        # Connections that are open go on until the restart.
        self.assertEqual(server.get("/users").status_code, 200)
        server.stop()
        code, _ = server.refused()
        self.assertNotEqual(code, 0, "the password from before still counts")
        write(two)
        server.start()
        with server.http(token) as client:
            self.assertEqual(client.get("/users").status_code, 200)


class WhatPeopleWrite(unittest.TestCase):
    """Kept byte for byte, and escaped by where it goes: JSON, HTML, CSV, log, terminal."""

    NASTY = "=1+2,\"quoted\" <script>alert('&amp;')</script> {{7*7}} \u202ereversed \U0001f9ea é é \\n ';--"

    def test_a_task_a_run_and_an_agent_give_back_what_they_were_given(self):
        with Orchestrator(variables={"BLOCK_SUSPICIOUS_TEXT": "false"}) as server:
            description = self.NASTY + "\nsecond line\t\u001b[31mred"
            payload = {"pipeline": [{"uses": "orchestrator.sleep", "with": {"seconds": 0}}], "params": {self.NASTY: [self.NASTY, {"x": description}]}}
            made = server.ask("POST", "/tasks", server.body(description=description, payload=payload))
            self.assertEqual(made.status_code, 201, made.text)
            for answer in (made, server.ask("GET", "/tasks/" + made.json()["id"])):
                self.assertEqual((answer.json()["description"], answer.json()["payload"]["params"]), (description, payload["params"]))
                # Inert where it arrives: data of a type that no browser runs.
                self.assertEqual((answer.headers["content-type"], answer.headers["x-content-type-options"]), ("application/json", "nosniff"))
                self.assertIn("default-src 'none'", answer.headers["content-security-policy"])
            run = server.over(server.now(made.json()["id"]))
            self.assertEqual(run["output"]["params"], payload["params"])
            # In a table of a spreadsheet: one cell, and no formula.
            name = '=HYPERLINK("x","y"), it'
            agent = server.ask("POST", "/agents", {"name": name, "scopes": ["runs:read"]})
            self.assertEqual((agent.status_code, agent.json().get("name")), (201, name), agent.text)
            home = {"PATH": os.environ["PATH"], "HOME": server.folder, "LANG": "C.UTF-8", "INTERLOCK_TOKEN": server.token(), "INTERLOCK_URL": server.url}
            table = subprocess.run([program(), "security", "access", "--csv"], env=home, capture_output=True, text=True, timeout=60)
            self.assertEqual(table.returncode, 0, table.stderr)
            names = [row["name"] for row in csv.DictReader(io.StringIO(table.stdout)) if row["id"] == agent.json()["id"]]
            self.assertEqual(names, ["'" + name])
            server.stop()
            for line in server.log().splitlines():
                self.assertIsInstance(json.loads(line), dict)
            self.assertNotIn("\u001b", server.log())

    def test_pages_hold_no_text_of_others_and_put_it_in_as_text(self):
        title = "<script>alert(1)</script><img src=x onerror=alert(2)>"
        source = LAB.replace('"""A device for tests."""', '"""%s"""' % title)
        with Server(source, options=["--title", title]) as server:
            with server.as_user() as client:
                scripts = set()
                for page in ("/panel", "/docs", "/device-code"):
                    answer = client.get(page)
                    self.assertEqual(answer.status_code, 200, page)
                    self.assertNotIn("alert(", answer.text, page)
                    scripts |= set(re.findall(r'<script[^>]* src="([^"]+)"', answer.text))
                    self.assertNotRegex(answer.headers["content-security-policy"], "unsafe-inline|unsafe-eval")
                self.assertGreaterEqual(len(scripts), 2, scripts)
                for script in scripts:
                    text = client.get(httpx.URL(server.url + "/").join(script)).text
                    self.assertGreater(len(text), 500, script)
                    # No way from a text to an element but by way of a text node.
                    self.assertNotRegex(text, r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser|\beval\(|new Function", script)
                document = client.get("/openapi.json").json()
                self.assertEqual(document["info"]["title"], title)


class ZeroTrust(unittest.TestCase):
    """Each hop is authenticated twice, by certificate and by token: agent to server, server to device."""

    def test_without_both_a_machine_on_the_same_network_gets_nothing(self):
        device = Server(LAB)
        self.addCleanup(device.close)
        authority = Authority(device.folder)
        chain, key = certificate(device.folder, "here", "30")
        secured = {"TLS_CLIENT_CA_FILE": authority.certificate, "TLS_CLIENT_CRL_FILE": authority.list}
        device.options += ["--tls-cert", chain, "--tls-key", key]
        device.variables.update(secured)
        device.start()
        server = Orchestrator(options=["--tls-cert", chain, "--tls-key", key], variables=secured)
        self.addCleanup(server.close)
        own = authority.issue("server")
        admin = authority.issue("admin")

        def client(of, shown=None, token=None):
            context = ssl.create_default_context(cafile=chain)
            if shown:
                context.load_cert_chain(*shown)
            headers = {"Authorization": "Bearer " + token} if token else {}
            return httpx.Client(base_url=of.ready["url"], verify=context, headers=headers, timeout=10, trust_env=False)

        def token_of(of, shown):
            with client(of, shown) as asking:
                return asking.post("/auth/login", json={"username": "admin", "password": ADMIN_PASSWORD}).json()["access_token"]

        def tools_file(*lines):
            path = os.path.join(server.folder, "tools.toml")
            with open(path, "w", encoding="utf-8") as opened:
                opened.write("\n".join(('[[device]]', 'name = "arm"', 'url = "%s"' % device.ready["url"], 'token_file = "%s/token"' % server.folder,
                                        'ca_file = "%s"' % chain, *lines)))
            server.variables["TOOLS_FILE"] = path

        # A token is good with the certificate that it was given to, and with no other.
        device_token = token_of(device, own)
        with open(os.path.join(server.folder, "token"), "w", encoding="utf-8") as opened:
            opened.write(device_token)
        tools_file('certificate_file = "%s"' % own[0], 'key_file = "%s"' % own[1])
        server.start()
        server_token = token_of(server, admin)

        with client(server, admin, server_token) as boss:
            made = boss.post("/agents", json={"name": "chemist", "scopes": SCOPES + ["devices:execute"]}).json()["id"]
            secret = boss.post("/agents/%s/credentials" % made).json()["agent_secret"]
        program_of = authority.issue("chemist")
        with client(server, program_of) as agent:
            token = agent.post("/agents/auth/token", json={"agent_id": made, "agent_secret": secret}).json()["access_token"]
        with client(server, program_of, token) as agent:
            wait_for(lambda: "device.arm.later" in agent.get("/tools").json(), "the device is reached with certificate and token", 40)
            task = agent.post("/tasks", json=server.body(made, [{"uses": "device.arm.later", "with": {"seconds": 0}, "save_as": "done"}]))
            self.assertEqual(task.status_code, 201, task.text)
            run = agent.post("/tasks/%s/run_now" % task.json()["id"]).json()["details"]["run_id"]
            ended = wait_for(lambda: next((found for found in [agent.get("/runs/" + run).json()] if found["finished_at"]), None), "the run", 20)
            self.assertEqual(ended["state"], "succeeded", ended)

        for hop, good in ((device, device_token), (server, server_token)):
            paths = ("/", "/health", "/health/live", "/tasks", "/auth/me", "/metrics", "/openapi.json")
            # Neither: no connection, not even for what is open to anyone.
            for stolen in (None, good):
                with client(hop, None, stolen) as stranger:
                    for path in paths:
                        with self.assertRaises(httpx.TransportError, msg=path):
                            stranger.get(path)
            # A certificate alone: the door, and nothing behind it.
            with client(hop, authority.issue("laptop")) as half:
                for path in ("/tasks", "/auth/me"):
                    self.assertEqual(half.get(path).status_code, 401, path)
                self.assertEqual(half.post("/execute/move", json={}).status_code, 401 if hop is device else 404)
            # A good certificate with somebody else's token.
            with client(hop, authority.issue("laptop"), good) as thief:
                self.assertEqual(thief.get("/auth/me").status_code, 401)
            # A certificate of somebody else's authority.
            forged = certificate(hop.folder, "forged", "30")
            with client(hop, forged, good) as stranger, self.assertRaises(httpx.TransportError):
                stranger.get("/health/live")

        # The server itself without its certificate reaches no device, whatever token it holds.
        tools_file()
        server.restart()
        with client(server, program_of, token) as agent:
            self.assertEqual([name for name in agent.get("/tools").json() if name.startswith("device.")], [])
            task = agent.post("/tasks", json=server.body(made, [{"uses": "device.arm.later"}], max_retries=0)).json()["id"]
            run = agent.post("/tasks/%s/run_now" % task).json()["details"]["run_id"]
            ended = wait_for(lambda: next((found for found in [agent.get("/runs/" + run).json()] if found["finished_at"]), None), "the run", 40)
            # The device answers nothing, so nobody here can know; it did nothing.
            self.assertIn(ended["state"], ("failed", "uncertain"))
        with client(device, own, device_token) as looking:
            self.assertEqual(looking.get("/runs").json()["total"], 1, "the one that was asked for with a certificate")
        tools_file('certificate_file = "%s"' % own[0])
        server.stop()
        code, said = server.refused()
        self.assertNotEqual(code, 0)
        self.assertIn("both certificate_file and key_file", said)


class BesideOpentrons(unittest.TestCase):
    """Both packages live in one environment: that of the robot."""

    def test_both_are_imported_and_used_together(self):
        python = os.path.join(ROOT, ".cache", "robot", "bin", "python")
        self.assertTrue(os.path.exists(python), "./check makes this environment, with the opentrons package in it")
        source = ("import opentrons, opentrons.simulate, interlock, interlock.client, interlock.worker\n"
                  "from interlock import Client, Param, task\n"
                  "protocol = opentrons.simulate.get_protocol_api('2.13')\n"
                  "@task\ndef home() -> str:\n    protocol.home()\n    return opentrons.__version__\n"
                  "print(home())\n")
        done = subprocess.run([python, "-c", source], env={"PATH": os.environ["PATH"], "HOME": "/tmp", "PYTHONPATH": os.path.join(ROOT, "python")},
                              capture_output=True, text=True, timeout=120)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout, r"\d+\.\d+\.\d+")
        # Installed as pip does it, without an index: there is nothing that it could want and clash over.
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(os.path.join(ROOT, "python"), os.path.join(folder, "source"), ignore=shutil.ignore_patterns("__pycache__"))
            installed = subprocess.run([python, "-m", "pip", "install", "--no-index", "--no-build-isolation", "--target", os.path.join(folder, "there"),
                                        os.path.join(folder, "source")], capture_output=True, text=True, timeout=300)
            self.assertEqual(installed.returncode, 0, installed.stdout + installed.stderr)
            done = subprocess.run([python, "-c", source], env={"PATH": os.environ["PATH"], "HOME": folder, "PYTHONPATH": os.path.join(folder, "there")},
                                  capture_output=True, text=True, timeout=120)
            self.assertEqual(done.returncode, 0, done.stderr)
        checked = subprocess.run([python, "-m", "pip", "check"], capture_output=True, text=True, timeout=120)
        self.assertEqual(checked.returncode, 0, checked.stdout)


if __name__ == "__main__":
    unittest.main()
