"""Passkeys, by an authenticator made of openssl and the standard library: what it must be able to do, and what it must not."""

import base64
import hashlib
import json
import os
import secrets
import struct
import subprocess
import unittest

from support import PASSWORD, Server, token_parts, tool
from test_directory import HELLO, free_port

PRESENT, VERIFIED, ATTESTED = 1, 4, 64


def encode(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def cbor(value):
    """RFC 8949, as much of it as an attestation needs."""
    def head(kind, number):
        if number < 24:
            return bytes([kind << 5 | number])
        if number < 256:
            return bytes([kind << 5 | 24, number])
        return bytes([kind << 5 | 25]) + struct.pack(">H", number)

    if isinstance(value, int):
        return head(0, value) if value >= 0 else head(1, -1 - value)
    if isinstance(value, bytes):
        return head(2, len(value)) + value
    if isinstance(value, str):
        return head(3, len(value.encode())) + value.encode()
    return head(5, len(value)) + b"".join(cbor(key) + cbor(one) for key, one in value.items())


class Device:
    """Keeps one passkey and answers as it is told to."""

    def __init__(self, folder, origin, name="localhost"):
        self.key = os.path.join(folder, "device-%s.pem" % secrets.token_hex(4))
        self.openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", self.key)
        self.origin, self.name = origin, name
        self.id = secrets.token_bytes(32)
        self.counter = 0
        self.handle = None

    def openssl(self, *arguments, **options):
        return subprocess.run([tool("openssl"), *arguments], check=True, capture_output=True, timeout=30, **options).stdout

    def data(self, flags, attested=b""):
        self.counter += 1
        return hashlib.sha256(self.name.encode()).digest() + bytes([flags]) + struct.pack(">I", self.counter) + attested

    def client_data(self, kind, challenge):
        return json.dumps({"type": kind, "challenge": challenge, "origin": self.origin, "crossOrigin": False}).encode()

    def make(self, options, flags=PRESENT | VERIFIED | ATTESTED, kind="webauthn.create"):
        """What a browser gives for the options of a registration."""
        self.handle = options["user"]["id"]
        point = self.openssl("ec", "-in", self.key, "-pubout", "-outform", "DER")[-64:]
        public = cbor({1: 2, 3: -7, -1: 1, -2: point[:32], -3: point[32:]})
        data = self.data(flags, bytes(16) + struct.pack(">H", len(self.id)) + self.id + public)
        return self.answer({"attestationObject": encode(cbor({"fmt": "none", "attStmt": {}, "authData": data})),
                            "clientDataJSON": encode(self.client_data(kind, options["challenge"])), "transports": ["internal"]})

    def sign(self, options, flags=PRESENT | VERIFIED, kind="webauthn.get", challenge=None):
        """What a browser gives for the options of a sign-in."""
        data, client = self.data(flags), self.client_data(kind, challenge or options["challenge"])
        signature = self.openssl("dgst", "-sha256", "-sign", self.key, input=data + hashlib.sha256(client).digest())
        return self.answer({"authenticatorData": encode(data), "clientDataJSON": encode(client), "signature": encode(signature),
                            "userHandle": self.handle})

    def answer(self, response):
        return {"id": encode(self.id), "rawId": encode(self.id), "type": "public-key", "response": response,
                "clientExtensionResults": {}, "authenticatorAttachment": "platform"}


class Passkeys(unittest.TestCase):
    """People make passkeys and sign in by them."""

    @classmethod
    def setUpClass(cls):
        port = free_port()
        cls.origin = "http://localhost:%d" % port
        cls.server = Server(HELLO, listen="127.0.0.1:%d" % port, variables={"PUBLIC_URL": cls.origin})
        cls.server.start()
        cls.addClassCleanup(cls.server.close)

    def person(self):
        """A new person and a token of theirs."""
        name = "p" + secrets.token_hex(4)
        with self.server.as_user() as http:
            made = http.post("/users", json={"name": name, "password": PASSWORD, "roles": ["operator", "viewer"]})
        self.assertEqual(made.status_code, 201, made.text)
        return name, self.server.login(name, PASSWORD)

    def enrol(self, token, device, **how):
        """Makes a passkey; the answer of the server."""
        with self.server.http(token) as http:
            begun = http.post("/auth/factors/passkeys", json={"name": "my phone"})
            self.assertEqual(begun.status_code, 200, begun.text)
            body = begun.json()
            return http.post("/auth/factors/passkeys/confirm", json={"state": body["state"], "credential": device.make(body["options"], **how)})

    def owner(self):
        """Name, token, device and recovery codes of somebody with a passkey."""
        name, token = self.person()
        device = Device(self.server.folder, self.origin)
        made = self.enrol(token, device)
        self.assertEqual(made.status_code, 200, made.text)
        return name, token, device, made.json()["recovery_codes"]

    def begin(self, http):
        begun = http.post("/auth/passkeys/begin")
        self.assertEqual(begun.status_code, 200, begun.text)
        return begun.json()

    def sign_in(self, device, **how):
        with self.server.http() as http:
            body = self.begin(http)
            return http.post("/auth/passkeys/sign-in", json={"state": body["state"], "credential": device.sign(body["options"], **how)})

    def test_a_passkey_signs_its_owner_in_with_two_factors(self):
        name, _, device, codes = self.owner()
        self.assertEqual(len(codes), 10)

        answer = self.sign_in(device)

        self.assertEqual(answer.status_code, 200, answer.text)
        self.assertEqual((answer.json()["user"], answer.headers["cache-control"]), (name, "no-store"))
        self.assertEqual(token_parts(answer.json()["access_token"])[1]["amr"], ["pop", "mfa"])
        with self.server.http(answer.json()["access_token"]) as http:
            self.assertEqual(http.post("/execute/hello", json={}).json()["result"], "hello")
            shown = http.get("/auth/factors").json()["factors"]
        self.assertEqual([(one["kind"], one["name"]) for one in shown], [("passkey", "my phone")])
        self.assertIsNotNone(shown[0]["last_used_at"])

    def test_who_has_a_passkey_does_not_get_in_by_the_password_alone(self):
        name, _, device, codes = self.owner()
        with self.server.http() as http:
            alone = http.post("/auth/login", json={"username": name, "password": PASSWORD})
            self.assertEqual((alone.status_code, alone.json()["code"]), (401, "second_factor_required"))
            helped = http.post("/auth/login", json={"username": name, "password": PASSWORD, "otp": codes[0]})
            self.assertEqual(helped.status_code, 200, helped.text)

    def test_it_is_a_fresh_proof_for_its_owner_and_nobody_else(self):
        name, token, device, codes = self.owner()
        other = self.owner()[2]
        with self.server.http(token) as http:
            # The session is one of a password, from before there was a second factor.
            refused = http.post("/auth/factors/recovery-codes")
            self.assertEqual((refused.status_code, refused.json()["code"]), (403, "step_up_required"))
            for whose, status in ((other, 422), (device, 200)):
                body = self.begin(http)
                answer = http.post("/auth/step-up", json={"passkey": {"state": body["state"], "credential": whose.sign(body["options"])}})
                self.assertEqual(answer.status_code, status, answer.text)
        with self.server.http(answer.json()["access_token"]) as http:
            self.assertEqual(http.post("/auth/factors/recovery-codes").status_code, 200)
            self.assertEqual(token_parts(answer.json()["access_token"])[1]["amr"], ["pwd", "pop"])

    def test_every_wrong_answer_gets_one_refusal(self):
        name, _, device, _ = self.owner()
        stranger = Device(self.server.folder, self.origin)
        stranger.handle = device.handle
        bodies = set()

        def refuse(answer, what):
            self.assertEqual(answer.status_code, 401, (what, answer.text))
            bodies.add((answer.json()["code"], answer.json()["detail"]))

        refuse(self.sign_in(device, flags=PRESENT), "its owner was not checked")
        refuse(self.sign_in(device, flags=VERIFIED), "nobody was there")
        refuse(self.sign_in(device, kind="webauthn.create"), "an answer to another question")
        refuse(self.sign_in(device, challenge=encode(secrets.token_bytes(32))), "another challenge")
        refuse(self.sign_in(stranger), "a passkey that nobody has")
        stolen, stranger.id = stranger.id, device.id
        refuse(self.sign_in(stranger), "the id of a passkey and another key")
        stranger.id = stolen
        for name_, wrong in (("origin", "https://evil.example"), ("origin", self.origin + "1"), ("name", "evil.example"),
                             ("handle", encode(bytes(16))), ("handle", None)):
            right = getattr(device, name_)
            setattr(device, name_, wrong)
            refuse(self.sign_in(device), (name_, wrong))
            setattr(device, name_, right)
        device.counter = 0
        refuse(self.sign_in(device), "a counter that went back: a copy")
        device.counter = 100
        with self.server.http() as http:
            body = self.begin(http)
            good = device.sign(body["options"])
            signature = decode(good["response"]["signature"])
            changed = dict(good, response=dict(good["response"], signature=encode(signature[:-1] + bytes([signature[-1] ^ 1]))))
            fresh = self.begin(http)
            for state, credential in [(body["state"], changed), (fresh["state"], good), ("", good), ("x" * 200, good), (fresh["state"][::-1], good),
                                      (self.begin(http)["state"], {}), (self.begin(http)["state"], []), (self.begin(http)["state"], "x"),
                                      (self.begin(http)["state"], {"id": "x" * 100000}), (self.begin(http)["state"], None)]:
                refuse(http.post("/auth/passkeys/sign-in", json={"state": state, "credential": credential}), str(credential)[:60])
        self.assertEqual(len(bodies), 1, bodies)
        self.assertEqual(self.sign_in(device).status_code, 200)

    def test_a_challenge_counts_once_also_after_a_restart(self):
        device = self.owner()[2]
        with self.server.http() as http:
            body = self.begin(http)
            answer = {"state": body["state"], "credential": device.sign(body["options"])}
            self.assertEqual(http.post("/auth/passkeys/sign-in", json=answer).status_code, 200)
            self.assertEqual(http.post("/auth/passkeys/sign-in", json=answer).status_code, 401)
        self.server.restart()
        with self.server.http() as http:
            self.assertEqual(http.post("/auth/passkeys/sign-in", json=answer).status_code, 401)
        self.assertEqual(self.sign_in(device).status_code, 200)

    def test_a_removed_passkey_and_a_disabled_owner_are_out(self):
        name, _, device, _ = self.owner()
        token = self.sign_in(device).json()["access_token"]
        with self.server.as_user() as http:
            self.assertEqual(http.patch("/users/" + name, json={"disabled": True}).status_code, 200)
            self.assertEqual(self.sign_in(device).status_code, 401)
            self.assertEqual(http.patch("/users/" + name, json={"disabled": False}).status_code, 200)
        token = self.sign_in(device).json()["access_token"]
        with self.server.http(token) as http:
            factor = http.get("/auth/factors").json()["factors"][0]["id"]
            self.assertEqual(http.delete("/auth/factors/" + factor).status_code, 200)
        self.assertEqual(self.sign_in(device).status_code, 401)
        with self.server.http() as http:
            self.assertEqual(http.post("/auth/login", json={"username": name, "password": PASSWORD}).status_code, 200)

    def test_only_a_good_answer_to_the_own_challenge_makes_a_passkey(self):
        _, token = self.person()
        _, other = self.person()
        for how in ({"flags": PRESENT | ATTESTED}, {"flags": PRESENT | VERIFIED}, {"kind": "webauthn.get"}):
            refused = self.enrol(token, Device(self.server.folder, self.origin), **how)
            self.assertEqual(refused.status_code, 422, (how, refused.text))
        self.assertEqual(self.enrol(token, Device(self.server.folder, "https://evil.example")).status_code, 422)
        self.assertEqual(self.enrol(token, Device(self.server.folder, self.origin, "evil.example")).status_code, 422)
        device = Device(self.server.folder, self.origin)
        with self.server.http(token) as mine, self.server.http(other) as theirs:
            body = mine.post("/auth/factors/passkeys", json={}).json()
            answer = {"state": body["state"], "credential": device.make(body["options"])}
            self.assertEqual(theirs.post("/auth/factors/passkeys/confirm", json=answer).status_code, 422)
            self.assertEqual(mine.post("/auth/factors/passkeys/confirm", json=answer).status_code, 200)
            self.assertEqual(mine.get("/auth/factors").json()["factors"][0]["name"], "passkey")
        # The same credential is nobody else's.
        stolen = self.enrol(other, device)
        self.assertEqual(stolen.status_code, 422, stolen.text)

    def test_a_device_finds_it_by_itself_and_is_told_what_it_holds_already(self):
        name, token, device, _ = self.owner()
        fresh = self.sign_in(device).json()["access_token"]
        with self.server.http(fresh) as http:
            options = http.post("/auth/factors/passkeys", json={"name": "second"}).json()["options"]
        self.assertEqual((options["rp"], options["user"]["name"]), ({"name": "Interlock", "id": "localhost"}, name))
        selection = options["authenticatorSelection"]
        self.assertEqual((selection["residentKey"], selection["userVerification"]), ("required", "required"))
        self.assertEqual([one["id"] for one in options["excludeCredentials"]], [encode(device.id)])
        self.assertNotIn(name, str(decode(options["user"]["id"])))

    def test_without_a_name_of_its_own_a_server_offers_none(self):
        for variables in ({}, {"PUBLIC_URL": "https://192.0.2.7"}):
            with Server(HELLO, variables=variables) as server, server.http() as http:
                self.assertIs(http.get("/auth/methods").json()["passkey"], False)
                self.assertEqual(http.post("/auth/passkeys/begin").status_code, 404)
        with self.server.http() as http:
            self.assertIs(http.get("/auth/methods").json()["passkey"], True)

    def test_administrators_must_have_one_of_the_two(self):
        port = free_port()
        origin = "http://localhost:%d" % port
        with Server(HELLO, listen="127.0.0.1:%d" % port, variables={"PUBLIC_URL": origin, "REQUIRE_MFA_FOR_ADMINS": "true"}) as server:
            device = Device(server.folder, origin)
            with server.as_user() as http:
                person = {"name": "eve", "password": PASSWORD, "roles": ["viewer"]}
                self.assertEqual(http.post("/users", json=person).json()["code"], "second_factor_missing")
                begun = http.post("/auth/factors/passkeys", json={}).json()
                done = {"state": begun["state"], "credential": device.make(begun["options"])}
                self.assertEqual(http.post("/auth/factors/passkeys/confirm", json=done).status_code, 200)
            with server.http() as http:
                begun = http.post("/auth/passkeys/begin").json()
                done = {"state": begun["state"], "credential": device.sign(begun["options"])}
                token = http.post("/auth/passkeys/sign-in", json=done).json()["access_token"]
            with server.http(token) as http:
                self.assertEqual(http.post("/users", json=person).status_code, 201)


if __name__ == "__main__":
    unittest.main()
