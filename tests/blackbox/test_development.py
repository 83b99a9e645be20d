"""``interlock dev``: a device and an orchestrator in one process, and the command line that finds both."""

import json
import os
import subprocess
import unittest

from support import Server, program, wait_for

ACTIONS = """
    from interlock import task, ctx

    @task(idempotent=True)
    def greet(name: str = "you") -> str:
        "Says hello."
        ctx.progress(1, 2, "clearing the throat")
        ctx.log("about to speak")
        return "hello " + name
"""


class Development(unittest.TestCase):
    """What a newcomer does in the first minutes, without a word about ports or tokens."""

    @classmethod
    def setUpClass(cls):
        cls.server = Dev(source=ACTIONS, variables={"BOOTSTRAP_ADMIN_SECRET": None})
        cls.addClassCleanup(cls.server.close)
        cls.server.start()
        cls.contexts = os.path.join(cls.server.folder, ".config", "interlock", "contexts.json")
        wait_for(lambda: os.path.exists(cls.contexts), "the command line is signed in")

    def command(self, *arguments, stdin="", code=0):
        done = subprocess.run([program(), *arguments], input=stdin, capture_output=True, text=True, timeout=60, env=self.server.variables,
                              check=False, cwd=self.server.folder)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        return done.stdout

    def answer(self, *arguments, stdin="", code=0):
        return json.loads(self.command(*arguments, "--output", "json", stdin=stdin, code=code))

    def test_a_task_uses_the_device_and_everything_is_found_by_its_id(self):
        listeners = {one["name"]: one["url"] for one in self.server.ready["listeners"]}
        self.assertNotEqual(listeners["tasks"], listeners["http"])
        tools = wait_for(lambda: [line for line in self.command("tool", "list", "-o", "name").split() if line.startswith("device.")], "the device's tools")
        self.assertEqual(tools, ["device.device.greet"])
        self.assertIn("Says hello", self.answer("tool", "show", "device.device.greet")["description"])
        body = {"title": "Greet", "description": "d", "schedule_kind": "manual",
                "payload": {"pipeline": [{"uses": "device.device.greet", "with": {"name": "Ada"}, "save_as": "said"}]}}
        task = self.answer("task", "create", "-", stdin=json.dumps(body))["id"]

        run = self.answer("task", "run", task, "--wait")

        self.assertEqual(run["output"]["steps"]["said"]["result"], "hello Ada")
        device_run = run["output"]["steps"]["said"]["run_id"]
        self.assertEqual(self.answer("runs", "show", device_run)["result"], "hello Ada")
        self.assertEqual(self.answer("runs", "show", run["id"])["state"], "succeeded")
        self.assertEqual([one["id"] for one in self.answer("runs", "list")], [device_run])
        self.assertEqual([one["id"] for one in self.answer("runs", "list", "--tasks")], [run["id"]])
        self.assertEqual([one["id"] for one in self.answer("runs", "list", "--task", task, "--state", "succeeded")], [run["id"]])
        both = self.command("wait", device_run, run["id"], "-o", "name").split()
        self.assertEqual(both, [device_run, run["id"]])
        self.command("task", "run-now", task)
        self.command("event", "publish", "plate.read", "{}")
        self.assertEqual(self.answer("event", "list")[0]["topic"], "plate.read")

    def test_the_listeners_are_two_families_of_one_installation(self):
        listeners = {one["name"]: one["url"] for one in self.server.ready["listeners"]}
        device = self.answer("status", "--url", listeners["http"])
        tasks = self.answer("status", "--url", listeners["tasks"])
        self.assertEqual((device["user"], tasks["user"]), ("admin", "admin"))
        self.assertEqual((device["device"]["name"], tasks["device"]), ("device", None))
        self.assertIn("scheduler", [check["name"] for check in tasks["checks"]])
        self.assertEqual(self.answer("api", "GET", "/", "--url", listeners["tasks"])["status"], "running")
        self.assertIn("available_tasks", self.answer("api", "GET", "/", "--url", listeners["http"]))


class Dev(Server):
    """``interlock dev``."""

    def command(self):
        return [program(), "dev", self.file, "--state", self.state, "--ready-file", self.ready_file, "--listen", self.listen]


if __name__ == "__main__":
    unittest.main()
