"""Programs sign in with a token of the provider that they run under.

``INTERLOCK_TEST_OIDC`` holds what ``tools/oidc-provider start`` prints; its signed access tokens are the programs' tokens.
"""

import base64
import json
import os
import ssl
import subprocess
import tempfile
import unittest

import httpx

from support import Server, program, token_parts
from test_directory import HELLO, told

BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
JWT = "urn:ietf:params:oauth:token-type:jwt"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"
US = "https://interlock.example"


def trust(agent, once=False, **more):
    """The text of a WORKLOADS_FILE."""
    provider = told("INTERLOCK_TEST_OIDC")
    rule = {"subject": "nightly", "claims": {"client_id": "nightly"}, "agent": agent, **more}
    claims = ", ".join("%s = %s" % (name, json.dumps(text)) for name, text in rule.pop("claims").items())
    lines = ["[[issuer]]", "issuer = %s" % json.dumps(provider["issuer"]), "audience = %s" % json.dumps(US),
             "ca_file = %s" % json.dumps(provider["ca"]), "once = %s" % str(once).lower(), "[[issuer.rule]]", "claims = { %s }" % claims]
    return "\n".join(lines + ["%s = %s" % (name, json.dumps(text)) for name, text in rule.items()]) + "\n"


class Workloads(unittest.TestCase):
    """A server that trusts the provider's programs."""

    @classmethod
    def setUpClass(cls):
        cls.provider = told("INTERLOCK_TEST_OIDC")
        cls.server = Server(HELLO)
        cls.server.start()
        cls.addClassCleanup(cls.server.close)
        with cls.server.as_user() as http:
            made = http.post("/agents", json={"name": "nightly", "scopes": ["runs:read", "devices:read"]})
        assert made.status_code == 201, made.text
        cls.agent = made.json()["id"]
        cls.trust_with()

    @classmethod
    def trust_with(cls, **more):
        """Restarts the server with this trust."""
        path = os.path.join(cls.server.folder, "workloads.toml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(trust(**{"agent": cls.agent, **more}))
        cls.server.variables["WORKLOADS_FILE"] = path
        cls.server.restart()

    def brought(self, client="nightly", audience=US):
        """A token that the provider gives to one of its programs."""
        context = ssl.create_default_context(cafile=self.provider["ca"])
        with httpx.Client(verify=context, trust_env=False) as http:
            answer = http.post(self.provider["issuer"] + "/token", auth=(client, self.provider["workload_secret"]),
                               data={"grant_type": "client_credentials", "resource": audience})
        self.assertEqual(answer.status_code, 200, answer.text)
        return answer.json()["access_token"]

    def ask(self, token, grant=BEARER, **more):
        form = {"grant_type": grant, **({"assertion": token} if grant == BEARER else {"subject_token": token, "subject_token_type": JWT})}
        with self.server.http() as http:
            return http.post("/oauth/token", data={**form, **more})

    def test_a_program_is_its_agent_by_either_grant(self):
        for grant in (BEARER, EXCHANGE):
            answer = self.ask(self.brought(), grant)
            self.assertEqual(answer.status_code, 200, answer.text)
            body = answer.json()
            self.assertEqual((body["token_type"], body["scope"]), ("bearer", "devices:read runs:read"))
            self.assertNotIn("refresh_token", body)
            self.assertEqual(body.get("issued_token_type"), ACCESS_TOKEN if grant == EXCHANGE else None)
            self.assertEqual(answer.headers["cache-control"], "no-store")
            with self.server.http(body["access_token"]) as http:
                me = http.get("/auth/me").json()
                self.assertEqual((me["user"], me["kind"]), (self.agent, "agent"))
                self.assertEqual(http.get("/users").status_code, 403)

    def test_nothing_outlives_the_token_that_was_brought(self):
        brought = self.brought()
        body = self.ask(brought).json()

        self.assertLessEqual(body["expires_in"], 300)
        self.assertEqual(token_parts(body["access_token"])[1]["exp"], token_parts(brought)[1]["exp"])

    def test_the_record_says_what_the_program_is_called_elsewhere(self):
        self.ask(self.brought())

        row = [row for row in self.server.audit(action="agent.authenticated") if row["details"].get("method") == "workload"][-1]
        self.assertEqual((row["actor_agent_id"], row["details"]["vouched_by"]),
                         (self.agent, "oidc:%s#nightly" % self.provider["issuer"]))

    def test_fewer_scopes_may_be_asked_for_and_no_others(self):
        fewer = self.ask(self.brought(), scope="runs:read")
        self.assertEqual((fewer.status_code, fewer.json()["scope"]), (200, "runs:read"))
        more = self.ask(self.brought(), scope="users:manage")
        self.assertEqual((more.status_code, more.json()["error"]), (400, "invalid_scope"))

    def test_whoever_is_not_meant_gets_one_answer(self):
        good = self.brought()
        head, body, signature = good.split(".")
        claims = json.loads(base64.urlsafe_b64decode(body + "=="))
        forged = base64.urlsafe_b64encode(json.dumps({**claims, "sub": "nightly2"}).encode()).decode().rstrip("=")
        other = base64.urlsafe_b64encode(json.dumps({**claims, "iss": "https://evil.example"}).encode()).decode().rstrip("=")
        bodies = set()
        for token in [self.brought("stranger"), self.brought(audience="https://another.example"), self.server.token(),
                      ".".join([head, forged, signature]), ".".join([head, other, signature]), ".".join([head, body, "AAAA"]),
                      good + "A", "", "x", "a.b.c", "\u00e9.\u00e9.\u00e9", "\x00" * 100, "A" * 100000]:
            answer = self.ask(token)
            self.assertEqual(answer.status_code, 400, (token[:60], answer.text))
            body_of = answer.json()
            bodies.add((body_of["error"], body_of["detail"]))
        self.assertEqual({error for error, _ in bodies}, {"invalid_grant"})
        self.assertEqual(len(bodies), 1, bodies)

    def test_a_wrong_exchange_says_what_is_wrong(self):
        for error, more in [
            ("invalid_request", {"subject_token_type": "urn:ietf:params:oauth:token-type:saml2"}),
            ("invalid_request", {"requested_token_type": "urn:ietf:params:oauth:token-type:refresh_token"}),
            ("invalid_request", {"actor_token": "x", "actor_token_type": JWT}),
            ("invalid_request", {"client_id": "x", "client_secret": "y"}),
            ("invalid_target", {"audience": "https://another.example"}),
            ("invalid_target", {"resource": "https://another.example"}),
        ]:
            answer = self.ask(self.brought(), EXCHANGE, **more)
            self.assertEqual((answer.status_code, answer.json()["error"]), (400, error), (more, answer.text))
        with self.server.http() as http:
            for form in [{"grant_type": BEARER}, {"grant_type": EXCHANGE}, {"grant_type": EXCHANGE, "subject_token": "x"}]:
                answer = http.post("/oauth/token", data=form)
                self.assertEqual((answer.status_code, answer.json()["error"]), (400, "invalid_request"), form)

    def test_what_the_agent_loses_the_program_loses_at_once(self):
        with self.server.as_user() as http:
            made = http.post("/agents", json={"name": "short-lived", "scopes": ["runs:read"]}).json()["id"]
        try:
            self.trust_with(agent=made)
            tokens = self.ask(self.brought()).json()
            with self.server.as_user() as http:
                self.assertEqual(http.delete("/agents/" + made).status_code, 200)
            with self.server.http(tokens["access_token"]) as http:
                self.assertEqual(http.get("/auth/me").status_code, 401)
            self.assertEqual(self.ask(self.brought()).json()["error"], "invalid_grant")
        finally:
            self.trust_with()

    def test_a_token_counts_once_where_that_is_wanted_also_after_a_restart(self):
        try:
            self.trust_with(once=True)
            brought = self.brought()
            self.assertEqual(self.ask(brought).status_code, 200)
            self.assertEqual(self.ask(brought).json()["error"], "invalid_grant")
            self.server.restart()
            self.assertEqual(self.ask(brought, EXCHANGE).json()["error"], "invalid_grant")
            self.assertEqual(self.ask(self.brought()).status_code, 200)
        finally:
            self.trust_with()

    def test_the_grants_are_told_where_they_are_taken(self):
        with self.server.http() as http:
            told_grants = http.get("/.well-known/oauth-authorization-server").json()["grant_types_supported"]
        self.assertLessEqual({BEARER, EXCHANGE}, set(told_grants))
        with Server(HELLO) as without, without.http() as http:
            told_grants = http.get("/.well-known/oauth-authorization-server").json()["grant_types_supported"]
            self.assertEqual({BEARER, EXCHANGE} & set(told_grants), set())
            answer = http.post("/oauth/token", data={"grant_type": BEARER, "assertion": "x"})
            self.assertEqual(answer.json()["error"], "unsupported_grant_type")

    def test_a_token_can_be_tried_on_the_command_line(self):
        for client, good in [("nightly", True), ("stranger", False)]:
            with tempfile.NamedTemporaryFile("w") as file:
                file.write(self.brought(client) + "\n")
                file.flush()
                command = [program(), "directory", "test", "workload", "--token-file", file.name, "-o", "json"]
                run = subprocess.run(command, env=self.server.variables, capture_output=True, text=True, timeout=30, check=False)
            steps = json.loads(run.stdout)
            self.assertEqual((run.returncode == 0, steps["ok"]), (good, good), run.stdout)
            if good:
                self.assertEqual(steps["steps"][-1]["detail"], self.agent)

    def test_a_file_that_trusts_too_much_or_makes_no_sense_stops_the_start(self):
        provider = told("INTERLOCK_TEST_OIDC")
        agent = "0f8fad5b-d9cb-469f-a165-70867728950e"
        for text, said in [
            ("", "names no [[issuer]]"),
            ("[[issuer]", "workloads.toml"),
            (trust(agent).replace("once", "onze"), "onze"),
            (trust("nightly"), "is no agent's id"),
            (trust(agent, subject="*"), "fits anyone"),
            (trust(agent).replace(US, ""), "no audience"),
            (trust(agent).replace(provider["issuer"], "http://issuer.example"), "issuer"),
            (trust(agent).replace("[[issuer.rule]]", 'algorithms = ["HS256"]\n[[issuer.rule]]'), "HS256"),
        ]:
            server = Server(HELLO)
            try:
                path = os.path.join(server.folder, "workloads.toml")
                with open(path, "w", encoding="utf-8") as file:
                    file.write(text)
                server.variables["WORKLOADS_FILE"] = path
                code, message = server.refused()
                self.assertNotEqual(code, 0)
                self.assertIn(said, message, text)
                self.assertIn("WORKLOADS_FILE", message)
            finally:
                server.close()


if __name__ == "__main__":
    unittest.main()
