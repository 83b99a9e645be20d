"""Tasks, runs and events of the client, without a server: what is sent, what is read, and streams that break."""

import datetime
import io
import json
import os
import tempfile
import unittest
from unittest import mock

import support  # noqa: F401  (the package's path)
from interlock import _contexts, errors, tasks
from interlock._stream import parse


class Recorded:
    """A session that answers from a list and remembers what was asked."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    def json(self, method, path, body=None, headers=None, key=None, timeout=None):
        self.asked.append((method, path, body, key))
        return self.answers.pop(0)


def page(items, has_more=False):
    return {"items": [{"id": one} for one in items], "has_more": has_more}


class Sending(unittest.TestCase):
    """What goes to the server."""

    def test_a_schedule_is_one_of_five_or_none(self):
        time = datetime.datetime(2030, 1, 1, tzinfo=datetime.timezone.utc)
        for given, kind, expression in [({"cron": "0 9 * * 1"}, "cron", "0 9 * * 1"), ({"once": time}, "once", "2030-01-01T00:00:00+00:00"),
                                        ({"on_event": "plate"}, "event", "plate"), ({}, "manual", None)]:
            session = Recorded({"user": "ana"}, {"id": "t"})
            tasks.Tasks(session).create("A", [{"uses": "x"}], priority=2, **given)
            method, path, body, key = session.asked[-1]
            self.assertEqual((method, path, body["schedule_kind"], body.get("schedule_expr")), ("POST", "/tasks", kind, expression))
            self.assertEqual((body["created_by"], body["priority"], body["description"]), ("ana", 2, "A"))
            self.assertTrue(key)
        with self.assertRaises(ValueError):
            tasks.Tasks(Recorded()).create("A", [], cron="* * * * *", rrule="FREQ=DAILY")

    def test_pages_are_read_until_there_is_enough_and_nothing_is_given_twice(self):
        session = Recorded(page("abc", True), page("cd"))
        self.assertEqual([one["id"] for one in tasks._pages(session, "/runs", None)], list("abcd"))
        self.assertEqual([asked[1] for asked in session.asked], ["/runs?limit=200&offset=0", "/runs?limit=200&offset=3"])
        session = Recorded(page("ab", True))
        self.assertEqual(len(list(tasks._pages(session, "/tasks", 2, status="a&b", success=True))), 2)
        self.assertEqual(session.asked[0][1], "/tasks?limit=2&offset=0&status=a%26b&success=true")
        with self.assertRaises(ValueError):
            list(tasks._pages(Recorded(), "/tasks", 0))

    def test_an_approval_is_for_what_was_shown(self):
        session = Recorded({"id": "a", "state": "approved"})
        tasks.Approval(session, {"id": "a", "parameters_sha256": "f" * 64}).approve("seen")
        self.assertEqual(session.asked[0][2], {"decision": "approve", "parameters_sha256": "f" * 64, "note": "seen"})

    def test_an_answer_without_a_run_is_no_answer(self):
        with self.assertRaises(errors.ProtocolError):
            tasks.Task(Recorded({"details": {}}), {"id": "t"}).run_now()

    def test_a_run_that_is_over_is_asked_for_once(self):
        session = Recorded({"id": "r", "state": "running"}, {"id": "r", "state": "uncertain", "error": "who knows", "output": None})
        run = tasks.TaskRun(session, {"id": "r", "state": "queued"})
        self.assertFalse(run.done)
        with self.assertRaises(errors.RunUncertain) as caught:
            run.result()
        self.assertIn("who knows", str(caught.exception))
        self.assertEqual((run.state, len(session.asked)), ("uncertain", 2))


class Streams(unittest.TestCase):
    """Server-sent events."""

    def test_events_are_read_and_nonsense_is_passed_over(self):
        text = b": still here\n\nid: 1.running\nevent: log\ndata: {\"seq\": 1,\ndata:  \"kind\": \"log\"}\n\ndata: [1]\n\ndata: {\n\nid\nretry: 5\ndata:{}\n\ndata: {\"cut\": 1}\n"
        self.assertEqual(list(parse(io.BytesIO(text))), [("1.running", {"seq": 1, "kind": "log"}), ("", {})])


class Contexts(unittest.TestCase):
    """A device with an orchestrator beside it."""

    def test_the_token_is_for_both_addresses_and_tasks_are_at_theirs(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "contexts.json")
            one = {"url": "http://127.0.0.1:7443", "tasks_url": "http://127.0.0.1:7444", "token": "secret", "user": "admin"}
            with open(path, "w", encoding="utf-8") as opened:
                json.dump({"current": "dev", "contexts": {"dev": one}}, opened)
            os.chmod(path, 0o600)
            with mock.patch.dict(os.environ, {"INTERLOCK_CONFIG_DIR": folder}):
                for name in ("INTERLOCK_URL", "INTERLOCK_TOKEN"):
                    os.environ.pop(name, None)
                found = _contexts.find_target()
                self.assertEqual((found.url, found.tasks_url, found.token), (one["url"], one["tasks_url"], "secret"))
                beside = _contexts.find_target("http://127.0.0.1:7444")
                self.assertEqual((beside.url, beside.tasks_url, beside.token), (one["tasks_url"], None, "secret"))
                self.assertIsNone(_contexts.find_target("http://127.0.0.1:7445").token)


if __name__ == "__main__":
    unittest.main()
