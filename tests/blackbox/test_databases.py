"""PostgreSQL and Redis of their own that take connections over TLS by client certificate only, and a server with a role that owns nothing
else.

Each is started here and changed for the test, so it is not the one that other tests share.
"""

import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import unittest

from orchestra import Orchestrator
from support import ROOT, tool, wait_for
from test_tls import Authority

MOST = 18
"""Connections to PostgreSQL, as docs/reference/connections.md says."""


class Databases(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="interlock-databases-")
        os.chmod(self.folder, 0o755)
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        os.mkdir(os.path.join(self.folder, "clients"), 0o755)
        self.authority = Authority(os.path.join(self.folder, "clients"), "Services of the lab")
        self.own = self.authority.issue("interlock")

    def service(self, name):
        """Starts PostgreSQL or Redis in a folder of this test; what its script prints."""
        def run(what):
            done = subprocess.run([os.path.join(ROOT, "tools", name), what, os.path.join(self.folder, name)], capture_output=True, text=True,
                                  timeout=120, check=False)
            self.assertEqual(done.returncode, 0, done.stderr)
            return done.stdout.strip()

        self.addCleanup(run, "stop")
        return run("start")

    # PostgreSQL

    def postgres(self):
        """A PostgreSQL with a role that signs in by certificate; the owner's URL and the one for the server, without its certificate."""
        owner = self.service("postgres")
        self.sql(owner, "CREATE ROLE interlock LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS CONNECTION LIMIT 40",
                 "CREATE DATABASE interlock OWNER interlock", "REVOKE ALL ON DATABASE interlock FROM PUBLIC",
                 "CREATE DATABASE elsewhere", "REVOKE ALL ON DATABASE elsewhere FROM PUBLIC",
                 "ALTER SYSTEM SET ssl_ca_file = '%s'" % self.authority.certificate)
        rules = os.path.join(self.folder, "postgres", "data", "pg_hba.conf")
        with open(rules, encoding="utf-8") as opened:
            before = opened.read()
        with open(rules, "w", encoding="utf-8") as opened:
            opened.write("hostssl interlock interlock 127.0.0.1/32 cert\nhost all interlock 0.0.0.0/0 reject\n" + before)
        self.sql(owner, "SELECT pg_reload_conf()")
        base, _, options = owner.partition("?")
        place = base.rpartition("@")[2].partition("/")[0].replace("127.0.0.1", "localhost")
        return owner, "postgres://interlock@%s/interlock?sslmode=verify-full&hostaddr=127.0.0.1&%s" % (place, options)

    def sql(self, url, *statements):
        """What the last of these statements, each for itself, prints."""
        for statement in statements:
            done = subprocess.run([tool("psql"), url, "--quiet", "--no-align", "--tuples-only", "--set", "ON_ERROR_STOP=1", "--command", statement],
                                  capture_output=True, text=True, timeout=60, check=False)
            self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout.strip()

    def showing(self, url, shown):
        return "%s&sslcert=%s&sslkey=%s" % (url, *shown)

    def sessions(self, owner, what="count(*)"):
        return self.sql(owner, "SELECT %s FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) WHERE usename = 'interlock'" % what)

    def server(self, variables):
        server = Orchestrator(variables=variables)
        self.addCleanup(server.close)
        return server

    def test_postgresql_is_reached_by_certificate_over_tls_by_a_role_that_owns_its_database_only(self):
        owner, url = self.postgres()
        for missing in (url, self.showing(url, self.authority.issue("somebody"))):
            code, said = self.server({"DATABASE_URL": missing}).refused()
            self.assertNotEqual(code, 0)
            self.assertNotIn("panicked", said)
        code, said = self.server({"DATABASE_URL": url + "&sslcert=" + self.own[0]}).refused()
        self.assertIn("both sslcert and sslkey", said)
        code, said = self.server({"DATABASE_URL": self.showing(url, (self.own[0], self.authority.issue("other")[1]))}).refused()
        self.assertIn("do not go together", said)
        code, said = self.server({"DATABASE_URL": self.showing(url.replace("sslmode=verify-full", "sslmode=disable"), self.own)}).refused()
        self.assertIn("sslmode=verify-full", said)

        server = self.server({"DATABASE_URL": self.showing(url, self.own), "MAX_REQUESTS_PER_MINUTE": "1000000"}).start()
        task = server.task()
        server.over(server.now(task))

        # Every connection is TLS, and shows the certificate that is configured, and none comes with a password.
        self.assertGreater(int(self.sessions(owner)), 0)
        self.assertEqual(self.sessions(owner, "bool_and(ssl AND version = 'TLSv1.3' AND client_dn = '/CN=interlock')"), "t")

        # Many at once wait for a free connection; there are never more than is documented.
        most, over = [], threading.Event()

        def watch():
            while not over.is_set():
                most.append(int(self.sessions(owner)))

        def ask():
            with server.agent() as client:
                for _ in range(15):
                    answers.append((client.get("/audit?limit=20").status_code, client.post("/events", json={
                        "topic": "lab", "payload": {}, "source_agent_id": "00000000-0000-0000-0000-000000000001"}).status_code))

        answers = []
        watching = threading.Thread(target=watch)
        asking = [threading.Thread(target=ask) for _ in range(40)]
        for thread in [watching, *asking]:
            thread.start()
        for thread in asking:
            thread.join(60)
        over.set()
        watching.join(30)
        self.assertEqual(set(answers), {(200, 202)})
        self.assertEqual(len(answers), 600)
        self.assertLessEqual(max(most), MOST, most)

        # What the server can do there, whoever takes it over can do: its own tables and nothing else.
        taken = self.showing(url, self.own)
        for forbidden in ("CREATE DATABASE more", "CREATE ROLE more", "ALTER ROLE interlock SUPERUSER", "COPY (SELECT 1) TO PROGRAM 'true'",
                          "COPY identity FROM '/etc/passwd'", "SELECT pg_read_file('/etc/passwd')", "SELECT rolpassword FROM pg_authid",
                          "ALTER SYSTEM SET ssl = off", "SET ROLE postgres"):
            done = subprocess.run([tool("psql"), taken, "--command", forbidden], capture_output=True, text=True, timeout=60, check=False)
            self.assertNotEqual(done.returncode, 0, forbidden)
            self.assertRegex(done.stderr, "permission denied|must be superuser|must have", forbidden)
        done = subprocess.run([tool("psql"), taken.replace("/interlock?", "/elsewhere?"), "--command", "SELECT 1"], capture_output=True, text=True,
                              timeout=60, check=False)
        self.assertNotEqual(done.returncode, 0)

        # Certificates may live for hours: the one on the disk is shown by the next connection, without a restart.
        again = self.authority.issue("interlock")
        self.assertEqual(again, self.own)
        serial = self.sessions(owner, "max(client_serial)")
        self.sql(owner, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'interlock'")
        with server.agent() as client:
            wait_for(lambda: client.get("/audit?limit=1").status_code == 200, "the server is back", 30)
        wait_for(lambda: self.sessions(owner, "min(client_serial)") not in ("", serial), "the new certificate is shown", 30)
        with open(self.own[0], "w", encoding="utf-8") as opened:
            opened.write("nothing")
        self.sql(owner, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'interlock'")
        with server.agent() as client:
            wait_for(lambda: client.get("/audit?limit=1").status_code == 503, "without a certificate there is no database", 30)
        wait_for(lambda: "no certificate can be shown to the database server" in server.log(), "it is told")
        self.authority.issue("interlock")
        with server.agent() as client:
            wait_for(lambda: client.get("/audit?limit=1").status_code == 200, "the server is back", 30)

    # Redis

    def redis_says(self, port, password, *commands):
        """Commands over the port without TLS, which nobody else uses."""
        with socket.create_connection(("127.0.0.1", port), 10) as stream, stream.makefile("rw", encoding="utf-8", newline="") as lines:
            for command in ("AUTH " + password, *commands):
                lines.write(command + "\r\n")
                lines.flush()
                self.assertEqual(lines.readline().strip(), "+OK", command.partition(" ")[0])

    def test_redis_is_reached_by_certificate_over_tls(self):
        where = json.loads(self.service("redis"))
        plain, _, port = where["url"].rpartition(":")
        password = plain.partition("://")[2].rpartition("@")[0].rpartition(":")[2]
        self.redis_says(int(port.partition("/")[0]), password, "CONFIG SET tls-ca-cert-file " + self.authority.certificate, "CONFIG SET tls-auth-clients yes")
        common = {"REDIS_URL": where["tls"], "REDIS_CA_FILE": where["ca"], "REDIS_DEADLINE_MS": "1000"}

        shown = {"REDIS_CERT_FILE": self.own[0], "REDIS_KEY_FILE": self.own[1]}
        server = self.server({**common, **shown}).start()
        wait_for(lambda: server.series().get("interlock_redis_up") == 1.0, "Redis is used", 20)
        self.assertEqual(server.events("shared_state_lost"), [])
        code, said = self.server(common).refused()
        self.assertNotEqual(code, 0)
        self.assertIn("refuses this server", said)
        code, said = self.server({**common, "REDIS_CERT_FILE": self.own[0]}).refused()
        self.assertNotEqual(code, 0)
        self.assertIn("redis.key_file", said)
        code, said = self.server({**common, **shown, "REDIS_CERT_FILE": os.path.join(self.folder, "absent")}).refused()
        self.assertIn("cannot be read", said)
        code, said = self.server({**shown, "REDIS_URL": where["url"]}).refused()
        self.assertIn("rediss://", said)


if __name__ == "__main__":
    unittest.main()
