"""Client certificates and files that change while the server runs, with certificates that openssl made."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import unittest

import httpx

from lab import LAB
from support import ADMIN_PASSWORD, ROOT, Case, Server, certificate, program, tool, wait_for
from test_sdk import totp

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

    def __init__(self, folder, subject="Lab clients"):
        self.folder = folder
        self.certificate, self.key = os.path.join(folder, "clients.pem"), os.path.join(folder, "clients.key")
        self.list = os.path.join(folder, "clients.crl")
        self.settings = os.path.join(folder, "ca.cnf")
        for name, text in (("ca.cnf", CA_SETTINGS.format(folder=folder)), ("index.txt", ""), ("crlnumber", "01\n")):
            with open(os.path.join(folder, name), "w", encoding="utf-8") as opened:
                opened.write(text)
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", self.key,
                "-out", self.certificate, "-subj", "/CN=" + subject, "-days", "30")
        self.publish()

    def publish(self):
        openssl("ca", "-config", self.settings, "-gencrl", "-keyfile", self.key, "-cert", self.certificate, "-out", self.list)

    def revoke(self, certificate_file):
        openssl("ca", "-config", self.settings, "-revoke", certificate_file, "-keyfile", self.key, "-cert", self.certificate)
        self.publish()

    def issue(self, name, alternative=None):
        """Certificate and key of a client, as files. ``alternative`` is its name where that is not its name in the network."""
        files = tuple(os.path.join(self.folder, name + ending) for ending in (".crt", ".key"))
        request, extensions = os.path.join(self.folder, name + ".csr"), os.path.join(self.folder, name + ".ext")
        with open(extensions, "w", encoding="utf-8") as opened:
            opened.write("subjectAltName=%s\nextendedKeyUsage=clientAuth\n" % (alternative or "DNS:" + name))
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

    def test_the_command_line_and_the_sdk_show_their_certificate(self):
        certificate_file, key_file = self.authority.issue("laptop")
        variables = {"PATH": os.environ["PATH"], "HOME": self.folder, "INTERLOCK_URL": self.server.ready["url"],
                     "INTERLOCK_CA_FILE": self.chain, "PYTHONPATH": os.path.join(ROOT, "python")}
        shown = {"INTERLOCK_CLIENT_CERT": certificate_file, "INTERLOCK_CLIENT_KEY": key_file}

        def run(command, extra, said=None):
            done = subprocess.run(command, env={**variables, **extra}, input=said, capture_output=True, text=True, timeout=60)
            return done.returncode, done.stdout + done.stderr

        login = [program(), "login", "--user", "admin", "--password-stdin"]
        self.assertEqual(run(login, {}, ADMIN_PASSWORD + "\n")[0], 8)
        code, said = run(login, shown, ADMIN_PASSWORD + "\n")
        self.assertEqual(code, 0, said)
        self.assertEqual(run([program(), "whoami"], shown)[0], 0)
        code, said = run([program(), "whoami"], {**shown, "INTERLOCK_CLIENT_KEY": self.key})
        self.assertEqual(code, 2, said)
        source = "from interlock import Client; print(type(Client(username='admin', password=%r).device()).__name__)" % ADMIN_PASSWORD
        code, said = run([sys.executable, "-c", source], shown)
        self.assertEqual((code, said.strip()), (0, "Device"))
        self.assertNotEqual(run([sys.executable, "-c", source], {})[0], 0)


class PeopleByCertificate(unittest.TestCase):
    """`interlock login --cert` against a server that knows an authority of people and one of machines."""

    @classmethod
    def setUpClass(cls):
        helper = Server(LAB)
        cls.addClassCleanup(helper.close)
        folders = [os.path.join(helper.folder, name) for name in ("people", "machines")]
        for folder in folders:
            os.mkdir(folder)
        cls.people, cls.machines = (Authority(folder, "Lab " + os.path.basename(folder)) for folder in folders)
        cls.chain, key = certificate(helper.folder, "server", "30")
        lists = os.path.join(helper.folder, "lists.pem")
        cls.lists = lists
        cls.publish()
        cls.server = Server(LAB, options=["--tls-cert", cls.chain, "--tls-key", key], variables={
            "TLS_CLIENT_CA_FILE": cls.machines.certificate, "TLS_USER_CA_FILE": cls.people.certificate, "TLS_CLIENT_CRL_FILE": lists,
            "TLS_CLIENT_AUTH": "optional", "TLS_USER_FIELD": "email", "TLS_USER_DOMAIN": "lab.example"})
        cls.addClassCleanup(cls.server.close)
        cls.server.start()
        cls.server.ready["ca_file"] = cls.chain
        cls.server.add_users("ada", "vera", "olaf")

    @classmethod
    def publish(cls):
        """Both authorities' lists of what they revoked, in the one file that the server reads."""
        with open(cls.lists, "w", encoding="utf-8") as opened:
            for authority in (cls.people, cls.machines):
                with open(authority.list, encoding="utf-8") as one:
                    opened.write(one.read())

    def setUp(self):
        self.home = os.path.join(self.server.folder, self.id().rpartition(".")[2])
        os.mkdir(self.home)

    def cli(self, *words, code=0):
        """The command line on a machine of its own, without a terminal; what it printed, of a failure what it said."""
        variables = {"PATH": os.environ["PATH"], "HOME": self.home, "LANG": "C.UTF-8"}
        done = subprocess.run([program(), "--no-input", *words], env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        self.assertNotIn("panicked", done.stderr)
        return done.stdout if code == 0 else done.stderr

    def login(self, certificate_file, *more, code=0):
        return self.cli(*(["-o", "json"] if code == 0 else []), "--url", self.server.ready["url"], "--ca-file", self.chain, "login", "--cert", certificate_file, *more, code=code)

    def person(self, name, file=None):
        return self.people.issue(file or name, "email:%s@lab.example" % name)

    def context(self):
        with open(os.path.join(self.home, ".config", "interlock", "contexts.json"), encoding="utf-8") as opened:
            document = json.load(opened)
        return document["contexts"][document["current"]]

    def test_a_person_signs_in_without_a_password_and_later_commands_show_the_certificate(self):
        certificate_file, key_file = self.person("ada")
        answer = json.loads(self.login(certificate_file, "--key", key_file))
        self.assertEqual((answer["user"], sorted(answer["roles"])), ("ada", ["operator", "viewer"]))
        self.assertEqual(json.loads(self.cli("-o", "json", "whoami"))["user"], "ada")
        self.cli("run", "mix", "volume=5uL")
        # The token is good with this certificate alone.
        bearer = {"Authorization": "Bearer " + self.context()["token"]}
        for shown, status in (((certificate_file, key_file), 200), (self.person("ada", "another"), 401), (None, 401)):
            trust = ssl.create_default_context(cafile=self.chain)
            if shown:
                trust.load_cert_chain(*shown)
            with httpx.Client(base_url=self.server.ready["url"], verify=trust, timeout=10) as client:
                self.assertEqual(client.get("/auth/me", headers=bearer).status_code, status, shown)
        self.cli("logout")
        self.cli("whoami", code=4)
        with open(key_file, encoding="utf-8") as opened:
            self.assertNotIn(opened.read().split()[5], self.server.log())

    def test_the_key_may_be_in_the_same_file(self):
        both = os.path.join(self.home, "ada.pem")
        with open(both, "w", encoding="utf-8") as opened:
            for name in self.person("ada", "both"):
                with open(name, encoding="utf-8") as part:
                    opened.write(part.read())
        self.assertEqual(json.loads(self.login(both))["user"], "ada")
        self.assertEqual(json.loads(self.cli("-o", "json", "whoami"))["user"], "ada")

    def test_a_second_factor_is_asked_for_and_given(self):
        app = self.server.post("/auth/factors/totp", {"name": "phone"}, user="vera")
        self.assertEqual(app.status_code, 201, app.text)
        secret, step = app.json()["secret"], int(time.time()) // 30
        done = self.server.post("/auth/factors/totp/confirm", {"code": totp(secret, step)}, user="vera")
        self.assertEqual(done.status_code, 200, done.text)
        certificate_file, key_file = self.person("vera")
        said = self.login(certificate_file, "--key", key_file, code=2)
        self.assertIn("--otp", said)
        self.login(certificate_file, "--key", key_file, "--otp", "000000", code=4)
        # A code is good once: the one of the confirmation is not taken again.
        self.login(certificate_file, "--key", key_file, "--otp", totp(secret, step), code=4)
        self.assertEqual(json.loads(self.login(certificate_file, "--key", key_file, "--otp", done.json()["recovery_codes"][0]))["user"], "vera")

    def test_who_nobody_here_is_or_whose_certificate_is_a_machine_s_stays_outside(self):
        for shown in (self.person("nobody"), self.people.issue("elsewhere", "email:ada@other.example"), self.people.issue("ada-nameless"),
                      self.machines.issue("mixer", "email:ada@lab.example"),
                      self.people.issue("two", "email:ada@lab.example,email:admin@lab.example"), self.person("break-glass")):
            with self.subTest(shown[0]):
                said = self.login(shown[0], "--key", shown[1], code=4)
                self.assertIn("the server does not let you in", said)
                self.assertIn("interlock audit list --action device.login", said)
        # Of an authority that the server does not know: there is not even a connection.
        chain, key = certificate(self.home, "own")
        self.login(chain, "--key", key, code=8)
        self.assertFalse(os.path.exists(os.path.join(self.home, ".config", "interlock", "contexts.json")))

    def test_a_revoked_certificate_ends_the_session_that_it_began(self):
        certificate_file, key_file = self.person("olaf")
        self.login(certificate_file, "--key", key_file)
        self.cli("whoami")
        self.people.revoke(certificate_file)
        self.publish()
        self.server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "the certificates were read again" in self.server.log(), "the list is read")
        self.cli("whoami", code=8)
        self.login(certificate_file, "--key", key_file, code=8)

    def test_what_does_not_go_together_is_told_before_anything_is_sent(self):
        certificate_file, key_file = self.person("ada", "careful")
        for words in (["--cert", certificate_file, "--user", "ada"], ["--cert", certificate_file, "--password-stdin"], ["--key", key_file],
                      ["--cert", certificate_file, "--device"]):
            self.cli("--url", self.server.ready["url"], "login", *words, code=2)
        absent = os.path.join(self.home, "absent.pem")
        self.assertIn(absent, self.login(absent, code=1))
        said = self.login(certificate_file, code=2)
        self.assertIn("--key", said)
        other = self.person("ada", "other")
        self.login(certificate_file, "--key", other[1], code=2)


class LetsEncrypt(unittest.TestCase):
    """The files as certbot leaves them: links in live/ to numbered files in archive/, changed together at a renewal."""

    NAME = "robot.lab.example"

    def lay(self, folder, number, kind):
        """What certbot does when it gets a certificate: new files, then the links."""
        archive, live = (os.path.join(folder, "letsencrypt", part, self.NAME) for part in ("archive", "live"))
        for made in (archive, live):
            os.makedirs(made, exist_ok=True)
        at = lambda name: os.path.join(archive, "%s%d.pem" % (name, number))
        root, root_key = os.path.join(folder, "root.pem"), os.path.join(folder, "root.key")
        if number == 1:
            openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", root_key, "-out", root, "-subj", "/CN=Root", "-days", "30")
        with open(os.path.join(folder, "ext"), "w", encoding="utf-8") as opened:
            opened.write("[between]\nbasicConstraints=critical,CA:TRUE\n[leaf]\nsubjectAltName=DNS:%s,DNS:localhost\n" % self.NAME)
        between, between_key, request = (os.path.join(folder, name) for name in ("between.pem", "between.key", "request"))
        for key, subject, new, issuer, section, out in ((between_key, "/CN=E5", ["ec", "-pkeyopt", "ec_paramgen_curve:P-384"], (root, root_key), "between", between),
                                                       (at("privkey"), "/CN=" + self.NAME, kind, (between, between_key), "leaf", at("cert"))):
            openssl("req", "-new", "-newkey", *new, "-nodes", "-keyout", key, "-out", request, "-subj", subject)
            openssl("x509", "-req", "-in", request, "-CA", issuer[0], "-CAkey", issuer[1], "-CAcreateserial", "-days", "7", "-extfile",
                    os.path.join(folder, "ext"), "-extensions", section, "-out", out)
        with open(at("fullchain"), "w", encoding="utf-8") as chain:
            for name in (at("cert"), between):
                with open(name, encoding="utf-8") as part:
                    chain.write(part.read())
        for name in ("fullchain", "privkey"):
            link = os.path.join(live, name + ".pem")
            os.symlink(os.path.relpath(at(name), live), link + ".new")
            os.replace(link + ".new", link)
        return os.path.join(live, "fullchain.pem"), os.path.join(live, "privkey.pem"), root

    def test_links_are_followed_also_after_a_renewal_with_another_kind_of_key(self):
        server = Server(LAB)
        self.addCleanup(server.close)
        chain, key, root = self.lay(server.folder, 1, ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
        server.options = ["--tls-cert", chain, "--tls-key", key]
        server.start()

        def shown():
            """The leaf that a client sees which trusts the root alone: the certificate between is sent along."""
            context = ssl.create_default_context(cafile=root)
            with socket.create_connection(server.address, timeout=10) as plain, context.wrap_socket(plain, server_hostname=self.NAME) as tls:
                return ssl.DER_cert_to_PEM_cert(tls.getpeercert(binary_form=True)).split()

        def first():
            with open(chain, encoding="utf-8") as opened:
                return opened.read().partition("-----END CERTIFICATE-----")[0].split()

        self.assertEqual(shown(), first() + ["-----END", "CERTIFICATE-----"])
        self.lay(server.folder, 2, ["rsa:2048"])
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: shown() == first() + ["-----END", "CERTIFICATE-----"], "the renewed certificate")


class Trust(Case):
    """The installation's own authority, from the server to a machine that has never heard of it."""

    SOURCE = LAB
    OPTIONS = ["--tls", "internal"]

    def interlock(self, *arguments, code=0):
        home = os.path.join(self.server.folder, self.id())
        variables = {"PATH": os.environ["PATH"], "HOME": home, "INTERLOCK_CONFIG_DIR": home}
        done = subprocess.run([program(), *arguments], env=variables, capture_output=True, text=True, timeout=60,
                              stdin=subprocess.DEVNULL)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        return done.stdout, done.stderr

    def fingerprint(self):
        """What the server's banner says."""
        with open(self.server.out_path, encoding="utf-8") as opened:
            return next(line.split()[2] for line in opened if "CA print" in line)

    def test_show_tells_the_same_here_and_over_the_network(self):
        here = json.loads(self.interlock("trust", "show", "--state", self.server.state, "-o", "json")[0])
        there = json.loads(self.interlock("trust", "show", self.server.ready["url"], "-o", "json")[0])
        self.assertEqual(here, there)
        self.assertEqual(here["authority"]["fingerprint"], self.fingerprint())
        self.assertIn("127.0.0.1", here["server"]["names"])
        openssl_says = subprocess.run([tool("openssl"), "x509", "-in", self.server.ready["ca_file"], "-noout", "-fingerprint", "-sha256"],
                                      check=True, capture_output=True, text=True, timeout=30).stdout
        self.assertIn(self.fingerprint(), openssl_says)

    def test_export_is_the_authority_that_clients_can_use(self):
        exported = self.interlock("trust", "export", "--state", self.server.state)[0]
        with open(self.server.ready["ca_file"], encoding="utf-8") as opened:
            self.assertEqual(exported.split(), opened.read().split())
        path = os.path.join(self.server.folder, "exported.pem")
        self.interlock("trust", "export", "--state", self.server.state, "--out", path)
        answer = httpx.get(self.server.ready["url"] + "/health/live", verify=ssl.create_default_context(cafile=path))
        self.assertEqual(answer.status_code, 200)
        self.interlock("trust", "export", "--state", self.server.folder, code=3)

    def test_install_wants_the_right_fingerprint(self):
        url = self.server.ready["url"]
        self.interlock("trust", "install", url, code=2)
        self.interlock("trust", "install", url, "--yes", code=2)
        wrong = self.fingerprint()[:-2] + ("00" if self.fingerprint()[-2:] != "00" else "01")
        self.interlock("trust", "install", url, "--fingerprint", wrong, code=8)
        self.interlock("--url", url, "status", code=8)
        self.interlock("trust", "install", url, "--fingerprint", "SHA256:" + self.fingerprint().lower())
        self.interlock("--url", url, "api", "GET", "/health/live")

    def test_install_for_the_whole_machine(self):
        # In a mount namespace of its own: this machine's authorities stay as they are.
        script = """set -e
        mount -t tmpfs none /usr/local/share/ca-certificates
        cp -a /etc/ssl/certs "$1/certs"
        mount --bind "$1/certs" /etc/ssl/certs
        if curl -sf "$2/health/live" >/dev/null; then echo trusted too early; exit 1; fi
        "$3" trust install "$2" --fingerprint "$4" --system
        curl -sf "$2/health/live"
        """
        for name in ("curl", "unshare", "update-ca-certificates"):
            tool(name)
        done = subprocess.run(["unshare", "--mount", "--propagation", "private", "bash", "-c", script, "bash", self.server.folder,
                               self.server.ready["url"], program(), self.fingerprint()], capture_output=True, text=True, timeout=120)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("alive", done.stdout)

    def test_an_address_that_is_no_such_server(self):
        self.interlock("trust", "show", "http://127.0.0.1:1", code=2)
        self.interlock("trust", "show", "https://127.0.0.1:1", code=8)


if __name__ == "__main__":
    unittest.main()
