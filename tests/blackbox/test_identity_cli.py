"""Agents, keys, sessions and roles from the command line; the signing key and the revocations on the server's machine."""

import csv
import io
import json
import os
import pathlib
import shutil
import stat
import subprocess
import threading
import unittest

from support import ADMIN_PASSWORD, program, token_parts, wait_for
from test_identity import SYSTEM, Orchestrator, new_agent, pair, refresh, revoke, status


class WithCommandLine(unittest.TestCase):
    VARIABLES = {}

    @classmethod
    def setUpClass(cls):
        cls.server = Orchestrator(variables=cls.VARIABLES)
        cls.addClassCleanup(cls.server.close)
        cls.server.start()

    def setUp(self):
        self.home = os.path.join(self.server.folder, self.id().rpartition(".")[2])
        os.mkdir(self.home)
        self.contexts = os.path.join(self.home, ".config", "interlock", "contexts.json")

    def cli(self, *words, stdin="", code=0):
        """Run the command line and return what it printed: standard output, or standard error when it shall fail."""
        variables = {"PATH": os.environ["PATH"], "HOME": self.home, "LANG": "C.UTF-8"}
        done = subprocess.run([program(), "--no-input", *words], input=stdin, capture_output=True, text=True, timeout=60, env=variables, check=False)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        self.assertNotIn("panicked", done.stderr)
        return done.stdout if code == 0 else done.stderr

    def document(self, *words, **options):
        return json.loads(self.cli("-o", "json", *words, **options))

    def login(self):
        self.cli("login", "--url", self.server.url, "--user", "admin", "--password-stdin", stdin=ADMIN_PASSWORD + "\n")

    def context(self):
        with open(self.contexts, encoding="utf-8") as opened:
            document = json.load(opened)
        return document["contexts"][document["current"]]


class Commands(WithCommandLine):
    def test_a_sign_in_asks_for_no_more_than_it_is_told(self):
        self.cli("login", "--url", self.server.url, "--user", "admin", "--scope", "users:read,agents:read", "--password-stdin", stdin=ADMIN_PASSWORD + "\n")
        self.assertIn("admin", self.cli("user", "list"))
        self.cli("agent", "list")
        self.cli("agent", "create", "too much", code=5)
        self.assertEqual(self.document("whoami")["scopes"], ["agents:read", "users:read"])
        self.cli("login", "--url", self.server.url, "--user", "admin", "--scope", "email.send", "--password-stdin", stdin=ADMIN_PASSWORD + "\n", code=7)

    def test_an_agent_is_kept_to_a_grant_and_to_a_key(self):
        self.login()
        made = self.document("agent", "create", "few", "--grant", "client_credentials,jwt-bearer")
        self.assertEqual(made["grant_types"], ["client_credentials", "urn:ietf:params:oauth:grant-type:jwt-bearer"])
        self.cli("agent", "create", "wrong", "--grant", "password", code=2)
        changed = self.document("agent", "update", "few", "--grant", "refresh_token", "--auth-method", "private_key_jwt")
        self.assertEqual((changed["grant_types"], changed["token_endpoint_auth_method"]), (["refresh_token"], "private_key_jwt"))
        self.assertIn("private_key_jwt", self.cli("agent", "show", "few"))
        self.cli("agent", "rotate-secret", "few", code=6)
        self.assertIsNone(self.document("agent", "update", "few", "--auth-method", "any")["token_endpoint_auth_method"])

    def test_whoever_has_forgotten_the_password_chooses_another_with_a_token(self):
        self.login()
        self.cli("user", "add", "rea", "--role", "viewer", "--password-stdin", stdin="seven purple pipettes\n")
        token = self.cli("user", "passwd", "rea", "--reset-link").strip()
        self.assertTrue(token.startswith("ilr_"))
        reset = ["account", "reset", "--url", self.server.url, "--stdin"]
        self.cli(*reset, stdin=f"{token}\nshort\n", code=7)
        self.assertEqual(self.document(*reset, stdin=f"{token}\nnine yellow burettes\n"), {"name": "rea", "what": "password"})
        self.cli(*reset, stdin=f"{token}\neleven green flasks\n", code=3)
        self.cli("--context", "rea", "login", "--url", self.server.url, "--user", "rea", "--password-stdin", stdin="nine yellow burettes\n")
        self.assertEqual(self.document("user", "reset-factors", "rea", "--link", "--context", "127.0.0.1")["what"], "factors")

    def test_an_agent_from_its_making_to_its_end(self):
        self.login()
        made = self.document("agent", "create", "Night shift", "--scope", "runs:read,audit:read")
        self.assertEqual(made["scopes"], ["audit:read", "runs:read"])
        self.assertIn("Night shift", self.cli("agent", "list"))
        self.assertEqual(self.cli("-o", "name", "agent", "list", "--name", "NIGHT").split(), [made["id"]])
        self.assertEqual(self.cli("-o", "name", "agent", "list", "--scope", "no:such"), "")
        secret = self.cli("agent", "rotate-secret", "night shift").strip()
        access, _ = pair(self.server, made["id"], secret)
        second = self.document("agent", "rotate-secret", made["id"], "--overlap", "1h", "--expires-in", "30d")["agent_secret"]
        self.assertEqual(status(self.server, access), 200)
        pair(self.server, made["id"], second)
        shown = self.document("agent", "show", "Night shift")
        self.assertEqual(len(shown["secrets"]), 2)
        self.assertNotIn(second, json.dumps(shown))
        # At rest there is a slow hash of each secret and nothing else of it.
        kept = b"".join(path.read_bytes() for path in pathlib.Path(self.server.state).rglob("*") if path.is_file())
        self.assertGreaterEqual(kept.count(b"$argon2id$v=19$m=19456,t=2,p=1$"), 2)
        for text in (secret, second):
            self.assertNotIn(text.encode(), kept)
        self.assertEqual(self.document("agent", "update", made["id"], "--scope", "runs:read", "--name", "Day shift")["name"], "Day shift")
        self.assertEqual(status(self.server, access, "/audit"), 403)
        self.cli("agent", "delete", "Day shift")
        self.assertEqual(status(self.server, access), 401)

    def test_refusals_have_their_exit_codes(self):
        self.cli("agent", "list", "--url", self.server.url, code=4)
        self.login()
        for words, code in (
            (("agent", "show", "nobody"), 3), (("agent", "delete", SYSTEM), 7), (("agent", "update", SYSTEM), 2),
            (("agent", "create", "x", "--scope", "no:such"), 7), (("agent", "create", "System"), 7),
            (("agent", "create", "x", "--scope", "users:manage"), 7),
            (("key", "create", "k", "--scope", "system"), 5), (("key", "create", "k", "--scope", "runs:read", "--days", "400"), 7),
            (("key", "revoke", "none"), 3), (("session", "end", "none"), 3), (("session", "end"), 2),
            (("role", "set", "admin", "--scope", "runs:read"), 7), (("role", "delete", "none"), 3),
            (("policy", "test", "nobody", "--scope", "audit:read"), 3), (("policy", "test", "admin"), 2),
            (("token", "revoke"), 2), (("token", "revoke", "--jti", "a", "--session", "b"), 2), (("token", "revoke", "--session", "none"), 3),
        ):
            self.assertTrue(self.cli(*words, code=code).strip(), words)

    def test_keys_sessions_roles_and_reasons(self):
        self.login()
        made = self.document("key", "create", "script", "--scope", "runs:read", "--days", "7")
        self.assertEqual(status(self.server, made["key"]), 200)
        self.assertIn("live", self.cli("key", "list"))
        self.cli("key", "revoke", made["id"])
        self.assertEqual(status(self.server, made["key"]), 401)
        self.assertIn("revoked", self.cli("key", "list"))

        self.cli("role", "set", "reader", "--scope", "audit:read", "--description", "Reads")
        self.assertIn("custom", self.cli("role", "list"))
        self.assertTrue(self.document("policy", "test", "admin", "--scope", "audit:read")["allowed"])
        no = self.cli("policy", "test", SYSTEM, "--scope", "users:manage", code=5)
        self.assertNotIn("panicked", no)
        self.cli("role", "delete", "reader")

        other = self.server.login()
        fam = token_parts(other)[1]["fam"]
        sessions = self.document("session", "list")
        self.assertIn(fam, [session["id"] for session in sessions])
        self.assertEqual(len([session for session in sessions if session["current"]]), 1)
        self.cli("session", "end", fam)
        self.assertEqual(status(self.server, other), 401)
        another = self.server.login()
        self.cli("session", "end", "--others")
        self.assertEqual(status(self.server, another), 401)
        self.assertIn("admin", self.cli("whoami"))
        self.server.tokens.clear()

    def test_news_about_one_s_account_and_a_review_of_everybody_s(self):
        self.login()
        self.document("key", "create", "=cmd()", "--scope", "audit:read", "--days", "7")
        agent = self.document("agent", "create", "Reviewed", "--scope", "runs:read")
        secret = self.cli("agent", "rotate-secret", agent["id"], "--expires-in", "60d").strip()
        pair(self.server, agent["id"], secret)
        told = subprocess.run([program(), "--no-input", "login", "--url", self.server.url, "--user", "admin", "--password-stdin"], input=ADMIN_PASSWORD, text=True,
                              env={"PATH": os.environ["PATH"], "HOME": self.home, "LANG": "C.UTF-8"}, capture_output=True, timeout=60, check=True)
        self.assertIn("interlock account notices", told.stderr)
        found = self.document("account", "notices")
        self.assertIn(("api_key.created", False), [(one["kind"], one["read"]) for one in found])
        self.assertTrue(all(one["read"] for one in self.document("account", "notices")))
        self.assertIn("An API key was made for you (=cmd())", self.cli("account", "notices"))

        review = {one["id"]: one for one in self.document("security", "access")}
        (kept,) = review[agent["id"]]["credentials"]
        self.assertEqual((kept["kind"], review[agent["id"]]["scopes"]), ("secret", ["runs:read"]))
        self.assertTrue(kept["created_at"] and kept["last_used_at"] and kept["expires_at"])
        table = list(csv.DictReader(io.StringIO(self.cli("security", "access", "--csv"))))
        rows = [row for row in table if row["id"] == agent["id"]]
        self.assertEqual([(row["credential"], row["credential_id"], row["scopes"]) for row in rows], [("secret", kept["id"], "runs:read")])
        self.assertTrue(any(row["id"] == "admin" and row["credential"] == "password" and "admin" in row["roles"] for row in table))
        self.assertNotIn(secret, json.dumps(table))

    def test_tokens_are_revoked_by_what_they_share(self):
        agent, secret = new_agent(self.server, ["runs:read"], self.server.login())
        self.login()
        one, two = pair(self.server, agent, secret)[0], pair(self.server, agent, secret)[0]
        self.cli("token", "revoke", "--jti", token_parts(one)[1]["jti"])
        self.assertEqual([status(self.server, token) for token in (one, two)], [401, 200])
        self.cli("token", "revoke", "--principal", agent)
        self.assertEqual(status(self.server, two), 401)
        self.cli("token", "revoke", "--before", "2026-01-01T00:00:00Z")

    def test_the_context_keeps_the_refresh_token_to_itself(self):
        self.login()
        self.assertEqual(stat.S_IMODE(os.stat(self.contexts).st_mode), 0o600)
        context = self.context()
        for command in (("context", "show"), ("context", "list"), ("whoami",)):
            for form in ("table", "json"):
                printed = self.cli("-o", form, *command)
                self.assertNotIn(context["refresh_token"], printed)
                self.assertNotIn(context["token"], printed)
        self.cli("logout")
        self.assertNotIn("refresh_token", self.context())
        self.assertEqual(status(self.server, context["token"]), 401)
        self.assertEqual(refresh(self.server, context["refresh_token"]).status_code, 401)


class Renewal(WithCommandLine):
    """A context whose token has ended goes on with its refresh token."""

    def spend(self):
        """Make the access token of the context worthless, as time would."""
        context = self.context()
        revoke(self.server, context["token"])
        self.assertEqual(status(self.server, context["token"]), 401)
        return context

    def test_a_command_renews_the_token_once_and_keeps_the_new_pair(self):
        self.login()
        before = self.spend()
        self.assertIn("admin", self.cli("whoami"))
        after = self.context()
        self.assertNotEqual((before["token"], before["refresh_token"]), (after["token"], after["refresh_token"]))
        self.assertEqual(token_parts(after["token"])[1]["fam"], token_parts(before["token"])[1]["fam"])
        self.assertEqual(stat.S_IMODE(os.stat(self.contexts).st_mode), 0o600)
        self.assertIn("admin", self.cli("whoami"))
        self.assertEqual(self.context(), after)

    def test_many_commands_at_once_do_not_look_like_a_thief(self):
        self.login()
        self.spend()
        problems = []

        def one():
            try:
                self.cli("whoami")
            except BaseException as problem:
                problems.append(problem)

        threads = [threading.Thread(target=one) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        self.assertEqual(problems, [])
        self.assertEqual(self.server.events("token_reuse_detected"), [])
        self.assertIn("admin", self.cli("whoami"))

    def test_when_the_session_is_over_one_signs_in_again(self):
        self.login()
        context = self.context()
        revoke(self.server, context["refresh_token"])
        said = self.cli("whoami", code=4)
        self.assertIn("interlock login", said)
        self.assertEqual(self.context(), context)

    def test_a_token_from_elsewhere_is_not_renewed(self):
        self.login()
        token = self.server.login()
        revoke(self.server, token)
        before = self.context()
        variables = {"PATH": os.environ["PATH"], "HOME": self.home, "INTERLOCK_TOKEN": token}
        done = subprocess.run([program(), "--no-input", "whoami"], capture_output=True, text=True, timeout=60, env=variables, check=False)
        self.assertEqual(done.returncode, 4, done.stderr)
        self.assertEqual(self.context(), before)


class OnTheMachine(WithCommandLine):
    def kid(self, token):
        return token_parts(token)[0]["kid"]

    def key_ids(self):
        with self.server.http() as client:
            return {key["kid"] for key in client.get("/oauth/jwks").json()["keys"]}

    def signs_with(self, kid):
        wait_for(lambda: self.kid(pair(self.server, SYSTEM, ADMIN_PASSWORD)[0]) == kid, "the server signs with the new key", 10)

    def test_the_signing_key_changes_while_the_server_runs_and_while_it_does_not(self):
        old, token = pair(self.server, SYSTEM, ADMIN_PASSWORD)
        first = self.document("keys", "rotate", "--state", self.server.state)
        self.assertEqual(first["before"], self.kid(old))
        self.signs_with(first["kid"])
        self.assertEqual(status(self.server, old), 200)
        self.assertEqual(self.key_ids(), {first["kid"], first["before"]})
        path = os.path.join(self.server.state, "keys", "token-signing.pk8")
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)
        moved = refresh(self.server, token)
        self.assertEqual((moved.status_code, self.kid(moved.json()["access_token"])), (200, first["kid"]))
        self.server.stop()
        second = self.document("keys", "rotate", "--state", self.server.state)
        self.assertEqual(second["before"], first["kid"])
        self.server.start()
        self.signs_with(second["kid"])
        for kept in (old, moved.json()["access_token"]):
            self.assertEqual(status(self.server, kept), 200)
        self.assertEqual(self.key_ids(), {first["kid"], first["before"], second["kid"]})
        self.assertEqual({row["subject_id"] for row in self.server.audit(action="keys.retired")}, {first["before"], second["before"]})

    def test_a_restored_backup_does_not_revive_what_was_revoked(self):
        server = self.server
        server.tokens.clear()
        agent, secret = new_agent(server, ["runs:read"])
        gone, gone_secret = new_agent(server, ["runs:read"])
        single, _ = pair(server, agent, secret)
        access, token = pair(server, agent, secret)
        kept, _ = pair(server, agent, secret)
        of_gone, _ = pair(server, gone, gone_secret)
        with server.http(server.token()) as client:
            key = client.post("/auth/keys", json={"name": "k", "scopes": ["runs:read"]}).json()
        server.stop()
        database = os.path.join(server.state, "interlock.db")
        with open(database, "rb") as opened:
            backup = opened.read()
        server.start()
        revoke(server, single)
        revoke(server, token)
        late, late_token = pair(server, agent, secret)
        revoke(server, late_token)
        with server.http(server.token()) as client:
            self.assertEqual(client.delete("/auth/keys/" + key["id"]).status_code, 200)
            self.assertEqual(client.delete("/agents/" + gone).status_code, 200)
        document = self.cli("revocations", "export", "--state", server.state)
        self.assertNotIn(secret, document)
        self.assertNotIn("argon2", document)
        server.stop()
        with open(database, "wb") as opened:
            opened.write(backup)
        for more in ("-wal", "-shm"):
            if os.path.exists(database + more):
                os.unlink(database + more)
        server.start()
        dead = (single, access, late, of_gone, key["key"])
        self.assertEqual([status(server, one) for one in (single, access, of_gone, key["key"])], [200] * 4, "the backup is older")

        ended = self.document("revocations", "import", "--state", server.state, stdin=document)
        self.assertGreaterEqual((ended["sessions"], ended["principals"], ended["api_keys"]), (2, 1, 1))
        for one in dead:
            wait_for(lambda one=one: status(server, one) == 401, "what was revoked is dead again", 5)
        self.assertEqual(status(server, kept), 200)
        self.assertEqual(refresh(server, token).status_code, 401)
        again = self.document("revocations", "import", "--state", server.state, stdin=document)
        self.assertEqual((again["sessions"], again["principals"], again["api_keys"]), (0, 0, 0))
        # An older document revives nothing.
        older = json.loads(document)
        for name in ("tokens", "sessions", "api_keys"):
            older[name] = []
        for name in ("users", "agents"):
            for epoch in older[name]:
                epoch.update(tokens_valid_from="2020-01-01T00:00:00Z", disabled=False)
        older["cutoff"] = "2020-01-01T00:00:00Z"
        path = os.path.join(self.home, "older.json")
        with open(path, "w", encoding="utf-8") as opened:
            json.dump(older, opened)
        self.cli("revocations", "import", "--state", server.state, path)
        server.restart()
        self.assertEqual([status(server, one) for one in dead], [401] * len(dead))
        self.assertEqual(status(server, kept), 200)
        # On an empty machine: yesterday's database, the keys, and today's document.
        server.stop()
        bare, before = os.path.join(self.home, "bare"), server.state
        shutil.copytree(os.path.join(before, "keys"), os.path.join(bare, "keys"))
        os.chmod(bare, 0o700)
        with open(os.path.join(bare, "interlock.db"), "wb") as opened:
            opened.write(backup)
        self.cli("revocations", "import", "--state", bare, stdin=document)
        server.state = bare
        self.addCleanup(server.restart)
        self.addCleanup(setattr, server, "state", before)
        server.start()
        self.assertEqual([status(server, one) for one in dead], [401] * len(dead))
        self.assertEqual(refresh(server, token).status_code, 401)
        self.assertEqual(status(server, kept), 200)

    def test_what_is_no_document_is_refused(self):
        for text in ("", "{}", "[]", "not json", json.dumps({"form": 2})):
            self.cli("revocations", "import", "--state", self.server.state, stdin=text, code=7)
        self.cli("revocations", "export", "--state", os.path.join(self.home, "nothing"), code=1)
        self.cli("keys", "rotate", "--state", os.path.join(self.home, "nothing"), code=1)


if __name__ == "__main__":
    unittest.main()
