"""Events copied to a Redis Stream, which dies in between: publishing does not notice, and the copy is whole again."""

import socket
import time
import unittest
import urllib.parse

from orchestra import Orchestrator
from support import wait_for
from test_shared import Redis

STREAM = "lab-events"


class Connection:
    """As much of the Redis protocol (RESP 2) as the tests need."""

    def __init__(self, url):
        parts = urllib.parse.urlsplit(url)
        self.socket = socket.create_connection((parts.hostname, parts.port), timeout=10)
        self.file = self.socket.makefile("rb")
        self("AUTH", *filter(None, (parts.username, parts.password)))
        self("SELECT", parts.path.strip("/") or "0")

    def close(self):
        self.file.close()
        self.socket.close()

    def __call__(self, *words):
        words = [str(word).encode("utf-8") for word in words]
        self.socket.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words))
        return self.answer()

    def answer(self):
        line = self.file.readline()
        kind, text = line[:1], line[1:-2]
        if kind == b"-":
            raise AssertionError(text.decode())
        if kind == b"*":
            return [self.answer() for _ in range(int(text))]
        if kind == b"$":
            return None if text == b"-1" else self.file.read(int(text) + 2)[:-2].decode("utf-8")
        return text.decode()


class Mirror(unittest.TestCase):
    """One orchestrator, one Redis."""

    @classmethod
    def setUpClass(cls):
        cls.redis = Redis()
        cls.addClassCleanup(cls.redis.close)
        cls.redis.start()
        cls.url = cls.redis.where["url"] + "/5"
        cls.server = Orchestrator(variables={"REDIS_URL": cls.url, "EVENTS_MIRROR_STREAM": STREAM})
        cls.addClassCleanup(cls.server.close)
        cls.server.start()

    def ask(self, *words, url=None):
        connection = Connection(url or self.url)
        self.addCleanup(connection.close)
        return connection(*words)

    def copied(self):
        entries = self.ask("XRANGE", STREAM, "-", "+")
        return [(name, dict(zip(fields[::2], fields[1::2]))) for name, fields in entries]

    def test_the_copy_survives_that_redis_dies_and_forgets(self):
        before = [self.server.publish("plate.read", {"plate": "P%d" % number, "é": [number]}) for number in range(5)]
        wait_for(lambda: len(self.copied()) == 5, "five copies")
        entries = self.copied()
        self.assertEqual([name for name, _ in entries], [event["stream_id"] for event in before])
        self.assertEqual(entries[3][1]["topic"], "plate.read")
        self.assertIn('"P3"', entries[3][1]["payload"])
        self.assertEqual({"event_id", "topic", "payload", "source_agent_id", "published_by", "published_at"}, set(entries[0][1]))
        self.redis.stop()
        during = []
        for number in range(10):
            begun = time.monotonic()
            during.append(self.server.publish("plate.read", {"number": number}))
            self.assertLess(time.monotonic() - begun, 2.0)
        wait_for(lambda: self.server.series()['orchestrator_events_mirrored_total{result="failed"}'] > 0, "an attempt that fails")
        self.assertTrue(self.redis.start().where["url"] + "/5" == self.url, "the same place")

        wait_for(lambda: len(self.copied()) >= 15, "all fifteen again", 30)

        names = [name for name, _ in self.copied()]
        self.assertEqual(names, [event["stream_id"] for event in before + during])
        after = self.server.publish("plate.read")
        wait_for(lambda: self.copied()[-1][0] == after["stream_id"], "the next one")

    def test_a_stream_of_other_events_is_left_alone(self):
        self.ask("XADD", "of-others", "9999999999999-1", "n", "1")
        with Orchestrator(variables={"REDIS_URL": self.url, "EVENTS_MIRROR_STREAM": "of-others"}) as other:
            other.publish("plate.read")
            wait_for(lambda: "name another stream" in other.log(), "the warning")
        self.assertEqual(self.ask("XLEN", "of-others"), "1")

    def test_settings_that_make_no_copy_do_not_start(self):
        for variables in ({"EVENTS_MIRROR_STREAM": "x"}, {"EVENTS_MIRROR_STREAM": "interlock:servers", "REDIS_URL": self.url},
                          {"EVENTS_MIRROR_STREAM": "x", "REDIS_URL": self.url, "EVENTS_MIRROR_LENGTH": "0"}):
            server = Orchestrator(variables=variables)
            self.addCleanup(server.close)
            _, said = server.refused()
            self.assertIn("mirror", said.lower())


if __name__ == "__main__":
    unittest.main()
