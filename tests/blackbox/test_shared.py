"""Several servers on one database and one Redis: limits hold over all of them, and what one revokes is dead on the others.

The database is that of ``INTERLOCK_TEST_POSTGRES`` (``tools/postgres``); each class starts a Redis of its own, because it stops it.
"""

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import tempfile
import threading
import time
import unittest

import httpx

from lab import LAB
from support import CALL_SECONDS, PASSWORD, ROOT, Server, program, tool, wait_for

SERVERS = 3
SECOND = 1.0
"""Goal G8: what is dead here is dead there within this many seconds."""


def database():
    """A fresh database on the PostgreSQL for tests; its URL."""
    url = os.environ.get("INTERLOCK_TEST_POSTGRES", "")
    if not url:
        raise AssertionError("INTERLOCK_TEST_POSTGRES must hold what `tools/postgres start DIR` prints")
    name = "shared_" + secrets.token_hex(8)
    subprocess.run([tool("psql"), url, "--quiet", "--command", 'CREATE DATABASE "%s"' % name], check=True, timeout=60,
                   capture_output=True)
    base, _, options = url.partition("?")
    return base.rpartition("/")[0] + "/" + name + ("?" + options if options else "")


class Redis:
    """A Redis of our own."""

    def __init__(self):
        if not os.environ.get("INTERLOCK_TEST_REDIS"):
            raise AssertionError("INTERLOCK_TEST_REDIS must hold what `tools/redis start DIR` prints")
        self.folder = tempfile.mkdtemp(prefix="interlock-redis-")
        os.chmod(self.folder, 0o755)

    def run(self, what):
        done = subprocess.run([os.path.join(ROOT, "tools", "redis"), what, self.folder], capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def start(self):
        self.where = json.loads(self.run("start"))
        return self

    def stop(self):
        self.run("stop")

    def close(self):
        with contextlib.suppress(AssertionError):
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


class Orchestrator(Server):
    """A server without a device."""

    def command(self):
        return [program(), "server", "--state", self.state, "--ready-file", self.ready_file, "--listen", self.listen, *self.options]

    def from_address(self, address, token=None):
        """A client that calls from this address of ours."""
        headers = {"Authorization": "Bearer " + token} if token else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=CALL_SECONDS, trust_env=False,
                            transport=httpx.HTTPTransport(local_address=address))

    def metric(self, name):
        with self.http(self.token()) as client:
            lines = client.get("/metrics").text.splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(name + " "))


class Together(unittest.TestCase):
    """Three servers."""

    VARIABLES = {}
    TLS = False

    @classmethod
    def setUpClass(cls):
        cls.redis = Redis()
        cls.addClassCleanup(cls.redis.close)
        cls.redis.start()
        where = cls.redis.where
        variables = {"DATABASE_URL": database(), "REDIS_URL": where["url"] + "/3", "REDIS_DEADLINE_MS": "1000"}
        if cls.TLS:
            variables.update(REDIS_URL=where["tls"] + "/3", REDIS_CA_FILE=where["ca"])
        variables.update(cls.VARIABLES)
        cls.servers = []
        for _ in range(SERVERS):
            server = Orchestrator(variables=variables)
            cls.addClassCleanup(server.close)
            cls.servers.append(server.start())


def admitted(servers, requests, address, path="/nothing", headers=lambda number: {}, form=None, pause=0.0):
    """Send so many requests to each server at the same time; per server how many were not refused by a limit. With ``form`` they
    are sign-ins of names that nobody else tries."""
    counts, problems = [0] * len(servers), []

    def send(number):
        try:
            with servers[number].from_address(address) as client:
                for request in range(requests):
                    if form is None:
                        answer = client.get(path, headers=headers(request))
                    else:
                        answer = client.post(path, data=dict(form, username="n" + secrets.token_hex(8)))
                    assert answer.status_code in (401, 404, 429), (answer.status_code, answer.text)
                    counts[number] += answer.status_code != 429
                    time.sleep(pause)
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=send, args=(number,), daemon=True) for number in range(len(servers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    if problems:
        raise problems[0]
    return counts


class Limits(Together):
    """60 a minute and 10 sign-ins, over all servers."""

    VARIABLES = {"RATE_LIMIT_ENABLED": "true"}

    def test_a_sixty_a_minute_hold_over_all_servers(self):
        counts = admitted(self.servers, 60, "127.0.0.11")
        self.assertEqual(sum(counts), 60, counts)
        with self.servers[0].from_address("127.0.0.11") as client:
            answer = client.get("/nothing")
        self.assertEqual(answer.status_code, 429)
        self.assertLessEqual(1, int(answer.headers["retry-after"]))
        self.assertIn("r=0;", answer.headers["ratelimit"])

    def test_b_a_forged_forwarded_address_changes_nothing(self):
        def forged(number):
            address = "203.0.113.%d" % (number % 250)
            return {"X-Forwarded-For": address, "X-Real-IP": address, "Forwarded": "for=" + address}
        self.assertEqual(sum(admitted(self.servers, 50, "127.0.0.12", headers=forged)), 60)
        self.assertEqual(sum(admitted(self.servers[:1], 5, "127.0.0.13")), 5, "another address has a budget of its own")

    def test_c_signing_in_has_a_smaller_budget_over_all_servers(self):
        counts = admitted(self.servers, 6, "127.0.0.14", "/auth/login", form={"password": PASSWORD})
        self.assertEqual(sum(counts), 10, counts)

    def test_d_a_restarted_server_remembers(self):
        self.assertEqual(sum(admitted(self.servers[:1], 60, "127.0.0.15")), 60)
        self.servers[0].restart()
        self.assertEqual(sum(admitted(self.servers, 5, "127.0.0.15")), 0)
        state = os.stat(os.path.join(self.servers[0].state, "limits.json"))
        self.assertEqual(state.st_mode & 0o777, 0o600)

    def test_e_redis_killed_in_the_middle(self):
        for server in self.servers:
            self.assertEqual(server.metric("interlock_redis_up"), 1)
        self.assertEqual(admitted(self.servers[:1], 45, "127.0.0.20"), [45])
        stopping = threading.Timer(0.2, self.redis.stop)
        stopping.start()
        counts = admitted(self.servers, 120, "127.0.0.16", pause=0.02)
        stopping.join()
        print("\nadmitted by each server, Redis stopped in the middle: %s" % counts)
        for count in counts:
            self.assertLessEqual(count, 60)
        # What a server admitted before counts against its share.
        self.assertEqual(admitted(self.servers, 70, "127.0.0.20"), [0, 20, 20])
        # Nobody who is new gets more than the limit from all servers together: each has a third.
        self.assertEqual(admitted(self.servers, 70, "127.0.0.17"), [20, 20, 20])
        for server in self.servers:
            self.assertEqual(server.metric("interlock_redis_up"), 0)
            self.assertEqual([line["level"] for line in server.events("shared_state_lost")], ["WARNING"], server.log()[-2000:])
        self.redis.start()
        for server in self.servers:
            wait_for(lambda server=server: server.metric("interlock_redis_up") == 1, "Redis found again", 20)
            wait_for(lambda server=server: server.events("shared_state_back"), "an event", 20)
        self.assertEqual(sum(admitted(self.servers, 60, "127.0.0.18")), 60)
        # A Redis that lost everything gives nobody more than 60 from one server.
        self.assertLessEqual(sum(admitted(self.servers[:1], 100, "127.0.0.16")) + counts[0], 60)


class Dying(Together):
    """How soon what one server revokes is dead on the others."""

    WAYS = ("token revoked", "session ended", "user disabled", "role taken", "agent deleted", "address banned")

    def setUp(self):
        self.first, *self.others = self.servers
        self.admin = self.first.http(self.first.token())
        self.addCleanup(self.admin.close)

    def ask(self, method, path, body=None):
        answer = self.admin.request(method, path, json=body)
        self.assertIn(answer.status_code, (200, 201, 204), (path, answer.text))
        return answer.json() if answer.content else None

    def agent(self):
        created = self.ask("POST", "/agents", {"name": "a " + secrets.token_hex(4), "scopes": ["runs:read"]})
        secret = self.ask("POST", "/agents/%s/credentials" % created["id"], {})["agent_secret"]
        with self.first.http() as client:
            answer = client.post("/agents/auth/token", json={"agent_id": created["id"], "agent_secret": secret})
        self.assertEqual(answer.status_code, 200, answer.text)
        return created["id"], answer.json()["access_token"]

    def user(self):
        name = "u" + secrets.token_hex(4)
        self.ask("POST", "/users", {"name": name, "password": PASSWORD, "roles": ["admin"]})
        return name, self.first.login(name, PASSWORD)

    def prepare(self, way):
        """``(act, path, token, address)``: what kills, and the request that is dead then."""
        if way == "address banned":
            address = "127.%d.%d.%d" % tuple(2 + secrets.randbelow(250) for _ in range(3))
            body = {"network": address, "reason": "a test", "seconds": 3600}
            return lambda: self.ask("POST", "/bans", body), "/auth/me", self.first.token(), address
        if way in ("token revoked", "agent deleted"):
            agent, token = self.agent()
            if way == "agent deleted":
                return lambda: self.ask("DELETE", "/agents/" + agent), "/auth/me", token, "127.0.0.1"

            def revoke():
                with self.first.http() as client:
                    self.assertEqual(client.post("/agents/auth/revoke", json={"token": token}).status_code, 200)
            return revoke, "/auth/me", token, "127.0.0.1"
        name, token = self.user()
        if way == "session ended":
            def leave():
                with self.first.http(token) as client:
                    self.assertIn(client.post("/auth/logout").status_code, (200, 204))
            return leave, "/auth/me", token, "127.0.0.1"
        change = {"disabled": True} if way == "user disabled" else {"roles": ["viewer"]}
        return lambda: self.ask("PATCH", "/users/" + name, change), "/users", token, "127.0.0.1"

    def delays(self, way):
        """Seconds until it is dead, on each other server. Counted from the answer of the first."""
        act, path, token, address = self.prepare(way)
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(server.from_address(address, token)) for server in self.others]
            for client in clients:
                wait_for(lambda client=client: client.get(path).status_code == 200, "alive everywhere: " + way, 20)
            act()
            begun, dead = time.monotonic(), {}
            while len(dead) < len(clients):
                for number, client in enumerate(clients):
                    if number not in dead and client.get(path).status_code in (401, 403):
                        dead[number] = time.monotonic() - begun
                self.assertLess(time.monotonic() - begun, 20, way)
        return list(dead.values())

    def measure(self, rounds, what, middle=SECOND):
        """``middle`` is the bound of the median."""
        samples = []
        for _ in range(rounds):
            for way in self.WAYS:
                samples += [(delay, way) for delay in self.delays(way)]
        samples.sort()
        number = len(samples)
        median, high = samples[number // 2][0], samples[min(number - 1, number * 99 // 100)][0]
        print("\n%s: %d samples, median %.1f ms, p99 %.1f ms, longest %.1f ms (%s)"
              % (what, number, median * 1e3, high * 1e3, samples[-1][0] * 1e3, samples[-1][1]))
        self.assertLess(high, SECOND, samples[-5:])
        self.assertLess(median, middle, samples)


class Revocation(Dying):
    """Servers that share a Redis as well."""

    TLS = True

    def test_a_dead_here_is_dead_there(self):
        self.measure(12, "dead on the other servers, with Redis")

    def test_b_without_redis_too(self):
        self.redis.stop()
        try:
            self.measure(5, "dead on the other servers, without Redis")
        finally:
            self.redis.start()


class RevocationByPostgreSQL(Dying):
    """Servers that have nothing in common but the database hear of each other through it."""

    VARIABLES = {"REDIS_URL": None}

    def hearing(self, expected):
        for server in self.servers:
            wait_for(lambda server=server: server.metric("interlock_postgres_news_up") == expected, "news: %s" % expected, 20)

    def test_a_dead_here_is_dead_there(self):
        self.hearing(1)
        # Who merely looks every 250 ms is late by 125 ms half of the time.
        self.measure(8, "dead on the other servers, with PostgreSQL alone", 0.125)

    def test_b_a_connection_that_was_cut_is_made_again_and_nothing_is_missed_meanwhile(self):
        self.hearing(1)
        url = self.first.variables["DATABASE_URL"]
        done = subprocess.run([tool("psql"), url, "--quiet", "--tuples-only", "--no-align", "--command",
                               "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                               "WHERE datname = current_database() AND application_name = 'interlock news'"],
                              check=True, timeout=60, capture_output=True)
        # Each server hears of changes by one and of work by another.
        self.assertEqual(done.stdout.decode().strip(), str(2 * SERVERS))
        self.measure(1, "dead on the other servers, just after their connections were cut")
        self.hearing(1)
        for server in self.servers:
            self.assertIn("news by PostgreSQL are heard again", server.log())
        self.measure(4, "dead on the other servers, after that", 0.125)


class Start(unittest.TestCase):
    """What stops a start, and what does not."""

    def test_a_wrong_password_stops_the_start_and_an_absent_redis_does_not(self):
        redis = Redis()
        self.addCleanup(redis.close)
        redis.start()
        wrong = Orchestrator(variables={"REDIS_URL": redis.where["url"].replace("://:", "://:x")})
        self.addCleanup(wrong.close)
        code, said = wrong.refused()
        self.assertNotEqual(code, 0)
        self.assertIn("refuses this server", said)
        self.assertNotIn(redis.where["url"].split("@")[0][9:], said)
        with Orchestrator(variables={"REDIS_URL": redis.where["url"] + "/5"}) as server:
            self.assertRegex(server.output() + server.log(), r"127\.0\.0\.1:\d+/5")
            self.assertNotIn(redis.where["url"].split("@")[0][9:], server.output() + server.log())
        redis.stop()
        with Orchestrator(variables={"REDIS_URL": redis.where["url"], "RATE_LIMIT_ENABLED": "true"}) as server:
            self.assertEqual(sum(admitted([server], 100, "127.0.0.19")), 60)
            redis.start()
            wait_for(lambda: server.metric("interlock_redis_up") == 1, "Redis found", 20)

    def test_denied_without_redis_and_the_emergency_stop_asks_nobody(self):
        redis = Redis()
        self.addCleanup(redis.close)
        redis.start()
        variables = {"REDIS_URL": redis.where["url"], "RATE_LIMIT_ENABLED": "true", "RATE_LIMIT_REDIS_DOWN": "deny"}
        with Server(source=LAB, variables=variables) as server:
            token = server.token()
            redis.stop()
            with server.http(token) as client:
                wait_for(lambda: client.get("/auth/me").status_code == 503, "nothing limited is admitted", 20)
                self.assertEqual(client.get("/auth/me").json()["code"], "unavailable")
                for _ in range(20):
                    self.assertEqual(client.post("/stop", json={"reason": "a test"}).status_code, 200)
                self.assertEqual(client.get("/health/live").status_code, 200)

    def test_plain_text_to_another_machine_is_refused(self):
        server = Orchestrator(variables={"REDIS_URL": "redis://redis.example:6379/1"})
        self.addCleanup(server.close)
        code, said = server.refused()
        self.assertNotEqual(code, 0)
        self.assertIn("rediss://", said)


if __name__ == "__main__":
    unittest.main()
