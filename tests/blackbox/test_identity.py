"""Agents and their tokens against the real program: one server, a device, and three servers on one database."""

import base64
import hashlib
import hmac
import json
import os
import secrets
import shutil
import subprocess
import tempfile
import threading
import time
import unittest
import uuid
from concurrent import futures

from lab import LAB
from support import ADMIN_PASSWORD, PASSWORD, Case, Server, program, together, token_parts, tool, wait_for

SYSTEM = "00000000-0000-0000-0000-000000000001"
KEY = secrets.token_urlsafe(48)


class Orchestrator(Server):
    """``interlock server``."""

    def command(self):
        return [program(), "server", "--state", self.state, "--ready-file", self.ready_file, "--listen", self.listen, *self.options]


def new_agent(server, scopes, token=None):
    """Id and secret of a new agent."""
    with server.http(token or server.token()) as client:
        made = client.post("/agents", json={"name": "agent " + secrets.token_hex(4), "scopes": scopes})
        assert made.status_code == 201, made.text
        agent = made.json()["id"]
        return agent, client.post("/agents/%s/credentials" % agent).json()["agent_secret"]


def sign_in(server, agent, secret):
    with server.http() as client:
        return client.post("/agents/auth/token", json={"agent_id": agent, "agent_secret": secret})


def pair(server, agent, secret):
    answer = sign_in(server, agent, secret)
    assert answer.status_code == 200, answer.text
    return answer.json()["access_token"], answer.json()["refresh_token"]


def status(server, token, path="/auth/me"):
    with server.http(token) as client:
        return client.get(path).status_code


def refresh(server, token):
    with server.http() as client:
        return client.post("/agents/auth/refresh", json={"refresh_token": token})


def revoke(server, token):
    with server.http() as client:
        answer = client.post("/agents/auth/revoke", json={"refresh_token": token})
    assert (answer.status_code, answer.json()["success"]) == (200, True), answer.text


class KnownCalls(Case):
    """The calls of earlier clients and the answers that they must get."""

    @classmethod
    def setUpClass(cls):
        cls.server = Orchestrator()
        cls.addClassCleanup(cls.server.close)
        cls.server.start()

    def test_an_id_is_no_password(self):
        agent, _ = new_agent(self.server, ["tasks:read"])
        with self.server.http() as client:
            for body in ({"agent_id": agent}, {"agent_id": str(uuid.uuid4()), "agent_secret": "any"}, {"agent_id": SYSTEM},
                         {"agent_id": SYSTEM, "agent_secret": SYSTEM}):
                self.assertProblem(client.post("/agents/auth/token", json=body), 401, "unauthorized")

    def test_what_is_no_token_is_401(self):
        agent, _ = new_agent(self.server, ["tasks:read"])
        for headers in ({}, {"Authorization": "Bearer invalid-token"}, {"Authorization": "Bearer " + agent}):
            with self.server.http() as client:
                answer = client.get("/auth/me", headers=headers)
            self.assertProblem(answer, 401, "unauthorized")
            self.assertTrue(answer.headers["www-authenticate"].startswith("Bearer"))

    def test_the_first_agent_signs_in_with_the_configured_secret(self):
        access, _ = pair(self.server, SYSTEM, ADMIN_PASSWORD)
        header, claims = token_parts(access)
        self.assertEqual((header["alg"], claims["scopes"], claims["type"]), ("EdDSA", ["admin", "system"], "access"))
        agent, secret = new_agent(self.server, ["tasks:read"], access)
        self.assertEqual(status(self.server, pair(self.server, agent, secret)[0]), 200)
        self.assertEqual(status(self.server, access, "/agents"), 200)

    def test_revocation_survives_a_restart(self):
        server = self.server
        agent, secret = new_agent(server, ["tasks:read"])
        access, token = pair(server, agent, secret)
        single, still = pair(server, agent, secret)
        kept, _ = pair(server, agent, secret)
        revoke(server, token)
        revoke(server, single)
        for _ in range(2):
            self.assertEqual([status(server, one) for one in (access, single, kept)], [401, 401, 200])
            self.assertEqual(refresh(server, token).status_code, 401)
            server.kill()
            server.start()
        self.assertEqual(refresh(server, still).status_code, 200)
        self.assertEqual(server.stop(), 0)
        server.start()
        self.assertEqual([status(server, one) for one in (access, single, kept)], [401, 401, 200])

    def test_refreshing_at_once_from_many_threads_gives_one_pair(self):
        agent, secret = new_agent(self.server, ["tasks:read"])
        _, token = pair(self.server, agent, secret)
        answers = together(8, lambda _: refresh(self.server, token).json())
        self.assertEqual(len({answer["access_token"] for answer in answers}), 1)
        self.assertEqual(status(self.server, answers[0]["access_token"]), 200)

    def test_the_log_holds_no_secret(self):
        agent, secret = new_agent(self.server, ["tasks:read"])
        access, token = pair(self.server, agent, secret)
        sign_in(self.server, agent, "a-guess-that-was-wrong")
        wait_for(lambda: self.server.events("authentication_failed"), "the failure is logged")
        for hidden in (secret, access, token, "a-guess-that-was-wrong", ADMIN_PASSWORD):
            self.assertNotIn(hidden, self.server.log())
        with open(os.path.join(self.server.state, "interlock.db"), "rb") as opened:
            stored = opened.read()
        for hidden in (secret, access, token):
            self.assertNotIn(hidden.encode(), stored)

    def test_keys_lie_where_only_their_owner_reads_them(self):
        folder = os.path.join(self.server.state, "keys")
        for name in os.listdir(folder):
            self.assertEqual(os.stat(os.path.join(folder, name)).st_mode & 0o077, 0, name)

    def test_nobody_else_makes_tokens(self):
        """A token signed with the published key as a shared secret, by a stranger."""
        with self.server.http() as client:
            key = client.get("/oauth/jwks").json()["keys"][0]
        public = base64.urlsafe_b64decode(key["x"] + "=")
        _, claims = token_parts(pair(self.server, SYSTEM, ADMIN_PASSWORD)[0])
        for secret in (public, key["x"].encode()):
            text = b".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")
                             for part in ({"alg": "HS256", "typ": "at+jwt", "kid": key["kid"]}, claims))
            mac = base64.urlsafe_b64encode(hmac.new(secret, text, hashlib.sha256).digest()).rstrip(b"=")
            self.assertEqual(status(self.server, (text + b"." + mac).decode()), 401)


class Keys(unittest.TestCase):
    """Where the signing key comes from."""

    def test_a_configured_key_signs_with_hs256(self):
        with Orchestrator(variables={"JWT_SECRET_KEY": KEY}) as server:
            access, _ = pair(server, SYSTEM, ADMIN_PASSWORD)
            self.assertEqual(token_parts(access)[0]["alg"], "HS256")
            with server.http() as client:
                self.assertEqual(client.get("/oauth/jwks").json(), {"keys": []})
            # Another key, no previous one: every token is dead, and nothing else.
            server.variables["JWT_SECRET_KEY"] = secrets.token_urlsafe(48)
            server.restart()
            self.assertEqual(status(server, access), 401)
            self.assertEqual(sign_in(server, SYSTEM, ADMIN_PASSWORD).status_code, 200)

    def test_a_weak_key_stops_the_start(self):
        for weak in ("short", "your-256-bit-secret-key-here-and-longer", "dev-secret-key-change-in-production", "a" * 64):
            server = Orchestrator(variables={"JWT_SECRET_KEY": weak})
            self.addCleanup(server.close)
            code, said = server.refused()
            self.assertNotEqual(code, 0)
            self.assertIn("JWT_SECRET_KEY", said)
            self.assertNotIn(weak, said.replace("short", "", said.count("shorter")) if weak == "short" else said)

    def test_a_weak_first_secret_stops_the_start(self):
        server = Orchestrator(variables={"BOOTSTRAP_ADMIN_SECRET": "password"})
        self.addCleanup(server.close)
        code, said = server.refused()
        self.assertNotEqual(code, 0)
        self.assertIn("too short", said)

    def test_without_a_configured_secret_nobody_is_the_first_agent(self):
        with Orchestrator(variables={"BOOTSTRAP_ADMIN_SECRET": None}) as server:
            for body in ("", "system", SYSTEM, "admin"):
                self.assertEqual(sign_in(server, SYSTEM, body).status_code, 401)
            self.assertIn("Sign in   admin / ", server.output())

    def test_a_generated_key_stays(self):
        with Orchestrator() as server:
            access, token = pair(server, SYSTEM, ADMIN_PASSWORD)
            server.restart()
            self.assertEqual(status(server, access), 200)
            self.assertEqual(refresh(server, token).status_code, 200)

    def test_lifetimes_are_as_configured(self):
        with Orchestrator(variables={"JWT_ACCESS_TOKEN_EXPIRE_MINUTES": "5", "JWT_REFRESH_TOKEN_EXPIRE_DAYS": "2"}) as server:
            access, token = pair(server, SYSTEM, ADMIN_PASSWORD)
            for one, seconds in ((access, 300), (token, 2 * 86400)):
                claims = token_parts(one)[1]
                self.assertEqual(claims["exp"] - claims["iat"], seconds)
        for wrong in ("0", "-5", "9999999999", "soon"):
            server = Orchestrator(variables={"JWT_ACCESS_TOKEN_EXPIRE_MINUTES": wrong})
            self.addCleanup(server.close)
            code, said = server.refused()
            self.assertNotEqual(code, 0)
            self.assertIn("JWT_ACCESS_TOKEN_EXPIRE_MINUTES", said)


class BreachedPasswords(unittest.TestCase):
    """A list in the form of Have I Been Pwned."""

    WORDS = "violet tractor umbrella quay"

    def list_of(self, *passwords):
        folder = tempfile.mkdtemp(prefix="interlock-bb-")
        self.addCleanup(shutil.rmtree, folder, True)
        path = os.path.join(folder, "pwned.txt")
        digests = sorted(hashlib.sha1(text.encode()).hexdigest().upper() for text in passwords)
        with open(path, "w", encoding="ascii", newline="") as opened:
            opened.write("".join("%s:%d\r\n" % (digest, number) for number, digest in enumerate(digests)))
        return path

    def test_a_breached_password_is_not_taken_and_whoever_has_one_is_told(self):
        everybody = ["word %d" % number for number in range(5000)]
        with Orchestrator() as server:
            with server.http(server.token()) as client:
                made = client.post("/users", json={"name": "old", "password": self.WORDS, "roles": ["viewer"]})
                self.assertEqual(made.status_code, 201, made.text)
            # Breached since then.
            server.variables["BREACHED_PASSWORDS_FILE"] = self.list_of(self.WORDS, *everybody)
            server.restart()
            with server.http(server.token()) as client:
                refused = client.post("/users", json={"name": "new", "password": self.WORDS, "roles": ["viewer"]})
                self.assertEqual((refused.status_code, refused.json()["code"]), (422, "invalid_request"), refused.text)
                self.assertIn("breach", refused.text)
                self.assertNotIn(self.WORDS, refused.text)
                made = client.post("/users", json={"name": "new", "password": self.WORDS + " too", "roles": ["viewer"]})
                self.assertEqual(made.status_code, 201, made.text)
            with server.http() as client:
                answer = client.post("/auth/login", json={"username": "old", "password": self.WORDS}).json()
                self.assertEqual(answer["notices"], 1)
                client.headers["Authorization"] = "Bearer " + answer["access_token"]
                self.assertEqual([one["kind"] for one in client.get("/auth/notices").json()], ["password.guessable"])

    def test_what_is_no_list_stops_the_start(self):
        for path in ("/nowhere/at/all", self.list_of(), os.path.abspath(__file__)):
            server = Orchestrator(variables={"BREACHED_PASSWORDS_FILE": path})
            self.addCleanup(server.close)
            code, said = server.refused()
            self.assertNotEqual(code, 0)
            self.assertIn("breached_passwords_file", said)


class Races(unittest.TestCase):
    """Whoever gets tokens in the moment in which they are taken away has nothing of it."""

    def living(self, server, answers):
        """The tokens of these answers that are still taken."""
        got = [answer.json() for answer in answers if answer.status_code == 200]
        access = [one["access_token"] for one in got if status(server, one["access_token"]) != 401]
        return access + [one["refresh_token"] for one in got if refresh(server, one["refresh_token"]).status_code != 401]

    def race(self, server, kill, other, count=3):
        """``kill`` and ``count`` times ``other`` at once; the answers of the latter."""
        barrier = threading.Barrier(count + 1)

        def one(number):
            with server.http() as client:
                barrier.wait()
                return kill(client) if number == 0 else other(client)

        with futures.ThreadPoolExecutor(count + 1) as pool:
            first, *others = pool.map(one, range(count + 1))
        self.assertEqual(first.status_code, 200, first.text)
        return others

    def test_what_is_taken_away_stays_away(self):
        with Orchestrator() as server:
            admin = {"Authorization": "Bearer " + server.token()}
            agent, secret = new_agent(server, ["runs:read"])
            for _ in range(15):
                access, token = pair(server, agent, secret)
                answers = self.race(server, lambda client, token=token: client.post("/agents/auth/revoke", json={"token": token}),
                                    lambda client, token=token: client.post("/agents/auth/refresh", json={"refresh_token": token}))
                self.assertEqual(self.living(server, answers), [])
                self.assertEqual(status(server, access), 401)
            for number in range(8):
                agent, secret = new_agent(server, ["runs:read"])
                body = {"agent_id": agent, "agent_secret": secret}
                answers = self.race(server, lambda client, agent=agent, number=number: client.request(
                    *(("DELETE", "/agents/" + agent) if number % 2 else ("POST", "/agents/%s/credentials" % agent)), headers=admin),
                    lambda client, body=body: client.post("/agents/auth/token", json=body))
                self.assertEqual(self.living(server, answers), [])
            for number in range(6):
                user = {"username": "racer%d" % number, "password": PASSWORD}
                with server.http(server.token()) as client:
                    made = client.post("/users", json={"name": user["username"], "password": PASSWORD, "roles": ["viewer"]})
                    self.assertEqual(made.status_code, 201, made.text)
                answers = self.race(server, lambda client, name=user["username"]: client.patch("/users/" + name, json={"disabled": True}, headers=admin),
                                    lambda client, user=user: client.post("/auth/login", json=user))
                alive = [one.json()["access_token"] for one in answers if one.status_code == 200]
                self.assertEqual([status(server, token) for token in alive], [401] * len(alive))


class OnADevice(unittest.TestCase):
    """An agent that may do one thing to a machine."""

    def test_a_narrow_scope_moves_one_action_only(self):
        with Server(LAB) as server:
            acted = os.path.join(server.folder, "acted")
            server.options = ["--env", "ACTED=" + acted]
            server.restart()
            agent, secret = new_agent(server, ["devices:execute:device/move"])
            access, _ = pair(server, agent, secret)
            admin, _ = pair(server, *new_agent(server, ["admin"]))
            with server.http(access) as client:
                done = client.post("/execute/move", json={"key": "by agent"})
                self.assertEqual((done.status_code, done.json()["executed_by"]), (200, agent), done.text)
                for other in ("mix", "later", "restricted"):
                    answer = client.post("/execute/" + other, json={})
                    self.assertEqual((answer.status_code, answer.json()["code"]), (403, "forbidden"))
                    self.assertEqual(answer.headers["www-authenticate"], 'Bearer error="insufficient_scope"')
                # Whoever is signed in may stop; nobody but a person releases.
                self.assertEqual(client.post("/stop", json={}).status_code, 200)
                self.assertEqual(client.post("/stop/release", json={"reason": "it is safe"}).status_code, 403)
            with server.http(admin) as client:
                self.assertEqual(client.post("/execute/move", json={"key": "by admin"}).status_code, 403)
                self.assertEqual(client.post("/stop/release", json={"reason": "it is safe"}).status_code, 403)
            self.assertEqual(server.post("/stop/release", {"reason": "it is safe"}).status_code, 200)
            revoke(server, access)
            self.assertEqual(status(server, access), 401)
            with open(acted, encoding="utf-8") as opened:
                self.assertEqual([line for line in opened.read().split("\n") if line.startswith("by ")], ["by agent"])
            self.assertTrue(any(row["actor_agent_id"] == agent for row in server.audit(action="device.executed")))


    def test_in_owner_mode_an_agent_sees_what_is_its_own_without_a_scope(self):
        for mode, seen in [("strict", 403), ("owner", 200)]:
            with Server(LAB, variables={"SCOPE_MODE": mode}) as server:
                others = server.run("later", user="admin").json()["run_id"]
                agent, secret = new_agent(server, ["devices:execute:device/later"])
                access, _ = pair(server, agent, secret)
                with server.http(access) as client:
                    own = client.post("/execute/later", json={}).json()["run_id"]
                    self.assertEqual(client.get("/runs/" + own).status_code, seen, mode)
                    self.assertEqual(client.get("/runs/" + others).status_code, 403 if mode == "strict" else 404)
                    self.assertEqual(client.get("/agents").status_code, 403)
                    self.assertEqual(client.get("/audit").status_code, 403)
                if mode == "owner":
                    self.assertIn("SCOPE_MODE=owner", server.log())


class Database:
    """A database of its own on the PostgreSQL that ``INTERLOCK_TEST_POSTGRES`` names."""

    def __init__(self):
        url = os.environ.get("INTERLOCK_TEST_POSTGRES")
        if not url:
            raise AssertionError("set INTERLOCK_TEST_POSTGRES to what `tools/postgres start DIR` prints")
        self.server, _, self.query = url.partition("?")
        self.name = "interlock_bb_%d_%s" % (os.getpid(), secrets.token_hex(4))
        self.administer("CREATE DATABASE " + self.name)

    @property
    def url(self):
        return "%s/%s?%s" % (self.server.rpartition("/")[0], self.name, self.query)

    def administer(self, statement):
        subprocess.run([tool("psql"), "--quiet", "--no-psqlrc", "--dbname", self.server, "--command", statement], check=True,
                       capture_output=True, timeout=60)

    def drop(self):
        self.administer("DROP DATABASE %s WITH (FORCE)" % self.name)


class ThreeServers(unittest.TestCase):
    """One installation of three servers, each with a signing key of its own."""

    @classmethod
    def setUpClass(cls):
        cls.database = Database()
        cls.addClassCleanup(cls.database.drop)
        cls.servers = [Orchestrator(variables={"DATABASE_URL": cls.database.url, "PUBLIC_URL": "https://lab.example"}) for _ in range(3)]
        for server in cls.servers:
            cls.addClassCleanup(server.close)
        # The first makes the tables and the first administrator; the others come at once.
        cls.servers[0].start()
        together(2, lambda number: cls.servers[number + 1].start())
        for server in cls.servers:
            server.tokens = cls.servers[0].tokens

    def everywhere(self, token, expected, what, path="/auth/me"):
        """All servers answer so, each soon after the change."""
        for server in self.servers:
            wait_for(lambda server=server: status(server, token, path) == expected, "%s on %s" % (what, server.url), 2)

    def agent(self, scopes=("tasks:read",)):
        agent, secret = new_agent(self.servers[0], list(scopes))
        for server in self.servers[1:]:
            wait_for(lambda server=server: server.get("/agents/" + agent).json().get("has_credentials"), "the agent is known", 5)
        return agent, secret

    def test_a_token_of_one_is_good_on_all(self):
        agent, secret = self.agent()
        tokens = [pair(server, agent, secret) for server in self.servers]
        self.assertEqual(len({token_parts(access)[0]["kid"] for access, _ in tokens}), 3)
        for access, _ in tokens:
            self.everywhere(access, 200, "a token of one server")
        for server in self.servers:
            with server.http() as client:
                self.assertEqual(len(client.get("/oauth/jwks").json()["keys"]), 3)
        # A refresh token is used on another server, once in the whole installation.
        moved = refresh(self.servers[1], tokens[0][1])
        self.assertEqual(moved.status_code, 200)
        self.everywhere(moved.json()["access_token"], 200, "a refreshed token")
        same = refresh(self.servers[2], tokens[0][1])
        self.assertEqual(same.status_code, 200)
        # Each server signs with its own key; what is said is the same.
        self.assertEqual(token_parts(same.json()["access_token"])[1], token_parts(moved.json()["access_token"])[1])

    def test_what_one_revokes_is_dead_on_all(self):
        one, two, three = self.servers
        agent, secret = self.agent()
        single, _ = pair(one, agent, secret)
        access, token = pair(two, agent, secret)
        kept, _ = pair(three, agent, secret)
        revoke(three, single)
        self.everywhere(single, 401, "one revoked token")
        revoke(one, token)
        self.everywhere(access, 401, "a revoked family")
        for server in self.servers:
            self.assertEqual(refresh(server, token).status_code, 401)
        self.everywhere(kept, 200, "another session")
        with two.http(two.token()) as client:
            self.assertEqual(client.post("/tokens/revoke", json={"principal": agent}).status_code, 200)
        self.everywhere(kept, 401, "everything of an agent")
        again, _ = pair(three, agent, secret)
        self.everywhere(again, 200, "a new token")
        with three.http(three.token()) as client:
            self.assertEqual(client.delete("/agents/" + agent).status_code, 200)
        self.everywhere(again, 401, "a deleted agent")
        self.assertEqual(sign_in(one, agent, secret).status_code, 401)

    def test_a_role_that_changes_changes_on_all(self):
        one, two, _ = self.servers
        admin = one.token()
        with two.http(admin) as client:
            self.assertEqual(client.put("/roles/reviewer", json={"scopes": ["audit:read"]}).status_code, 200)
            wait_for(lambda: client.post("/users", json={"name": "rita", "password": "Marmot-violin-harbour-17", "roles": ["reviewer"]})
                     .status_code in (201, 409), "the user is made", 5)
        rita = wait_for(lambda: self.signed_in(one, "rita"), "the user is known", 5)
        self.everywhere(rita, 200, "a custom role", "/audit")
        with one.http(admin) as client:
            self.assertEqual(client.put("/roles/reviewer", json={"scopes": ["runs:read"]}).status_code, 200)
        self.everywhere(rita, 403, "a scope taken from a role", "/audit")
        with one.http(admin) as client:
            self.assertEqual(client.patch("/users/rita", json={"disabled": True}).status_code, 200)
        self.everywhere(rita, 401, "a disabled user")

    def signed_in(self, server, name):
        with server.http() as client:
            answer = client.post("/auth/login", json={"username": name, "password": "Marmot-violin-harbour-17"})
        return answer.json().get("access_token") if answer.status_code == 200 else None

    def test_reuse_on_one_ends_the_family_on_all(self):
        one, two, three = self.servers
        agent, secret = self.agent()
        _, first = pair(one, agent, secret)
        second = refresh(two, first).json()
        third = refresh(three, second["refresh_token"]).json()
        self.everywhere(third["access_token"], 200, "the third pair")
        self.assertEqual(refresh(one, first).status_code, 401)
        self.everywhere(third["access_token"], 401, "a family after reuse")
        self.assertEqual(refresh(two, third["refresh_token"]).status_code, 401)
        self.assertTrue(one.events("token_reuse_detected"))

    def test_a_server_that_was_down_knows_what_was_revoked(self):
        one, two, three = self.servers
        agent, secret = self.agent()
        by_third, token = pair(three, agent, secret)
        by_one, _ = pair(one, agent, secret)
        kept, _ = pair(one, agent, secret)
        three.stop()
        revoke(two, by_one)
        revoke(one, token)
        three.start()
        # From its first answer on.
        self.assertEqual([status(three, one) for one in (by_third, by_one, kept)], [401, 401, 200])
        for server in self.servers:
            server.restart()
        for server in self.servers:
            self.assertEqual([status(server, one) for one in (by_third, by_one, kept)], [401, 401, 200])
            self.assertEqual(refresh(server, token).status_code, 401)

    def test_keys_for_scripts_are_dead_everywhere_too(self):
        one, two, three = self.servers
        with one.http(one.token()) as client:
            made = client.post("/auth/keys", json={"name": "script", "scopes": ["runs:read"]}).json()
        self.everywhere(made["key"], 200, "a new key")
        with three.http(one.token()) as client:
            self.assertEqual(client.delete("/auth/keys/" + made["id"]).status_code, 200)
        self.everywhere(made["key"], 401, "a revoked key")

    def test_one_assertion_is_used_once_in_the_whole_installation(self):
        with self.servers[0].http() as client:
            audience = client.get("/.well-known/oauth-authorization-server").json()["interlock_audience"]
        for server in self.servers[1:]:
            with server.http() as client:
                self.assertEqual(client.get("/.well-known/oauth-authorization-server").json()["interlock_audience"], audience)
        folder = self.servers[0].folder
        key = os.path.join(folder, "client.pem")
        subprocess.run([tool("openssl"), "genpkey", "-algorithm", "ed25519", "-out", key], check=True, capture_output=True, timeout=30)
        der = subprocess.run([tool("openssl"), "pkey", "-in", key, "-pubout", "-outform", "DER"], check=True, capture_output=True, timeout=30).stdout
        encode = lambda data: base64.urlsafe_b64encode(data).rstrip(b"=").decode()
        agent, _ = self.agent()
        with self.servers[0].http(self.servers[0].token()) as client:
            answer = client.put("/agents/%s/keys" % agent, json={"keys": [{"kty": "OKP", "crv": "Ed25519", "x": encode(der[-32:])}]})
            self.assertEqual(answer.status_code, 200, answer.text)
        now = int(time.time())
        claims = {"iss": agent, "sub": agent, "aud": audience, "iat": now, "exp": now + 120, "jti": secrets.token_hex(8)}
        text = encode(b'{"alg":"EdDSA"}') + "." + encode(json.dumps(claims).encode())
        message = os.path.join(folder, "message")
        with open(message, "w", encoding="ascii") as opened:
            opened.write(text)
        mac = subprocess.run([tool("openssl"), "pkeyutl", "-sign", "-inkey", key, "-rawin", "-in", message], check=True, capture_output=True, timeout=30).stdout
        form = {"grant_type": "client_credentials", "client_assertion": text + "." + encode(mac),
                "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"}
        for server in self.servers[1:]:
            wait_for(lambda server=server: server.get("/agents/" + agent).json()["keys"] == 1, "the key is known", 5)

        def ask(number):
            with self.servers[number].http() as client:
                return client.post("/oauth/token", data=form).status_code

        self.assertEqual(sorted(together(3, ask)), [200, 400, 400])


if __name__ == "__main__":
    unittest.main()
