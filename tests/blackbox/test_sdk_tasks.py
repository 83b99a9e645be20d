"""The Python package against a real orchestrator: tasks, their runs, events and approvals."""

import asyncio
import datetime
import os
import sys
import threading
import unittest

from orchestra import NAP, NOBODY, SYSTEM, Orchestrator
from support import ADMIN_PASSWORD, PASSWORD, ROOT, Server, wait_for

sys.path.insert(0, os.path.join(ROOT, "python"))
from interlock import Client, OrchestratorClient, errors  # noqa: E402
from interlock._runs import WaitTimeout  # noqa: E402

DEVICE = """
    import time
    from interlock import task, ctx

    @task(idempotent=True)
    def mix(seconds: float = 0.0) -> str:
        for step in range(1, 4):
            ctx.progress(step, 3, "colour %d" % step)
            ctx.log("dispensed %d" % step)
            ctx.sleep(seconds / 3)
        return "mixed"
"""


class Tasks(unittest.TestCase):
    """As a person, against an orchestrator with a device."""

    @classmethod
    def setUpClass(cls):
        cls.device = Server(source=DEVICE)
        cls.addClassCleanup(cls.device.close)
        cls.device.start()
        tools = os.path.join(cls.device.folder, "tools.toml")
        token = os.path.join(cls.device.folder, "token")
        with open(token, "w", encoding="utf-8") as opened:
            opened.write(cls.device.token("admin"))
        with open(tools, "w", encoding="utf-8") as opened:
            opened.write('[[device]]\nname = "ot2"\nurl = "%s"\ntoken_file = "%s"\n' % (cls.device.url, token))
        cls.server = Orchestrator(variables={"TOOLS_FILE": tools})
        cls.addClassCleanup(cls.server.close)
        cls.server.start()
        cls.server.add_users("olaf", "ada")
        cls.client = Client(cls.server.url, username="olaf", password=PASSWORD)
        cls.addClassCleanup(cls.client.close)
        wait_for(lambda: "device.ot2.mix" in cls.client.tools(), "the device's actions")

    def manual(self, *steps, **options):
        return self.client.tasks.create("A task", steps or [NAP], **options)

    def test_a_task_is_made_found_changed_and_ended(self):
        task = self.client.tasks.create("Weekly", [dict(NAP, **{"with": {"seconds": {"$expr": "params.nap"}}})], cron="0 9 * * 1", params={"nap": 0},
                                        timezone="Europe/Berlin", priority=2)
        self.assertEqual((task.status, task.created_by, task.priority, task.timezone), ("active", "olaf", 2, "Europe/Berlin"))
        times = task.next(3)
        self.assertEqual((len(times), times[0]), (3, task.next_due_at))
        self.assertEqual(task.skip("holiday").next_due_at, times[1])
        stale = self.client.tasks.get(task.id)
        task.skip()
        self.assertRaises(errors.Conflict, stale.skip)
        self.assertEqual(self.client.tasks.get(task.id).title, "Weekly")
        self.assertIn(task.id, [one.id for one in self.client.tasks.list(status="active", kind="cron")])
        self.assertEqual(task.update(title="Daily", cron="0 9 * * *").schedule_expr, "0 9 * * *")
        self.assertEqual(task.pause().status, "paused")
        self.assertEqual(task.resume().status, "active")
        task.snooze(60, "not now")
        run = task.run_now()
        self.assertEqual(run.result(20)["nap"], {"seconds": 0})
        self.assertEqual((task.latest().id, task.stats()["total_runs"]), (run.id, 1))
        self.assertEqual([one.id for one in task.runs(success=True)], [run.id])
        self.assertEqual(task.runs()[0].output["steps"]["nap"], {"seconds": 0})
        self.assertEqual(task.cancel().status, "canceled")
        self.assertRaises(errors.TaskCanceled, task.run_now)
        self.assertEqual(len(self.client.tasks.preview(rrule="FREQ=DAILY;COUNT=2", count=5)), 2)
        later = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)
        self.assertEqual(self.manual(once=later).schedule_kind, "once")

    def test_mistakes_are_typed_and_named(self):
        with self.assertRaises(errors.InvalidParameters) as caught:
            self.client.tasks.create("", [{"uses": "no.such.tool"}], cron="61 * * * *")
        places = {".".join(map(str, one["loc"])) for one in caught.exception.errors}
        self.assertIn("body.schedule_expr", places)
        self.assertIn("body.title", places)
        self.assertRaises(errors.NotFound, self.client.tasks.get, NOBODY)
        self.assertRaises(errors.NotFound, self.client.task_runs.get, NOBODY)
        self.manual(dedupe_key="plate-7")
        self.assertRaises(errors.DuplicateTask, self.manual, dedupe_key="plate-7")
        with self.assertRaises(errors.PermissionDenied):
            self.manual(created_by=SYSTEM)
        with self.assertRaises(ValueError):
            self.client.tasks.create("Two", [NAP], cron="* * * * *", once="2030-01-01T00:00:00Z")
        with Client(self.server.url, username="olaf", password="wrong") as stranger, self.assertRaises(errors.AuthenticationError):
            stranger.tasks.list()

    def test_a_key_makes_one_task_and_one_run(self):
        one, other = (self.manual(idempotency_key="the-same") for _ in range(2))
        self.assertEqual(one.id, other.id)
        self.assertEqual(*(one.run_now(idempotency_key="run-the-same").id for _ in range(2)))

    def test_how_a_run_ends_is_an_error_of_its_kind(self):
        failing = {"uses": "event.publish", "with": {"topic": {"$expr": "params.none"}}}
        with self.assertRaises(errors.TaskFailed) as caught:
            self.manual(failing, max_retries=0).run_now().result(20)
        self.assertIn("topic", str(caught.exception))
        run = self.manual({"uses": "orchestrator.sleep", "with": {"seconds": 100}}).run_now()
        self.assertRaises(WaitTimeout, run.wait, 0.5)
        run.cancel("enough")
        self.assertRaises(errors.RunWasCancelled, run.result, 20)
        self.assertIn("enough", run.error)
        self.assertRaises(errors.Conflict, run.cancel)

    def test_what_a_device_reports_while_it_moves_is_followed(self):
        run = self.manual({"uses": "device.ot2.mix", "id": "mix", "with": {"seconds": 1.5}, "save_as": "mixed"}).run_now()
        seen = [(event.kind, event.data.get("message") or event.data.get("state")) for event in run.events()]

        self.assertEqual(seen[-1], ("state", "succeeded"))
        self.assertIn(("log", "dispensed 3"), seen)
        self.assertTrue([message for kind, message in seen if kind == "progress"], seen)
        self.assertLess(seen.index(("log", "dispensed 1")), seen.index(("log", "dispensed 3")))
        steps = [event.data for event in run.log() if event.kind == "step"]
        self.assertEqual([(step["id"], step["uses"], step["state"]) for step in steps],
                         [("mix", "device.ot2.mix", "started"), ("mix", "device.ot2.mix", "finished")])
        self.assertEqual([event.seq for event in run.log()], list(range(1, len(run.log()) + 1)))
        self.assertEqual({event.data["device"] for event in run.log() if event.kind == "log"}, {"ot2"})
        # What was heard live is what is kept, and whoever comes back gets the rest only.
        half = run.log()[1].seq
        self.assertEqual([event.seq for event in run.log(after=half)], [event.seq for event in run.log() if event.seq > half])
        self.assertEqual(run.result()["mixed"]["result"], "mixed")

    def test_a_stream_goes_on_where_it_broke(self):
        run = self.manual({"uses": "device.ot2.mix", "with": {"seconds": 2.4}}).run_now()
        events, seen = run.events(), []
        for event in events:
            seen.append(event)
            if event.kind == "log" and len([one for one in seen if one.kind == "log"]) == 1:
                # As a proxy would: the next event is asked for on another connection.
                events._connection.sock.shutdown(2)
        logs = [event.data["message"] for event in seen if event.kind == "log"]
        self.assertEqual(logs, ["dispensed 1", "dispensed 2", "dispensed 3"])
        self.assertEqual(seen[-1].data["state"], "succeeded")
        numbers = [event.seq for event in seen if event.seq is not None]
        self.assertEqual(numbers, sorted(set(numbers)))

    def test_events_are_published_and_followed(self):
        task = self.manual(on_event="plate.read")
        self.assertIn("plate.read", [one["topic"] for one in self.client.events.topics()])
        heard = []
        stream = self.client.events.stream(topic="plate.read", timeout=20)
        listener = threading.Thread(target=lambda: heard.extend(event for _, event in zip(range(2), stream)), daemon=True)
        # Whoever follows from the last event that there was misses nothing, whenever the connection is there.
        stream.last = self.client.events.publish("other.topic")["stream_id"]
        listener.start()
        first = self.client.events.publish("plate.read", {"plate": "P7"})
        self.client.events.publish("other.topic")
        self.client.events.publish("plate.read", {"plate": "P8"})
        listener.join(20)

        self.assertEqual([event["payload"] for event in heard], [{"plate": "P7"}, {"plate": "P8"}])
        self.assertEqual(first["triggered_tasks"], [task.id])
        self.assertEqual(self.client.events.recent(1)[0]["payload"], {"plate": "P8"})
        wait_for(lambda: len(task.runs(success=True)) == 2, "both runs")

    def test_a_person_decides_about_exactly_what_was_shown(self):
        pipeline = [{"uses": "orchestrator.request_approval", "with": {"reason": "Mix?"}, "save_as": "ok"}]
        run = self.manual(*pipeline).run_now()
        asked = wait_for(lambda: [one for one in self.client.approvals.list() if one.run_id == run.id], "the question")[0]
        self.assertRaises(errors.PermissionDenied, asked.approve)
        with Client(self.server.url, username="ada", password=PASSWORD) as other:
            question = [one for one in other.approvals.list() if one.run_id == run.id][0]
            question._document["parameters_sha256"] = "0" * 64
            self.assertRaises(errors.Conflict, question.approve)
            question = [one for one in other.approvals.list() if one.run_id == run.id][0]
            self.assertEqual((question.reason, question.approve("seen").state), ("Mix?", "approved"))
            denied = self.manual(*pipeline).run_now()
            question = wait_for(lambda: [one for one in other.approvals.list() if one.run_id == denied.id], "the question")[0]
            question.deny("no")
        self.assertEqual(run.result(20)["ok"]["approved_by"], "ada")
        self.assertEqual(denied.wait(20).state, "failed")

    def test_coroutines_follow_too(self):
        run = self.manual().run_now()

        async def follow():
            return [event.kind async for event in run.events()]

        self.assertEqual(asyncio.run(follow())[-1], "state")

    def test_the_short_client_has_them_too(self):
        with OrchestratorClient(self.server.url, "admin", ADMIN_PASSWORD) as client:
            self.assertIn("orchestrator.sleep", client.tools())
            self.assertEqual(client.tasks.create("Short", [NAP]).run_now().wait(20).state, "succeeded")

    def test_lists_are_read_through(self):
        task = self.manual()
        runs = {task.run_now().id for _ in range(3)}
        self.assertEqual({run.id for run in self.client.task_runs.list(task=task.id)}, runs)
        self.assertEqual(len(self.client.task_runs.list(limit=2)), 2)
        since = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)
        self.assertEqual(self.client.task_runs.list(since=since), [])
        self.assertIn(task.id, [one.id for one in self.client.tasks])
        self.assertGreaterEqual(self.client.task_runs.summary()["total_runs"], 0)


if __name__ == "__main__":
    unittest.main()
