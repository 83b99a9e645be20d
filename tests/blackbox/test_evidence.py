"""The audit log as evidence: signed while the server runs, taken away, checked by somebody who has only the public key."""

import contextlib
import json
import os
import re
import shutil
import socket
import sqlite3
import ssl
import subprocess
import threading
import unittest

from support import Server, certificate, faked_time, program, wait_for

SOURCE = """
    from interlock import task
    @task
    def measure(well: str = "A1") -> int:
        return len(well)
"""


def clock(shift):
    """Variables for a server whose clock is wrong by so much."""
    return dict(faked_time(), FAKETIME=shift)


def verifier():
    """The separate verifier, beside the program under test."""
    return os.path.join(os.path.dirname(program()), "interlock-verify")


class Evidence(unittest.TestCase):
    """One server, its log, and what an auditor sees of it."""

    def setUp(self):
        self.server = Server(SOURCE)
        self.addCleanup(self.server.close)
        self.server.variables["AUDIT_ANCHOR_FILE"] = os.path.join(self.server.folder, "anchors.jsonl")
        self.server.start()

    def interlock(self, *arguments, code=0):
        """The command line on the server's state folder."""
        done = subprocess.run([program(), "audit", *arguments, "--state", self.server.state], capture_output=True, text=True,
                              timeout=60, env=self.server.variables, check=False)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        return done.stdout if code == 0 else done.stderr

    def verify(self, *arguments, code=0):
        """The separate verifier, without any environment."""
        done = subprocess.run([verifier(), *arguments], capture_output=True, text=True, timeout=60, env={}, check=False)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        return done.stdout if code == 0 else done.stderr

    def fill(self, count=300):
        """Give the log something to hold: two entries a call."""
        for number in range(count // 2):
            self.assertEqual(self.server.run("measure", {"well": "B%d" % number}).status_code, 200)
        return self.server.get("/audit?limit=1").json()["total"]

    def export(self, name="log.jsonl"):
        """The log as a file."""
        path = os.path.join(self.server.folder, name)
        self.interlock("export", path)
        return path

    def attack(self, *statements):
        """As somebody who can write the database file."""
        connection = sqlite3.connect(os.path.join(self.server.state, "interlock.db"))
        with connection:
            for statement in statements:
                connection.execute(statement)
        connection.close()

    def test_the_log_is_signed_exported_and_checked_with_the_key_alone(self):
        total = self.fill()
        wait_for(lambda: self.signed() >= total, "a checkpoint over all entries")
        key = self.interlock("key").strip()
        path = self.export()
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)

        self.assertIn("good: entries 1 to ", self.verify("--key", key, path))
        report = json.loads(self.interlock("verify", "-o", "json"))
        self.assertTrue(report["verified"] and report["signed"] >= total and report["checkpoints"] >= 1, report)
        # The export itself is on record, and a second one does not overwrite the first.
        self.assertEqual(self.server.audit(action="audit.exported")[0]["actor_agent_id"][:8], "console:")
        self.assertIn("File exists", self.interlock("export", path, code=1))

        other = subprocess.run([program(), "audit", "key", "--state", self.other()], capture_output=True, text=True, timeout=60,
                               env=self.server.variables, check=True).stdout.strip()
        self.assertIn("nothing in this log is signed by a key that is trusted", self.verify("--key", other, path, code=1))
        with open(path, encoding="utf-8") as opened:
            lines = opened.readlines()
        changed = [line.replace('"well"', '"wall"', 1) if '"id":150,' in line else line for line in lines]
        changed = changed if changed != lines else [line.replace("admin", "nobody", 1) if '"id":150,' in line else line for line in lines]
        self.assertNotEqual(changed, lines)
        for words, content in (("entry 150 was changed", changed), ("line %d: the file was cut off here" % len(lines), lines[:-1] + [lines[-1][:-2]])):
            with open(path, "w", encoding="utf-8") as opened:
                opened.writelines(content)
            self.assertIn(words, self.verify("--key", key, path, code=1))
        self.assertIn("without --key nobody is trusted", self.verify(path, code=2))

    def signed(self):
        """How many entries the newest checkpoint covers."""
        answer = self.server.get("/audit/checkpoint")
        return int(answer.text.split("\n")[1]) if answer.status_code == 200 else 0

    def other(self):
        """The state folder of another installation."""
        with Server(SOURCE) as other:
            self.addCleanup(lambda: None)
            other.stop()
            kept = os.path.join(self.server.folder, "other")
            os.rename(other.state, kept)
            return kept

    def test_one_entry_is_proven_over_http_and_shows_no_other(self):
        total = self.fill(20)
        wait_for(lambda: self.signed() >= total, "a checkpoint over all entries")
        proof = self.server.get("/audit/proof?entry=3")
        self.assertEqual((proof.status_code, proof.json()["entry"]["id"]), (200, 3))
        path = os.path.join(self.server.folder, "proof.json")
        with open(path, "w", encoding="utf-8") as opened:
            opened.write(proof.text)
        key = self.interlock("key").strip()

        self.assertIn("good: entry 3 is in the log interlock/", self.verify("--key", key, "--proof", path))
        self.assertEqual(json.loads(self.interlock("prove", "3"))["entry"], proof.json()["entry"])
        with open(path, "w", encoding="utf-8") as opened:
            opened.write(proof.text.replace('"id":3', '"id":4'))
        self.assertIn("entry 4 was changed", self.verify("--key", key, "--proof", path, code=1))
        for query, status in (("?entry=99999", 404), ("?entry=0", 404), ("?entry=x", 422), ("", 422)):
            self.assertEqual(self.server.get("/audit/proof" + query).status_code, status, query)
        self.server.add_users("vera")
        self.assertEqual([self.server.get(path, user="vera").status_code for path in ("/audit/proof?entry=3", "/audit/checkpoint")], [403, 403])

    def test_an_old_copy_that_was_put_back_is_noticed_at_the_start(self):
        self.fill(20)
        self.server.stop()
        database = os.path.join(self.server.state, "interlock.db")
        with open(database, "rb") as opened:
            old = opened.read()
        self.server.start()
        total = self.fill(20)
        wait_for(lambda: self.signed() >= total, "a checkpoint over all entries")
        note = self.server.get("/audit/checkpoint").text
        # The server appends each minute; the same line now, as a witness would have it.
        with open(self.server.variables["AUDIT_ANCHOR_FILE"], "a", encoding="utf-8") as opened:
            opened.write(json.dumps({"type": "checkpoint", "note": note}) + "\n")
        self.interlock("verify", "--anchors", self.server.variables["AUDIT_ANCHOR_FILE"])
        self.server.stop()
        for name in os.listdir(self.server.state):
            if name.startswith("interlock.db"):
                os.unlink(os.path.join(self.server.state, name))
        with open(database, "wb") as opened:
            opened.write(old)

        self.server.start()

        wait_for(lambda: self.server.events("audit_tampered"), "the alarm")
        self.assertIn("an old copy was put back", self.server.events("audit_tampered")[0]["details"]["reason"])
        said = self.interlock("verify", "--anchors", self.server.variables["AUDIT_ANCHOR_FILE"], code=13)
        self.assertRegex(said, r"entries were signed for, but the log ends at|an entry from \d+ to \d+ was changed")

    def test_checkpoints_leave_the_machine_by_themselves_and_find_a_log_that_was_cut(self):
        """The folder stands for one that another machine exports."""
        self.fill(20)
        anchors = self.server.variables["AUDIT_ANCHOR_FILE"]
        wait_for(lambda: os.path.exists(anchors), "the first checkpoint of a running server", 90)
        key = self.interlock("key").strip()
        path = self.export()
        self.verify("--key", key, "--noted", anchors, path)
        self.server.stop()
        with open(path, encoding="utf-8") as opened:
            lines = opened.readlines()
        # Whoever owns the machine owns its key too, and can sign a shorter log; not what has left it.
        self.attack("DELETE FROM audit WHERE seq > 8", "DELETE FROM audit_seals WHERE size > 8")
        self.assertEqual(len([line for line in lines if '"type":"entry"' in line]) > 8, True)
        said = self.interlock("verify", "--anchors", anchors, code=13)
        self.assertRegex(said, r"entries were signed for, but the log ends at|entries that were signed")
        self.server.start()
        wait_for(lambda: self.server.events("audit_tampered"), "the alarm")

    def test_a_log_that_was_changed_while_no_server_ran_is_not_signed_for(self):
        self.fill(20)
        self.server.stop()
        self.attack("UPDATE audit SET actor = 'eve' WHERE seq = 7")
        self.assertIn("entry 7 was changed", self.interlock("verify", code=13))
        # Cut off, and everything that was signed behind the cut too: the checkpoint that is left still says it.
        self.attack("DELETE FROM audit WHERE seq > 15")
        self.server.start()

        wait_for(lambda: self.server.events("audit_tampered"), "the alarm")
        # Work goes on; the alarm is for people.
        self.assertEqual(self.server.run("measure").status_code, 200)

    def test_old_entries_are_deleted_unless_they_are_held(self):
        self.server.stop()
        shutil.rmtree(self.server.state)
        self.server.variables.update(clock("-100d"))
        self.server.start()
        self.fill(600)
        self.server.stop()
        self.server.tokens.clear()
        # Else the jump is not believed for a day.
        os.remove(os.path.join(self.server.state, "clock"))
        for name in clock("-100d"):
            del self.server.variables[name]
        self.server.variables["AUDIT_LEGAL_HOLD"] = "true"
        self.server.start()
        self.assertEqual(self.server.audit(action="audit.retention_applied"), [])
        self.assertEqual(self.oldest(), 1)
        self.server.variables["AUDIT_LEGAL_HOLD"] = "false"
        self.server.restart()

        wait_for(lambda: self.oldest() == 513, "the deletion of whole tiles")

        record = wait_for(lambda: self.server.audit(action="audit.retention_applied"), "the record of it")[0]
        self.assertEqual(record["details"], {"deleted": 512, "older_than_days": 90, "upto": 512})
        self.server.stop()
        self.assertEqual(json.loads(self.interlock("verify", "-o", "json"))["first"], 513)
        self.assertIn("good: entries 513 to ", self.verify("--key", self.interlock("key").strip(), self.export()))

    def oldest(self):
        """The oldest entry that is there."""
        connection = sqlite3.connect(os.path.join(self.server.state, "interlock.db"))
        oldest = connection.execute("SELECT min(seq) FROM audit").fetchone()[0]
        connection.close()
        return oldest


class Collector(threading.Thread):
    """A receiver of syslog over TLS. ``cut``: after so many bytes it hangs up once."""

    def __init__(self, folder, cut=None):
        super().__init__(daemon=True)
        self.authority, key = certificate(folder, "collector-%d" % id(self))
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(self.authority, key)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.place = "127.0.0.1:%d" % self.listener.getsockname()[1]
        self.cut, self.messages, self.problem = cut, [], None
        self.start()

    def run(self):
        while True:
            try:
                plain, _ = self.listener.accept()
            except OSError:
                return
            plain.settimeout(20)
            try:
                with self.context.wrap_socket(plain, server_side=True) as connection:
                    data, whole = b"", False
                    while not whole:
                        part = connection.recv(65536)
                        data, whole = data + part, not part
                        if self.cut is not None and len(data) > self.cut:
                            self.cut = None
                            plain.close()
                            break
                    while data:
                        length, _, rest = data.partition(b" ")
                        if not length.isdigit() or len(rest) < int(length):
                            break
                        self.messages.append(rest[:int(length)].decode())
                        data = rest[int(length):]
                    if whole:
                        # Everything is taken, and it says so.
                        with contextlib.suppress(OSError):
                            connection.unwrap()
            except OSError as problem:
                self.problem = problem


class Sending(unittest.TestCase):
    """Entries on their way to other systems."""

    def send(self, server, collector, form="rfc5424", code=0, authority=None):
        done = subprocess.run([program(), "audit", "send", "--to", collector.place, "--ca-file", authority or collector.authority, "--position",
                               os.path.join(server.folder, "position-" + form), "--form", form, "--state", server.state, "-o", "json"],
                              capture_output=True, text=True, timeout=60, env=server.variables, check=False)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        return json.loads(done.stdout) if code == 0 else done.stdout + done.stderr

    def test_entries_arrive_over_tls_and_none_is_lost_when_the_collector_hangs_up(self):
        with Server(SOURCE) as server:
            collector = Collector(server.folder)
            for number in range(150):
                self.assertEqual(server.run("measure", {"well": "B%d" % number}).status_code, 200)
            first = self.send(server, collector)
            numbers = [int(re.search(r' id="(\d+)"', message).group(1)) for message in collector.messages]
            self.assertEqual(numbers, list(range(1, first["last"] + 1)))
            for message in collector.messages:
                self.assertRegex(message, r"^<1(08|10)>1 \d{4}-\d\d-\d\dT[0-9:.]+Z - interlock - [a-z_.]+ \[audit@32473 id=")
            self.assertEqual(self.send(server, collector)["sent"], 0)
            # The next one hangs up in the middle: the position stays, and the entries come again.
            cutting = Collector(server.folder, cut=3000)
            server.run("measure")
            self.assertIn("run it again", self.send(server, cutting, form="cef", code=8))
            self.assertFalse(os.path.exists(os.path.join(server.folder, "position-cef")))
            sent = self.send(server, cutting, form="cef")
            found = {int(number) for message in cutting.messages for number in re.findall(r"externalId=(\d+)", message)}
            self.assertEqual(found, set(range(1, sent["last"] + 1)))
            self.assertIn("CEF:0|Interlock|interlock|", cutting.messages[-1])
            # Nobody else can pass for the collector.
            stranger, _ = certificate(server.folder, "stranger")
            self.assertIn("connect to", self.send(server, collector, form="ocsf", code=8, authority=stranger))
            collector.messages.clear()
            self.send(server, collector, form="ocsf")
            events = [json.loads(message.partition(" - interlock - ")[2].split(" ", 2)[2]) for message in collector.messages]
            self.assertEqual({event["class_uid"] for event in events} - {3001, 3002, 6003}, set())
            path = os.path.join(server.folder, "trail.ocsf")
            subprocess.run([program(), "audit", "export", path, "--form", "ocsf", "--state", server.state], timeout=60, env=server.variables, check=True)
            with open(path, encoding="utf-8") as opened:
                self.assertEqual([json.loads(line) for line in opened][:len(events)], events)
            for one in (collector, cutting):
                one.listener.close()


if __name__ == "__main__":
    unittest.main()
