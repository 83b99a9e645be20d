"""Power cuts: whatever moment the power goes at, and whatever the disk had not written yet, no event that was acknowledged is lost.

One server works while ``powercut.c`` writes down every write, truncation and flush of its database. Afterwards the power is cut at
random moments of that record: what was flushed by then is on the disk; of each other write, any sectors of 512 bytes may be. The database
is opened from that, as after a real cut, and compared with what clients had been told by then.
"""

import os
import random
import sqlite3
import struct
import subprocess
import tempfile
import threading
import time
import unittest

from support import Server, tool, together

CUTS = int(os.environ.get("INTERLOCK_POWER_CUTS", "200"))
SEED = int(os.environ.get("INTERLOCK_POWER_SEED", "1"))
CALLS = 240
SECTOR = 512
HEAD = struct.Struct("<ddccqI")
HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = """
    from interlock import task
    @task
    def measure(well: str = "A1") -> int:
        return len(well)
"""


def operations(path):
    """The record: ``(begin, end, kind, file, offset, bytes)``."""
    with open(path, "rb") as opened:
        data = opened.read()
    at, found = 0, []
    while at < len(data):
        begin, end, kind, file, offset, length = HEAD.unpack_from(data, at)
        at += HEAD.size
        content = data[at:at + length] if kind == b"w" else b""
        at += len(content)
        found.append((begin, end, kind.decode(), file.decode(), offset, content))
    return found


def image(record, file, moment, dice):
    """What a file may hold when the power goes at ``moment``."""
    flushes = [(begin, end) for begin, end, kind, of, _, _ in record if of == file and kind in "sS" and end <= moment]
    last = max((begin for begin, _ in flushes), default=-1.0)
    content = bytearray()
    for begin, end, kind, of, offset, data in record:
        if of != file or kind in "sS" or begin >= moment:
            continue
        safe = end <= last
        if kind == "t":
            if safe or dice.random() < 0.5:
                del content[offset:]
                content.extend(bytes(max(0, offset - len(content))))
            continue
        content.extend(bytes(max(0, offset + len(data) - len(content))))
        whole = safe or dice.random() < 0.3
        for start in range(0, len(data), SECTOR):
            if whole or dice.random() < 0.5:
                part = data[start:start + SECTOR]
                content[offset + start:offset + start + len(part)] = part
    return bytes(content)


class PowerCuts(unittest.TestCase):
    """One run, many ends."""

    def test_no_acknowledged_event_is_lost(self):
        with tempfile.TemporaryDirectory() as folder:
            library, trace = os.path.join(folder, "powercut.so"), os.path.join(folder, "trace")
            subprocess.run([tool("cc"), "-shared", "-fPIC", "-O1", "-o", library, os.path.join(HERE, "powercut.c"), "-ldl", "-lpthread"], check=True, timeout=60)
            told, lock = [], threading.Lock()
            with Server(SOURCE, variables={"LD_PRELOAD": library, "POWERCUT_TRACE": trace}) as server:
                server.token()

                def work(worker):
                    with server.as_user() as client:
                        for number in range(CALLS // 4):
                            answer = client.post("/execute/measure", json={"well": "%d-%d" % (worker, number)})
                            moment = time.monotonic()
                            assert answer.status_code == 200, answer.text
                            with lock:
                                told.append((moment, answer.headers["X-Request-ID"]))

                begun = time.monotonic()
                together(4, work)
                ended = time.monotonic()
            record = operations(trace)
            flushes = [kind for _, _, kind, file, _, _ in record if file == "l" and kind in "sS"]
            self.assertGreater(len(flushes), 20, "the record is of the database")
            # fsync would write the time of change as well, with a commit of the file system's own (.cargo/config.toml).
            self.assertEqual(set(flushes), {"s"})
            dice, lost, kept, loose = random.Random(SEED), [], 0, 0
            for cut in range(CUTS):
                moment = dice.uniform(begun, ended)
                place = os.path.join(folder, "interlock.db")
                for file, ending in (("d", ""), ("l", "-wal")):
                    content = image(record, file, moment, dice)
                    with open(place + ending, "wb") as opened:
                        opened.write(content)
                if os.path.exists(place + "-shm"):
                    os.unlink(place + "-shm")
                connection = sqlite3.connect(place)
                self.assertEqual(connection.execute("PRAGMA integrity_check").fetchone()[0], "ok", (SEED, cut))
                numbers = [row[0] for row in connection.execute("SELECT seq FROM audit ORDER BY seq")]
                self.assertEqual(numbers, list(range(1, len(numbers) + 1)), (SEED, cut))
                broken = connection.execute("SELECT count(*) FROM audit a JOIN audit b ON b.seq = a.seq + 1 WHERE b.prev_hash <> a.hash").fetchone()[0]
                self.assertEqual(broken, 0, (SEED, cut))
                there = {row[0] for row in connection.execute("SELECT request_id FROM runs WHERE state = 'succeeded'")}
                recorded = {row[0] for row in connection.execute("SELECT request_id FROM audit WHERE action = 'device.executed'")}
                connection.close()
                promised = {request for at, request in told if at < moment}
                kept += len(promised)
                loose += len(there - promised)
                lost += [(cut, request) for request in promised - (there & recorded)]
            self.assertEqual(lost, [], "seed %d" % SEED)
            print("%d power cuts, %d promises kept, %d runs were stored and not yet told" % (CUTS, kept, loose))
            self.assertGreater(kept, CUTS)

    def test_a_disk_that_loses_what_it_has_flushed_would_be_noticed(self):
        """The check itself: without its flushes the same record loses what was promised."""
        record = [(1.0, 1.1, "w", "d", 0, b"x" * 1024), (1.2, 1.3, "s", "d", 0, b"")]
        dice = random.Random(SEED)
        self.assertEqual(image(record, "d", 2.0, dice), b"x" * 1024)
        self.assertTrue(any(image(record[:1], "d", 2.0, dice) != b"x" * 1024 for _ in range(20)))


if __name__ == "__main__":
    unittest.main()
