"""5 000 hostile slow connections beside lawful traffic: nobody lawful is refused, every slow one ends, memory stays.

The hostile come from 24 addresses, so that the caps of an address and of all connections are both reached. Times are printed,
not judged: this machine may be busy. How long a hostile connection may live is a bound of the server, and is judged.
"""

import asyncio
import json
import os
import resource
import socket
import subprocess
import sys
import time
import unittest

from lab import LAB
from support import Server

HOSTILE = 5000
ADDRESSES = ["127.66.0.%d" % host for host in range(1, 25)]
LONGEST = 25.0
"""Seconds: 10 for a head or without progress, 5 for a handshake, and room for a busy machine."""
MEBIBYTE = 1024 * 1024
MEMORY = 96
"""Mebibytes: 24 KiB for each of the 4 096 connections that are taken."""

LAWFUL = """
import http.client, json, ssl, sys, time
host, port, ca, token, seconds = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4], float(sys.argv[5])
context = ssl.create_default_context(cafile=ca) if ca else None
times, errors, end, connection = [], [], time.monotonic() + seconds, None
source = ("127.77.0.1", 0)
while time.monotonic() < end:
    begun = time.monotonic()
    try:
        # Every fourth request is a new connection, as from people who come and go.
        if connection is None or len(times) % 4 == 0:
            if connection is not None:
                connection.close()
            make = http.client.HTTPSConnection if context else http.client.HTTPConnection
            connection = make(host, port, timeout=10, source_address=source, **({"context": context} if context else {}))
        connection.request("GET", "/auth/me", headers={"Authorization": "Bearer " + token})
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            errors.append(str(answer.status))
    except Exception as problem:
        errors.append(repr(problem))
        connection = None
    times.append(time.monotonic() - begun)
    time.sleep(0.02)
times.sort()
print(json.dumps({"requests": len(times), "errors": errors[:5], "failed": len(errors), "p50": times[len(times) // 2],
                  "p99": times[int(len(times) * 0.99)], "longest": times[-1]}))
"""


def memory(pid):
    with open("/proc/%d/status" % pid, encoding="ascii") as opened:
        return next(int(line.split()[1]) * 1024 for line in opened if line.startswith("VmRSS:"))


def count_sockets(pid):
    """Files of a process that are sockets."""
    folder, count = "/proc/%d/fd" % pid, 0
    for name in os.listdir(folder):
        try:
            count += os.readlink(os.path.join(folder, name)).startswith("socket:")
        except OSError:
            continue  # closed meanwhile
    return count


async def linger(number, port, kind, over, refused):
    """One hostile connection, to its end."""
    plain = socket.socket()
    plain.setblocking(False)
    if kind == "read":
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plain.bind((ADDRESSES[number % len(ADDRESSES)], 0))
    loop = asyncio.get_running_loop()
    try:
        await loop.sock_connect(plain, ("127.0.0.1", port))
    except OSError:
        refused.append(number)
        plain.close()
        return
    first, drip = {
        "handshake": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\x00"),
        "head": (b"GET /tasks HTTP/1.1\r\nHost: localhost\r\n", b"X-A: b\r\n"),
        "body": (b"POST /auth/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9000\r\n\r\n{", b" "),
        "read": (b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 40, b""),
        "silence": (b"", b""),
    }[kind]
    try:
        if first:
            await loop.sock_sendall(plain, first)
        while not over.is_set():
            await asyncio.sleep(1.0)
            if drip:
                await loop.sock_sendall(plain, drip)
    except OSError:
        pass
    await over.wait()
    plain.close()


async def siege(port, kinds, pid, count=HOSTILE):
    """Opens them within some seconds, and waits until the server has ended them all or their time is over.

    Seconds from the last one's beginning to the server's last end, how many could not connect, the most memory, the most sockets.
    """
    over, refused, waiting, most, sockets = asyncio.Event(), [], [], 0, 0
    for number in range(count):
        waiting.append(asyncio.ensure_future(linger(number, port, kinds[number % len(kinds)], over, refused)))
        if number % 50 == 49:
            await asyncio.sleep(0.05)
        if number % 500 == 499:
            most, sockets = max(most, memory(pid)), max(sockets, count_sockets(pid))
    begun = time.monotonic()
    while count_sockets(pid) > 50 and time.monotonic() - begun < LONGEST:
        await asyncio.sleep(0.25)
        most, sockets = max(most, memory(pid)), max(sockets, count_sockets(pid))
    ended = time.monotonic() - begun
    over.set()
    await asyncio.gather(*waiting)
    return ended, len(refused), most, sockets


class Slow(unittest.TestCase):
    """Both kinds of listener under siege."""

    @classmethod
    def setUpClass(cls):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, HOSTILE + 500), hard), hard))

    def besieged(self, kinds, options=()):
        variables = {"RATE_LIMIT_ENABLED": "true", "MAX_REQUESTS_PER_MINUTE": "1000000", "MAX_REQUESTS_PER_HOUR": "10000000"}
        with Server(LAB, options=list(options), variables=variables) as server:
            token = server.token("admin")
            host, port = server.ready["url"].split("//")[1].split(":")
            before = memory(server.process.pid)
            command = [sys.executable, "-c", LAWFUL, host, port, server.ready["ca_file"] or "", token, "22"]
            lawful = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            self.addCleanup(lawful.stdout.close)
            ended, refused, most, sockets = asyncio.run(siege(int(port), kinds, server.process.pid))
            told = json.loads(lawful.communicate(timeout=60)[0])
            growth = (most - before) / MEBIBYTE
            print("\n%s: %d hostile (at most %d at once, %d could not connect), the last ended %.1f s after it began; lawful %d requests, "
                  "%d failed, p50 %.1f ms, p99 %.1f ms, longest %.1f ms; memory +%.0f MiB"
                  % ("+".join(kinds), HOSTILE, sockets, refused, ended, told["requests"], told["failed"], told["p50"] * 1e3,
                     told["p99"] * 1e3, told["longest"] * 1e3, growth), file=sys.stderr)
            self.assertEqual(told["failed"], 0, told)
            self.assertGreater(told["requests"], 100)
            self.assertLess(ended, LONGEST, "a slow connection outlived its time")
            self.assertLess(growth, MEMORY)
            with server.http() as client:
                self.assertEqual(client.get("/health/ready").status_code, 200)
            self.assertNotIn("panic", server.log())

    def test_slow_heads_bodies_and_readers(self):
        self.besieged(["head", "body", "read", "silence"])

    def test_slow_handshakes(self):
        self.besieged(["handshake", "silence"], ["--tls", "internal"])


if __name__ == "__main__":
    unittest.main()
