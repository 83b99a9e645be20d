"""An orchestrator as a process of its own, and what tests of tasks ask it."""

import datetime
import json

from support import ADMIN_PASSWORD, Server, program, wait_for

SYSTEM = "00000000-0000-0000-0000-000000000001"
NOBODY = "018f6b1e-2c3d-7a4b-8c9d-0e1f2a3b4c5d"
FINAL = ("succeeded", "failed", "cancelled", "timed_out", "uncertain")
NAP = {"uses": "orchestrator.sleep", "with": {"seconds": 0}, "save_as": "nap"}
SCOPES = ["tasks:create", "tasks:read", "tasks:update", "tasks:delete", "runs:read", "runs:cancel", "events:publish", "events:read",
          "approvals:read", "tool:*"]


def soon(seconds):
    """An ISO time so many seconds from now."""
    return (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=seconds)).isoformat()


class Orchestrator(Server):
    """``interlock server``. Its workers take over from dead ones within two seconds."""

    def __init__(self, options=(), variables=None, state=None, listen="127.0.0.1:0"):
        variables = dict({"WORKER_LEASE_SECONDS": "2", "WORKER_POLL_INTERVAL": "0.1"}, **(variables or {}))
        super().__init__(options=options, variables=variables, state=state, listen=listen)
        self.secrets = {SYSTEM: ADMIN_PASSWORD}

    def command(self):
        return [program(), "server", "--state", self.state, "--ready-file", self.ready_file, "--listen", self.listen, *self.options]

    # agents

    def agent(self, agent=SYSTEM):
        """An httpx client that is signed in as an agent."""
        if agent not in self.tokens:
            with self.http() as client:
                answer = client.post("/agents/auth/token", json={"agent_id": agent, "agent_secret": self.secrets[agent]})
            assert answer.status_code == 200, answer.text
            self.tokens[agent] = answer.json()["access_token"]
        return self.http(self.tokens[agent])

    def new_agent(self, name, scopes=None):
        """A new agent with a secret; its id."""
        with self.agent() as client:
            made = client.post("/agents", json={"name": name, "scopes": SCOPES if scopes is None else scopes})
            assert made.status_code == 201, made.text
            agent = made.json()["id"]
            secret = client.post("/agents/%s/credentials" % agent)
            assert secret.status_code == 200, secret.text
        self.secrets[agent] = secret.json()["agent_secret"]
        return agent

    def ask(self, method, path, body=None, agent=SYSTEM, **options):
        """One request as an agent."""
        with self.agent(agent) as client:
            return client.request(method, path, json=body, **options)

    # tasks

    @staticmethod
    def body(agent=SYSTEM, pipeline=None, **members):
        """A task that does nothing when somebody asks for it."""
        task = {"title": "A task", "description": "For a test", "schedule_kind": "manual",
                "payload": {"pipeline": [NAP] if pipeline is None else pipeline}, "created_by": agent}
        task.update(members)
        return {name: value for name, value in task.items() if value is not ...}

    def task(self, agent=SYSTEM, pipeline=None, **members):
        """A new task; its id."""
        answer = self.ask("POST", "/tasks", self.body(agent, pipeline, **members), agent)
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    def now(self, task, agent=SYSTEM):
        """Have it run now; the run's id."""
        answer = self.ask("POST", "/tasks/%s/run_now" % task, agent=agent)
        assert answer.status_code == 200, answer.text
        return answer.json()["details"]["run_id"]

    def runs(self, task=None, agent=SYSTEM, **query):
        """Runs, oldest first."""
        query = dict(query, limit=200, include_errors="true")
        if task is not None:
            query["task_id"] = task
        answer = self.ask("GET", "/runs", agent=agent, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()["items"][::-1]

    def run_of(self, run_id, user=SYSTEM):
        answer = self.ask("GET", "/runs/" + run_id, agent=user)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def over(self, run, seconds=20, agent=SYSTEM):
        """The run, once it is over."""
        return self.reaches(run, FINAL, seconds, agent)

    def reaches(self, run, states, seconds=20, agent=SYSTEM):
        """The run, once it is in one of these states."""
        states = (states,) if isinstance(states, str) else states

        def look():
            found.update(self.run_of(run, agent))
            return dict(found) if found["state"] in states else None

        found = {}
        try:
            return wait_for(look, "run %s in %s" % (run, states), seconds)
        except AssertionError as problem:
            raise AssertionError("%s; it is %s" % (problem, found)) from None

    def carried_out(self, pipeline, seconds=20, agent=SYSTEM, **members):
        """What becomes of a pipeline: the run, once it is over."""
        return self.over(self.now(self.task(agent, pipeline, **members), agent), seconds, agent)

    def publish(self, topic, payload=None, agent=SYSTEM):
        """Publish an event; the details of the answer."""
        answer = self.ask("POST", "/events", {"topic": topic, "payload": payload or {}, "source_agent_id": agent}, agent)
        assert answer.status_code == 202, answer.text
        return answer.json()["details"]

    def trail(self, **query):
        """Audit rows, oldest first."""
        answer = self.ask("GET", "/audit", params=dict(query, limit=200))
        assert answer.status_code == 200, answer.text
        return answer.json()["items"][::-1]

    def series(self):
        """The metrics: name with labels to number."""
        with self.http() as client:
            text = client.get("/metrics").text
        lines = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(number) for name, _, number in lines}


def events_of(response):
    """Server-sent events of an open stream, as ``(id, event, data)``."""
    found = {}
    for line in response.iter_lines():
        if not line:
            if "data" in found:
                yield found.get("id"), found.get("event"), json.loads(found["data"])
            found = {}
        elif not line.startswith(":"):
            name, _, text = line.partition(":")
            found[name] = text.strip()
