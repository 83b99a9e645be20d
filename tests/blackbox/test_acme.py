"""Certificates by ACME, from an authority of its own (pebble) with a DNS server of its own (pebble-challtestsrv)."""

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import stat
import subprocess
import unittest

from lab import LAB
from support import Server, certificate, end_process, tool, wait_for

NAME = "ot2.lab.example"


def free_ports(count):
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


class Authority:
    """pebble; every name leads to this machine."""

    def __init__(self, folder, tls_port, http_port, seconds=86400):
        self.folder = folder
        self.port, self.management, self.dns, self.names = free_ports(4)
        self.certificate, self.key = certificate(folder, "authority", "30")
        self.settings = os.path.join(folder, "pebble.json")
        with open(self.settings, "w", encoding="utf-8") as opened:
            json.dump({"pebble": {
                "listenAddress": "127.0.0.1:%d" % self.port, "managementListenAddress": "127.0.0.1:%d" % self.management,
                "certificate": self.certificate, "privateKey": self.key, "httpPort": http_port, "tlsPort": tls_port,
                "ocspResponderURL": "", "externalAccountBindingRequired": False, "certificateValidityPeriod": seconds}}, opened)
        self.processes = []

    @property
    def variables(self):
        return {"ACME_DIRECTORY": "https://localhost:%d/dir" % self.port, "ACME_CA_FILE": self.certificate, "ACME_AGREE_TERMS": "true",
                "ALLOWED_HOSTS": NAME + ",localhost", "ACME_CONTACT": "mailto:lab@lab.example"}

    def start(self):
        # Proofs are fetched at once, and no nonce is refused for the sake of it.
        variables = dict(os.environ, PEBBLE_VA_NOSLEEP="1", PEBBLE_WFE_NONCEREJECT="0")
        dns = [tool("pebble-challtestsrv"), "-http01", "", "-https01", "", "-tlsalpn01", "", "-dns01", "127.0.0.1:%d" % self.dns,
               "-management", "127.0.0.1:%d" % self.names, "-defaultIPv4", "127.0.0.1", "-defaultIPv6", ""]
        authority = [tool("pebble"), "-config", self.settings, "-dnsserver", "127.0.0.1:%d" % self.dns]
        for command in (dns, authority):
            with open(os.path.join(self.folder, "authority.log"), "ab") as log:
                self.processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=variables, start_new_session=True))
        wait_for(self.answers, "an answer of the authority", 20)
        return self

    def answers(self):
        with contextlib.suppress(OSError):
            self.ask("/dir", self.port)
            return True
        return False

    def ask(self, path, port):
        trust = ssl.create_default_context(cafile=self.certificate)
        connection = http.client.HTTPSConnection("localhost", port, timeout=10, context=trust)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def roots(self):
        """What it issues under; new at every start."""
        return self.ask("/roots/0", self.management)

    def stop(self):
        for process in self.processes:
            end_process(process)
        self.processes = []


def shown(port, roots=None):
    """A connection to the server under its name, verified where authorities are given; with the certificate that it showed."""
    trust = ssl.create_default_context(cadata=roots) if roots else ssl._create_unverified_context()
    plain = socket.create_connection(("127.0.0.1", port), timeout=10)
    try:
        secure = trust.wrap_socket(plain, server_hostname=NAME)
    except Exception:
        plain.close()
        raise
    return secure, secure.getpeercert(binary_form=True)


def is_trusted(port, roots):
    try:
        shown(port, roots)[0].close()
        return True
    except ssl.SSLError:
        return False


def get(secure, path, host=NAME):
    """One request on an open connection."""
    secure.sendall(("GET %s HTTP/1.1\r\nHost: %s\r\n\r\n" % (path, host)).encode())
    answer = http.client.HTTPResponse(secure)
    answer.begin()
    answer.read()
    return answer.status


class Acme(unittest.TestCase):
    """One server for each test; the authority is started where it is wanted."""

    def set_up(self, seconds=86400, **variables):
        self.port, self.http = free_ports(2)
        self.server = Server(LAB, options=["--tls", "acme"], listen="127.0.0.1:%d" % self.port)
        self.addCleanup(self.server.close)
        self.authority = Authority(self.server.folder, self.port, self.http, seconds)
        self.addCleanup(self.authority.stop)
        self.server.variables.update(self.authority.variables)
        self.server.variables.update(variables)

    def issued(self):
        try:
            wait_for(lambda: is_trusted(self.port, self.authority.roots()), "a certificate by ACME", 60, 0.2)
        except AssertionError as error:
            raise AssertionError("%s\n%s" % (error, self.server.log())) from None

    def file(self, name):
        return os.path.join(self.server.state, "acme", name)

    def test_a_name_is_proved_by_a_handshake(self):
        self.set_up()
        self.authority.start()
        self.server.start()
        self.issued()

        secure, _ = shown(self.port, self.authority.roots())
        with secure:
            self.assertEqual(secure.version(), "TLSv1.3")
            self.assertEqual(get(secure, "/health/live"), 200)
        for name in ("server.pem", "account.json"):
            self.assertEqual(stat.S_IMODE(os.stat(self.file(name)).st_mode), 0o600, name)
        # A stranger who asks for a proof when none is due gets no protocol.
        trust = ssl._create_unverified_context()
        trust.set_alpn_protocols(["acme-tls/1"])
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as plain, self.assertRaises(ssl.SSLError):
            trust.wrap_socket(plain, server_hostname=NAME)

    def test_a_name_is_proved_over_plain_http_which_leads_everybody_else_to_https(self):
        self.set_up(ACME_CHALLENGE="http-01")
        self.server.variables["ACME_HTTP_LISTEN"] = "127.0.0.1:%d" % self.http
        self.authority.start()
        self.server.start()
        self.issued()

        def answer(path, host):
            connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=10)
            with contextlib.closing(connection):
                connection.request("GET", path, headers={"Host": host})
                got = connection.getresponse()
                got.read()
                return got.status, got.getheader("Location")

        self.assertEqual(answer("/docs?a=b", NAME), (308, "https://%s/docs?a=b" % NAME))
        self.assertEqual(answer("/docs", "evil.example"), (400, None))
        self.assertEqual(answer("/.well-known/acme-challenge/unknown", NAME)[0], 404)

    def test_it_is_renewed_in_time_and_open_connections_go_on(self):
        self.set_up(seconds=15)
        self.authority.start()
        self.server.start()
        self.issued()
        secure, first = shown(self.port, self.authority.roots())

        def renewed():
            other, certificate_now = shown(self.port, self.authority.roots())
            other.close()
            return certificate_now != first

        with secure:
            self.assertEqual(get(secure, "/health/live"), 200)
            wait_for(renewed, "another certificate", 60, 0.5)
            self.assertEqual(get(secure, "/health/live"), 200, "the connection from before")

    def test_without_the_authority_the_server_starts_and_a_certificate_that_counts_is_used(self):
        self.set_up()
        self.server.start()
        secure, stand_in = shown(self.port)
        with secure:
            self.assertEqual(get(secure, "/health/live"), 200)
        wait_for(lambda: "no certificate by ACME; what is in force stays" in self.server.log(), "a word in the log", 30)

        # It comes back: a signal is enough.
        self.authority.start()
        os.kill(self.server.process.pid, signal.SIGHUP)
        self.issued()
        secure, good = shown(self.port, self.authority.roots())
        secure.close()
        self.assertNotEqual(good, stand_in)
        roots = self.authority.roots()

        self.server.stop()
        self.authority.stop()
        self.server.start()
        secure, again = shown(self.port, roots)
        secure.close()
        self.assertEqual(again, good)

        # An authority that has forgotten the account (pebble forgets everything) gets a new one.
        self.server.stop()
        os.unlink(self.file("server.issued"))
        self.authority.start()
        self.server.start()
        self.issued()

    def test_an_authority_that_cannot_reach_the_server_is_quoted(self):
        self.set_up(ACME_CHALLENGE="http-01")
        # The authority asks on another port than the one that is listened on.
        self.server.variables["ACME_HTTP_LISTEN"] = "127.0.0.1:0"
        self.authority.start()
        self.server.start()

        said = wait_for(lambda: [line for line in self.server.log().splitlines() if "could not verify" in line], "the reason", 60)
        self.assertIn(NAME, said[0])
        self.assertIn("on port 80", said[0])
        secure, _ = shown(self.port)
        with secure:
            self.assertEqual(get(secure, "/health/live"), 200)

    def test_what_cannot_be_ordered_stops_the_start(self):
        for variables, said in (
            ({"ACME_AGREE_TERMS": "false"}, "terms of service"),
            ({"ALLOWED_HOSTS": "localhost,192.0.2.7,*.lab.example"}, "acme_names"),
            ({"ACME_NAMES": "10.0.0.1"}, "10.0.0.1"),
            ({"ACME_DIRECTORY": "http://ca.example/dir"}, "acme_directory"),
            ({"ACME_EAB_ID": "me"}, "acme_eab_key"),
            ({"TLS_CERT_FILE": "/x", "TLS_KEY_FILE": "/y"}, "do not go together"),
        ):
            with self.subTest(said=said):
                self.set_up(**variables)
                code, text = self.server.refused()
                self.assertNotEqual(code, 0)
                self.assertIn(said, text)


if __name__ == "__main__":
    unittest.main()
