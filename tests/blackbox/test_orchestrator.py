"""Tasks, runs, events, approvals over HTTP, as the contract has them. Each test makes its own tasks on one server."""

import json
import time
import unittest

from orchestra import NAP, NOBODY, SCOPES, SYSTEM, Orchestrator, events_of, soon
from support import Case, wait_for

TASK_MEMBERS = {"id", "title", "description", "schedule_kind", "schedule_expr", "timezone", "payload", "priority", "dedupe_key",
                "dedupe_window_seconds", "max_retries", "backoff_strategy", "concurrency_key", "created_by", "status", "created_at"}
RUN_MEMBERS = {"id", "task_id", "lease_owner", "leased_until", "started_at", "finished_at", "success", "error", "attempt", "output",
               "created_at", "trigger", "scheduled_for", "state"}


class WithServer(Case):
    """One server for the tests of a class."""

    VARIABLES = {}

    @classmethod
    def setUpClass(cls):
        cls.server = Orchestrator(variables=cls.VARIABLES)
        cls.addClassCleanup(cls.server.close)
        cls.server.start()
        cls.other = cls.server.new_agent("another")

    def tearDown(self):
        with self.server.http() as client:
            self.assertEqual(client.get("/health/live").status_code, 200)

    def ask(self, *arguments, **options):
        return self.server.ask(*arguments, **options)


class Tasks(WithServer):
    """CONTRACT 4."""

    def test_a_new_task_has_every_member_and_its_defaults(self):
        answer = self.ask("POST", "/tasks", self.server.body(title="Morning briefing"))

        self.assertEqual(answer.status_code, 201, answer.text)
        task = answer.json()
        self.assertLessEqual(TASK_MEMBERS, set(task))
        self.assertEqual({name: task[name] for name in ("priority", "dedupe_key", "dedupe_window_seconds", "max_retries", "backoff_strategy",
                                                        "concurrency_key", "timezone", "status", "schedule_expr", "created_by")},
                         {"priority": 5, "dedupe_key": None, "dedupe_window_seconds": 0, "max_retries": 3,
                          "backoff_strategy": "exponential_jitter", "concurrency_key": None, "timezone": "UTC", "status": "active",
                          "schedule_expr": None, "created_by": SYSTEM})
        self.assertRegex(task["created_at"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$")
        self.assertEqual(self.ask("GET", "/tasks/" + task["id"]).json(), task)
        self.assertEqual(self.ask("GET", "/tasks/%s/" % task["id"].replace("-", "")).json(), task)

    def test_each_bad_field_is_422_with_its_place(self):
        bad = [
            ({"title": ...}, "title"), ({"title": ""}, "title"), ({"title": "x" * 201}, "title"), ({"title": 7}, "title"),
            ({"description": ...}, "description"), ({"description": "x" * 2001}, "description"),
            ({"schedule_kind": ...}, "schedule_kind"), ({"schedule_kind": "hourly"}, "schedule_kind"),
            ({"schedule_kind": "cron"}, "schedule_expr"), ({"schedule_kind": "cron", "schedule_expr": "61 * * * *"}, "schedule_expr"),
            ({"schedule_kind": "cron", "schedule_expr": "* * * *"}, "schedule_expr"),
            ({"schedule_kind": "rrule", "schedule_expr": "FREQ=SOMETIMES"}, "schedule_expr"),
            ({"schedule_kind": "rrule", "schedule_expr": "FREQ=DAILY;UNTIL=20200101T000000Z"}, "schedule_expr"),
            ({"schedule_kind": "once", "schedule_expr": "2020-01-01T00:00:00Z"}, "schedule_expr"),
            ({"schedule_kind": "once", "schedule_expr": "tomorrow"}, "schedule_expr"),
            ({"schedule_kind": "event"}, "schedule_expr"), ({"schedule_kind": "condition", "schedule_expr": "event.["}, "schedule_expr"),
            ({"timezone": "Mars/Olympus"}, "timezone"), ({"payload": ...}, "payload"), ({"payload": []}, "payload"),
            ({"payload": {}}, "payload"), ({"payload": {"pipeline": [{}]}}, "payload"), ({"payload": {"pipeline": "x"}}, "payload"),
            ({"payload": {"pipeline": [{"uses": "no.such"}]}}, "payload"), ({"priority": 0}, "priority"), ({"priority": 10}, "priority"),
            ({"priority": "high"}, "priority"), ({"priority": 1.5}, "priority"), ({"dedupe_key": "x" * 101}, "dedupe_key"),
            ({"dedupe_window_seconds": -1}, "dedupe_window_seconds"), ({"max_retries": 11}, "max_retries"), ({"max_retries": -1}, "max_retries"),
            ({"backoff_strategy": "never"}, "backoff_strategy"), ({"concurrency_key": "x" * 101}, "concurrency_key"),
            ({"created_by": ...}, "created_by"),
        ]
        for change, field in bad:
            with self.subTest(change=str(change)[:80]):
                answer = self.ask("POST", "/tasks", self.server.body(**change))

                self.assertProblem(answer, 422, "invalid_request")
                self.assertIn(["body", field], [error["loc"][:2] for error in answer.json()["errors"]], answer.text)

    def test_what_was_refused_is_never_sent_back(self):
        mark = "Zx9-mark"
        step = lambda **members: {"pipeline": [dict({"uses": "http.request", "with": {"url": "https://a.example"}}, **members)]}
        rule = lambda text: {"schedule_kind": "rrule", "schedule_expr": text}
        cron = lambda text: {"schedule_kind": "cron", "schedule_expr": text}
        bodies = [
            {"timezone": mark}, {"schedule_kind": mark}, {"priority": mark}, {"backoff_strategy": mark}, {"misfire_policy": mark},
            cron("@" + mark), cron(mark + " * * * *"), cron("* * * * " + mark), cron("*/%s * * * *" % mark), cron("1-%s * * * *" % mark),
            rule(mark), rule("FREQ=" + mark), rule("FREQ=DAILY;%s=1" % mark), rule("FREQ=DAILY;COUNT=" + mark), rule("FREQ=DAILY;UNTIL=" + mark),
            rule("FREQ=DAILY;BYDAY=" + mark), rule("FREQ=DAILY;BYMONTH=" + mark), rule("FREQ=DAILY;BYSETPOS=-" + mark), rule("%s:1" % mark),
            rule("FREQ=DAILY;%s=1;%s=1" % (mark, mark)), rule("DTSTART:%s\nFREQ=DAILY" % mark), rule("DTSTART;TZID=%s:20300101T000000\nFREQ=DAILY" % mark),
            rule("DTSTART;%s=1:20300101T000000\nFREQ=DAILY" % mark), {"schedule_kind": "once", "schedule_expr": mark},
            {"schedule_kind": "once", "schedule_expr": "2030-01-01" + mark}, {"schedule_kind": "condition", "schedule_expr": "%s(@)" % mark},
            {"schedule_kind": "condition", "schedule_expr": "'%s" % mark}, {"payload": step(uses=mark)}, {"payload": step(timeout_seconds=mark)},
            {"payload": step(backoff_strategy=mark)}, {"payload": step(**{"if": mark + "("})}, {"payload": step(**{"with": {"url": "https://%s.example" % mark}})},
            {"payload": step(**{"with": {"url": mark}})}, {"payload": step(**{"with": {"url": mark + "://x"}})}, {"payload": step(**{"with": {"url": "https://a.example", mark: 1}})},
            {"payload": step(**{"with": {"url": "https://a.example", "headers": {mark + " ": "x"}}})}, {"payload": {"pipeline": [dict(NAP, id=mark)] * 2}},
            {"payload": step(**{"with": {"url": "https://a.example/${%s(}" % mark}})},
            {"payload": step(**{"with": {"url": "https://a.example/${now+%s}" % mark}})},
            {"payload": step(**{"with": {"url": "https://a.example/${now+99999999999999w}"}})},
        ]
        for body in bodies:
            with self.subTest(body=str(body)[:90]):
                answer = self.ask("POST", "/tasks", self.server.body(**body))

                self.assertProblem(answer, 422)
                said = [answer.json()["detail"]] + [error["msg"] for error in answer.json()["errors"]]
                self.assertNotIn(mark.lower(), str(said).lower())
                self.assertNotIn("zx9", str(said).lower())
                self.assertNotIn("99999999", str(said))

    def test_everything_that_is_wrong_is_told_at_once(self):
        answer = self.ask("POST", "/tasks", self.server.body(title="", priority=99, max_retries=99))

        self.assertEqual({error["loc"][1] for error in answer.json()["errors"]}, {"title", "priority", "max_retries"})

    def test_a_step_that_cannot_be_carried_out_is_named(self):
        answer = self.ask("POST", "/tasks", self.server.body(pipeline=[NAP, {"uses": "orchestrator.sleep", "with": {"seconds": "${now+"}}]))

        self.assertProblem(answer, 422)
        self.assertEqual(answer.json()["errors"][0]["loc"][:4], ["body", "payload", "pipeline", 1])

    def test_a_pipeline_of_ten_thousand_steps_and_a_huge_payload_are_refused_quickly(self):
        begun = time.monotonic()

        for body in (self.server.body(pipeline=[NAP] * 10_000), self.server.body(payload={"pipeline": [NAP], "params": "x" * 2_000_000})):
            self.assertProblem(self.ask("POST", "/tasks", body), 422)
        self.assertLess(time.monotonic() - begun, 10)

    def test_nobody_acts_as_another_but_an_administrator(self):
        self.assertProblem(self.ask("POST", "/tasks", self.server.body(SYSTEM), self.other), 403, "forbidden")
        self.assertEqual(self.ask("POST", "/tasks", self.server.body(self.other)).status_code, 201)
        self.assertProblem(self.ask("POST", "/tasks", self.server.body(NOBODY)), 400)

    def test_an_agent_sees_and_changes_its_own_tasks_only(self):
        theirs, own = self.server.task(), self.server.task(self.other)

        self.assertProblem(self.ask("GET", "/tasks/" + theirs, agent=self.other), 404, "task_not_found")
        for what in ("run_now", "pause", "resume", "cancel"):
            self.assertProblem(self.ask("POST", "/tasks/%s/%s" % (theirs, what), agent=self.other), 404, "task_not_found")
        self.assertProblem(self.ask("PUT", "/tasks/" + theirs, {"title": "mine"}, self.other), 404)
        listed = self.ask("GET", "/tasks", agent=self.other).json()
        self.assertEqual({task["created_by"] for task in listed["items"]}, {self.other})
        self.assertEqual(self.ask("GET", "/tasks", agent=self.other, params={"created_by": SYSTEM}).json()["total"], 0)
        self.assertEqual(self.ask("GET", "/tasks/" + own).status_code, 200)

    def test_scopes_are_needed(self):
        reader = self.server.new_agent("reads", ["tasks:read"])
        task = self.server.task()

        for method, path in (("POST", "/tasks"), ("PUT", "/tasks/" + task), ("POST", "/tasks/%s/run_now" % task), ("POST", "/tasks/%s/cancel" % task),
                             ("GET", "/runs"), ("POST", "/events"), ("GET", "/events/topics")):
            self.assertProblem(self.ask(method, path, {}, reader), 403, "forbidden")
        self.assertEqual(self.ask("GET", "/tasks", agent=reader).status_code, 200)

    def test_lists_are_pages_with_filters(self):
        agent = self.server.new_agent("lists")
        made = [self.server.task(agent) for _ in range(5)]
        self.ask("POST", "/tasks/%s/pause" % made[0], agent=agent)

        page = self.ask("GET", "/tasks", agent=agent, params={"limit": 2, "offset": 1}).json()
        self.assertEqual(([task["id"] for task in page["items"]], page["total"], page["limit"], page["offset"], page["has_more"]),
                         (made[::-1][1:3], 5, 2, 1, True))
        paused = self.ask("GET", "/tasks", agent=agent, params={"status": "paused", "schedule_kind": "manual"}).json()
        self.assertEqual([task["id"] for task in paused["items"]], [made[0]])
        for query in ({"status": "gone"}, {"schedule_kind": "weekly"}, {"limit": 0}, {"limit": 201}, {"offset": -1}):
            self.assertProblem(self.ask("GET", "/tasks", params=query), 422)

    def test_a_dedupe_key_is_unique_until_its_task_is_canceled(self):
        first = self.server.task(dedupe_key="daily")

        self.assertProblem(self.ask("POST", "/tasks", self.server.body(dedupe_key="daily")), 400, "duplicate_dedupe_key")
        self.assertEqual(self.ask("POST", "/tasks", self.server.body(self.other, dedupe_key="daily"), self.other).status_code, 201)
        self.ask("POST", "/tasks/%s/cancel" % first)
        self.assertEqual(self.ask("POST", "/tasks", self.server.body(dedupe_key="daily")).status_code, 201)

    def test_a_second_trigger_within_the_window_makes_no_run(self):
        task = self.server.task(dedupe_window_seconds=60)
        self.server.over(self.server.now(task))

        self.assertProblem(self.ask("POST", "/tasks/%s/run_now" % task), 409, "within_dedupe_window")
        self.assertEqual(len(self.server.runs(task)), 1)

    def test_a_repeated_request_under_its_key_gets_the_first_answer(self):
        body, headers = self.server.body(title="Once"), {"Idempotency-Key": "make-once"}
        first = self.ask("POST", "/tasks", body, headers=headers)
        again = self.ask("POST", "/tasks", body, headers=headers)

        self.assertEqual((first.status_code, again.status_code), (201, 201))
        self.assertEqual(again.json(), first.json())
        self.assertEqual(again.headers["idempotency-replayed"], "true")
        self.assertProblem(self.ask("POST", "/tasks", self.server.body(title="Another"), headers=headers), 422, "idempotency_key_reused")
        task, headers = first.json()["id"], {"Idempotency-Key": "run-once"}
        runs = [self.ask("POST", "/tasks/%s/run_now" % task, headers=headers).json() for _ in range(3)]
        self.assertEqual(runs[0], runs[1])
        self.assertEqual(runs[0], runs[2])
        self.server.over(runs[0]["details"]["run_id"])
        self.assertEqual(len(self.server.runs(task)), 1)

    def test_a_change_is_checked_and_in_force_at_once(self):
        task = self.server.task(schedule_kind="cron", schedule_expr="0 0 1 1 *")

        self.assertProblem(self.ask("PUT", "/tasks/" + task, {"schedule_expr": "nonsense"}), 422)
        self.assertProblem(self.ask("PUT", "/tasks/" + task, {"priority": 12}), 422)
        changed = self.ask("PUT", "/tasks/" + task, {"title": "New", "schedule_kind": "once", "schedule_expr": soon(0.7), "priority": 1})
        self.assertEqual(changed.status_code, 200, changed.text)
        self.assertEqual((changed.json()["title"], changed.json()["priority"]), ("New", 1))
        run = wait_for(lambda: self.server.runs(task), "the run of the new time", 5)[0]
        self.assertEqual(run["trigger"], "schedule")
        changes = [row["details"] for row in self.server.trail(action="task.updated", subject=task)]
        self.assertEqual([sorted(change["updated_fields"]) for change in changes if "updated_fields" in change],
                         [["priority", "schedule_expr", "schedule_kind", "title"]])

    def test_unknown_and_malformed_ids(self):
        for path in ("/tasks/%s", "/runs/%s", "/runs/task/%s/latest", "/runs/task/%s/stats"):
            self.assertProblem(self.ask("GET", path % NOBODY), 404)
            self.assertProblem(self.ask("GET", path % "nothing"), 422)
        self.assertProblem(self.ask("POST", "/tasks/%s/run_now" % NOBODY), 404)

    def test_strict_handling_refuses_unknown_members(self):
        body = self.server.body(colour="red")

        self.assertEqual(self.ask("POST", "/tasks", body).status_code, 201)
        self.assertProblem(self.ask("POST", "/tasks", body, headers={"Prefer": "handling=strict"}), 422)
        # A step too: a time limit with a slip of the pen is none.
        body = self.server.body(pipeline=[NAP, dict(NAP, timeout_second=5)])
        task = self.ask("POST", "/tasks", body)
        self.assertEqual(task.status_code, 201)
        for method, path in (("POST", "/tasks"), ("PUT", "/tasks/" + task.json()["id"])):
            refused = self.ask(method, path, body, headers={"Prefer": "handling=strict"})
            self.assertProblem(refused, 422)
            self.assertEqual([error["loc"] for error in refused.json()["errors"]], [["body", "payload", "pipeline", 1]])

    def test_what_needs_no_body_takes_no_other(self):
        task = self.server.task()
        pieces = (b" " * 65536 for _ in range(200))

        with self.server.agent() as client:
            for what in ("run_now", "pause", "resume", "cancel"):
                path = "/tasks/%s/%s" % (task, what)
                kind = lambda name: {"Content-Type": name}
                self.assertProblem(client.post(path, content="hello", headers=kind("text/plain")), 415, "unsupported_media_type")
                self.assertProblem(client.post(path, content="{", headers=kind("application/json")), 422, "invalid_request")
                self.assertProblem(client.post(path, json={"colour": 1}, headers={"Prefer": "handling=strict"}), 422, "invalid_request")
            # Not announced, so it is read to the bound.
            self.assertProblem(client.post("/tasks/%s/run_now" % task, content=pieces, headers=kind("application/json")), 413, "payload_too_large")
            self.assertEqual(client.post("/tasks/%s/run_now" % task, json={"colour": 1}).status_code, 200)
            self.assertEqual(client.post("/tasks/%s/run_now" % task, content="", headers=kind("application/x-www-form-urlencoded")).status_code, 200)
        self.assertEqual(len(self.server.runs(task)), 2)

    def test_pause_resume_snooze_and_cancel(self):
        task = self.server.task(schedule_kind="cron", schedule_expr="0 0 1 1 *")
        act = lambda what, body=None: self.ask("POST", "/tasks/%s/%s" % (task, what), body)

        self.assertEqual(act("pause").json()["details"], {"task_id": task, "old_status": "active", "new_status": "paused"})
        self.assertEqual(act("pause").json()["details"], {"task_id": task, "status": "paused"})
        self.assertProblem(act("run_now"), 400, "task_not_active")
        self.assertProblem(act("snooze", {"delay_seconds": 5}), 400, "task_not_active")
        self.assertEqual(act("resume").json()["details"], {"task_id": task, "old_status": "paused", "new_status": "active"})
        snoozed = act("snooze", {"delay_seconds": 3600, "reason": "the plate is not ready"})
        self.assertEqual((snoozed.status_code, snoozed.json()["details"]["delay_seconds"], snoozed.json()["details"]["affected_work_items"]),
                         (200, 3600, 1))
        for seconds in (0, 604_801, "soon", None):
            self.assertProblem(act("snooze", {"delay_seconds": seconds}), 422)
        self.assertEqual(act("cancel").json()["details"]["removed_work_items"], 0)
        for what in ("resume", "run_now", "pause"):
            self.assertProblem(act(what), 400, "task_canceled")
        self.assertProblem(act("snooze", {"delay_seconds": 5}), 400, "task_canceled")
        self.assertProblem(self.ask("PUT", "/tasks/" + task, {"status": "active"}), 400, "task_canceled")
        rows = {row["action"]: row["details"] for row in self.server.trail(subject=task) if "status" not in row["details"]}
        self.assertEqual(rows["task.created"], {"title": "A task", "schedule_kind": "cron", "created_by": SYSTEM})
        self.assertEqual(rows["task.snoozed"]["reason"], "the plate is not ready")
        self.assertEqual(rows["task.canceled"], {"removed_work_items": 0})

    def test_a_due_time_is_left_out_once(self):
        task = self.server.task(schedule_kind="rrule", schedule_expr="DTSTART:20990101T090000Z\nRRULE:FREQ=DAILY;INTERVAL=2;COUNT=3")
        path = "/tasks/" + task
        days = ["2099-01-0%dT09:00:00.000000Z" % day for day in (1, 3, 5)]
        due = lambda **query: self.ask("GET", path + "/due", params=query).json()["times"]

        self.assertEqual((self.ask("GET", path).json()["next_due_at"], due()), (days[0], days))
        self.assertEqual(due(count=2), days[:2])
        skipped = self.ask("POST", path + "/skip", {"due_at": days[0], "reason": "holiday"})
        self.assertEqual(skipped.status_code, 200, skipped.text)
        self.assertEqual(skipped.json()["details"], {"task_id": task, "skipped_due_at": days[0], "next_due_at": days[1]})
        # The same again: it is not the next one any more.
        self.assertProblem(self.ask("POST", path + "/skip", {"due_at": days[0]}), 409, "due_time_changed")
        self.assertEqual((self.ask("GET", path).json()["next_due_at"], due()), (days[1], days[1:]))
        listed = {one["id"]: one["next_due_at"] for one in self.ask("GET", "/tasks").json()["items"]}
        self.assertEqual(listed[task], days[1])
        self.assertEqual(self.left_out(task), [{"due_at": days[0], "next_due_at": days[1], "reason": "holiday"}])
        # Snoozed, it is due when it is due.
        snoozed = self.ask("POST", path + "/snooze", {"delay_seconds": 60}).json()["details"]["next_due_at"]
        self.assertEqual(due(), [snoozed, days[2]])
        self.assertEqual(self.ask("POST", path + "/skip").json()["details"]["next_due_at"], days[2])
        self.assertIsNone(self.ask("POST", path + "/skip", {}).json()["details"]["next_due_at"])
        self.assertProblem(self.ask("POST", path + "/skip", {}), 409, "nothing_due")
        self.assertEqual(due(), [])

    def left_out(self, task):
        # What was refused is on record too, as soon as somebody has the time.
        return [row["details"] for row in self.server.trail(action="task.skipped", subject=task) if "due_at" in row["details"]]

    def test_what_cannot_be_left_out_is_refused(self):
        manual = self.server.task()
        self.assertProblem(self.ask("POST", "/tasks/%s/skip" % manual), 409, "nothing_due")
        self.assertEqual(self.ask("GET", "/tasks/%s/due" % manual).json(), {"times": []})
        yearly = self.server.task(schedule_kind="cron", schedule_expr="0 0 1 1 *")
        for body, name in (({"due_at": "soon"}, "due_at"), ({"due_at": 5}, "due_at"), ({"reason": "x" * 201}, "reason"), ({"reason": 5}, "reason")):
            answer = self.ask("POST", "/tasks/%s/skip" % yearly, body)
            self.assertProblem(answer, 422)
            self.assertEqual([error["loc"] for error in answer.json()["errors"]], [["body", name]])
        for count in ("0", "101", "x", ""):
            self.assertProblem(self.ask("GET", "/tasks/%s/due" % yearly, params={"count": count}), 422)
        self.ask("POST", "/tasks/%s/pause" % yearly)
        self.assertProblem(self.ask("POST", "/tasks/%s/skip" % yearly), 400, "task_not_active")
        self.assertIsNone(self.ask("GET", "/tasks/" + yearly).json()["next_due_at"])
        self.assertEqual(len(self.ask("GET", "/tasks/%s/due?count=3" % yearly).json()["times"]), 3)
        self.ask("POST", "/tasks/%s/cancel" % yearly)
        self.assertProblem(self.ask("POST", "/tasks/%s/skip" % yearly), 400, "task_canceled")
        self.assertEqual(self.ask("GET", "/tasks/%s/due" % yearly).json(), {"times": []})
        self.assertProblem(self.ask("POST", "/tasks/%s/skip" % NOBODY), 404, "task_not_found")
        self.assertProblem(self.ask("POST", "/tasks/x/skip"), 422)
        theirs = self.server.task(schedule_kind="cron", schedule_expr="0 0 1 1 *")
        for method, what in (("POST", "skip"), ("GET", "due")):
            self.assertProblem(self.ask(method, "/tasks/%s/%s" % (theirs, what), agent=self.other), 404, "task_not_found")

    def test_a_due_time_that_is_left_out_makes_no_run(self):
        first = int(time.time()) + 3
        at = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(first))
        task = self.server.task(schedule_kind="rrule", schedule_expr="DTSTART:%s\nRRULE:FREQ=SECONDLY;INTERVAL=2;COUNT=3" % at)
        left_out = self.ask("POST", "/tasks/%s/skip" % task).json()["details"]["skipped_due_at"]
        runs = wait_for(lambda: (lambda found: found if len(found) == 2 else None)(self.server.runs(task)), "two runs", 20)
        times = [run["scheduled_for"] for run in runs]
        self.assertNotIn(left_out, times)
        self.assertEqual(times, [time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime(first + later)) for later in (2, 4)])

    def test_what_a_paused_task_had_waiting_runs_after_it_is_resumed(self):
        blocker = self.server.task(pipeline=[{"uses": "orchestrator.sleep", "with": {"seconds": 2}}], concurrency_key="bench")
        self.server.reaches(self.server.now(blocker), "running")
        task = self.server.task(concurrency_key="bench")
        run = self.server.now(task)

        self.ask("POST", "/tasks/%s/pause" % task)
        self.assertEqual(self.server.over(self.server.runs(blocker)[0]["id"])["state"], "succeeded")
        time.sleep(0.3)
        self.assertEqual(self.server.run_of(run)["state"], "queued")
        self.ask("POST", "/tasks/%s/resume" % task)
        self.assertEqual(self.server.over(run)["state"], "succeeded")

    def test_cancelling_removes_what_waits_and_ends_what_runs(self):
        task = self.server.task(pipeline=[{"uses": "orchestrator.sleep", "with": {"seconds": 2}}], concurrency_key="one")
        running, waiting = self.server.now(task), self.server.now(task)
        self.server.reaches(running, "running")

        answer = self.ask("POST", "/tasks/%s/cancel" % task).json()

        self.assertEqual(answer["details"]["removed_work_items"], 1)
        self.assertEqual(self.server.over(waiting)["state"], "cancelled")
        self.assertEqual(self.server.over(running, 3)["state"], "cancelled")

    def test_a_preview_gives_times_and_refuses_as_creation_does(self):
        body = {"schedule_kind": "cron", "schedule_expr": "30 2 * * *", "timezone": "Europe/Berlin", "from": "2026-03-28T00:00:00Z", "count": 3}

        times = self.ask("POST", "/schedules/preview", body)
        self.assertEqual(times.status_code, 200, times.text)
        self.assertEqual(len(times.json()["times"]), 3)
        self.assertEqual(times.json()["times"][0], "2026-03-28T01:30:00.000000Z")
        for change in ({"count": 0}, {"count": 101}, {"timezone": "Nowhere"}, {"schedule_expr": "x"}, {"schedule_kind": "x"}, {"from": "x"}):
            self.assertProblem(self.ask("POST", "/schedules/preview", dict(body, **change)), 422)

    def test_schedules_mean_what_their_standards_say(self):
        def times(kind, expression, zone="UTC"):
            body = {"schedule_kind": kind, "schedule_expr": expression, "timezone": zone, "from": "2026-03-01T00:00:00Z", "count": 3}
            answer = self.ask("POST", "/schedules/preview", body)
            self.assertEqual(answer.status_code, 200, answer.text)
            return answer.json()["times"]

        sundays = ["2026-03-01T09:00:00.000000Z", "2026-03-08T09:00:00.000000Z", "2026-03-15T09:00:00.000000Z"]
        for day in ("0", "7", "SUN"):
            self.assertEqual(times("cron", "0 9 * * " + day), sundays)
        self.assertEqual(times("rrule", "FREQ=DAILY;COUNT=2"), times("rrule", "RRULE:FREQ=DAILY;COUNT=2"))
        # Three hours behind, all year.
        self.assertEqual(times("cron", "0 9 * * *", "America/Argentina/Buenos_Aires")[0], "2026-03-01T12:00:00.000000Z")
        # Without an offset a time is one of the zone; the clocks go forward on March 29.
        self.assertEqual(times("once", "2026-03-28T12:00:00", "Europe/Berlin"), ["2026-03-28T11:00:00.000000Z"])
        self.assertEqual(times("once", "2026-03-29T12:00:00", "Europe/Berlin"), ["2026-03-29T10:00:00.000000Z"])
        self.assertEqual(times("once", "2026-03-29T12:00:00+05:00", "Europe/Berlin"), ["2026-03-29T07:00:00.000000Z"])

    def test_running_now_tells_the_work_and_every_change_is_in_the_answer(self):
        task = self.server.task()
        details = self.ask("POST", "/tasks/%s/run_now" % task).json()["details"]
        self.assertEqual(details["task_id"], task)
        self.assertIsInstance(details["due_work_id"], int)
        self.server.over(details["run_id"])
        changes = {"description": "Other", "payload": {"pipeline": [NAP], "params": {"n": 1}}, "timezone": "Asia/Kolkata", "max_retries": 0,
                   "backoff_strategy": "linear", "concurrency_key": "bench", "dedupe_key": "changed", "dedupe_window_seconds": 5}
        changed = self.ask("PUT", "/tasks/" + task, changes)
        self.assertEqual(changed.status_code, 200, changed.text)
        self.assertEqual({name: changed.json()[name] for name in changes}, changes)
        self.assertEqual(self.ask("PUT", "/tasks/" + task, {"status": "paused"}).json()["status"], "paused")

    def test_each_bad_step_is_named_with_its_place(self):
        nap = lambda **members: dict(NAP, **members)
        for steps, place in [([{}], "uses"), ([{"uses": ""}], "uses"), ([nap(id="a"), nap(id="a")], "id"), ([nap(save_as="")], "save_as"),
                             ([nap(**{"with": []})], "with"), ([nap(**{"if": "params.["})], "if"), ([nap(timeout_seconds=0)], "timeout_seconds"),
                             ([nap(timeout_seconds="soon")], "timeout_seconds"), ([nap(**{"with": {"seconds": "${params.[}"}})], "with"), (["x"], 0)]:
            with self.subTest(steps=str(steps)[:80]):
                answer = self.ask("POST", "/tasks", self.server.body(pipeline=steps))
                self.assertProblem(answer, 422, "invalid_request")
                places = [error["loc"] for error in answer.json()["errors"]]
                self.assertTrue([one for one in places if one[:3] == ["body", "payload", "pipeline"] and place in one], places)

    def test_titles_with_markup_are_refused_and_prose_is_kept(self):
        text = "<script>alert(1)</script>"

        with self.server.http() as client:
            self.assertProblem(client.post("/tasks", json=self.server.body(title=text)), 401)
        self.assertProblem(self.ask("POST", "/tasks", self.server.body(title=text)), 400, "request_blocked")
        self.assertProblem(self.ask("GET", "/tasks?filter=';%20DROP%20TABLE%20tasks;%20--"), 400, "request_blocked")
        kept = self.ask("POST", "/tasks", self.server.body(description=text, payload={"pipeline": [NAP], "params": {"x": text}}))
        self.assertEqual(kept.status_code, 201, kept.text)
        self.assertEqual((kept.json()["description"], kept.json()["payload"]["params"]["x"]), (text, text))
        self.assertEqual(self.ask("POST", "/tasks", self.server.body(title="Drop table of reagents; SELECT wells A1-A6")).status_code, 201)
        # What an event task waits for is a topic, and no event with such a one could be published.
        self.assertProblem(self.ask("POST", "/tasks", self.server.body(schedule_kind="event", schedule_expr=text)), 400, "request_blocked")

    def test_without_a_token_everything_is_401(self):
        for token in (None, "invalid-token", SYSTEM):
            with self.server.http(token) as client:
                for method, path in (("GET", "/tasks"), ("POST", "/tasks"), ("GET", "/runs"), ("POST", "/events"), ("GET", "/tools")):
                    answer = client.request(method, path, json={} if method == "POST" else None)
                    self.assertProblem(answer, 401, "unauthorized")

    def test_a_person_makes_tasks_in_their_own_name(self):
        self.server.tokens.pop("admin", None)
        self.server.add_users("olaf", "vera")

        made = self.server.post("/tasks", self.server.body("olaf"), "olaf")
        self.assertEqual(made.status_code, 201, made.text)
        self.assertEqual(self.server.get("/tasks", "vera").status_code, 200)
        self.assertProblem(self.server.post("/tasks", self.server.body("vera"), "vera"), 403)


class Runs(WithServer):
    """CONTRACT 4.1 and 5."""

    def test_a_run_has_every_member_and_its_output(self):
        task = self.server.task(pipeline=[dict(NAP, id="first")], title="Briefing", payload={"params": {"n": 2}, "pipeline": [dict(NAP)]})
        run = self.server.over(self.server.now(task))

        self.assertLessEqual(RUN_MEMBERS, set(run))
        self.assertEqual((run["state"], run["success"], run["error"], run["attempt"], run["trigger"], run["task_id"]),
                         ("succeeded", True, None, 1, "manual", task))
        output = run["output"]
        self.assertLessEqual({"now", "params", "steps", "_task_id", "_task_title", "_execution_start", "_execution_summary"}, set(output))
        self.assertEqual((output["params"], output["_task_title"], output["_task_id"]), ({"n": 2}, "Briefing", task))
        summary = output["_execution_summary"]
        self.assertEqual((summary["success"], summary["total_steps"], summary["executed_steps"], summary["skipped_steps"]), (True, 1, 1, 0))
        self.assertEqual(self.ask("GET", "/runs/task/%s/latest" % task).json(), run)

    def test_templates_render_as_the_contract_says(self):
        told = {"text": "${params.none} ${params.yes} ${params.list} ${params.map}", "typed": {"$expr": "params.list[1]"}, "later": "${now+24h}",
                "earlier": "${now-90m}", "of": "${steps.first.topic}"}
        pipeline = [{"uses": "event.publish", "with": {"topic": "rendered"}, "save_as": "first"},
                    {"uses": "orchestrator.sleep", "with": {"seconds": 0}, "if": "params.none", "save_as": "skipped"},
                    {"uses": "event.publish", "with": {"topic": "rendered", "payload": told}}]
        payload = {"params": {"none": None, "yes": True, "list": [1, 2.5], "map": {"a": "b"}}, "pipeline": pipeline}
        run = self.server.carried_out(pipeline, payload=payload)

        self.assertEqual(run["state"], "succeeded", run)
        newest = self.ask("GET", "/events/stream/recent", params={"count": 1}).json()["events"][0]["payload"]
        self.assertEqual((newest["text"], newest["typed"], newest["of"]), ('null true [1,2.5] {"a":"b"}', 2.5, "rendered"))
        now = _seconds(run["output"]["now"])
        self.assertEqual((_seconds(newest["later"]) - now, now - _seconds(newest["earlier"])), (86_400, 5_400))
        summary = run["output"]["_execution_summary"]
        self.assertEqual((summary["executed_steps"], summary["skipped_steps"]), (2, 1))
        self.assertNotIn("skipped", run["output"]["steps"])

    def test_a_task_without_runs_has_no_latest_and_empty_figures(self):
        task = self.server.task()

        latest = self.ask("GET", "/runs/task/%s/latest" % task)
        self.assertEqual((latest.status_code, latest.json()), (200, None))
        self.assertEqual(self.ask("GET", "/runs/task/%s/stats" % task).json(), {
            "task_id": task, "period_days": 30, "total_runs": 0, "successful_runs": 0, "failed_runs": 0, "success_rate": 0.0,
            "failure_rate": 0.0, "avg_execution_time_seconds": 0.0, "last_run": None, "last_success": None, "last_failure": None})

    def test_figures_count_what_ended(self):
        agent = self.server.new_agent("figures")
        task = self.server.task(agent)
        for _ in range(3):
            self.server.over(self.server.now(task, agent), agent=agent)
        slow = self.server.task(agent, [{"uses": "orchestrator.sleep", "with": {"seconds": 1.5}, "timeout_seconds": 0.2}], max_retries=0)
        self.server.over(self.server.now(slow, agent), agent=agent)

        stats = self.ask("GET", "/runs/stats/summary", agent=agent, params={"days": 1}).json()
        self.assertEqual({name: stats[name] for name in ("period_days", "total_runs", "total_tasks_executed", "successful_runs", "failed_runs",
                                                         "success_rate", "failure_rate", "runs_per_day")},
                         {"period_days": 1, "total_runs": 4, "total_tasks_executed": 2, "successful_runs": 3, "failed_runs": 1,
                          "success_rate": 0.75, "failure_rate": 0.25, "runs_per_day": 4.0})
        self.assertGreater(stats["avg_execution_time_seconds"], 0)
        for days in (0, 366, "x"):
            self.assertProblem(self.ask("GET", "/runs/stats/summary", params={"days": days}), 422)

    def test_errors_are_told_to_whoever_asks_for_them(self):
        run = self.server.carried_out([{"uses": "orchestrator.sleep", "with": {"seconds": 1.5}, "timeout_seconds": 0.2}], max_retries=0)

        self.assertEqual((run["state"], run["success"]), ("timed_out", False))
        self.assertNotIn("Traceback", json.dumps(run))
        plain = self.ask("GET", "/runs", params={"task_id": run["task_id"]}).json()["items"][0]
        told = self.ask("GET", "/runs", params={"task_id": run["task_id"], "include_errors": "true"}).json()["items"][0]
        self.assertEqual(told["error"], run["error"])
        self.assertNotEqual(plain["error"], run["error"])
        self.assertIsNotNone(plain["error"])

    def test_runs_are_filtered_and_hidden_from_others(self):
        agent = self.server.new_agent("filters")
        task = self.server.task(agent)
        runs = [self.server.over(self.server.now(task, agent), agent=agent)["id"] for _ in range(3)]

        page = self.ask("GET", "/runs", agent=agent, params={"limit": 2}).json()
        self.assertEqual(([run["id"] for run in page["items"]], page["total"], page["has_more"]), (runs[:0:-1], 3, True))
        self.assertEqual(self.ask("GET", "/runs", agent=agent, params={"success": "false"}).json()["total"], 0)
        self.assertEqual(self.ask("GET", "/runs", agent=agent, params={"start_time": soon(60)}).json()["total"], 0)
        self.assertEqual(self.ask("GET", "/runs", agent=agent, params={"end_time": soon(60), "success": "true"}).json()["total"], 3)
        self.assertProblem(self.ask("GET", "/runs/" + runs[0], agent=self.other), 404, "run_not_found")
        self.assertProblem(self.ask("GET", "/runs/task/%s/latest" % task, agent=self.other), 404, "task_not_found")
        self.assertEqual(self.ask("GET", "/runs", agent=self.other, params={"task_id": task}).json()["total"], 0)
        for query in ({"success": "maybe"}, {"task_id": "x"}, {"start_time": "x"}, {"state": "x"}):
            self.assertProblem(self.ask("GET", "/runs", params=query), 422)
        for path, name in (("/runs", "start_time"), ("/runs", "end_time"), ("/audit", "since"), ("/audit", "until")):
            answer = self.ask("GET", path, params={name: "2026-01-01"})
            self.assertEqual([error["loc"] for error in answer.json()["errors"]], [["query", name]])
            self.assertIn("a time such as 2026-01-01T00:00:00Z", answer.json()["detail"])

    def test_a_failed_run_is_tried_again_as_a_row_of_its_own(self):
        task = self.server.task(pipeline=[{"uses": "orchestrator.sleep", "with": {"seconds": 1.5}, "timeout_seconds": 0.1}], max_retries=2,
                                backoff_strategy="fixed")
        self.server.now(task)
        ended = lambda: [run for run in self.server.runs(task) if run["success"] is False]

        wait_for(lambda: len(ended()) == 3, "three attempts", 20)

        runs = self.server.runs(task)
        self.assertEqual([run["attempt"] for run in runs], [1, 2, 3])
        self.assertEqual(len({run["first_attempt"] for run in runs}), 1)

    def test_one_run_at_a_time_for_a_key(self):
        task = self.server.task(pipeline=[{"uses": "orchestrator.sleep", "with": {"seconds": 0.15}}], concurrency_key="robot")
        runs = [self.server.now(task) for _ in range(5)]
        rows = [self.server.over(run) for run in runs]

        spans = sorted((row["started_at"], row["finished_at"]) for row in rows)
        for (_, end), (begin, _) in zip(spans, spans[1:]):
            self.assertLessEqual(end, begin)

    def test_a_running_and_a_waiting_run_are_cancelled(self):
        task = self.server.task(pipeline=[{"uses": "orchestrator.sleep", "with": {"seconds": 2}}], concurrency_key="c")
        running, waiting = self.server.now(task), self.server.now(task)
        self.server.reaches(running, "running")

        for run in (waiting, running):
            answer = self.ask("POST", "/runs/%s/cancel" % run, {"reason": "not today"})
            self.assertEqual(answer.status_code, 202, answer.text)
        for run in (waiting, running):
            row = self.server.over(run, 3)
            self.assertEqual((row["state"], row["success"]), ("cancelled", False))
            self.assertIn("not today", row["error"])
        self.assertProblem(self.ask("POST", "/runs/%s/cancel" % running), 409, "conflict")

    def test_a_long_sleep_holds_no_worker_and_goes_on(self):
        run = self.server.now(self.server.task(pipeline=[{"uses": "orchestrator.sleep", "with": {"seconds": 3}, "save_as": "long"}, NAP]))

        wait_for(lambda: self.server.run_of(run)["state"] == "queued" and self.server.run_of(run)["started_at"], "the run lets go", 5)
        row = self.server.over(run, 10)
        self.assertEqual((row["state"], row["attempt"], row["output"]["_execution_summary"]["executed_steps"]), ("succeeded", 1, 2))

    def test_a_run_is_followed_to_its_end(self):
        run = self.server.now(self.server.task(pipeline=[{"uses": "orchestrator.sleep", "with": {"seconds": 1}}]))

        with self.server.agent() as client, client.stream("GET", "/runs/%s/events" % run) as response:
            self.assertEqual(response.headers["content-type"], "text/event-stream")
            states = [data["state"] for _, name, data in events_of(response) if name == "state"]

        self.assertEqual(states[-1], "succeeded")
        self.assertIn("running", states)
        self.assertEqual(len(states), len(set(states)))

    def test_due_times_are_served_on_time(self):
        task = self.server.task(schedule_kind="once", schedule_expr=soon(1))

        run = wait_for(lambda: self.server.runs(task), "the run", 5)[0]
        run = self.server.over(run["id"])
        self.assertEqual((run["trigger"], run["state"]), ("schedule", "succeeded"))
        self.assertLess(abs(_seconds(run["started_at"]) - _seconds(run["scheduled_for"])), 0.5)
        self.assertEqual(len(self.server.runs(task)), 1)

    def test_priorities_order_what_waits(self):
        hold = self.server.task(pipeline=[{"uses": "orchestrator.sleep", "with": {"seconds": 1}}], concurrency_key="queue")
        self.server.reaches(self.server.now(hold), "running")
        runs = {priority: self.server.now(self.server.task(priority=priority, concurrency_key="queue")) for priority in (9, 5, 1)}

        rows = {priority: self.server.over(run) for priority, run in runs.items()}

        self.assertEqual(sorted(rows, key=lambda priority: rows[priority]["started_at"]), [1, 5, 9])


def _seconds(text):
    import datetime

    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


class Events(WithServer):
    """CONTRACT 6."""

    def test_an_event_makes_runs_that_see_it(self):
        pipeline = [{"uses": "event.publish", "with": {"topic": "seen", "payload": {"of": {"$expr": "event.payload.plate"}}}, "save_as": "out"}]
        task = self.server.task(schedule_kind="event", schedule_expr="plate.read", pipeline=pipeline)

        details = self.server.publish("plate.read", {"plate": "P7"})

        self.assertEqual(details["triggered_tasks"], [task])
        self.assertRegex(details["stream_id"], r"^\d+-\d+$")
        run = wait_for(lambda: self.server.runs(task), "the run")[0]
        self.assertEqual((self.server.over(run["id"])["state"], run["trigger"]), ("succeeded", "event"))
        newest = self.ask("GET", "/events/stream/recent", params={"count": 1}).json()["events"][0]
        self.assertEqual((newest["topic"], newest["payload"], newest["source_agent_id"]), ("seen", {"of": "P7"}, SYSTEM))
        row = [row for row in self.server.trail(action="event.published") if row["details"]["event_id"] == details["event_id"]][0]
        self.assertEqual((row["details"]["triggered_tasks"], row["details"]["topic"]), ([task], "plate.read"))

    def test_an_event_starts_tasks_whose_owner_may_hear_it(self):
        publisher = self.server.new_agent("publisher")
        scopes = {"deaf": [], "hears": ["events:listen:plate.ready"], "hears another": ["events:listen:plate"], "hears all": ["events:listen"]}
        agents = {name: self.server.new_agent(name, [*SCOPES, *more]) for name, more in scopes.items()}
        agents.update({"publisher": publisher, "administrator": SYSTEM})
        topic = {"schedule_kind": "event", "schedule_expr": "plate.ready"}
        tasks = {name: self.server.task(agent, **topic) for name, agent in agents.items()}
        condition = self.server.task(agents["hears"], schedule_kind="condition", schedule_expr="event.topic == 'plate.ready'")
        unheard = self.server.task(agents["deaf"], schedule_kind="condition", schedule_expr="event.topic == 'plate.ready'")
        published = self.server.publish("plate.ready", {"plate": "P9"}, publisher)
        self.assertEqual(published["triggered_tasks"], [tasks["publisher"]])

        started = {name for name, task in tasks.items() if self.server.runs(task)}
        self.assertEqual(started, {"publisher", "administrator", "hears", "hears all"})
        self.assertEqual((len(self.server.runs(condition)), self.server.runs(unheard)), (1, []))
        # What was granted is judged when the event comes.
        self.assertEqual(self.server.ask("PUT", "/agents/" + agents["hears"], {"scopes": SCOPES}).status_code, 200)
        self.server.publish("plate.ready", {}, publisher)
        self.assertEqual(len(self.server.runs(tasks["hears"])), 1)
        self.assertEqual(len(self.server.runs(tasks["hears all"])), 2)

    def test_a_condition_is_tried_on_each_event(self):
        task = self.server.task(schedule_kind="condition", schedule_expr="event.topic == 'od' && event.payload.value > `0.5`")

        self.assertEqual(self.server.publish("od", {"value": 0.4})["triggered_tasks"], [])
        self.assertEqual(self.server.publish("od", {"value": 0.6})["triggered_tasks"], [task])
        self.assertEqual(self.server.publish("od", {"value": "much"})["triggered_tasks"], [])

    def test_paused_tasks_hear_nothing(self):
        task = self.server.task(schedule_kind="event", schedule_expr="quiet")
        self.ask("POST", "/tasks/%s/pause" % task)

        self.assertEqual(self.server.publish("quiet")["triggered_tasks"], [])

    def test_bad_events_are_refused_with_the_place(self):
        good = {"topic": "t", "payload": {}, "source_agent_id": SYSTEM}
        for change, field in (({"topic": ""}, "topic"), ({"topic": "x" * 101}, "topic"), ({"topic": 4}, "topic"), ({"payload": []}, "payload"),
                              ({"payload": None}, "payload"), ({"source_agent_id": None}, "source_agent_id")):
            answer = self.ask("POST", "/events", dict(good, **change))
            self.assertProblem(answer, 422)
            self.assertEqual(answer.json()["errors"][0]["loc"], ["body", field])
        self.assertProblem(self.ask("POST", "/events", good, self.other), 403)
        self.assertEqual(self.ask("POST", "/events", dict(good, source_agent_id=self.other)).status_code, 202)

    def test_topics_and_recent_events(self):
        agent = self.server.new_agent("topics")
        tasks = [self.server.task(agent, schedule_kind="event", schedule_expr=topic) for topic in ("b", "a", "a")]
        for number in range(3):
            self.server.publish("mine", {"n": number}, agent)

        topics = self.ask("GET", "/events/topics", agent=agent).json()
        self.assertEqual((topics["total_topics"], [(topic["topic"], topic["active_tasks"]) for topic in topics["topics"]]), (2, [("a", 2), ("b", 1)]))
        self.assertEqual(set(topics["topics"][0]["task_ids"]), set(tasks[1:]))
        recent = self.ask("GET", "/events/stream/recent", agent=agent, params={"count": 2}).json()
        self.assertEqual((recent["total_events"], [event["payload"]["n"] for event in recent["events"]]), (2, [2, 1]))
        self.assertEqual(set(recent["events"][0]), {"event_id", "topic", "payload", "source_agent_id", "published_at", "published_by", "stream_id"})
        for count in (0, 1001, "x"):
            self.assertProblem(self.ask("GET", "/events/stream/recent", params={"count": count}), 422)

    def test_the_stream_goes_on_where_it_was_left(self):
        first = self.server.publish("s", {"n": 1})["stream_id"]
        for number in (2, 3):
            self.server.publish("s", {"n": number})

        with self.server.agent() as client, client.stream("GET", "/events/stream", headers={"Last-Event-ID": first}) as response:
            stream = events_of(response)
            seen = [next(stream) for _ in range(2)]
            self.server.publish("s", {"n": 4})
            seen.append(next(stream))

        self.assertEqual([data["payload"]["n"] for _, _, data in seen], [2, 3, 4])
        self.assertEqual([place for place, _, _ in seen], [data["stream_id"] for _, _, data in seen])
        self.assertProblem(self.ask("GET", "/events/stream", headers={"Last-Event-ID": "yesterday"}), 422)

    def test_only_administrators_clean(self):
        self.assertProblem(self.ask("DELETE", "/events/stream/cleanup", agent=self.other), 403)
        self.server.publish("old")
        self.assertEqual(self.ask("DELETE", "/events/stream/cleanup").json()["details"], {"deleted_count": 0, "max_age_hours": 24})
        for hours in (-1, 8761, "x"):
            self.assertProblem(self.ask("DELETE", "/events/stream/cleanup", params={"max_age_hours": hours}), 422)
        done = self.ask("DELETE", "/events/stream/cleanup", params={"max_age_hours": 0}).json()["details"]
        self.assertGreater(done["deleted_count"], 0)
        self.assertIn("cutoff_timestamp", done)
        self.assertEqual(self.ask("GET", "/events/stream/recent").json()["total_events"], 0)


class Approvals(WithServer):
    """A person's word between two steps."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server.add_users("olaf", "ada", "vera", "adam")

    def waiting(self, agent=SYSTEM, **options):
        step = {"uses": "orchestrator.request_approval", "with": {"reason": "It moves", "parameters": {"well": "A1"}, **options}, "save_as": "ok"}
        run = self.server.now(self.server.task(agent, [NAP, step, dict(NAP, save_as="after")]), agent)
        self.server.reaches(run, "waiting_for_approval", agent=agent)
        found = [row for row in self.server.get("/approvals", "olaf", params={"state": "pending"}).json()["items"] if row["run_id"] == run]
        self.assertEqual(len(found), 1)
        return run, found[0]

    def decide(self, row, decision="approve", user="olaf", **body):
        return self.server.post("/approvals/%s/decide" % row["id"], dict(body, decision=decision), user)

    def test_a_run_goes_on_when_a_person_has_approved(self):
        run, row = self.waiting()

        self.assertEqual((row["requested_by"], row["reason"], row["state"]), (SYSTEM, "It moves", "pending"))
        self.assertEqual(row["parameters"]["parameters"], {"well": "A1"})
        answer = self.decide(row, note="I have looked", parameters_sha256=row["parameters_sha256"])
        self.assertEqual((answer.status_code, answer.json()["state"], answer.json()["decided_by"]), (200, "approved", "olaf"), answer.text)
        over = self.server.over(run)
        self.assertEqual((over["state"], over["output"]["_execution_summary"]["executed_steps"]), ("succeeded", 3))
        self.assertEqual(over["output"]["steps"]["ok"]["approved_by"], "olaf")
        # What is refused below may be told under the same name, a little later.
        actions = [entry["action"] for entry in self.server.trail(subject=row["id"])]
        self.assertEqual(actions.count("approval.decided"), 1)
        self.assertProblem(self.decide(row, "deny"), 409, "conflict")

    def test_a_run_ends_when_a_person_says_no_or_nobody_says_anything(self):
        run, row = self.waiting()
        self.assertEqual(self.decide(row, "deny").status_code, 200)
        self.assertEqual(self.server.over(run)["state"], "failed")
        run, row = self.waiting(expires_in_seconds=60)
        self.ask("POST", "/runs/%s/cancel" % run)
        self.assertEqual(self.server.over(run)["state"], "cancelled")
        self.assertProblem(self.decide(row), 409, "conflict")

    def test_two_people_approve_where_two_must(self):
        run, row = self.waiting(approvers=2)
        self.assertEqual((row["approvers"], row["first_approved_by"]), (2, None))

        first = self.decide(row, note="looks right").json()
        self.assertEqual((first["state"], first["first_approved_by"], first["decided_by"]), ("pending", "olaf", None))
        self.assertProblem(self.decide(row), 403, "forbidden")
        self.assertEqual(self.server.get("/runs/%s" % run).json()["state"], "waiting_for_approval")
        second = self.decide(row, user="ada").json()
        self.assertEqual((second["state"], second["first_approved_by"], second["decided_by"]), ("approved", "olaf", "ada"))
        output = self.server.over(run)["output"]["steps"]["ok"]
        self.assertEqual((output["first_approved_by"], output["approved_by"]), ("olaf", "ada"))
        decisions = [entry["details"].get("decision") for entry in self.server.trail(subject=row["id"]) if entry["action"] == "approval.decided"]
        self.assertEqual(sorted(decision for decision in decisions if decision), ["approved", "first_of_two"])

        # One no is enough, also of who said yes before; and the word of somebody who was dismissed is none.
        run, row = self.waiting(approvers=2)
        self.decide(row)
        self.assertEqual(self.decide(row, "deny").json()["state"], "denied")
        self.assertEqual(self.server.over(run)["state"], "failed")
        run, row = self.waiting(approvers=2)
        self.decide(row, user="ada")
        with self.server.as_user() as client:
            self.assertEqual(client.patch("/users/ada", json={"disabled": True}).status_code, 200)
        self.assertEqual(self.decide(row).json()["state"], "pending")
        self.assertEqual(self.server.get("/runs/%s" % run).json()["state"], "waiting_for_approval")
        for wrong in (0, 3, "2", "${params.n}", None):
            step = {"uses": "orchestrator.request_approval", "with": {"reason": "It moves", "approvers": wrong}}
            self.assertProblem(self.ask("POST", "/tasks", self.server.body(SYSTEM, [step])), 422)

    def test_neither_software_nor_the_requester_nor_a_viewer_decides(self):
        _, row = self.waiting()

        self.assertProblem(self.ask("POST", "/approvals/%s/decide" % row["id"], {"decision": "approve"}), 403)
        self.assertProblem(self.decide(row, user="vera"), 403)
        self.assertProblem(self.decide(row, user="adam"), 403)
        self.assertProblem(self.decide(row, parameters_sha256="0" * 64), 409)
        self.assertProblem(self.decide(row, "perhaps"), 422)
        self.assertProblem(self.server.post("/approvals/%s/decide" % NOBODY, {"decision": "approve"}, "olaf"), 404, "approval_not_found")
        step = {"uses": "orchestrator.request_approval", "with": {"reason": "mine"}}
        made = self.server.post("/tasks", self.server.body("olaf", [step]), "olaf").json()
        run = self.server.post("/tasks/%s/run_now" % made["id"], user="olaf").json()["details"]["run_id"]
        self.server.reaches(run, "waiting_for_approval")
        own = [row for row in self.server.get("/approvals", "olaf").json()["items"] if row["run_id"] == run][0]
        self.assertProblem(self.decide(own), 403, "forbidden")


class Service(WithServer):
    """CONTRACT 7 and 9.2."""

    def test_banner_health_and_readiness(self):
        with self.server.http() as client:
            self.assertLessEqual({"service", "version", "environment", "status", "docs_url", "redoc_url", "health_url"}, set(client.get("/").json()))
            health = client.get("/health")
            ready = client.get("/health/ready")
        self.assertEqual(health.status_code, 200)
        self.assertLessEqual({"api", "database", "redis", "workers", "scheduler"}, {check["name"] for check in health.json()["checks"]})
        self.assertTrue(all(check["details"] is None and check["error"] is None for check in health.json()["checks"]))
        self.assertEqual({name: ready.json()[name] for name in ("status", "api", "database", "redis", "workers")},
                         {"status": "ready", "api": True, "database": True, "redis": True, "workers": True})
        inside = {check["name"]: check["details"] for check in self.ask("GET", "/health").json()["checks"]}
        self.assertEqual(inside["workers"]["workers"], 1)

    def test_what_the_earlier_system_offered_to_anybody_is_not_there(self):
        with self.server.http() as client:
            for path in ("/extensions", "/extensions/x", "/ext/x/publish", "/ext/x/tools/call"):
                for method in ("GET", "POST"):
                    self.assertEqual(client.request(method, path).status_code, 404, path)

    def test_the_audit_trail_is_a_page_with_filters(self):
        agent = self.server.new_agent("audited")
        task = self.server.task(agent)
        page = self.ask("GET", "/audit", params={"action": "task.created", "actor": agent, "subject": task, "since": soon(-60), "until": soon(60)}).json()
        self.assertEqual((page["total"], page["items"][0]["subject_id"], page["items"][0]["actor_agent_id"]), (1, task, agent))
        self.assertLessEqual({"id", "at", "actor_agent_id", "action", "subject_id", "details", "client_ip", "request_id"}, set(page["items"][0]))
        for query in ({"actor": "nobody"}, {"since": soon(60)}, {"until": soon(-3600)}, {"subject": NOBODY}):
            self.assertEqual(self.ask("GET", "/audit", params=dict({"action": "task.created", "subject": task}, **query)).json()["total"], 0, query)
        self.assertProblem(self.ask("GET", "/audit", agent=agent), 403, "forbidden")

    def test_tools_are_those_that_the_caller_may_use(self):
        few = self.server.new_agent("few", ["tasks:read"])

        every, own = self.ask("GET", "/tools").json(), self.ask("GET", "/tools", agent=few).json()
        self.assertIn("event.publish", every)
        self.assertNotIn("event.publish", own)
        self.assertTrue(all(set(tool) == {"description"} for tool in every.values()))
        refused = self.ask("POST", "/tasks", self.server.body(few, [{"uses": "event.publish", "with": {"topic": "x"}}]))
        self.assertProblem(refused, 422)

    def test_metrics_are_there_from_the_start_and_count(self):
        before = self.server.series()
        for name in ('orchestrator_runs_total{status="succeeded"}', 'orchestrator_pipeline_executions_total{status="failed"}',
                     "orchestrator_scheduler_lag_seconds", 'orchestrator_scheduler_ticks_total{result="error"}',
                     'orchestrator_due_work_queue_depth{priority="9"}', "orchestrator_worker_heartbeat_total",
                     'orchestrator_active_workers{state="alive"}'):
            self.assertIn(name, before)
        task = self.server.task(schedule_kind="once", schedule_expr=soon(0.5))
        wait_for(lambda: [run for run in self.server.runs(task) if run["success"]], "the run")

        after = self.server.series()
        grown = lambda name: after.get(name, 0) - before.get(name, 0)
        self.assertEqual(grown('orchestrator_runs_total{status="succeeded"}'), 1)
        self.assertEqual(grown('orchestrator_scheduler_jobs_created_total{schedule_kind="once"}'), 1)
        self.assertEqual(grown('orchestrator_pipeline_executions_total{status="success"}'), 1)
        self.assertGreater(grown("orchestrator_worker_heartbeat_total"), -1)
        self.assertNotIn(task, "".join(after))

    def test_the_document_describes_the_routes(self):
        paths = self.ask("GET", "/openapi.json").json()["paths"]

        self.assertLessEqual({"/tasks", "/tasks/{task_id}", "/runs/{run_id}", "/events", "/schedules/preview", "/approvals"}, set(paths))
        self.assertEqual(paths["/tasks"]["post"]["operationId"], "create_task")

    def test_a_deleted_agent_runs_nothing_any_more(self):
        agent = self.server.new_agent("leaves")
        task = self.server.task(agent)
        self.server.over(self.server.now(task, agent), agent=agent)

        self.assertEqual(self.ask("DELETE", "/agents/" + agent).status_code, 200)

        self.assertEqual(self.ask("GET", "/tasks/" + task).json()["status"], "canceled")
        self.assertEqual(len(self.server.runs(task)), 1)


class Restarts(unittest.TestCase):
    """What a restart and a kill must not change."""

    def test_tasks_runs_and_due_times_survive_a_kill(self):
        with Orchestrator() as server:
            napping = server.task(pipeline=[{"uses": "orchestrator.sleep", "with": {"seconds": 2}, "save_as": "a"}, NAP])
            run = server.now(napping)
            due = server.task(schedule_kind="once", schedule_expr=soon(1.5))
            server.reaches(run, "running")
            server.kill()
            server.start()

            over = server.over(run)
            self.assertEqual((over["state"], over["attempt"]), ("succeeded", 1))
            rows = wait_for(lambda: server.runs(due), "the due time's run", 10)
            self.assertEqual((len(rows), server.over(rows[0]["id"])["state"]), (1, "succeeded"))

    def test_missed_times_follow_the_policy(self):
        with Orchestrator(variables={"SCHEDULER_MISFIRE_GRACE_TIME": "1"}) as server:
            tasks = {policy: server.task(schedule_kind="rrule", schedule_expr="FREQ=SECONDLY;INTERVAL=2", misfire_policy=policy)
                     for policy in ("run_once", "run_all", "skip")}
            server.kill()
            time.sleep(7)
            server.start()
            time.sleep(1)
            for task in tasks.values():
                server.ask("POST", "/tasks/%s/pause" % task)
            times = {policy: sorted(_seconds(run["scheduled_for"]) for run in server.runs(task)) for policy, task in tasks.items()}

            gaps = {policy: max((b - a for a, b in zip(found, found[1:])), default=0) for policy, found in times.items()}
            self.assertEqual(gaps["run_all"], 2.0, times)
            self.assertGreater(len(times["run_all"]), len(times["run_once"]))
            self.assertGreaterEqual(len(times["run_once"]), len(times["skip"]))
            for found in times.values():
                self.assertEqual(len(found), len(set(found)))

    def test_a_second_server_on_the_same_state_folder_is_refused(self):
        with Orchestrator() as server:
            second = Orchestrator(state=server.state)
            try:
                code, said = second.refused()
                self.assertNotEqual(code, 0)
                self.assertIn("another server uses the state folder", said)
            finally:
                second.close()

    def test_a_wrong_setting_stops_the_start_with_its_name(self):
        for name, text in (("WORKER_LEASE_SECONDS", "0"), ("WORKER_POLL_INTERVAL", "never"), ("DEFAULT_TIMEZONE", "Mars/Olympus"),
                           ("TOOL_MODE", "pretend"), ("SCHEDULER_MISFIRE_GRACE_TIME", "-1"), ("WORKER_CONCURRENCY", "many")):
            server = Orchestrator(variables={name: text})
            try:
                code, said = server.refused()
                self.assertNotEqual(code, 0)
                self.assertIn(name, said)
            finally:
                server.close()

    def test_simulated_tools_say_so(self):
        with Orchestrator(variables={"TOOL_MODE": "simulate"}) as server:
            run = server.carried_out([dict(NAP, **{"with": {"seconds": 30}})])

            result = run["output"]["steps"]["nap"]
            self.assertLessEqual({"status", "tool_address", "input_args", "timestamp", "message"}, set(result))
            self.assertEqual((result["status"], result["tool_address"]), ("simulated", "orchestrator.sleep"))


if __name__ == "__main__":
    unittest.main()
