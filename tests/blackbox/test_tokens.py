"""Encryption and tokens: what is accepted, and what is refused."""

import base64
import hashlib
import hmac
import json
import os
import re
import secrets
import ssl
import subprocess
import time
import unittest

import httpx

from lab import LAB
from support import ADMIN_PASSWORD, EXAMPLES, PASSWORD, Server, certificate, token_parts, tool

HELLO = os.path.join(EXAMPLES, "hello.py")
KEY = secrets.token_urlsafe(48)


def signed(claims, key=KEY, header=None, algorithm="HS256"):
    """A token made by hand."""
    def part(value):
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")
    text = part(dict({"alg": algorithm, "typ": "at+jwt"}, **(header or {}))) + b"." + part(claims)
    mac = b"" if algorithm == "none" else hmac.new(key.encode(), text, hashlib.sha256).digest()
    return (text + b"." + base64.urlsafe_b64encode(mac).rstrip(b"=")).decode()


class Tls(unittest.TestCase):
    """Encryption, by this installation's own authority and by files."""

    def test_internal_certificate(self):
        with Server(file=HELLO, options=["--tls", "internal"]) as server:
            self.assertTrue(server.url.startswith("https://127.0.0.1:"))
            with server.http() as client:
                answer = client.get("/health")
                self.assertEqual(answer.status_code, 200)
                seconds = re.fullmatch(r"max-age=(\d+); includeSubDomains", answer.headers["strict-transport-security"])
                self.assertGreaterEqual(int(seconds.group(1)), 31536000)
                for path, status in (("/tasks", 401), ("/nowhere", 404)):
                    self.assertIn("strict-transport-security", client.get(path).headers, status)
            with self.assertRaises(httpx.ConnectError):
                httpx.get(server.url + "/health", trust_env=False)
            host, port = server.address
            for version, works in (("-tls1_2", False), ("-tls1_1", False), ("-tls1_3", True)):
                done = subprocess.run([tool("openssl"), "s_client", "-connect", "%s:%d" % (host, port), version, "-CAfile",
                                       server.ready["ca_file"], "-verify_return_error", "-verify_ip", host],
                                      stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False)
                self.assertEqual(b"New, TLSv1.3" in done.stdout and done.returncode == 0, works, version)
            for data in (b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b"POST /stop HTTP/1.0\r\n\r\n"):
                self.assertNotIn(b"HTTP/", server.raw(data, 8))
            with open(server.ready["ca_file"], "rb") as opened:
                first = opened.read()
            server.restart()
            with open(server.ready["ca_file"], "rb") as opened:
                self.assertEqual(opened.read(), first, "clients must not need a new ca file after a restart")
            self.assertEqual(server.run("greet").status_code, 200)

    def test_certificate_files_and_all_addresses(self):
        with Server(file=HELLO) as helper:
            chain, key = certificate(helper.folder, "good")
            with Server(file=HELLO, listen="0.0.0.0:0", options=["--tls-cert", chain, "--tls-key", key]) as server:
                server.ready["ca_file"] = server.ready["ca_file"] or chain
                with server.http() as client:
                    self.assertEqual(client.get("/health").status_code, 200)
                with self.assertRaises(httpx.ConnectError):
                    httpx.get(server.url + "/health", verify=ssl.create_default_context(), trust_env=False)

    def test_force_https_behind_a_proxy_on_this_machine(self):
        with Server(file=HELLO, variables={"FORCE_HTTPS": "true", "TRUSTED_PROXIES": "127.0.0.1"}) as server:
            with server.http() as client:
                answer = client.get("/health")
                self.assertEqual((answer.status_code, answer.headers["location"][:8]), (308, "https://"))
                self.assertEqual(client.post("/auth/login", data={"username": "admin", "password": "x"}).status_code, 403)
                forwarded = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.9"}
                answer = client.get("/health", headers=forwarded)
                self.assertEqual(answer.status_code, 200)
                self.assertIn("strict-transport-security", answer.headers)
                client.post("/auth/login", data={"username": "admin", "password": ADMIN_PASSWORD}, headers=forwarded)
            self.assertEqual(server.events("authentication_succeeded")[0]["client_ip"], "203.0.113.9")


class Tokens(unittest.TestCase):
    """HS256 as the earlier system had it: a token counts only when every claim is right."""

    @classmethod
    def setUpClass(cls):
        cls.server = Server(LAB, variables={"JWT_SECRET_KEY": KEY})
        cls.addClassCleanup(cls.server.close)
        cls.server.start()
        cls.server.add_users("ada", "vera")

    def status(self, token):
        with self.server.http() as client:
            return client.get("/auth/me", headers={"Authorization": "Bearer " + token}).status_code

    def test_right_claims_are_accepted(self):
        header, claims = token_parts(self.server.token("ada"))
        self.assertEqual(header["alg"], "HS256")
        for kept in (header, {"kid": header["kid"]}, dict(header, typ="JWT")):
            self.assertEqual(self.status(signed(dict(claims, jti=secrets.token_hex(8)), header=kept)), 200, kept)

    def test_wrong_claims_are_refused(self):
        now = int(time.time())
        header, claims = token_parts(self.server.token("ada"))
        self.assertEqual(self.status(signed(claims, header=header)), 200)
        without = [{name: value for name, value in claims.items() if name != gone} for gone in ("sub", "type", "iat", "exp", "jti", "iss", "aud", "principal", "fam", "auth_time", "epo")]
        changed = [dict(claims, **change) for change in (
            {"exp": now - 61}, {"exp": "9999999999"}, {"exp": None}, {"exp": 1e300}, {"nbf": now + 3600}, {"iat": now + 3600},
            {"type": "refresh"}, {"type": "Access"}, {"sub": ""}, {"sub": "nobody"}, {"sub": ["ada"]}, {"iss": "elsewhere"},
            {"aud": "other"}, {"aud": []}, {"roles": "operator"}, {"epo": 0})]
        for wrong in without + changed:
            self.assertEqual(self.status(signed(wrong, header=header)), 401, wrong)

    def test_wrong_signatures_and_headers_are_refused(self):
        token = self.server.token("ada")
        header, claims = token_parts(token)
        head, body, mac = token.split(".")
        forged = base64.urlsafe_b64encode(json.dumps(dict(claims, roles=["admin"])).encode()).rstrip(b"=").decode()
        heads = [dict(header, **change) for change in ({"alg": "HS512"}, {"alg": "EdDSA"}, {"alg": "hs256"}, {"alg": "none"},
                                                       {"jku": "http://127.0.0.1/"}, {"crit": ["exp"]}, {"kid": "0" * 16}, {"kid": "../../key"})]
        wrong = [signed(claims, header=head) for head in heads]
        wrong += [signed(claims, key=KEY + "x", header=header), signed(claims, algorithm="none"),
                  ".".join((head, forged, mac)), ".".join((head, body, "")), ".".join((head, body)),
                  token + "x", token[:-2], "." + token, token + "." + mac, "a.b.c", "...", "x" * 5000, "%00", token.replace("-", "+") + "="]
        for text in wrong:
            self.assertEqual(self.status(text), 401, text[:80])
        self.assertNotIn("panic", self.server.log())

    def test_a_token_never_gives_more_than_its_owner_has(self):
        header, claims = token_parts(self.server.token("vera"))
        raised = signed(dict(claims, roles=["admin", "operator", "viewer"], scopes=["users:manage"], jti="raised"), header=header)
        with self.server.http(raised) as client:
            self.assertEqual(client.get("/auth/me").json()["roles"], ["viewer"])
            self.assertEqual(client.get("/users").status_code, 403)
            self.assertEqual(client.post("/execute/later").status_code, 403)

    def test_an_expired_token_and_the_same_key_act_once(self):
        acted = os.path.join(self.server.folder, "acted")
        server = self.server
        server.options = ["--env", "ACTED=" + acted]
        server.restart()
        with server.http() as client:
            form = {"username": "ada", "password": PASSWORD}
            token = client.post("/auth/login", data=form).json()["access_token"]
            headers = {"Authorization": "Bearer " + token, "Idempotency-Key": "order-66"}
            first = client.post("/execute/move", json={"key": "k"}, headers=headers)
            _, claims = token_parts(token)
            expired = signed(dict(claims, exp=int(time.time()) - 61), header=token_parts(token)[0])
            refused = client.post("/execute/move", json={"key": "k"}, headers=dict(headers, Authorization="Bearer " + expired))
            self.assertEqual(refused.status_code, 401)
            token = client.post("/auth/login", data=form).json()["access_token"]
            second = client.post("/execute/move", json={"key": "k"}, headers=dict(headers, Authorization="Bearer " + token))
        self.assertEqual((first.status_code, second.status_code, first.json()), (200, 200, second.json()))
        with open(acted, encoding="utf-8") as opened:
            self.assertEqual(opened.read().splitlines().count("k"), 1)

    def test_a_new_key_with_the_previous_one_keeps_tokens_alive(self):
        with Server(file=HELLO, variables={"JWT_SECRET_KEY": KEY}) as server:
            token = server.token()
            server.variables.update(JWT_SECRET_KEY=secrets.token_urlsafe(48), JWT_SECRET_KEY_PREVIOUS=KEY)
            server.restart()
            with server.http(token) as client:
                self.assertEqual(client.get("/auth/me").status_code, 200)
            del server.variables["JWT_SECRET_KEY_PREVIOUS"]
            server.restart()
            with server.http(token) as client:
                self.assertEqual(client.get("/auth/me").status_code, 401)


if __name__ == "__main__":
    unittest.main()
