"""People of a real LDAP directory and of a real OpenID provider sign in.

``INTERLOCK_TEST_LDAP`` and ``INTERLOCK_TEST_OIDC`` hold what ``tools/slapd start`` and ``tools/oidc-provider start`` print.
"""

import json
import os
import re
import secrets
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.parse

import httpx

from support import ADMIN_PASSWORD, ROOT, Server, program, tool


def told(name):
    """What a started test service has told about itself."""
    text = os.environ.get(name, "")
    if not text:
        raise AssertionError("%s is not set: ./check starts that service" % name)
    return json.loads(text)


def ldap_settings(**more):
    """Settings of a server that signs people in against the test directory."""
    ldap = told("INTERLOCK_TEST_LDAP")
    return {
        "LDAP_URL": ldap["ldaps"],
        "LDAP_CA_FILE": ldap["ca"],
        "LDAP_BIND_DN": ldap["bind_dn"],
        "LDAP_BIND_PASSWORD": ldap["bind_password"],
        "LDAP_USER_BASE": "ou=people," + ldap["base"],
        "LDAP_GROUP_BASE": "ou=groups," + ldap["base"],
        "LDAP_ROLE_MAP": "cn=lab-ops,ou=groups,%s=operator;cn=instruments,ou=groups,%s=viewer" % (ldap["base"], ldap["base"]),
        "RATE_LIMIT_ENABLED": "false",
        **more,
    }


HELLO = '''
    from interlock import task

    @task
    def hello() -> str:
        """Say hello."""
        return "hello"
'''


class Ldap(unittest.TestCase):
    """Sign-in by name and password that a directory checks."""

    @classmethod
    def setUpClass(cls):
        cls.server = Server(HELLO, variables=ldap_settings())
        cls.server.start()

    @classmethod
    def tearDownClass(cls):
        cls.server.close()

    def sign_in(self, name, password):
        with self.server.http() as http:
            return http.post("/auth/login", json={"username": name, "password": password})

    def test_a_person_has_the_roles_of_the_groups_also_of_nested_ones(self):
        answer = self.sign_in("ana", "sesame of ana")

        self.assertEqual(answer.status_code, 200, answer.text)
        self.assertEqual(answer.json()["roles"], ["operator", "viewer"])
        with self.server.http(answer.json()["access_token"]) as http:
            self.assertEqual(http.post("/execute/hello", json={}).json()["result"], "hello")
            self.assertEqual(http.get("/users").status_code, 403)

    def test_wrong_and_odd_credentials_get_one_answer(self):
        bodies = set()
        for name, password in [
            ("ana", "wrong password of ana"), ("ana", ""), ("ben", "sesame of ben"), ("nobody-here", "sesame of ana"),
            ("*", "sesame of ana"), ("ana)(uid=*", "sesame of ana"), ("an*", "sesame of ana"), ("\\61na", "sesame of ana"),
        ]:
            answer = self.sign_in(name, password)
            self.assertEqual(answer.status_code, 401, (name, answer.text))
            body = answer.json()
            bodies.add((body["detail"], body["code"]))
        self.assertEqual(len(bodies), 1, bodies)

    def test_the_local_administrator_keeps_the_local_password(self):
        self.assertEqual(self.sign_in("admin", ADMIN_PASSWORD).status_code, 200)
        self.assertEqual(self.sign_in("admin", "sesame of admin").status_code, 401)

    def test_a_person_who_is_disabled_here_stays_out(self):
        self.assertEqual(self.sign_in("cleo", "sesame of cleo").status_code, 200)
        with self.server.as_user("admin") as http:
            self.assertEqual(http.patch("/users/cleo", json={"disabled": True}).status_code, 200)
        self.assertEqual(self.sign_in("cleo", "sesame of cleo").status_code, 401)

    def test_a_directory_password_is_in_no_record(self):
        self.sign_in("ana", "sesame of ana")
        self.assertNotIn("sesame of", self.server.log())
        with open(os.path.join(self.server.state, "interlock.db"), "rb") as file:
            self.assertNotIn(b"sesame of", file.read())

    def test_a_test_sign_in_prints_each_step(self):
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as password:
            password.write("sesame of ana\n")
            password.flush()
            command = [program(), "directory", "test", "ldap", "--user", "ana", "--password-file", password.name, "-o", "json"]
            run = subprocess.run(command, env={**os.environ, **ldap_settings()}, capture_output=True, text=True, timeout=30, check=False)
        self.assertEqual(run.returncode, 0, run.stderr + run.stdout)
        steps = json.loads(run.stdout)["steps"]
        self.assertGreaterEqual(len(steps), 5, steps)
        self.assertNotIn("sesame", run.stdout)


class DyingLdap(unittest.TestCase):
    """A directory that dies, or hangs, in the middle of a sign-in."""

    def directory(self, behave):
        """A listener that does this with each connection; its address."""
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)

        def serve():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                behave(connection)

        threading.Thread(target=serve, daemon=True).start()
        return "ldaps://127.0.0.1:%d" % listener.getsockname()[1]

    def test_it_costs_bounded_time_and_local_accounts_go_on(self):
        held = []
        self.addCleanup(lambda: [one.close() for one in held])

        def die(connection):
            connection.recv(64)
            connection.close()

        def lie(connection):
            connection.recv(64)
            connection.sendall(b"\x30\x84\xff\xff\xff\xff" * 1000)
            held.append(connection)

        for behave in (die, lie, held.append):
            with Server(HELLO, variables=ldap_settings(LDAP_URL=self.directory(behave))) as server, server.http() as http:
                begun = time.monotonic()
                away = http.post("/auth/login", json={"username": "ana", "password": "sesame of ana"}, timeout=30)
                self.assertEqual((away.status_code, away.json()["code"]), (503, "unavailable"), away.text)
                self.assertLess(time.monotonic() - begun, 20)
                self.assertNotIn("sesame", away.text + server.log())
                local = http.post("/auth/login", json={"username": "admin", "password": ADMIN_PASSWORD})
                self.assertEqual(local.status_code, 200)


class AwayLdap(unittest.TestCase):
    """A directory that does not answer."""

    def test_local_accounts_go_on_and_the_others_are_told(self):
        with Server(HELLO, variables=ldap_settings(LDAP_URL="ldaps://127.0.0.1:1")) as server:
            with server.http() as http:
                away = http.post("/auth/login", json={"username": "ana", "password": "sesame of ana"}, timeout=20)
                local = http.post("/auth/login", json={"username": "admin", "password": ADMIN_PASSWORD})
            self.assertEqual((away.status_code, away.json()["code"]), (503, "unavailable"), away.text)
            self.assertEqual(local.status_code, 200)


class Oidc(unittest.TestCase):
    """Sign-in with the browser at a provider."""

    @classmethod
    def setUpClass(cls):
        cls.provider = told("INTERLOCK_TEST_OIDC")
        cls.variables = {
            "OIDC_ISSUER": cls.provider["issuer"],
            "OIDC_CA_FILE": cls.provider["ca"],
            "OIDC_CLIENT_ID": "basic",
            "OIDC_CLIENT_SECRET": cls.provider["basic_secret"],
            "OIDC_REDIRECT_URI": cls.provider["redirect_uri"],
            "OIDC_SCOPES": "openid profile email groups",
            "OIDC_ROLE_MAP": "lab-ops=operator;site=viewer",
            "RATE_LIMIT_ENABLED": "false",
        }
        cls.server = Server(HELLO, variables=cls.variables)
        cls.server.start()

    @classmethod
    def tearDownClass(cls):
        cls.server.close()

    def browse(self, url, who):
        """What the browser comes back with from the provider: the query of the callback."""
        context = ssl.create_default_context(cafile=self.provider["ca"])
        with httpx.Client(verify=context, cookies={"who": who}, trust_env=False) as browser:
            for _ in range(10):
                answer = browser.get(url)
                url = urllib.parse.urljoin(url, answer.headers["location"])
                if url.startswith(self.provider["redirect_uri"]):
                    return urllib.parse.urlsplit(url).query
        raise AssertionError("the provider goes round in circles")

    def begin(self, http):
        begun = http.get("/auth/oidc/login")
        self.assertEqual(begun.status_code, 303, begun.text)
        self.assertIn("HttpOnly", begun.headers["set-cookie"])
        self.assertIn("SameSite=Lax", begun.headers["set-cookie"])
        return begun.headers["location"]

    def test_over_tls_the_cookie_is_this_host_s_alone(self):
        with Server(HELLO, options=["--tls", "internal"], variables=self.variables) as server, server.http() as http:
            cookie = http.get("/auth/oidc/login").headers["set-cookie"]
        self.assertTrue(cookie.startswith("__Host-"), cookie.partition("=")[0])
        flags = {flag.strip().partition("=")[0] for flag in cookie.split(";")[1:]}
        self.assertLessEqual({"Secure", "HttpOnly", "Path", "SameSite", "Max-Age"}, flags)
        self.assertNotIn("Domain", flags)
        self.assertLess(len(cookie), 4096)

    def come_back(self, http, who):
        return http.get("/auth/oidc/callback?" + self.browse(self.begin(http), who))

    def code(self, answer):
        self.assertEqual(answer.status_code, 303, answer.text)
        return answer.headers["location"].partition("#sign-in=")[2]

    def test_a_person_signs_in_and_the_text_works_once(self):
        with self.server.http() as http:
            code = self.code(self.come_back(http, "ana"))
            answer = http.post("/auth/oidc/exchange", json={"code": code})
            again = http.post("/auth/oidc/exchange", json={"code": code})

        self.assertEqual(answer.status_code, 200, answer.text)
        self.assertEqual(answer.json()["roles"], ["operator", "viewer"])
        self.assertEqual(again.status_code, 401)
        with self.server.http(answer.json()["access_token"]) as http:
            self.assertEqual(http.get("/auth/me").json()["user"], "ana")

    def test_another_browser_a_repetition_and_a_lie_are_refused(self):
        with self.server.http() as http, self.server.http() as stranger:
            query = self.browse(self.begin(http), "ana")
            for answer in [stranger.get("/auth/oidc/callback?" + query), stranger.get("/auth/oidc/callback?code=x&state=y")]:
                self.assertEqual(answer.headers["location"].partition("#")[2], "sign-in-refused")
            lied = http.get("/auth/oidc/callback?" + query.replace("state=", "state=x"))
            self.assertEqual(lied.headers["location"].partition("#")[2], "sign-in-refused")
            used = http.get("/auth/oidc/callback?" + query)
            self.assertEqual(used.headers["location"].partition("#")[2], "sign-in-refused")

    def test_somebody_without_a_role_and_somebody_who_says_no_stay_out(self):
        for who in ["ben", "nobody"]:
            with self.server.http() as http:
                answer = self.come_back(http, who)
                self.assertEqual(answer.headers["location"].partition("#")[2], "sign-in-refused", who)

    def test_a_sign_in_that_was_not_strong_enough_is_refused(self):
        server = Server(HELLO, variables={**self.server.variables, "OIDC_REQUIRED_ACR": "urn:lab:strong"})
        try:
            server.start()
            with server.http() as http:
                url = http.get("/auth/oidc/login").headers["location"]
                self.assertEqual(urllib.parse.parse_qs(urllib.parse.urlsplit(url).query)["acr_values"], ["urn:lab:strong"])
                # The provider signs in all the same and says nothing of how.
                answer = http.get("/auth/oidc/callback?" + self.browse(url, "ana"))
                self.assertEqual(answer.headers["location"].partition("#")[2], "sign-in-refused")
        finally:
            server.close()

    def test_the_ways_to_sign_in_are_told(self):
        with self.server.http() as http:
            self.assertEqual(http.get("/auth/methods").json(), {"password": True, "directory": False, "oidc": "/auth/oidc/login", "passkey": False,
                                                              "certificate": False})


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Exchange(unittest.TestCase):
    """What the server shows a directory or a provider is exchanged by a restart; what counted before counts no more."""

    def put(self, server, name, secret):
        server.variables[name + "_FILE"] = path = os.path.join(server.folder, name)
        with open(path, "w", encoding="utf-8") as opened:
            opened.write(secret + "\n")
        os.chmod(path, 0o600)

    def test_the_password_at_a_directory_is_exchanged(self):
        told("INTERLOCK_TEST_LDAP")
        folder = tempfile.mkdtemp(prefix="interlock-ldap-")
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        os.chmod(folder, 0o755)

        def slapd(what):
            done = subprocess.run([os.path.join(ROOT, "tools", "slapd"), what, folder], capture_output=True, text=True, timeout=120, check=False)
            self.assertEqual(done.returncode, 0, done.stderr)
            return json.loads(done.stdout) if what == "start" else None

        ldap, new = slapd("start"), secrets.token_hex(16)
        self.addCleanup(slapd, "stop")
        server = Server(HELLO, variables=ldap_settings(LDAP_URL=ldap["ldaps"], LDAP_CA_FILE=ldap["ca"], LDAP_BIND_PASSWORD=None))
        self.addCleanup(server.close)

        def sign_in():
            with server.http() as http:
                return http.post("/auth/login", json={"username": "ana", "password": "sesame of ana"}, timeout=30).status_code

        self.put(server, "LDAP_BIND_PASSWORD", ldap["bind_password"])
        server.start()
        self.assertEqual(sign_in(), 200)

        slapd("stop")
        change = "dn: %s\nchangetype: modify\nreplace: userPassword\nuserPassword: %s\n" % (ldap["bind_dn"], new)
        owner = "openldap" if os.getuid() == 0 else None
        subprocess.run([tool("slapmodify"), "-f", os.path.join(folder, "slapd.conf")], input=change, text=True, capture_output=True, check=True, timeout=60, user=owner)
        server.variables["LDAP_URL"] = slapd("start")["ldaps"]
        server.restart()
        self.assertEqual(sign_in(), 503, "the password from before still counts")
        self.put(server, "LDAP_BIND_PASSWORD", new)
        server.restart()
        self.assertEqual(sign_in(), 200)
        server.stop()
        self.assertFalse([word for word in (ldap["bind_password"], new) if word in server.log() + server.output()])

    def test_the_secret_at_a_provider_is_exchanged(self):
        provider = told("INTERLOCK_TEST_OIDC")
        context = ssl.create_default_context(cafile=provider["ca"])
        with httpx.Client(verify=context, trust_env=False) as http:
            client = http.post(provider["issuer"] + "/reg", json={"redirect_uris": [provider["redirect_uri"]], "response_types": ["code"]}).json()
        server = Server(HELLO, variables={
            "OIDC_ISSUER": provider["issuer"], "OIDC_CA_FILE": provider["ca"], "OIDC_CLIENT_ID": client["client_id"],
            "OIDC_REDIRECT_URI": provider["redirect_uri"], "OIDC_SCOPES": "openid profile email groups",
            "OIDC_ROLE_MAP": "lab-ops=operator;site=viewer", "RATE_LIMIT_ENABLED": "false"})
        self.addCleanup(server.close)

        def signed_in():
            with server.http() as http, httpx.Client(verify=context, cookies={"who": "ana"}, trust_env=False) as browser:
                url = http.get("/auth/oidc/login").headers["location"]
                while not url.startswith(provider["redirect_uri"]):
                    url = urllib.parse.urljoin(url, browser.get(url).headers["location"])
                back = http.get("/auth/oidc/callback?" + urllib.parse.urlsplit(url).query)
                return back.headers.get("location", "").partition("#")[2].startswith("sign-in=")

        self.put(server, "OIDC_CLIENT_SECRET", client["client_secret"])
        server.start()
        self.assertTrue(signed_in())
        with httpx.Client(verify=context, trust_env=False) as http:
            new = http.post("%s/exchange/%s" % (provider["issuer"], client["client_id"])).json()["client_secret"]
        self.assertFalse(signed_in(), "the secret from before still counts")
        self.put(server, "OIDC_CLIENT_SECRET", new)
        server.restart()
        self.assertTrue(signed_in())
        server.stop()
        self.assertFalse([word for word in (client["client_secret"], new) if word in server.log() + server.output()])


class Logout(unittest.TestCase):
    """Signing out of the provider too, and at the order of the provider. Both are the provider's own code."""

    @classmethod
    def setUpClass(cls):
        cls.provider = told("INTERLOCK_TEST_OIDC")
        cls.context = ssl.create_default_context(cafile=cls.provider["ca"])
        port = free_port()
        with httpx.Client(verify=cls.context, trust_env=False) as http:
            answer = http.post(cls.provider["issuer"] + "/reg", json={
                "redirect_uris": [cls.provider["redirect_uri"]], "response_types": ["code"],
                "post_logout_redirect_uris": ["https://interlock.example/"],
                "backchannel_logout_uri": "http://127.0.0.1:%d/auth/oidc/logout" % port, "backchannel_logout_session_required": True,
            })
        assert answer.status_code == 201, answer.text
        cls.server = Server(HELLO, listen="127.0.0.1:%d" % port, variables={
            "OIDC_ISSUER": cls.provider["issuer"],
            "OIDC_CA_FILE": cls.provider["ca"],
            "OIDC_CLIENT_ID": answer.json()["client_id"],
            "OIDC_CLIENT_SECRET": answer.json()["client_secret"],
            "OIDC_REDIRECT_URI": cls.provider["redirect_uri"],
            "OIDC_POST_LOGOUT_REDIRECT_URI": "https://interlock.example/",
            "OIDC_SCOPES": "openid profile email groups",
            "OIDC_ROLE_MAP": "lab-ops=operator;site=viewer",
            "RATE_LIMIT_ENABLED": "false",
        })
        cls.server.start()

    @classmethod
    def tearDownClass(cls):
        cls.server.close()

    def browser(self):
        return httpx.Client(verify=self.context, cookies={"who": "ana"}, trust_env=False)

    def sign_in(self, browser):
        """The tokens of a sign-in with this browser."""
        with self.server.http() as http:
            url = http.get("/auth/oidc/login").headers["location"]
            for _ in range(10):
                answer = browser.get(url)
                url = urllib.parse.urljoin(url, answer.headers["location"])
                if url.startswith(self.provider["redirect_uri"]):
                    break
            back = http.get("/auth/oidc/callback?" + urllib.parse.urlsplit(url).query)
            code = back.headers["location"].partition("#sign-in=")[2]
            answer = http.post("/auth/oidc/exchange", json={"code": code})
        self.assertEqual(answer.status_code, 200, answer.text)
        return answer.json()

    def status(self, tokens):
        with self.server.http(tokens["access_token"]) as http:
            return http.get("/auth/me").status_code

    def end_at_provider(self, browser, url):
        """Signs out at the provider as a person does: opens the page, agrees. Returns where the provider sends the browser."""
        page = browser.get(url)
        self.assertEqual(page.status_code, 200, page.text)
        secret = re.search(r'name="xsrf" value="(\w+)"', page.text).group(1)
        action = re.search(r'action="([^"]+)"', page.text).group(1)
        done = browser.post(action, data={"xsrf": secret, "logout": "yes"})
        self.assertEqual(done.status_code, 303, done.text)
        return done.headers["location"]

    def test_a_sign_out_at_the_provider_ends_that_session_here_and_no_other(self):
        with self.browser() as browser, self.browser() as other:
            mine, elsewhere = self.sign_in(browser), self.sign_in(other)
            self.assertEqual((self.status(mine), self.status(elsewhere)), (200, 200))

            self.end_at_provider(browser, self.provider["issuer"] + "/session/end")

            # The provider has told us before it answered the browser.
            self.assertEqual((self.status(mine), self.status(elsewhere)), (401, 200))
            with self.server.http() as http:
                refreshed = http.post("/auth/refresh", json={"refresh_token": mine["refresh_token"]})
            self.assertEqual(refreshed.status_code, 401)
            self.server.restart()
            self.assertEqual((self.status(mine), self.status(elsewhere)), (401, 200))

    def test_signing_out_here_leads_to_the_provider_which_ends_its_session(self):
        with self.browser() as browser:
            tokens, second = self.sign_in(browser), self.sign_in(browser)
            with self.server.http(tokens["access_token"]) as http:
                answer = http.post("/auth/logout")
            self.assertEqual(answer.status_code, 200, answer.text)
            self.assertEqual((self.status(tokens), self.status(second)), (401, 200))

            url = answer.json()["details"]["provider_logout_url"]
            self.assertTrue(url.startswith(self.provider["issuer"] + "/session/end?"), url)
            self.assertEqual(self.end_at_provider(browser, url), "https://interlock.example/")
            # The other session of the same browser was opened in the provider's session that is over now.
            self.assertEqual(self.status(second), 401)

    def test_a_local_person_is_sent_nowhere(self):
        with self.server.http(self.server.login()) as http:
            self.assertIsNone(http.post("/auth/logout").json()["details"])

    def test_an_order_of_somebody_else_and_one_twice_end_nothing(self):
        with self.browser() as browser:
            tokens = self.sign_in(browser)
            for order in ["", "x", "a.b.c", tokens["access_token"]]:
                with self.server.http() as http:
                    answer = http.post("/auth/oidc/logout", data={"logout_token": order})
                self.assertEqual(answer.status_code, 400, answer.text)
            self.assertEqual(self.status(tokens), 200)

    def test_what_the_provider_wants_back_is_not_stored_in_the_clear(self):
        with self.browser() as browser:
            tokens = self.sign_in(browser)
            with self.server.http(tokens["access_token"]) as http:
                url = http.post("/auth/logout").json()["details"]["provider_logout_url"]
        hint = urllib.parse.parse_qs(urllib.parse.urlsplit(url).query)["id_token_hint"][0]
        for name in os.listdir(self.server.state):
            if name.startswith("interlock.db"):
                with open(os.path.join(self.server.state, name), "rb") as file:
                    self.assertNotIn(hint.encode(), file.read(), name)
        self.assertNotIn(hint, self.server.log())


if __name__ == "__main__":
    unittest.main()
