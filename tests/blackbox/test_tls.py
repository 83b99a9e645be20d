"""Client certificates and files that change while the server runs, with certificates that openssl made."""

import os
import signal
import socket
import ssl
import subprocess
import unittest

import httpx

from lab import LAB
from support import ADMIN_PASSWORD, Server, certificate, tool, wait_for

CA_SETTINGS = """
[ca]
default_ca = lab
[lab]
dir = {folder}
database = {folder}/index.txt
crlnumber = {folder}/crlnumber
default_md = sha256
default_crl_days = 7
"""


def openssl(*arguments):
    subprocess.run([tool("openssl"), *arguments], check=True, capture_output=True, timeout=30)


class Authority:
    """An authority for clients, with a list of what it has revoked."""

    def __init__(self, folder):
        self.folder = folder
        self.certificate, self.key = os.path.join(folder, "clients.pem"), os.path.join(folder, "clients.key")
        self.list = os.path.join(folder, "clients.crl")
        self.settings = os.path.join(folder, "ca.cnf")
        for name, text in (("ca.cnf", CA_SETTINGS.format(folder=folder)), ("index.txt", ""), ("crlnumber", "01\n")):
            with open(os.path.join(folder, name), "w", encoding="utf-8") as opened:
                opened.write(text)
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", self.key,
                "-out", self.certificate, "-subj", "/CN=Lab clients", "-days", "30")
        self.publish()

    def publish(self):
        openssl("ca", "-config", self.settings, "-gencrl", "-keyfile", self.key, "-cert", self.certificate, "-out", self.list)

    def revoke(self, certificate_file):
        openssl("ca", "-config", self.settings, "-revoke", certificate_file, "-keyfile", self.key, "-cert", self.certificate)
        self.publish()

    def issue(self, name):
        """Certificate and key of a client, as files."""
        files = tuple(os.path.join(self.folder, name + ending) for ending in (".crt", ".key"))
        request, extensions = os.path.join(self.folder, name + ".csr"), os.path.join(self.folder, name + ".ext")
        with open(extensions, "w", encoding="utf-8") as opened:
            opened.write("subjectAltName=DNS:%s\nextendedKeyUsage=clientAuth\n" % name)
        openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", files[1],
                "-out", request, "-subj", "/CN=" + name)
        openssl("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self.key, "-CAcreateserial",
                "-days", "7", "-extfile", extensions, "-out", files[0])
        return files


class MutualTls(unittest.TestCase):
    """One server that takes client certificates only."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        helper = Server(LAB)
        cls.addClassCleanup(helper.close)
        cls.folder = helper.folder
        cls.authority = Authority(cls.folder)
        chain, key = certificate(cls.folder, "server", "30")
        cls.chain, cls.key = chain, key
        cls.server = Server(LAB, options=["--tls-cert", chain, "--tls-key", key],
                            variables={"TLS_CLIENT_CA_FILE": cls.authority.certificate, "TLS_CLIENT_CRL_FILE": cls.authority.list})
        cls.addClassCleanup(cls.server.close)
        cls.server.start()

    def client(self, shown=None):
        context = ssl.create_default_context(cafile=self.chain)
        if shown:
            context.load_cert_chain(*shown)
        return httpx.Client(base_url=self.server.ready["url"], verify=context, timeout=10)

    def is_served(self, shown=None):
        try:
            with self.client(shown) as client:
                return client.get("/health/live").status_code == 200
        except httpx.TransportError:
            return False

    def presented(self):
        """The server's certificate as a new connection sees it."""
        host, port = self.server.ready["url"].split("//")[1].split(":")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with socket.create_connection((host, int(port)), 10) as plain, context.wrap_socket(plain) as stream:
            return ssl.DER_cert_to_PEM_cert(stream.getpeercert(True))

    def test_without_a_certificate_there_is_no_connection(self):
        self.assertFalse(self.is_served())
        self.assertTrue(self.is_served(self.authority.issue("reader")))
        wait_for(lambda: "certificate_refused" in self.server.log(), "an event in the security log")

    def test_an_agent_signs_in_with_its_certificate_alone(self):
        shown = self.authority.issue("mixer")
        with self.client(shown) as client:
            admin = client.post("/auth/login", json={"username": "admin", "password": ADMIN_PASSWORD}).json()["access_token"]
            signed = {"Authorization": "Bearer " + admin}
            agent = client.post("/agents", json={"name": "mixer", "scopes": ["runs:read"]}, headers=signed).json()["id"]
            named = client.put("/agents/%s/certificates" % agent, json={"names": ["dns:mixer"]}, headers=signed)
            self.assertEqual(named.status_code, 200, named.text)
            answer = client.post("/oauth/token", data={"grant_type": "client_credentials", "client_id": agent})
            self.assertEqual(answer.status_code, 200, answer.text)
            bearer = {"Authorization": "Bearer " + answer.json()["access_token"]}
            self.assertEqual(client.get("/auth/me", headers=bearer).status_code, 200)
        with self.client(self.authority.issue("thief")) as thief:
            self.assertEqual(thief.get("/auth/me", headers=bearer).status_code, 401)
            self.assertEqual(thief.get("/auth/me", headers=signed).status_code, 401)

    def test_a_revoked_client_is_out_after_a_hangup_signal(self):
        shown = self.authority.issue("leaving")
        with self.client(shown) as client:
            self.assertEqual(client.get("/health/live").status_code, 200)
            self.authority.revoke(shown[0])
            self.server.process.send_signal(signal.SIGHUP)
            wait_for(lambda: client.get("/health/live").status_code == 403, "the open connection is refused")
        self.assertFalse(self.is_served(shown))
        self.assertTrue(self.is_served(self.authority.issue("staying")))

    def test_a_new_certificate_is_served_and_a_broken_one_is_told(self):
        shown = self.authority.issue("watcher")
        with open(self.chain, encoding="utf-8") as opened:
            before = opened.read()
        self.assertEqual(self.presented().split(), before.split())
        with self.client(shown) as client:
            self.assertEqual(client.get("/health/live").status_code, 200)
            with open(self.chain, "w", encoding="utf-8") as opened:
                opened.write(before[: len(before) // 2])
            self.server.process.send_signal(signal.SIGHUP)
            wait_for(lambda: "cannot be used; those in force stay" in self.server.log(), "the broken file is told")
            self.assertEqual(self.presented().split(), before.split())
            certificate(self.folder, "server", "60")
            with open(self.chain, encoding="utf-8") as opened:
                after = opened.read()
            self.server.process.send_signal(signal.SIGHUP)
            wait_for(lambda: self.presented().split() == after.split(), "the new certificate")
            self.assertEqual(client.get("/health/live").status_code, 200, "the connection from before goes on")
            metrics = client.get("/metrics").text
        self.assertIn('interlock_tls_reloads_total{result="done"}', metrics)
        self.assertIn('interlock_tls_reloads_total{result="failed"}', metrics)
        self.assertIn('interlock_tls_expires_timestamp_seconds{what="server"}', metrics)
        self.assertTrue(self.is_served(shown))


if __name__ == "__main__":
    unittest.main()
