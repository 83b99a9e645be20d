"""Framing without doubt: what can be read in two ways is refused, alone and behind nginx."""

import os
import shutil
import socket
import subprocess
import unittest

from lab import BAD
from support import Case, end_process, read_all, wait_for

HOST = b"Host: localhost\r\n"
LOGIN = b"POST /auth/login HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
HIDDEN = b"GET /docs HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
CHUNKED = LOGIN + b"Transfer-Encoding: chunked\r\n\r\n"

HEADS = {
    "bare line feeds": b"GET /health/live HTTP/1.1\nHost: localhost\n\n",
    "one bare line feed": b"GET /health/live HTTP/1.1\r\nHost: localhost\nX: y\r\n\r\n",
    "bare carriage return": b"GET /health/live HTTP/1.1\r\n" + HOST + b"X: a\rb\r\n\r\n",
    "folded line": b"GET /health/live HTTP/1.1\r\n" + HOST + b"X: a\r\n b\r\n\r\n",
    "space before the colon": b"POST /auth/login HTTP/1.1\r\n" + HOST + b"Content-Length : 2\r\n\r\n{}",
    "nul in a value": b"GET /health/live HTTP/1.1\r\n" + HOST + b"X: a\0b\r\n\r\n",
    "no host": b"GET /health/live HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /health/live HTTP/1.1\r\n" + HOST + HOST + b"\r\n",
    "another host in the target": b"GET http://evil.example/health/live HTTP/1.1\r\n" + HOST + b"\r\n",
    "user in the target": b"GET http://a@localhost/health/live HTTP/1.1\r\n" + HOST + b"\r\n",
    "connect": b"CONNECT localhost:443 HTTP/1.1\r\n" + HOST + b"\r\n",
    "http/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "two spaces": b"GET  /health/live HTTP/1.1\r\n" + HOST + b"\r\n",
    "version 1.2": b"GET /health/live HTTP/1.2\r\n" + HOST + b"\r\n",
    "fragment": b"GET /health/live#x HTTP/1.1\r\n" + HOST + b"\r\n",
    "length and coding": LOGIN + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX",
    "coding and length": LOGIN + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n{}",
    "two lengths": LOGIN + b"Content-Length: 2\r\nContent-Length: 0\r\n\r\n{}",
    "two equal lengths": LOGIN + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "list of lengths": LOGIN + b"Content-Length: 2, 2\r\n\r\n{}",
    "length with a sign": LOGIN + b"Content-Length: +2\r\n\r\n{}",
    "length in hexadecimal": LOGIN + b"Content-Length: 0x2\r\n\r\n{}",
    "huge length": LOGIN + b"Content-Length: 99999999999999999999\r\n\r\n{}",
    "unknown coding": LOGIN + b"Transfer-Encoding: gzip\r\n\r\n0\r\n\r\n",
    "chunked twice": LOGIN + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked after a tab": LOGIN + b"Transfer-Encoding:\tchunked\r\n\r\n0\r\n\r\n",
    "nearly chunked": LOGIN + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked in version 1.0": LOGIN.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
}
BODIES = {
    "chunk size with 0x": CHUNKED + b"0x2\r\n{}\r\n0\r\n\r\n",
    "chunk size with a space": CHUNKED + b"2 \r\n{}\r\n0\r\n\r\n",
    "chunk size that overflows": CHUNKED + b"10000000000000002\r\n{}\r\n0\r\n\r\n",
    "chunk size with a bare line feed": CHUNKED + b"2\n{}\r\n0\r\n\r\n",
    "chunk longer than it says": CHUNKED + b"2\r\n{}X\r\n0\r\n\r\n",
    "chunk without its end": CHUNKED + b"2\r\n{}0\r\n\r\n",
    "chunk extension with a bare line feed": CHUNKED + b"2;a\n{}\r\n0\r\n\r\n",
    "chunk extension with a quote left open": CHUNKED + b"2;a=\"\r\n{}\r\n0\r\n\r\n",
    "trailer field": CHUNKED + b"2\r\n{}\r\n0\r\nX: y\r\n\r\n",
    "trailer that frames": CHUNKED + b"2\r\n{}\r\n0\r\nContent-Length: 60\r\n\r\n",
}
GOOD = {
    "plain": b"GET /health/live HTTP/1.1\r\n" + HOST + b"\r\n",
    "length": LOGIN + b"Content-Length: 2\r\n\r\n{}",
    "chunked": CHUNKED + b"2\r\n{}\r\n0\r\n\r\n",
    "upgrade that is not offered": b"GET /health/live HTTP/1.1\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
}


def nginx():
    """The path of nginx, which is not on every user's path."""
    found = shutil.which("nginx", path=os.environ["PATH"] + os.pathsep + "/usr/sbin")
    if found is None:
        raise AssertionError("nginx is needed and is not installed")
    return found


def answers(received):
    return received.count(b"HTTP/1.1 ")


class Framing(Case):
    SOURCE = BAD

    def send(self, data, address=None):
        """What comes back until the server ends the connection; a connection that goes on fails the test."""
        with socket.create_connection(address or self.server.address, timeout=10) as connection:
            connection.sendall(data)
            received = b""
            try:
                while part := connection.recv(65536):
                    received += part
            except ConnectionError:
                pass
            return received

    def test_what_can_be_read_in_two_ways_is_refused(self):
        before = len(self.server.events("request_blocked"))
        for name, data in {**HEADS, **BODIES}.items():
            with self.subTest(name):
                received = self.send(data + HIDDEN)
                self.assertEqual(answers(received), 1, received)
                head, _, body = received.partition(b"\r\n\r\n")
                self.assertTrue(head.startswith(b"HTTP/1.1 400 "), received)
                self.assertIn(b"\r\nconnection: close", head.lower())
                self.assertIn(b"\r\nx-request-id: ", head.lower())
                self.assertIn(b"\r\nx-content-type-options: nosniff", head.lower())
                self.assertIn(b'"code":"invalid_request"', body)
        events = self.server.events("request_blocked")[before:]
        self.assertEqual(len(events), len(HEADS) + len(BODIES))
        self.assertEqual({event["client_ip"] for event in events}, {"127.0.0.1"})
        self.assertHealthy()

    def test_what_is_well_formed_goes_on(self):
        for name, data in GOOD.items():
            with self.subTest(name):
                self.assertEqual(answers(self.send(data + HIDDEN)), 2)


CONFIGURATION = """
daemon off; master_process off; worker_processes 1; pid %(folder)s/nginx.pid; error_log %(folder)s/error.log;
events { worker_connections 64; }
http {
    log_format upstream "$upstream_addr";
    access_log %(folder)s/access.log upstream;
    client_body_temp_path %(folder)s/body; proxy_temp_path %(folder)s/proxy; fastcgi_temp_path %(folder)s/fastcgi;
    uwsgi_temp_path %(folder)s/uwsgi; scgi_temp_path %(folder)s/scgi;
    client_header_timeout 1s; client_body_timeout 1s; keepalive_timeout 2s;
    upstream interlock { server %(server)s; keepalive 4; }
    server {
        listen 127.0.0.1:%(port)d;
        location / {
            proxy_pass http://interlock;
            proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host localhost;
            proxy_request_buffering %(buffering)s; proxy_next_upstream off;
        }
    }
}
"""


class BehindNginx(Case):
    """Whatever a stranger sends to nginx, the server sees as many requests as nginx passed on."""

    SOURCE = BAD

    def start(self, buffering):
        folder = os.path.join(self.server.folder, "nginx-" + buffering)
        os.mkdir(folder)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        path = os.path.join(folder, "nginx.conf")
        with open(path, "w", encoding="utf-8") as opened:
            opened.write(CONFIGURATION % {"folder": folder, "server": "%s:%d" % self.server.address, "port": port, "buffering": buffering})
        process = subprocess.Popen([nginx(), "-c", path, "-e", os.path.join(folder, "error.log")],
                                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(end_process, process)

        def listens():
            self.assertIsNone(process.poll(), "nginx did not start")
            with socket.socket() as connection:
                return connection.connect_ex(("127.0.0.1", port)) == 0

        wait_for(listens, "nginx")
        return ("127.0.0.1", port), os.path.join(folder, "access.log")

    def passed_on(self, path):
        """Requests that nginx sent to the server."""
        with open(path, encoding="utf-8") as opened:
            return sum(line.strip() not in ("-", "") for line in opened)

    def seen(self):
        """Requests that the server answered, refusals included."""
        return sum("endpoint" in line and "status" in line for line in self.server.log_lines())

    def test_both_see_the_same_requests(self):
        for buffering in ("on", "off"):
            address, log = self.start(buffering)
            start = self.seen()
            for name, data in {**GOOD, **HEADS, **BODIES}.items():
                with self.subTest(name, buffering=buffering):
                    with socket.create_connection(address, timeout=10) as connection:
                        connection.sendall(data + HIDDEN)
                        read_all(connection, 10)
                    # nginx writes its line when its client has gone.
                    wait_for(lambda: self.passed_on(log) == self.seen() - start, "as many requests on both sides", 5)
            # A late one would show now.
            with socket.create_connection(address, timeout=10) as connection:
                connection.sendall(HIDDEN)
                self.assertEqual(answers(read_all(connection, 10)), 1)
            wait_for(lambda: self.passed_on(log) == self.seen() - start, "the same sum on both sides", 5)
            self.assertGreater(self.passed_on(log), len(GOOD))
        self.assertHealthy()


if __name__ == "__main__":
    unittest.main()
