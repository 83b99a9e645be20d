"""The files under ``deploy/`` that stand before the server, tried with the real programs: nginx, Caddy, fail2ban.

The shipped files are used as they are; only ports and paths are replaced. Networks are in ``test_deploy_network.py``.
"""

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
import unittest

from lab import LAB
from support import ADMIN_PASSWORD, ROOT, Server, end_process, read_all, tool, wait_for

DEPLOY = os.path.join(ROOT, "deploy")
HOST = "ot2.lab.example"
CLIENT = "127.0.0.2"
"""The address that the test's client calls from. The server trusts 127.0.0.1 only, where the proxy calls from."""
HEADERS = {
    "strict-transport-security": "max-age=63072000; includeSubDomains", "x-content-type-options": "nosniff", "x-frame-options": "DENY",
    "referrer-policy": "strict-origin-when-cross-origin", "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}
NGINX = """
daemon off; master_process off; worker_processes 1; pid %(folder)s/nginx.pid; error_log %(folder)s/error.log;
events { worker_connections 256; }
http {
    access_log off;
    client_body_temp_path %(folder)s/body; proxy_temp_path %(folder)s/proxy; fastcgi_temp_path %(folder)s/fastcgi;
    uwsgi_temp_path %(folder)s/uwsgi; scgi_temp_path %(folder)s/scgi;
    include %(folder)s/interlock.conf;
}
"""


def system_tool(name):
    """A tool that may be in a folder for administrators, which not every user has in PATH."""
    return shutil.which(name, path=os.environ["PATH"] + os.pathsep + "/usr/sbin" + os.pathsep + "/sbin") or tool(name)


def run(*command, **options):
    """Run to the end; what came of it, as text with the line ends as they were."""
    done = subprocess.run(command, capture_output=True, timeout=60, check=False, **options)
    done.stdout, done.stderr = done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
    return done


def shipped(*path):
    """The text of a file under ``deploy/``."""
    with open(os.path.join(DEPLOY, *path), encoding="utf-8") as opened:
        return opened.read()


def put(text, old, new, count):
    """Replace ``old``, which must be there ``count`` times: a shipped file that changes must not slip out of its test."""
    assert text.count(old) == count, "%r is there %d times, not %d" % (old, text.count(old), count)
    return text.replace(old, new)


def free_port(address="127.0.0.1"):
    with socket.socket() as probe:
        probe.bind((address, 0))
        return probe.getsockname()[1]


def issue(folder, name, *issuer):
    """A key and a certificate for ``name``: self-signed without ``issuer``, the certificate and key of an authority."""
    chain, key = os.path.join(folder, name + ".pem"), os.path.join(folder, name + ".key")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=" + name,
               "-addext", "subjectAltName=DNS:" + name, "-keyout", key, "-out", chain]
    if issuer:
        command += ["-CA", issuer[0], "-CAkey", issuer[1]]
    done = run(*command)
    assert done.returncode == 0, done.stderr
    return chain, key


class Answer:
    """What curl received."""

    def __init__(self, text):
        text, _, self.version = text.rpartition("\n")
        head, _, self.body = text.partition("\r\n\r\n")
        while head.startswith("HTTP/1.1 100"):
            head, _, self.body = self.body.partition("\r\n\r\n")
        lines = head.split("\r\n")
        self.status = int(lines[0].split()[1])
        self.pairs = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines[1:])]
        self.headers = dict(self.pairs)


class Proxied:
    """A server behind a proxy. A subclass starts its proxy in ``start_proxy``."""

    OPTIONS = ()

    @classmethod
    def setUpClass(cls):
        cls.server = Server(LAB, options=cls.OPTIONS, variables={"TRUSTED_PROXIES": "127.0.0.1", "ALLOWED_HOSTS": HOST, "ENVIRONMENT": "production",
                                                                      "SECURITY_CONTACT": "mailto:security@lab.example"})
        cls.addClassCleanup(cls.server.close)
        cls.server.start()
        cls.server.add_users("ada")
        cls.server.token("ada")
        cls.folder = os.path.join(cls.server.folder, "proxy")
        os.mkdir(cls.folder)
        cls.chain, cls.key = issue(cls.folder, HOST)
        cls.port = free_port()
        cls.start_proxy()
        wait_for(lambda: cls.listens() or cls.assert_runs(), "the proxy", 20)

    @classmethod
    def spawn_proxy(cls, *command, **options):
        cls.log_path = os.path.join(cls.folder, "log")
        with open(cls.log_path, "wb") as log:
            cls.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **options)
        cls.addClassCleanup(end_process, cls.process)

    @classmethod
    def listens(cls):
        with socket.socket() as connection:
            return connection.connect_ex(("127.0.0.1", cls.port)) == 0

    @classmethod
    def assert_runs(cls):
        if cls.process.poll() is not None:
            with open(cls.log_path, encoding="utf-8") as opened:
                raise AssertionError("the proxy ended: " + opened.read())

    def command(self, path, *arguments):
        return [tool("curl"), "--silent", "--show-error", "--include", "--max-time", "60", "--noproxy", "*", "--cacert", self.chain, "--resolve",
                "%s:%d:127.0.0.1" % (HOST, self.port), "--interface", CLIENT, *arguments, "https://%s:%d%s" % (HOST, self.port, path)]

    def ask(self, path, *arguments, token=None):
        """A request through the proxy, by curl."""
        if token:
            arguments += ("--header", "Authorization: Bearer " + self.server.token(token))
        done = run(*self.command(path, "--write-out", "\n%{http_version}", *arguments))
        self.assertEqual(done.returncode, 0, done.stderr)
        return Answer(done.stdout)

    def assertHeaders(self, answer):
        """Each security header stands once, with the server's value."""
        for name, value in HEADERS.items():
            self.assertEqual([sent for key, sent in answer.pairs if key == name], [value], (answer.status, name))
        self.assertFalse(re.search(r"\d", answer.headers.get("server", "")), answer.headers)


class EveryProxy(Proxied):
    """What holds for every proxy."""

    def test_health_is_answered_over_http_2_and_http_1(self):
        answer = self.ask("/health", "--http2")
        self.assertEqual((answer.status, answer.version), (200, "2"))
        self.assertEqual(json.loads(answer.body)["status"], "healthy")
        self.assertEqual(self.ask("/health", "--http1.1").version, "1.1")

    def test_old_tls_is_refused(self):
        done = run(*self.command("/health", "--tls-max", "1.1"))
        self.assertNotEqual(done.returncode, 0)

    def test_the_security_headers_stand_once_on_every_status(self):
        for status, answer in ((200, self.ask("/health")), (401, self.ask("/tasks")), (404, self.ask("/nothing-here", token="ada")),
                               (400, self.ask("/tasks?q=%3Cscript%3Ealert(1)%3C/script%3E"))):
            with self.subTest(status=status):
                self.assertEqual(answer.status, status, answer.body)
                self.assertHeaders(answer)
                self.assertEqual(len([name for name, _ in answer.pairs if name == "x-request-id"]), 1)

    def test_the_proxy_s_own_refusal_has_the_headers_too(self):
        path = os.path.join(self.folder, "large")
        with open(path, "wb") as opened:
            opened.write(b" " * (12 << 20))
        answer = self.ask("/execute/mix", "--header", "Content-Type: application/json", "--data-binary", "@" + path, "--header", "Expect:")
        self.assertEqual(answer.status, 413, answer.body)
        self.assertHeaders(answer)

    def test_the_client_in_the_records_is_the_real_one_whatever_it_claims(self):
        forged = ("--header", "X-Forwarded-For: 203.0.113.66, 127.0.0.1", "--header", "X-Real-IP: 203.0.113.67",
                  "--header", "Forwarded: for=203.0.113.68")
        failed = self.ask("/auth/login", "--data", "username=ada&password=wrong", *forged)
        self.assertEqual(failed.status, 401)
        signed_in = self.ask("/auth/login", "--data", "username=admin&password=" + ADMIN_PASSWORD, *forged)
        self.assertEqual(signed_in.status, 200, signed_in.body)
        for name, answer in (("authentication_failed", failed), ("authentication_succeeded", signed_in)):
            def event(name=name, wanted=answer.headers["x-request-id"]):
                return next((line for line in self.server.events(name) if line["request_id"] == wanted), None)

            self.assertEqual(wait_for(event, "the event in the log")["client_ip"], CLIENT)
        audit = [row for row in self.server.audit() if row["request_id"] == signed_in.headers["x-request-id"]]
        self.assertEqual({row["client_ip"] for row in audit}, {CLIENT})
        self.assertNotIn("203.0.113.", self.server.log())

    def test_the_server_knows_that_the_client_s_connection_was_encrypted(self):
        """HSTS of the server itself: only for requests that came over TLS, and nobody else's word counts."""
        self.assertEqual(self.ask("/health", "--header", "X-Forwarded-Proto: http").headers["strict-transport-security"],
                         HEADERS["strict-transport-security"])

    def test_another_host_is_refused(self):
        answer = self.ask("/health", "--http1.1", "--header", "Host: evil.example")
        self.assertEqual(answer.status, 421, answer.body)
        self.assertNotIn("healthy", answer.body)
        # The server refuses it too, should a proxy let it through.
        with self.server.http() as client:
            self.assertEqual(client.get("/health", headers={"Host": "evil.example"}).status_code, 400)

    def test_events_of_a_run_arrive_while_it_runs(self):
        run_id = self.server.begin("steps", {"count": 240, "pause": 0.25}, user="ada")
        process = subprocess.Popen(self.command("/runs/%s/events" % run_id, "--no-buffer", "--header", "Accept: text/event-stream", "--header",
                                                "Authorization: Bearer " + self.server.token("ada")), stdout=subprocess.PIPE, text=True)
        try:
            seen = next((line for line in process.stdout if line.startswith("event: progress")), None)
            self.assertIsNotNone(seen, "the stream ended without progress")
            self.assertEqual(self.server.run_of(run_id)["state"], "running")
        finally:
            process.kill()
            process.wait(10)
            process.stdout.close()
            self.server.post("/runs/%s/cancel" % run_id)
        self.server.ended(run_id)

    def test_a_body_of_10_mebibytes_reaches_the_server_and_a_larger_one_is_refused_by_it(self):
        path = os.path.join(self.folder, "ten")
        for size, status in ((10 << 20, 400), ((10 << 20) + 1, 413)):
            with open(path, "wb") as opened:
                opened.write(b'{"no_such_parameter":"' + b"x" * (size - 24) + b'"}')
            self.assertEqual(os.path.getsize(path), size)
            answer = self.ask("/execute/mix", "--header", "Content-Type: application/json", "--header", "Expect:", "--data-binary", "@" + path,
                              token="ada")
            with self.subTest(size=size):
                self.assertEqual(answer.status, status, answer.body)
                self.assertEqual(json.loads(answer.body)["request_id"], answer.headers["x-request-id"])
                wait_for(lambda: answer.headers["x-request-id"] in self.server.log(), "the request in the server's log")

    def test_an_action_that_is_called_through_the_proxy_acts_once(self):
        answer = self.ask("/execute/move", "--json", '{"key":"through the proxy"}', token="ada")
        self.assertEqual((answer.status, json.loads(answer.body)["result"]["acted"]), (200, "through the proxy"))


class NginxProxy(Proxied):
    """nginx with the shipped file."""

    @classmethod
    def configure(cls, text, address=None):
        text = put(text, "listen 443 ssl", "listen 127.0.0.1:%d ssl" % cls.port, 2)
        text = put(text, "listen [::]:443 ssl", "listen 127.0.0.3:%d ssl" % cls.port, 2)
        text = put(text, "127.0.0.1:8000;", "%s:%d;" % (address or cls.server.address), 1)
        text = put(text, "/etc/letsencrypt/live/ot2.lab.example/fullchain.pem", cls.chain, 1)
        text = put(text, "/etc/letsencrypt/live/ot2.lab.example/privkey.pem", cls.key, 1)
        with open(os.path.join(cls.folder, "interlock.conf"), "w", encoding="utf-8") as opened:
            opened.write(text)
        with open(os.path.join(cls.folder, "nginx.conf"), "w", encoding="utf-8") as opened:
            opened.write(NGINX % {"folder": cls.folder})
        command = [system_tool("nginx"), "-c", os.path.join(cls.folder, "nginx.conf"), "-e", os.path.join(cls.folder, "error.log")]
        checked = run(*command, "-t")
        assert checked.returncode == 0, checked.stderr
        return command

    @classmethod
    def start_proxy(cls):
        cls.spawn_proxy(*cls.configure(shipped("nginx", "interlock.conf")))


class Nginx(NginxProxy, EveryProxy, unittest.TestCase):
    def test_the_file_holds_no_warning(self):
        checked = run(system_tool("nginx"), "-t", "-c", os.path.join(self.folder, "nginx.conf"), "-e", os.path.join(self.folder, "error.log"))
        self.assertEqual(checked.returncode, 0, checked.stderr)
        # Later versions of nginx want `http2 on;`, which this one does not know.
        warnings = [line for line in checked.stderr.splitlines() if "[warn]" in line and '"listen ... http2" directive is deprecated' not in line]
        self.assertEqual(warnings, [])

    def test_an_address_that_nginx_does_not_take_is_refused_in_the_shape_of_all_errors(self):
        answer = self.ask("/tasks?q=" + "x" * 20000, "--http1.1")
        self.assertEqual(answer.status, 414, answer.body)
        self.assertEqual(json.loads(answer.body)["code"], "invalid_request")
        self.assertHeaders(answer)

    def test_another_name_gets_no_handshake(self):
        context = ssl.create_default_context(cafile=self.chain)
        with self.assertRaisesRegex(ssl.SSLError, "(?i)unrecognized.name"), socket.create_connection(("127.0.0.1", self.port), 10) as plain:
            context.wrap_socket(plain, server_hostname="evil.example")

    def test_a_flood_is_slowed_before_the_server_in_the_shape_of_all_errors(self):
        # From another address: the limit is for each, and the other tests must not meet this one's.
        flood = [part if part != CLIENT else "127.0.0.4" for part in self.command("/health/live", "--parallel", "--parallel-max", "20")]
        flood[-1] += "?[1-400]"
        heads = run(*flood).stdout
        self.assertLess({"HTTP/2 200 ", "HTTP/2 429 ", "retry-after: 1"}, set(re.split(r"\r\n|\n|(?<=})(?=HTTP)", heads)))
        self.assertTrue('"code":"rate_limited"' in heads)
        self.assertEqual(self.ask("/health/live").status, 200, "another address is served")

    def test_an_emergency_stop_is_never_refused_for_too_many_requests(self):
        for path, limited in (("/health/live", True), ("/stop", False), ("/stop/", False)):
            flood = [part if part != CLIENT else "127.0.0.5" for part in self.command(path, "--request", "POST", "--parallel", "--parallel-max", "20")]
            flood[-1] += "?[1-200]"
            said = run(*flood).stdout
            self.assertEqual("HTTP/2 429" in said, limited, path)
            self.assertTrue(limited or said.count("HTTP/2 401 ") == 200, path)


class NginxAfterALoadBalancer(NginxProxy, unittest.TestCase):
    """The lines that ``behind-nginx.md`` adds for a load balancer for TCP; and the server's security.txt through all of it."""

    @classmethod
    def start_proxy(cls):
        text = shipped("nginx", "interlock.conf")
        lines = "set_real_ip_from 127.0.0.0/8; real_ip_header proxy_protocol;\n"
        text = put(text, "    server_name ot2.lab.example;\n", "    server_name ot2.lab.example;\n" + lines, 1)
        text = put(text, "443 ssl http2", "443 ssl http2 proxy_protocol", 4)
        cls.spawn_proxy(*cls.configure(text))

    def through(self, preface, request):
        with socket.create_connection(("127.0.0.1", self.port), 10) as plain:
            plain.sendall(preface)
            with ssl.create_default_context(cafile=self.chain).wrap_socket(plain, server_hostname=HOST) as connection:
                connection.sendall(request.encode())
                return read_all(connection).decode()

    def test_the_client_s_address_comes_from_the_proxy_protocol(self):
        addresses = bytes([198, 51, 100, 9, 127, 0, 0, 1]) + (50000).to_bytes(2, "big") + (443).to_bytes(2, "big")
        second = b"\r\n\r\n\0\r\nQUIT\n" + bytes([0x21, 0x11, 0, 12]) + addresses
        for preface, address in ((b"PROXY TCP4 198.51.100.8 127.0.0.1 50000 443\r\n", "198.51.100.8"), (second, "198.51.100.9")):
            answer = self.through(preface, "GET /auth/me HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer x.y.z\r\n"
                                           "X-Forwarded-For: 203.0.113.66\r\nConnection: close\r\n\r\n" % HOST)
            self.assertTrue(answer.startswith("HTTP/1.1 401 "), answer)
            wait_for(lambda wanted=address: wanted in [event["client_ip"] for event in self.server.events("authentication_failed")], address)
        self.assertNotIn("203.0.113.66", self.server.log())

    def test_a_security_txt_is_served(self):
        answer = self.through(b"PROXY TCP4 198.51.100.8 127.0.0.1 50000 443\r\n",
                              "GET /.well-known/security.txt HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % HOST)
        self.assertTrue(answer.startswith("HTTP/1.1 200 "), answer)
        self.assertIn("\r\ncontent-type: text/plain; charset=utf-8\r\n", answer.replace("Content-Type", "content-type"))
        self.assertEqual(answer.lower().count("\r\nx-frame-options: deny\r\n"), 1)
        self.assertIn("\r\n\r\nContact: mailto:security@lab.example\nExpires: 2", answer)


class NginxAlone(NginxProxy, unittest.TestCase):
    """The server behind it is gone."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server.stop()

    def test_its_answer_has_the_shape_and_the_headers_of_all_errors(self):
        answer = self.ask("/health")
        self.assertEqual(answer.status, 502)
        self.assertHeaders(answer)
        self.assertEqual(answer.headers["content-type"], "application/problem+json")
        body = json.loads(answer.body)
        self.assertEqual((body["status"], body["code"], body["request_id"]), (502, "unavailable", answer.headers["x-request-id"]))


class NginxTowardsTls(NginxProxy, unittest.TestCase):
    """The server speaks HTTPS with its own authority; a stand-in asks for the proxy's certificate."""

    OPTIONS = ("--tls", "internal")

    @classmethod
    def start_proxy(cls):
        snippet = shipped("nginx", "interlock-upstream-tls.conf")
        authority = issue(cls.folder, "proxies.example")
        cls.authority = authority[0]
        for name, path in zip(("/etc/interlock/proxy.pem", "/etc/interlock/proxy.key"), issue(cls.folder, "proxy.example", *authority)):
            snippet = put(snippet, name, path, 1)
        text = put(shipped("nginx", "interlock.conf"), "proxy_pass http://interlock;", "proxy_pass https://interlock;\n" + snippet, 1)
        cls.text = text
        cls.right = put(text, "/etc/interlock/server-ca.pem", cls.server.ready["ca_file"], 1)
        cls.spawn_proxy(*cls.configure(cls.right))

    def test_the_server_is_reached_over_https_with_a_certificate_of_its_authority(self):
        self.restarted(self.right, self.server.address[1])
        answer = self.ask("/health")
        self.assertEqual(answer.status, 200, answer.body)
        self.assertHeaders(answer)
        self.ask("/auth/login", "--data", "username=ada&password=wrong")
        events = wait_for(lambda: self.server.events("authentication_failed"), "the event in the log")
        self.assertEqual({event["client_ip"] for event in events}, {CLIENT})

    def restarted(self, text, port):
        """The proxy, before another server."""
        end_process(self.process)
        self.spawn_proxy(*self.configure(text, ("127.0.0.1", port)))
        wait_for(lambda: self.listens() or self.assert_runs(), "the proxy", 20)

    def test_a_server_with_another_authority_is_not_talked_to(self):
        self.restarted(put(self.text, "/etc/interlock/server-ca.pem", self.authority, 1), self.server.address[1])
        self.assertEqual(self.ask("/health").status, 502)

    def test_a_server_that_asks_gets_the_proxy_s_certificate(self):
        port = free_port()
        stand_in = subprocess.Popen([tool("openssl"), "s_server", "-accept", "127.0.0.1:%d" % port, "-cert", self.chain, "-key", self.key, "-tls1_3",
                                     "-Verify", "1", "-verify_return_error", "-CAfile", self.authority, "-www"],
                                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(end_process, stand_in)
        trusting = put(self.text, "/etc/interlock/server-ca.pem", self.chain, 1)
        self.restarted(trusting, port)
        answer = wait_for(lambda: (lambda got: got if got.status == 200 else None)(self.ask("/")), "the stand-in", 10)
        self.assertIn("CN=proxy.example", answer.body.replace(" ", ""))
        without = re.sub(r"proxy_ssl_certificate(_key)? .*;", "", trusting)
        self.restarted(without, port)
        self.assertEqual(self.ask("/").status, 502)


class Caddy(EveryProxy, unittest.TestCase):
    @classmethod
    def start_proxy(cls):
        text = shipped("caddy", "Caddyfile")
        text = put(text, "https://ot2.lab.example {", "https://ot2.lab.example:%d {\n\tbind 127.0.0.1" % cls.port, 1)
        text = put(text, "https:// {", "https://:%d {\n\tbind 127.0.0.1" % cls.port, 1)
        text = put(text, "127.0.0.1:8000 {", "%s:%d {" % cls.server.address, 1)
        text = put(text, "/etc/letsencrypt/live/ot2.lab.example/fullchain.pem", cls.chain, 2)
        text = put(text, "/etc/letsencrypt/live/ot2.lab.example/privkey.pem", cls.key, 2)
        path = os.path.join(cls.folder, "Caddyfile")
        with open(path, "w", encoding="utf-8") as opened:
            opened.write(text)
        variables = {"PATH": os.environ["PATH"], "HOME": cls.folder, "XDG_DATA_HOME": cls.folder, "XDG_CONFIG_HOME": cls.folder}
        checked = run(system_tool("caddy"), "validate", "--config", path, "--adapter", "caddyfile", env=variables)
        assert checked.returncode == 0, checked.stderr
        cls.spawn_proxy(system_tool("caddy"), "run", "--config", path, "--adapter", "caddyfile", env=variables)


class Fail2ban(unittest.TestCase):
    """The filter and the jail, on the log that the server itself wrote."""

    @classmethod
    def setUpClass(cls):
        cls.server = Server(LAB, variables={"TRUSTED_PROXIES": "127.0.0.1"})
        cls.addClassCleanup(cls.server.close)
        cls.server.start()
        cls.server.add_users("ada")
        attack = "/tasks?q=%3Cscript%3Ealert(1)%3C/script%3E"
        # As a caller may type it, in the hope to have another address banned.
        forged = '","client_ip":"203.0.113.66","details":{"reason":"invalid_token"},"event_type":"authentication_failed",'
        cls.expected = []
        with cls.server.http() as client:
            def ask(address, path, status, fails=0, method="GET", **options):
                headers = dict(options.pop("headers", {}), **{"X-Forwarded-For": "203.0.113.66, " + address})
                answer = client.request(method, path, headers=headers, **options)
                assert answer.status_code == status, (path, answer.status_code, answer.text)
                cls.expected += [address] * fails

            def login(address, name, password, status, fails=0, **options):
                ask(address, "/auth/login", status, fails, "POST", data={"username": name, "password": password}, **options)

            login("198.51.100.1", "ada", "wrong", 401, 1)
            login("2001:db8::1", "nobody-of-that-name", "wrong", 401, 1)
            login("198.51.100.2", "x" + forged, "wrong", 401, 1)
            login("198.51.100.3", "ada", "wrong", 401, 1, headers={"User-Agent": forged + "\\"})
            ask("198.51.100.4", "/tasks", 401, 1, headers={"Authorization": "Bearer x.y.z"})
            ask("198.51.100.5", attack, 400, 1)
            ask("2001:db8::5", attack, 400, 1, headers={"User-Agent": forged})
            # Nothing of this is an attack.
            login("198.51.100.101", "admin", ADMIN_PASSWORD, 200)
            ask("198.51.100.102", "/tasks", 401)
            ask("198.51.100.103", "/tasks", 401, headers={"User-Agent": forged})
            ask("198.51.100.104", "/health", 200, headers={"User-Agent": "authentication_failed request_blocked"})
            ask("198.51.100.105", "/nothing-here", 404)
            ask("198.51.100.106", "/users", 403, headers={"Authorization": "Bearer " + cls.server.login("ada")})

        wait_for(lambda: "198.51.100.106" in cls.server.log(), "the last request in the log")

    def filtered(self, log):
        done = run(system_tool("fail2ban-regex"), "--out", "ip", log, os.path.join(DEPLOY, "fail2ban", "filter.d", "interlock.conf"))
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout.split()

    def test_every_failure_is_found_with_the_real_client_and_no_success(self):
        self.assertEqual(self.filtered(self.server.log_path), self.expected)

    def test_lines_as_they_come_out_of_the_journal_are_read_too(self):
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".log") as journal:
            journal.writelines("ot2 interlock[4711]: %s\n" % line for line in self.server.log().splitlines())
            journal.flush()
            self.assertEqual(self.filtered(journal.name), self.expected)

    def test_the_words_that_operators_search_for_are_in_the_log(self):
        for word, least in (("authentication_failed", 5), ("request_blocked", 2)):
            self.assertGreaterEqual(len(self.server.events(word)), least)
            self.assertGreaterEqual(int(run("grep", "-c", word, self.server.log_path).stdout), least)

    def test_a_ban_of_the_server_itself_is_found_too(self):
        with Server(LAB, variables={"TRUSTED_PROXIES": "127.0.0.1", "RATE_LIMIT_ENABLED": "true"}) as server:
            with server.http() as client:
                for _ in range(6):
                    client.get("/tasks?filter=';%20DROP%20TABLE%20tasks;%20--", headers={"X-Forwarded-For": "198.51.100.9"})
            wait_for(lambda: server.log().count('"endpoint":"/tasks"') == 6, "the last request in the log")
            blocked = server.events("ip_blocked")
            self.assertTrue(blocked)
            self.assertEqual(self.filtered(server.log_path), ["198.51.100.9"] * (len(server.events("request_blocked")) + len(blocked)))

    def test_the_jail_is_one_that_fail2ban_starts_with(self):
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree("/etc/fail2ban", folder, dirs_exist_ok=True)
            for path in os.listdir(os.path.join(folder, "jail.d")):
                os.unlink(os.path.join(folder, "jail.d", path))
            shutil.copy(os.path.join(DEPLOY, "fail2ban", "filter.d", "interlock.conf"), os.path.join(folder, "filter.d"))
            with open(os.path.join(folder, "jail.d", "interlock.conf"), "w", encoding="utf-8") as opened:
                opened.write(put(shipped("fail2ban", "jail.d", "interlock.conf"), "/var/log/interlock/*.log", self.server.log_path, 1))
            done = run(system_tool("fail2ban-client"), "-c", folder, "--test")
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            commands = run(system_tool("fail2ban-client"), "-c", folder, "-d").stdout
            for words in ("['set', 'interlock', 'addlogpath', '%s'" % self.server.log_path, "['set', 'interlock', 'maxretry', 10]",
                          "['set', 'interlock', 'addignoreip', '127.0.0.0/8'", "['start', 'interlock']"):
                self.assertIn(words, commands)
            # Whoever is in the VPN can always send an emergency stop.
            own = re.findall(r"set (?:vpn|admin)[46] .*elements = \{ (.*?) \}", shipped("nftables", "interlock.nft"))
            self.assertEqual(len(own), 4)
            for network in ", ".join(own).split(", "):
                self.assertIn("'%s'" % network, commands)


if __name__ == "__main__":
    unittest.main()
