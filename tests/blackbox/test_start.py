"""Starting and ending: what must be there, what must be refused, what survives."""

import base64
import hashlib
import hmac
import json
import os
import re
import secrets
import signal
import socket
import ssl
import stat
import subprocess
import threading
import time
import unittest

import httpx

from lab import LAB
from support import (ADMIN_PASSWORD, EXAMPLES, PASSWORD, STOP_SECONDS, Server, is_running, processes_with, token_parts, tool,
                     wait_for)

HELLO = os.path.join(EXAMPLES, "hello.py")
KEY = secrets.token_urlsafe(48)


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


def signed(claims, key=KEY, header=None, algorithm="HS256"):
    """A token made by hand."""
    def part(value):
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")
    text = part(dict({"alg": algorithm, "typ": "at+jwt"}, **(header or {}))) + b"." + part(claims)
    mac = b"" if algorithm == "none" else hmac.new(key.encode(), text, hashlib.sha256).digest()
    return (text + b"." + base64.urlsafe_b64encode(mac).rstrip(b"=")).decode()


class Refusals(unittest.TestCase):
    """Every start that would be wrong or unsafe ends with an exit code and words that say what to do."""

    def refused(self, *words, **options):
        server = Server(**dict({"file": HELLO}, **options))
        self.addCleanup(server.close)
        code, said = server.refused(10)
        self.assertNotIn(code, (0, None))
        self.assertGreater(code, 0, "ended by a signal")
        self.assertNotIn("panic", said)
        for word in words:
            self.assertIn(word, said)
        self.assertFalse(os.path.exists(server.ready_file))
        self.assertEqual(server.workers() if server.file.startswith(server.folder) else [], [])
        return said

    def test_port_in_use(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            self.refused(str(port), "--port", listen="127.0.0.1:%d" % port)

    def test_state_folder_that_can_not_be_used(self):
        with Server(file=HELLO) as helper:
            blocker = os.path.join(helper.folder, "blocker")
            with open(blocker, "w", encoding="utf-8") as opened:
                opened.write("a file")
            for state in (os.path.join(blocker, "state"), blocker, "/proc/interlock-state"):
                self.refused("--state", state=state)

    def test_certificates(self):
        with Server(file=HELLO) as helper:
            folder = helper.folder
            good, good_key = certificate(folder, "good")
            other, other_key = certificate(folder, "other")
            expired, expired_key = certificate(folder, "expired", "-1")
            empty = os.path.join(folder, "empty.pem")
            with open(empty, "w", encoding="utf-8") as opened:
                opened.write("nothing here\n")
            missing = os.path.join(folder, "missing.pem")
            for chain, key, words in ((missing, good_key, ["missing.pem"]), (good, missing, ["missing.pem"]),
                                      (good, other_key, []), (expired, expired_key, ["expired"]), (empty, good_key, ["empty.pem"]),
                                      (good, empty, ["empty.pem"])):
                self.refused(*words, options=["--tls-cert", chain, "--tls-key", key])
            self.refused("--tls-key", options=["--tls-cert", good])
            self.refused("tls.key_file", variables={"TLS_CERT_FILE": good})
            self.refused("missing.pem", variables={"TLS_CERT_FILE": missing, "TLS_KEY_FILE": good_key})

    def test_a_client_authority_that_is_missing_is_not_ignored(self):
        self.refused("TLS_CLIENT_CA_FILE", options=["--tls", "internal"], variables={"TLS_CLIENT_CA_FILE": "/nonexistent/ca.pem"})

    def test_plain_http_for_the_network(self):
        for listen in ("0.0.0.0:0", "[::]:0"):
            self.refused("TLS is required", "--tls", listen=listen)
        self.refused("TLS is required", listen=None, variables={"BIND": "0.0.0.0", "PORT": "0"})

    def test_weak_signing_keys(self):
        for key in ("short", "a" * 64, "your-256-bit-secret-key-here-0123456789", "dev-secret-key-change-in-production-0123456789"):
            said = self.refused("JWT_SECRET_KEY", variables={"JWT_SECRET_KEY": key})
            self.assertNotIn(key, said.replace("JWT_SECRET_KEY is shorter", ""))
        self.refused("JWT_SECRET_KEY", variables={"JWT_SECRET_KEY": KEY, "JWT_SECRET_KEY_PREVIOUS": "short"})
        self.refused("/nonexistent/key", variables={"JWT_SECRET_KEY_FILE": "/nonexistent/key"})

    def test_weak_first_passwords(self):
        for password in ("qz7!k", "passwordpassword", "admin-admin-admin", "aaaaaaaaaaaaaaaaaaaa"):
            said = self.refused("BOOTSTRAP_ADMIN_SECRET", variables={"BOOTSTRAP_ADMIN_SECRET": password})
            self.assertNotIn(password, said)

    def test_settings_that_are_almost_right(self):
        for name, value, words in (("RATE_LIMIT_ENABLE", "true", ["RATE_LIMIT_ENABLED"]), ("JWT_SECRET_KEYS", KEY, ["JWT_SECRET_KEY"]),
                                   ("MAX_REQUEST_SIZES", "1", ["MAX_REQUEST_SIZE"]), ("INTERLOCK__SERVER__PROT", "1", ["server.port"]),
                                   ("MAX_REQUEST_SIZE", "1023", ["MAX_REQUEST_SIZE"]), ("MAX_REQUEST_SIZE", "many", ["MAX_REQUEST_SIZE"]),
                                   ("RATE_LIMIT_ENABLED", "perhaps", ["RATE_LIMIT_ENABLED"]), ("ENVIRONMENT", "prod", ["ENVIRONMENT"]),
                                   ("CORS_ALLOW_ORIGINS", "*", ["CORS_ALLOW_ORIGINS"]), ("TRUSTED_PROXIES", "proxy", ["TRUSTED_PROXIES"]),
                                   ("ACCESS_TOKEN_EXPIRE_HOURS", "0", ["ACCESS_TOKEN_EXPIRE_HOURS"]), ("LOG_LEVEL", "loud", ["LOG_LEVEL"])):
            self.refused(*words, variables={name: value})

    def test_no_file_and_no_python(self):
        self.refused("/nonexistent/device.py", file="/nonexistent/device.py")
        self.refused("/nonexistent/python", variables={"INTERLOCK_PYTHON": "/nonexistent/python"})

    def test_a_second_server_on_the_same_state(self):
        with Server(file=HELLO) as first:
            self.refused("state", state=first.state)
            with first.http() as client:
                self.assertEqual(client.get("/health").status_code, 200)
            self.assertEqual(first.run("greet").status_code, 200)


class Starts(unittest.TestCase):
    """What a start leaves behind and what an end takes away."""

    def test_the_ready_file_is_whole_or_not_there(self):
        server = Server(LAB)
        self.addCleanup(server.close)
        seen, over = [], threading.Event()

        def watch():
            while not over.is_set():
                try:
                    with open(server.ready_file, encoding="utf-8") as opened:
                        seen.append(opened.read())
                except FileNotFoundError:
                    continue

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        server.start()
        with server.http() as client:
            self.assertEqual(client.get("/health").status_code, 200)
        over.set()
        watcher.join(5)
        for text in seen:
            self.assertEqual(json.loads(text)["url"], server.url)
        ready = server.ready
        self.assertEqual(set(ready), {"url", "ca_file", "pid", "listeners"})
        self.assertEqual(ready["pid"], server.process.pid)
        self.assertIsNone(ready["ca_file"])
        self.assertEqual([listener["url"] for listener in ready["listeners"]], [ready["url"]])
        self.assertEqual(server.stop(), 0)
        self.assertFalse(os.path.exists(server.ready_file), "the ready file outlives the server")

    def test_the_state_folder_is_private(self):
        server = Server(file=HELLO, variables={"JWT_SECRET_KEY": None})
        self.addCleanup(server.close)
        os.mkdir(server.state, 0o755)
        os.chmod(server.state, 0o755)
        server.start()
        server.run("greet")
        self.assertEqual(stat.S_IMODE(os.stat(server.state).st_mode), 0o700)
        for folder, names, files in os.walk(server.state):
            if os.path.relpath(folder, server.state).split(os.sep)[0] == "python":
                continue
            for name in files:
                mode = stat.S_IMODE(os.stat(os.path.join(folder, name)).st_mode)
                self.assertEqual(mode & 0o077, 0, os.path.join(folder, name))

    def test_sigterm_and_sigint_end_everything(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            with Server(LAB) as server:
                workers = server.workers()
                self.assertEqual(len(workers), 2, "a worker and a standby")
                os.kill(server.process.pid, number)
                self.assertEqual(server.process.wait(STOP_SECONDS), 0)
                wait_for(lambda: not any(map(is_running, workers)), "the workers end", 5)

    def test_sigterm_lets_a_short_action_end(self):
        with Server(LAB) as server:
            run = {}
            caller = threading.Thread(target=lambda: run.update(answer=server.run("move", {"seconds": 2})))
            caller.start()
            wait_for(lambda: server.get("/device").json()["running"], "the action runs")
            server.process.terminate()
            self.assertEqual(server.process.wait(STOP_SECONDS), 0)
            caller.join(10)
            self.assertEqual(run["answer"].status_code, 200, run["answer"].text)

    def test_the_first_password_is_shown_once_and_not_logged(self):
        server = Server(file=HELLO, variables={"BOOTSTRAP_ADMIN_SECRET": None})
        self.addCleanup(server.close)
        server.start()
        said = server.output() + server.log()
        password = re.search(r"admin / (\S+)", said)
        self.assertIsNotNone(password, said)
        password = password.group(1)
        self.assertEqual(said.count(password), 1)
        self.assertTrue(server.login("admin", password))
        self.assertNotIn(password, "\n".join(json.dumps(line) for line in server.log_lines()))
        server.restart()
        self.assertNotIn(password, server.output() + server.log())
        self.assertNotRegex(server.output() + server.log(), r"admin / \S+")
        self.assertTrue(server.login("admin", password))

    def test_the_log_holds_nothing_but_json(self):
        """Standard error is the log: what a person reads, and above all the first password, must not be in it."""
        with Server(file=HELLO, variables={"BOOTSTRAP_ADMIN_SECRET": None}) as server:
            other = [line for line in server.log().splitlines() if line.strip() and not line.startswith("{")]
            self.assertEqual(other, [])

    def test_secrets_from_files(self):
        with Server(file=HELLO) as helper:
            files = {}
            for name, text in (("password", ADMIN_PASSWORD), ("key", KEY)):
                files[name] = os.path.join(helper.folder, name)
                with open(files[name], "w", encoding="utf-8") as opened:
                    opened.write(text + "\n")
            variables = {"BOOTSTRAP_ADMIN_SECRET": None, "BOOTSTRAP_ADMIN_SECRET_FILE": files["password"], "JWT_SECRET_KEY_FILE": files["key"]}
            with Server(file=HELLO, variables=variables) as server:
                self.assertEqual(token_parts(server.token())[0]["alg"], "HS256")
                with open("/proc/%d/cmdline" % server.process.pid, "rb") as opened:
                    self.assertNotIn(ADMIN_PASSWORD.encode(), opened.read())

    def test_the_server_s_secrets_do_not_reach_the_device_file(self):
        source = """
            import os
            from interlock import task
            @task
            def environment() -> dict:
                return dict(os.environ)
        """
        with Server(source, variables={"JWT_SECRET_KEY": KEY, "METRICS_TOKEN": "metrics-token-of-the-lab"}, options=["--env", "ROBOT=7"]) as server:
            environment = server.run("environment").json()["result"]
        self.assertEqual(environment["ROBOT"], "7")
        for secret in (KEY, ADMIN_PASSWORD, "metrics-token-of-the-lab"):
            self.assertNotIn(secret, json.dumps(environment))

    def test_sessions_and_revocations_survive_a_restart(self):
        with Server(file=HELLO) as server:
            kept, ended = server.login(), server.login()
            with server.http(ended) as client:
                client.post("/auth/logout")
            for stop in (server.stop, server.kill):
                stop()
                server.start()
                with server.http(kept) as client:
                    self.assertEqual(client.get("/auth/me").status_code, 200)
                with server.http(ended) as client:
                    self.assertEqual(client.get("/auth/me").status_code, 401)
            self.assertEqual(server.login() and server.output().count(ADMIN_PASSWORD), 0)

    def test_documents_in_production_are_for_administrators(self):
        with Server(file=HELLO, variables={"ENVIRONMENT": "production"}) as server:
            server.add_users("ada", "adam")
            for path in ("/docs", "/openapi.json"):
                with server.http() as client:
                    self.assertEqual(client.get(path).status_code, 401, path)
                self.assertEqual(server.get(path, "ada").status_code, 403, path)
                self.assertEqual(server.get(path, "adam").status_code, 200, path)
            with server.http() as client:
                self.assertEqual(client.get("/health").status_code, 200)


class Tls(unittest.TestCase):
    """Encryption, by this installation's own authority and by files."""

    def test_internal_certificate(self):
        with Server(file=HELLO, options=["--tls", "internal"]) as server:
            self.assertTrue(server.url.startswith("https://127.0.0.1:"))
            with server.http() as client:
                answer = client.get("/health")
                self.assertEqual(answer.status_code, 200)
                seconds = re.fullmatch(r"max-age=(\d+); includeSubDomains", answer.headers["strict-transport-security"])
                self.assertGreaterEqual(int(seconds.group(1)), 31536000)
                for path, status in (("/tasks", 401), ("/nowhere", 404)):
                    self.assertIn("strict-transport-security", client.get(path).headers, status)
            with self.assertRaises(httpx.ConnectError):
                httpx.get(server.url + "/health", trust_env=False)
            host, port = server.address
            for version, works in (("-tls1_2", False), ("-tls1_1", False), ("-tls1_3", True)):
                done = subprocess.run([tool("openssl"), "s_client", "-connect", "%s:%d" % (host, port), version, "-CAfile",
                                       server.ready["ca_file"], "-verify_return_error", "-verify_ip", host],
                                      stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False)
                self.assertEqual(b"New, TLSv1.3" in done.stdout and done.returncode == 0, works, version)
            for data in (b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b"POST /stop HTTP/1.0\r\n\r\n"):
                self.assertNotIn(b"HTTP/", server.raw(data, 8))
            with open(server.ready["ca_file"], "rb") as opened:
                first = opened.read()
            server.restart()
            with open(server.ready["ca_file"], "rb") as opened:
                self.assertEqual(opened.read(), first, "clients must not need a new ca file after a restart")
            self.assertEqual(server.run("greet").status_code, 200)

    def test_certificate_files_and_all_addresses(self):
        with Server(file=HELLO) as helper:
            chain, key = certificate(helper.folder, "good")
            with Server(file=HELLO, listen="0.0.0.0:0", options=["--tls-cert", chain, "--tls-key", key]) as server:
                server.ready["ca_file"] = server.ready["ca_file"] or chain
                with server.http() as client:
                    self.assertEqual(client.get("/health").status_code, 200)
                with self.assertRaises(httpx.ConnectError):
                    httpx.get(server.url + "/health", verify=ssl.create_default_context(), trust_env=False)

    def test_force_https_behind_a_proxy_on_this_machine(self):
        with Server(file=HELLO, variables={"FORCE_HTTPS": "true", "TRUSTED_PROXIES": "127.0.0.1"}) as server:
            with server.http() as client:
                answer = client.get("/health")
                self.assertEqual((answer.status_code, answer.headers["location"][:8]), (308, "https://"))
                self.assertEqual(client.post("/auth/login", data={"username": "admin", "password": "x"}).status_code, 403)
                forwarded = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.9"}
                answer = client.get("/health", headers=forwarded)
                self.assertEqual(answer.status_code, 200)
                self.assertIn("strict-transport-security", answer.headers)
                client.post("/auth/login", data={"username": "admin", "password": ADMIN_PASSWORD}, headers=forwarded)
            self.assertEqual(server.events("authentication_succeeded")[0]["client_ip"], "203.0.113.9")


class Tokens(unittest.TestCase):
    """HS256 as the earlier system had it: a token counts only when every claim is right."""

    @classmethod
    def setUpClass(cls):
        cls.server = Server(LAB, variables={"JWT_SECRET_KEY": KEY})
        cls.addClassCleanup(cls.server.close)
        cls.server.start()
        cls.server.add_users("ada", "vera")

    def status(self, token):
        with self.server.http() as client:
            return client.get("/auth/me", headers={"Authorization": "Bearer " + token}).status_code

    def test_right_claims_are_accepted(self):
        header, claims = token_parts(self.server.token("ada"))
        self.assertEqual(header["alg"], "HS256")
        for kept in (header, {"kid": header["kid"]}, dict(header, typ="JWT")):
            self.assertEqual(self.status(signed(dict(claims, jti=secrets.token_hex(8)), header=kept)), 200, kept)

    def test_wrong_claims_are_refused(self):
        now = int(time.time())
        header, claims = token_parts(self.server.token("ada"))
        self.assertEqual(self.status(signed(claims, header=header)), 200)
        without = [{name: value for name, value in claims.items() if name != gone} for gone in ("sub", "type", "iat", "exp", "jti", "iss", "aud", "roles")]
        changed = [dict(claims, **change) for change in (
            {"exp": now - 61}, {"exp": "9999999999"}, {"exp": None}, {"exp": 1e300}, {"nbf": now + 3600}, {"iat": now + 3600},
            {"type": "refresh"}, {"type": "Access"}, {"sub": ""}, {"sub": "nobody"}, {"sub": ["ada"]}, {"iss": "elsewhere"},
            {"aud": "other"}, {"aud": []}, {"roles": "operator"}, {"epo": 0})]
        for wrong in without + changed:
            self.assertEqual(self.status(signed(wrong, header=header)), 401, wrong)

    def test_wrong_signatures_and_headers_are_refused(self):
        token = self.server.token("ada")
        header, claims = token_parts(token)
        head, body, mac = token.split(".")
        forged = base64.urlsafe_b64encode(json.dumps(dict(claims, roles=["admin"])).encode()).rstrip(b"=").decode()
        heads = [dict(header, **change) for change in ({"alg": "HS512"}, {"alg": "EdDSA"}, {"alg": "hs256"}, {"alg": "none"},
                                                       {"jku": "http://127.0.0.1/"}, {"crit": ["exp"]}, {"kid": "0" * 16}, {"kid": "../../key"})]
        wrong = [signed(claims, header=head) for head in heads]
        wrong += [signed(claims, key=KEY + "x", header=header), signed(claims, algorithm="none"),
                  ".".join((head, forged, mac)), ".".join((head, body, "")), ".".join((head, body)),
                  token + "x", token[:-2], "." + token, token + "." + mac, "a.b.c", "...", "x" * 5000, "%00", token.replace("-", "+") + "="]
        for text in wrong:
            self.assertEqual(self.status(text), 401, text[:80])
        self.assertNotIn("panic", self.server.log())

    def test_a_token_never_gives_more_than_its_owner_has(self):
        header, claims = token_parts(self.server.token("vera"))
        raised = signed(dict(claims, roles=["admin", "operator", "viewer"], scopes=["users:manage"], jti="raised"), header=header)
        with self.server.http(raised) as client:
            self.assertEqual(client.get("/auth/me").json()["roles"], ["viewer"])
            self.assertEqual(client.get("/users").status_code, 403)
            self.assertEqual(client.post("/execute/later").status_code, 403)

    def test_an_expired_token_and_the_same_key_act_once(self):
        acted = os.path.join(self.server.folder, "acted")
        server = self.server
        server.options = ["--env", "ACTED=" + acted]
        server.restart()
        with server.http() as client:
            form = {"username": "ada", "password": PASSWORD}
            token = client.post("/auth/login", data=form).json()["access_token"]
            headers = {"Authorization": "Bearer " + token, "Idempotency-Key": "order-66"}
            first = client.post("/execute/move", json={"key": "k"}, headers=headers)
            _, claims = token_parts(token)
            expired = signed(dict(claims, exp=int(time.time()) - 61), header=token_parts(token)[0])
            refused = client.post("/execute/move", json={"key": "k"}, headers=dict(headers, Authorization="Bearer " + expired))
            self.assertEqual(refused.status_code, 401)
            token = client.post("/auth/login", data=form).json()["access_token"]
            second = client.post("/execute/move", json={"key": "k"}, headers=dict(headers, Authorization="Bearer " + token))
        self.assertEqual((first.status_code, second.status_code, first.json()), (200, 200, second.json()))
        with open(acted, encoding="utf-8") as opened:
            self.assertEqual(opened.read().splitlines().count("k"), 1)

    def test_a_new_key_with_the_previous_one_keeps_tokens_alive(self):
        with Server(file=HELLO, variables={"JWT_SECRET_KEY": KEY}) as server:
            token = server.token()
            server.variables.update(JWT_SECRET_KEY=secrets.token_urlsafe(48), JWT_SECRET_KEY_PREVIOUS=KEY)
            server.restart()
            with server.http(token) as client:
                self.assertEqual(client.get("/auth/me").status_code, 200)
            del server.variables["JWT_SECRET_KEY_PREVIOUS"]
            server.restart()
            with server.http(token) as client:
                self.assertEqual(client.get("/auth/me").status_code, 401)


if __name__ == "__main__":
    unittest.main()
