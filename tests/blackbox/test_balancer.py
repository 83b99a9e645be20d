"""A balancer that passes bytes on and speaks the PROXY protocol, version 2: haproxy, in front of the real program."""

import os
import socket
import ssl
import subprocess
import unittest

import httpx

from lab import LAB
from support import Case, end_process, tool, wait_for
from test_deploy import free_port

BALANCER = """
global
    maxconn 200
defaults
    mode tcp
    timeout connect 5s
    timeout client 30s
    timeout server 30s
listen plain
    bind 127.0.0.1:{plain}
    server interlock 127.0.0.1:{server} {with_words}
"""


class Balancer(Case):
    """Requests through haproxy; the TLS connection is the client's own."""

    SOURCE = LAB
    OPTIONS = ["--tls", "internal"]
    VARIABLES = {"PROXY_PROTOCOL_FROM": "127.0.0.1"}

    def start_balancer(self, words):
        port = free_port()
        settings = os.path.join(self.server.folder, "haproxy-%d.cfg" % port)
        with open(settings, "w", encoding="utf-8") as opened:
            opened.write(BALANCER.format(plain=port, server=self.server.ready["url"].rsplit(":", 1)[1], with_words=words))
        process = subprocess.Popen([tool("haproxy"), "-db", "-f", settings], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self.addCleanup(process.stderr.close)
        self.addCleanup(end_process, process)
        wait_for(lambda: self.reaches(port), "haproxy listens")
        return port

    @staticmethod
    def reaches(port):
        with socket.socket() as plain:
            return plain.connect_ex(("127.0.0.1", port)) == 0

    def client(self, port, source):
        context = ssl.create_default_context(cafile=self.server.ready["ca_file"])
        transport = httpx.HTTPTransport(verify=context, local_address=source)
        return httpx.Client(base_url="https://127.0.0.1:%d" % port, transport=transport, timeout=10)

    def test_the_client_is_the_one_behind_the_balancer(self):
        for source, words in (("127.0.0.21", "send-proxy-v2"), ("127.0.0.22", "send-proxy-v2 proxy-v2-options crc32c,unique-id")):
            port = self.start_balancer(words)
            with self.client(port, source) as client:
                answer = client.get("/health/live", headers={"X-Request-ID": "behind-%s" % source, "X-Forwarded-For": "6.6.6.6"})
                self.assertEqual(answer.status_code, 200)
            line = wait_for(lambda: next((line for line in self.server.log().splitlines() if "behind-%s" % source in line), None),
                            "the access line")
            self.assertIn('"client_ip":"%s"' % source, line.replace(": ", ":"))

    def test_the_first_version_and_no_words_at_all_are_refused(self):
        for words in ("send-proxy", ""):
            port = self.start_balancer(words)
            with self.client(port, "127.0.0.23") as client, self.assertRaises(httpx.TransportError):
                client.get("/health/live")
        self.assertIn("sends no PROXY protocol", self.server.log())


class Internal(Case):
    """Probes and metrics on a listener of their own."""

    SOURCE = LAB
    VARIABLES = {"INTERNAL_LISTEN": "127.0.0.1:0", "RATE_LIMIT_ENABLED": "true", "MAX_REQUESTS_PER_MINUTE": "5"}

    def test_probes_are_answered_there_and_metrics_only_there(self):
        inside = next(one["url"] for one in self.server.ready["listeners"] if one["name"] == "internal")
        for _ in range(20):
            self.assertEqual(httpx.get(inside + "/health/live").status_code, 200)
            self.assertEqual(httpx.get(inside + "/health/ready").json()["status"], "ready")
        self.assertIn("orchestrator_security_events_total", httpx.get(inside + "/metrics").text)
        self.assertEqual(httpx.get(inside + "/tasks").status_code, 404)
        with self.server.http() as client:
            self.assertEqual(client.get("/metrics").status_code, 404)
        with open(self.server.out_path, encoding="utf-8") as opened:
            self.assertIn(inside + "/metrics", opened.read())


if __name__ == "__main__":
    unittest.main()
