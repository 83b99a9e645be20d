"""The emergency stop, and keys that keep a call from acting twice."""

import threading
import unittest

from lab import Lab
from support import is_running, together, wait_for


class EmergencyStop(Lab):
    """Engaged by anyone, released by an administrator only, remembered over restarts."""

    ADD_USERS = ("olaf", "vera", "adam", "audrey")

    def test_stop_while_busy(self):
        answers = {}
        caller = threading.Thread(target=lambda: answers.update(one=self.server.run("stubborn", {"seconds": 60}, "olaf", "stop-key")))
        caller.start()
        run = wait_for(lambda: self.server.get("/device").json()["running"], "the action runs")
        self.running(run)
        worker = self.server.get("/device").json()["worker"]["pid"]
        report = self.server.post("/stop", {"reason": "smoke"}, "vera")
        self.assertEqual(report.status_code, 200)
        report = report.json()
        self.assertEqual((report["engaged"], report["confirmed"], report["of"], report["cancelled_run"], report["reason"]),
                         (True, 1, 1, run, "smoke"))
        self.assertEqual(report["devices"][0]["safe_state"], "done")
        self.assertFalse(is_running(worker), "the worker lives after the stop")
        self.assertIn("rest:emergency_stop", self.acted())
        caller.join(20)
        self.assertProblem(answers["one"], 409, "run_cancelled")
        self.assertProblem(self.server.run("later", user="olaf"), 409, "emergency_stop_engaged")
        self.assertEqual(self.server.get("/device").json()["state"], "stopped")
        for stop in (self.server.stop, self.server.kill):
            stop()
            self.server.start()
            device = self.server.get("/device").json()
            self.assertEqual((device["emergency_stop"]["engaged"], device["emergency_stop"]["by"], device["emergency_stop"]["reason"]),
                             (True, "vera", "smoke"))
            self.assertProblem(self.server.run("move", {"key": "stopped"}, "olaf", "after-stop"), 409, "emergency_stop_engaged")
        for user in ("olaf", "vera", "audrey"):
            self.assertProblem(self.server.post("/stop/release", {"reason": "please"}, user), 403, "forbidden")
        for body in ({}, {"reason": ""}, {"reason": "  "}, {"reason": 5}, {"reason": "x" * 201}, {"reason": "a\nb"}):
            self.assertProblem(self.server.post("/stop/release", body, "adam"), 422, "invalid_request")
        self.assertEqual(self.server.post("/stop/release", {"reason": "looked"}, "adam").status_code, 200)
        answer = self.server.run("move", {"key": "stopped"}, "olaf", "after-stop")
        self.assertEqual(answer.status_code, 200, "a refused call keeps its key free")
        self.assertEqual(self.acted().count("stopped"), 1)
        self.assertEqual(self.server.run("stubborn", {"seconds": 60}, "olaf", "stop-key").status_code, 409)
        actions = [(row["action"], row["actor_agent_id"]) for row in self.server.audit()]
        self.assertTrue(any(actor == "vera" and "stop" in action for action, actor in actions), actions)
        self.assertTrue(any(actor == "adam" and "release" in action for action, actor in actions), actions)

    def test_every_role_may_stop_with_any_body(self):
        for user, body in (("olaf", b""), ("vera", b"{not json"), ("adam", b'{"reason": 5}'), ("audrey", b"\xff"), ("admin", b'{"reason": "' + b"x" * 5000 + b'"}')):
            with self.server.as_user(user) as client:
                answer = client.post("/stop", content=body, headers={"Content-Type": "application/json"})
            self.assertEqual(answer.status_code, 200, (user, answer.text))
            self.assertIs(answer.json()["engaged"], True)
        with self.server.http() as client:
            self.assertEqual(client.post("/stop").status_code, 401)
        self.assertEqual(self.server.post("/stop/release", {"reason": "looked"}, "adam").status_code, 200)

    def test_stops_at_once_from_many(self):
        run = self.server.begin("spin", {"seconds": 60}, "olaf")
        self.running(run)
        answers = together(8, lambda number: self.server.post("/stop", user=("olaf", "vera")[number % 2]))
        self.assertEqual([answer.status_code for answer in answers], [200] * 8)
        self.assertEqual({answer.json()["confirmed"] for answer in answers}, {1})
        self.assertEqual(self.server.post("/stop/release", {"reason": "looked"}, "adam").status_code, 200)


class Keys(Lab):
    """Idempotency keys: one act, one answer."""

    ADD_USERS = ("ada",)

    def test_thirty_calls_with_one_key_act_once(self):
        self.server.token()
        answers = together(30, lambda number: self.server.run("move", {"key": "thirty", "seconds": 0.3}, key="thirty"))
        self.assertEqual({answer.status_code for answer in answers}, {200})
        self.assertEqual(len({answer.text for answer in answers}), 1)
        self.assertEqual(sum("idempotency-replayed" not in answer.headers for answer in answers), 1)
        self.assertEqual(self.acted().count("thirty"), 1)

    def test_a_key_belongs_to_its_body_and_its_owner(self):
        first = self.server.run("move", {"key": "mine"}, key="body")
        self.assertEqual(first.status_code, 200)
        for task, parameters, headers in (("move", {"key": "other"}, {}), ("later", {}, {}), ("move", {"key": "mine"}, {"Interlock-Simulate": "true"})):
            self.assertProblem(self.server.run(task, parameters, key="body", headers=headers), 422, "idempotency_key_reused")
        self.assertEqual(self.server.run("move", {"key": "mine", "seconds": 0}, key="body").json(), first.json(), "defaults are the same body")
        other = self.server.run("move", {"key": "hers"}, "ada", "body")
        self.assertEqual((other.status_code, other.json()["result"]["acted"]), (200, "hers"))
        self.assertEqual((self.acted().count("mine"), self.acted().count("other")), (1, 0))

    def test_a_failure_is_the_answer_too(self):
        first = self.server.run("fail", {"text": "once"}, key="failing")
        second = self.server.run("fail", {"text": "once"}, key="failing")
        self.assertEqual((first.status_code, second.status_code), (500, 500))
        self.assertEqual(first.headers["interlock-run"], second.headers["interlock-run"])

    def test_a_client_that_hangs_up_finds_its_result(self):
        with self.assertRaises(Exception):
            self.server.run("move", {"key": "hung-up", "seconds": 1}, key="hung-up", timeout=0.3)
        answer = self.server.run("move", {"key": "hung-up", "seconds": 1}, key="hung-up")
        self.assertEqual((answer.status_code, answer.headers["idempotency-replayed"]), (200, "true"))
        self.assertEqual(self.acted().count("hung-up"), 1)

    def test_a_key_survives_restarts(self):
        first = self.server.run("move", {"key": "long"}, key="long")
        for stop in (self.server.stop, self.server.kill):
            stop()
            self.server.start()
            again = self.server.run("move", {"key": "long"}, key="long")
            self.assertEqual((again.status_code, again.json()), (200, first.json()))
        self.assertEqual(self.acted().count("long"), 1)


if __name__ == "__main__":
    unittest.main()
