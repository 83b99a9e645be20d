"""The clock of the machine jumps while the real program runs: by minutes, hours and days, forward and back.

libfaketime reads the shift from a file, so that it changes under a running server. The time that runs are measured with
(CLOCK_MONOTONIC) does not jump on a real machine either.
"""

import os
import subprocess
import tempfile

from support import ADMIN_PASSWORD, Case, Server, faked_time, program, wait_for

SOURCE = '''
import os, time
from interlock import task, safe_state, ctx

FOLDER = os.path.dirname(os.path.abspath(__file__))

@task
def act(mark: str) -> str:
    with open(os.path.join(FOLDER, "acted"), "a") as acted:
        acted.write(mark + "\\n")
    return mark

@task
def hold() -> int:
    "Ends when the file `go` appears."
    while not os.path.exists(os.path.join(FOLDER, "go")):
        ctx.sleep(0.01)
    return 7

@safe_state
def rest(reason):
    with open(os.path.join(FOLDER, "rested"), "a") as rested:
        rested.write(reason + "\\n")
'''
JUMPS = ["+10m", "-10m", "+2h", "-2h", "+40d", "-40d"]


class Jumping(Server):
    """A server whose clock is moved with ``jump``."""

    def __init__(self, source, variables=None):
        self.shift = tempfile.NamedTemporaryFile("w", prefix="interlock-shift-")
        self.jump("+0s")
        shifted = dict(faked_time(), FAKETIME_NO_CACHE="1", FAKETIME_TIMESTAMP_FILE=self.shift.name)
        super().__init__(source, variables=dict(variables or {}, **shifted))

    def jump(self, shift):
        """Set the clock to this much from the true time. One write, so that no half of it is read."""
        self.shift.seek(0)
        self.shift.write("%-8s" % shift)
        self.shift.flush()

    def path(self, name):
        return os.path.join(self.folder, name)

    def acted(self):
        with open(self.path("acted"), encoding="utf-8") as acted:
            return acted.read().split()


class Clock(Case):
    """Each has a server of its own."""

    @classmethod
    def setUpClass(cls):
        pass

    def setUp(self):
        self.server = Jumping(SOURCE)
        self.addCleanup(self.server.shift.close)
        self.addCleanup(self.server.close)
        self.server.start()

    def sign_in(self):
        """A new token: the one before may be of another time."""
        self.server.tokens.clear()
        self.server.token()

    def test_a_run_neither_times_out_nor_lasts_for_hours(self):
        self.sign_in()
        begun = self.server.begin("hold")
        wait_for(lambda: self.server.run_of(begun)["state"] == "running", "a running run")

        for shift in JUMPS:
            self.server.jump(shift)
            self.sign_in()
            self.assertEqual(self.server.run_of(begun)["state"], "running", shift)
        open(self.server.path("go"), "w").close()

        run = self.server.ended(begun)
        self.assertEqual((run["state"], run["result"]), ("succeeded", 7))
        self.assertLess(0, run["duration_seconds"])
        self.assertLess(run["duration_seconds"], 60)
        self.assertHealthy()

    def test_a_key_acts_once_whatever_the_clock_says(self):
        for number, shift in enumerate(["+0s", "+10m", "-10m", "+2h", "-2h", "+23h", "-40d", "+0s"]):
            self.server.jump(shift)
            self.sign_in()
            for key in range(number + 1):
                answer = self.server.run("act", {"mark": "m%d" % key}, key="key-%d" % key)
                self.assertEqual(answer.status_code, 200, (shift, answer.text))
                self.assertEqual(answer.json()["result"], "m%d" % key)

        self.assertEqual(self.server.acted(), ["m%d" % number for number in range(8)])

    def test_a_key_acts_once_when_the_server_starts_again_after_a_jump(self):
        self.sign_in()
        first = self.server.run("act", {"mark": "once"}, key="key")
        self.assertEqual(first.status_code, 200, first.text)
        told = os.path.join(self.server.state, "clock")
        wait_for(lambda: os.path.exists(told), "the time for the next start")

        for how, shift in ((self.server.kill, "+3d"), (self.server.stop, "+40d"), (self.server.kill, "-1d"), (self.server.stop, "+5d")):
            how()
            self.server.jump(shift)
            self.server.start()
            self.sign_in()
            again = self.server.run("act", {"mark": "once"}, key="key")
            self.assertEqual((again.status_code, again.json().get("run_id")), (200, first.json()["run_id"]), (shift, again.text))

        self.assertEqual(self.server.acted(), ["once"])

    def test_a_broken_time_of_the_last_run_does_not_stop_the_start(self):
        told = os.path.join(self.server.state, "clock")
        for broken in (b"", b"{", b'{"settled": 7}', b"\xff" * 100):
            self.server.stop()
            with open(told, "wb") as file:
                file.write(broken)
            self.server.start()
            self.assertHealthy()

        def told_again():
            with open(told, "rb") as file:
                return b'"settled"' in file.read()

        wait_for(told_again, "a time that can be read")

    def test_the_emergency_stop_works_after_every_jump(self):
        for number, shift in enumerate(JUMPS, 1):
            self.server.jump(shift)
            self.sign_in()
            begun = self.server.begin("hold")
            wait_for(lambda: self.server.run_of(begun)["state"] == "running", "a running run")

            stopped = self.server.post("/stop", {"reason": shift})

            self.assertEqual(stopped.status_code, 200, (shift, stopped.text))
            self.assertEqual(self.server.ended(begun)["state"], "cancelled")
            with open(self.server.path("rested"), encoding="utf-8") as rested:
                self.assertEqual(rested.read().split().count("emergency_stop"), number, shift)
            released = self.server.post("/stop/release", {"reason": "done"})
            self.assertEqual(released.status_code, 200, (shift, released.text))

    def test_the_trail_stays_whole_and_in_order(self):
        for shift in JUMPS:
            self.server.jump(shift)
            self.sign_in()
            self.server.run("act", {"mark": "m"})

        entries = self.server.audit()
        numbers = [entry["id"] for entry in entries]
        self.assertEqual(numbers, list(range(numbers[0], numbers[0] + len(numbers))))
        verified = subprocess.run([program(), "audit", "verify", "--state", self.server.state], capture_output=True, text=True,
                                  timeout=60, env=self.server.variables)
        self.assertEqual(verified.returncode, 0, verified.stderr)

    def test_a_token_of_another_time_is_refused_and_the_next_one_works(self):
        self.sign_in()
        self.server.jump("+40d")
        with self.server.as_user() as client:
            self.assertEqual(client.get("/tasks").status_code, 401)
        self.sign_in()
        self.assertEqual(self.server.get("/tasks").status_code, 200)

    def test_nobody_is_locked_out_for_longer_because_the_clock_went_back(self):
        server = Jumping(SOURCE, {"RATE_LIMIT_ENABLED": "true"})
        self.addCleanup(server.shift.close)
        self.addCleanup(server.close)
        server.jump("+30d")
        server.start()
        with server.http() as client:
            for _ in range(30):
                client.post("/auth/login", json={"username": "admin", "password": "wrong"})
            locked = client.post("/auth/login", json={"username": "admin", "password": ADMIN_PASSWORD})
            self.assertEqual(locked.status_code, 429, locked.text)
            server.jump("+0s")
            again = client.post("/auth/login", json={"username": "admin", "password": ADMIN_PASSWORD})
            self.assertLessEqual(int(again.headers.get("retry-after", 0)), 3600, again.text)

    def test_old_runs_go_with_their_files_if_they_are_not_to_be_kept(self):
        source = SOURCE + '''
@task
def picture() -> int:
    ctx.artifact("plate.csv", b"A1,7")
    return 7
'''
        for days, kept in (("3", True), ("2", False)):
            server = Jumping(source, {"DEVICE_RUN_RETENTION_DAYS": days})
            self.addCleanup(server.shift.close)
            self.addCleanup(server.close)
            server.start()
            run = server.run("picture", key="k").json()["run_id"]
            folder = os.path.join(server.state, "device", "artifacts", run)
            self.assertEqual(os.listdir(folder), ["plate.csv"])

            server.stop()
            # Else a jump is not believed for a day.
            os.remove(os.path.join(server.state, "clock"))
            server.jump("+60h")
            server.start()
            server.tokens.clear()
            if not kept:
                wait_for(lambda: server.get("/runs/" + run).status_code == 404, "the end of an old run")

            self.assertEqual(server.get("/runs/" + run).status_code, 200 if kept else 404)
            self.assertEqual(server.get("/runs/%s/artifacts/plate.csv" % run).status_code, 200 if kept else 404)
            self.assertEqual(os.path.exists(folder), kept)
            self.assertEqual(len(server.audit(action="system.cleaned")), 0 if kept else 1)


if __name__ == "__main__":
    import unittest
    unittest.main()
