"""Starting and ending: what must be there, what must be refused, what survives."""

import json
import os
import re
import secrets
import signal
import socket
import stat
import threading
import unittest

from lab import LAB
from support import ADMIN_PASSWORD, EXAMPLES, STOP_SECONDS, Server, certificate, is_running, token_parts, wait_for

HELLO = os.path.join(EXAMPLES, "hello.py")
KEY = secrets.token_urlsafe(48)


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
        self.refused("/nonexistent/ca.pem", options=["--tls", "internal"], variables={"TLS_CLIENT_CA_FILE": "/nonexistent/ca.pem"})
        self.refused("TLS_CLIENT_CA_FILE", variables={"TLS_CLIENT_CA_FILE": "/nonexistent/ca.pem"})

    def test_plain_http_for_the_network(self):
        for listen in ("0.0.0.0:0", "[::]:0"):
            self.refused("TLS is required", "--tls", listen=listen)
        self.refused("TLS is required", listen=None, variables={"BIND": "0.0.0.0", "PORT": "0"})

    def test_production_without_https(self):
        said = self.refused("production needs HTTPS", variables={"ENVIRONMENT": "production"})
        for remedy in ("--tls-cert", "--tls internal", "TRUSTED_PROXIES", "PROXY_PROTOCOL_FROM"):
            self.assertIn(remedy, said)
        for way in ({"options": ["--tls", "internal"]}, {"variables": {"TRUSTED_PROXIES": "127.0.0.1"}},
                    {"variables": {"PROXY_PROTOCOL_FROM": "127.0.0.1"}}):
            variables = dict(way.get("variables", {}), ENVIRONMENT="production")
            with Server(file=HELLO, options=way.get("options", ()), variables=variables) as server:
                self.assertEqual(server.url.split(":")[0], "https" if "options" in way else "http")

    def test_lifetimes_beyond_their_bounds(self):
        for name, most in (("ACCESS_TOKEN_EXPIRE_HOURS", 24), ("JWT_ACCESS_TOKEN_EXPIRE_MINUTES", 1440),
                           ("JWT_REFRESH_TOKEN_EXPIRE_DAYS", 365)):
            for value in (0, most + 1):
                self.refused(name, str(most), variables={name: str(value)})

    def test_weak_database_passwords(self):
        for password in ("postgres", "your-secure-password-here", "changeme-changeme-1", "12345678"):
            for variables in ({"DATABASE_URL": "postgres://lab:%s@127.0.0.1:1/lab" % password},
                              {"DATABASE_URL": "postgres://lab@127.0.0.1:1/lab", "POSTGRES_PASSWORD": password}):
                said = self.refused("database password", variables=variables)
                self.assertNotIn(password, said.replace("postgres://", "").replace("database password", ""))
        self.refused("DATABASE_URL", variables={"POSTGRES_PASSWORD": KEY})
        self.refused("give one of them", variables={"DATABASE_URL": "postgres://lab:%s@127.0.0.1:1/lab" % KEY, "POSTGRES_PASSWORD": KEY})

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
        with Server(file=HELLO, options=["--tls", "internal"], variables={"ENVIRONMENT": "production"}) as server:
            server.add_users("ada", "adam")
            for path in ("/docs", "/openapi.json"):
                with server.http() as client:
                    self.assertEqual(client.get(path).status_code, 401, path)
                self.assertEqual(server.get(path, "ada").status_code, 403, path)
                self.assertEqual(server.get(path, "adam").status_code, 200, path)
            with server.http() as client:
                self.assertEqual(client.get("/health").status_code, 200)


if __name__ == "__main__":
    unittest.main()
