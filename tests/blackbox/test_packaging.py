"""What ships beside the program: unit, package, image, manifests; each with the tool that reads it, and the program itself inside."""

import glob
import gzip
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import unittest

import yaml

from orchestra import Orchestrator
from support import ADMIN_PASSWORD, ROOT, certificate, program, tool, wait_for

DEPLOY = os.path.join(ROOT, "deploy")
UNITS = sorted(glob.glob(os.path.join(DEPLOY, "systemd", "*.service")))
SCRIPTS = os.path.join(os.path.dirname(sys.executable))


def run(*arguments, code=0, **options):
    """Runs a tool; what it said."""
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False, **options)
    if done.returncode != code:
        raise AssertionError("%s ended with %d:\n%s%s" % (arguments, done.returncode, done.stdout, done.stderr))
    return done.stdout + done.stderr


def document(*path):
    with open(os.path.join(DEPLOY, *path), encoding="utf-8") as opened:
        return yaml.safe_load(opened)


class Systemd(unittest.TestCase):
    """The units, and what the program tells its manager."""

    def test_units_are_hardened(self):
        self.assertEqual([os.path.basename(unit) for unit in UNITS], ["interlock-device@.service", "interlock.service"])
        for unit in UNITS:
            said = run(tool("systemd-analyze"), "security", "--offline=true", "--threshold=20", unit)
            score = float(re.search(r"exposure level for \S+: ([0-9.]+)", said).group(1))
            self.assertLessEqual(score, 1.7, unit)

    def test_units_are_understood(self):
        with tempfile.TemporaryDirectory() as folder:
            for unit in UNITS:
                with open(unit, encoding="utf-8") as opened:
                    text = opened.read().replace("/usr/bin/interlock", program())
                text = re.sub("(?m)^Documentation=.*\n", "", text)
                path = os.path.join(folder, os.path.basename(unit).replace("@", "@ot2"))
                with open(path, "w", encoding="utf-8") as opened:
                    opened.write(text)
                self.assertEqual(run(tool("systemd-analyze"), "verify", path).strip(), "")

    def test_the_manager_hears_of_ready_alive_and_stopping(self):
        for abstract in (False, True):
            with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
                place = "@interlock-%d" % os.getpid() if abstract else os.path.join(folder, "notify")
                manager.bind("\0" + place[1:] if abstract else place)
                manager.settimeout(20)
                with Orchestrator(variables={"NOTIFY_SOCKET": place, "WATCHDOG_USEC": "200000"}) as server:
                    self.assertEqual([manager.recv(100) for _ in range(4)], [b"READY=1"] + [b"WATCHDOG=1"] * 3)
                    server.process.terminate()
                    rest = []
                    while not rest or rest[-1] != b"STOPPING=1":
                        rest.append(manager.recv(100))
                    self.assertEqual(set(rest[:-1]) - {b"WATCHDOG=1"}, set())
        with Orchestrator(variables={"NOTIFY_SOCKET": "/nowhere/notify"}) as server:
            wait_for(lambda: "the service manager was not told" in server.log(), "a warning, and nothing worse")


class Package(unittest.TestCase):
    """A Debian package, taken apart."""

    def test_it_holds_what_an_administrator_expects_and_is_reproducible(self):
        with tempfile.TemporaryDirectory() as folder:
            programs = os.path.dirname(program())
            one, two = (os.path.join(folder, name + ".deb") for name in ("one", "two"))
            # Without the symbols of a debug build, which would take a minute to pack.
            stripped = os.path.join(folder, "programs")
            os.mkdir(stripped)
            for name in ("interlock", "interlock-verify"):
                run(tool("strip"), "-o", os.path.join(stripped, name), os.path.join(programs, name))
            for path in (one, two):
                run(os.path.join(DEPLOY, "debian", "build"), stripped, path, "0.1.0", env={**os.environ, "DEB_COMPRESSION": "none"})
            with open(one, "rb") as first, open(two, "rb") as second:
                self.assertEqual(first.read(), second.read())
            self.assertIn("Package: interlock", run(tool("dpkg-deb"), "--info", one))
            owners = {line.split()[1] for line in run(tool("dpkg-deb"), "--contents", one).splitlines()}
            self.assertEqual(owners, {"root/root"})
            root = os.path.join(folder, "root")
            run(tool("dpkg-deb"), "--raw-extract", one, root)
            run("md5sum", "--check", "--quiet", os.path.join(root, "DEBIAN", "md5sums"), cwd=root)
            self.assertIn("interlock 0.1.0", run(os.path.join(root, "usr", "bin", "interlock"), "--version"))
            pages = os.listdir(os.path.join(root, "usr", "share", "man", "man1"))
            for page in ("interlock.1.gz", "interlock-backup-create.1.gz", "interlock-audit-verify.1.gz", "interlock-device-serve.1.gz"):
                self.assertIn(page, pages)
            with gzip.open(os.path.join(root, "usr", "share", "man", "man1", "interlock.1.gz"), "rt") as opened:
                self.assertIn(".TH interlock 1", opened.read())
            bash = os.path.join(root, "usr", "share", "bash-completion", "completions", "interlock")
            self.assertIn("backup", run("bash", "-c", 'source "$1"; COMP_WORDS=(interlock ba); COMP_CWORD=1; _interlock interlock ba interlock; echo "${COMPREPLY[@]}"', "-", bash))
            with open(os.path.join(root, "usr", "share", "doc", "interlock", "sbom.cdx.json"), encoding="utf-8") as opened:
                bill = json.load(opened)
            self.assertEqual((bill["bomFormat"], bill["specVersion"], bill["metadata"]["component"]["name"]), ("CycloneDX", "1.6", "interlock"))
            self.assertLessEqual({"rustls", "tokio", "interlock-server"}, {part["name"] for part in bill["components"]})
            self.log_folder(root, folder)
            for script in ("postinst", "prerm", "postrm"):
                run("sh", "-n", os.path.join(root, "DEBIAN", script))
            self.assertEqual(os.stat(os.path.join(root, "etc", "interlock", "secrets")).st_mode & 0o777, 0o700)
            # Settings that ship are understood by the program that ships.
            with open(os.path.join(root, "etc", "interlock", "interlock.conf"), encoding="utf-8") as opened:
                settings = dict(line.strip().split("=", 1) for line in opened if "=" in line and not line.startswith("#"))
            environment = {"PATH": os.environ["PATH"], "HOME": folder, **settings}
            run(os.path.join(root, "usr", "bin", "interlock"), "config", "show", env=environment)
            # And it starts with them.
            ready, state = os.path.join(folder, "ready.json"), os.path.join(folder, "state")
            started = subprocess.Popen([os.path.join(root, "usr", "bin", "interlock"), "server", "--state", state, "--listen", "127.0.0.1:0",
                                        "--ready-file", ready], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            try:
                wait_for(lambda: os.path.exists(ready) or started.poll() is not None, "a start or an end", 30)
                self.assertIsNone(started.poll(), started.stderr.read() if started.poll() is not None else "")
            finally:
                started.terminate()
                started.communicate(timeout=30)


    def log_folder(self, root, folder):
        """The units write where the jail of fail2ban reads, and a log that is rotated goes on."""
        kept = os.path.join(root, "var", "log", "interlock")
        self.assertEqual(os.stat(kept).st_mode & 0o777, 0o750)
        for unit in ("interlock.service", "interlock-device@.service"):
            with open(os.path.join(root, "lib", "systemd", "system", unit), encoding="utf-8") as opened:
                self.assertIn("StandardError=append:/var/log/interlock/%N.log", opened.read())
        with open(os.path.join(DEPLOY, "fail2ban", "jail.d", "interlock.conf"), encoding="utf-8") as opened:
            self.assertIn("logpath = /var/log/interlock/*.log", opened.read())
        log, state = os.path.join(kept, "interlock.log"), os.path.join(folder, "logs-state")
        ready = os.path.join(folder, "logs-ready.json")
        with open(log, "ab") as opened:
            server = subprocess.Popen([os.path.join(root, "usr", "bin", "interlock"), "server", "--state", state, "--listen", "127.0.0.1:0", "--ready-file", ready],
                                      env={"PATH": os.environ["PATH"], "HOME": folder}, stdout=subprocess.DEVNULL, stderr=opened)
        try:
            wait_for(lambda: os.path.exists(ready) or server.poll() is not None, "a start", 30)
            with open(ready, encoding="utf-8") as opened:
                url = json.load(opened)["url"]
            with open(os.path.join(root, "etc", "logrotate.d", "interlock"), encoding="utf-8") as opened:
                rules = opened.read().replace("/var/log/interlock", kept)
            rotation = os.path.join(folder, "rotation")
            with open(rotation, "w", encoding="utf-8") as opened:
                opened.write(rules)
            os.chmod(rotation, 0o644)
            for word, path in (("authentication_failed", "/auth/login"), ("request_blocked", "/runs?q=1%27%20UNION%20SELECT%20password%20FROM%20users--")):
                run("sh", "-c", 'curl --silent --output /dev/null --noproxy "*" "$@"', "-", url + path, *(["--data", "username=eve&password=wrong-wrong-wrong"] if "login" in path else []))
                wait_for(lambda word=word: subprocess.run("grep %s %s/*.log" % (word, kept), shell=True, stdout=subprocess.PIPE).stdout, "the line that operators search for")
                run(tool("logrotate"), "--force", "--state", os.path.join(folder, "rotated"), rotation)
                self.assertEqual(os.path.getsize(log), 0)
            self.assertTrue([name for name in os.listdir(kept) if name.startswith("interlock.log.")])
        finally:
            server.terminate()
            server.communicate(timeout=30)


class Containers(unittest.TestCase):
    """Images and manifests."""

    def test_the_dockerfile_has_no_findings(self):
        self.assertEqual(run(os.path.join(SCRIPTS, "hadolint"), os.path.join(DEPLOY, "docker", "Dockerfile")).strip(), "")
        with open(os.path.join(DEPLOY, "docker", "Dockerfile"), encoding="utf-8") as opened:
            text = opened.read()
        stages = text.split("\nFROM ")[2:]
        for stage in stages:
            self.assertEqual(re.findall(r"(?m)^USER (\S+)", stage)[-1], "65532:65532")
        self.assertIn("HEALTHCHECK", text)
        self.assertNotRegex(text, r"(?i)(ARG|ENV) \S*(SECRET|PASSWORD|TOKEN|KEY)\b")
        # What the image is built of is there, and nothing secret is in the context.
        with open(os.path.join(ROOT, ".dockerignore"), encoding="utf-8") as opened:
            wanted = [line.strip()[1:] for line in opened if line.startswith("!")]
        for name in wanted:
            self.assertTrue(os.path.exists(os.path.join(ROOT, name)), name)

    def test_every_container_is_held_down(self):
        for name in ("compose.yml", "compose.full.yml"):
            compose = document("docker", name)
            for service, spec in compose["services"].items():
                with self.subTest(file=name, service=service):
                    self.assertTrue(spec["read_only"])
                    self.assertEqual((spec["cap_drop"], spec["security_opt"]), (["ALL"], ["no-new-privileges:true"]))
                    self.assertTrue(spec["pids_limit"] and spec["mem_limit"] and spec["logging"]["options"]["max-size"])
                    self.assertNotIn("latest", spec["image"])
                    self.assertIn(":", spec["image"])
                    self.assertNotIn("privileged", spec)
                    if service != "nginx":
                        self.assertRegex(spec["user"], r"^[1-9]\d*:\d+$")
                    self.assertFalse([volume for volume in spec.get("volumes", []) if "docker.sock" in volume])
                    for variable, value in (spec.get("environment") or {}).items():
                        if re.search("SECRET|PASSWORD|TOKEN|MASTER_KEY|DATABASE_URL|REDIS_URL", variable):
                            self.assertRegex(str(value), "^/run/secrets/", variable)
                    for name in spec.get("secrets", []):
                        self.assertIn(name, compose["secrets"])
                    for network in spec.get("networks", []):
                        self.assertIn(network, compose["networks"])
        full = document("docker", "compose.full.yml")
        published = {service: spec["ports"] for service, spec in full["services"].items() if "ports" in spec}
        self.assertEqual(published, {"nginx": ["443:8443"], "grafana": ["127.0.0.1:3000:3000"]})
        self.assertTrue(full["networks"]["backend"]["internal"])
        for service in ("postgres", "redis"):
            self.assertEqual(full["services"][service]["networks"], ["backend"])

    def test_the_server_starts_with_what_the_compose_file_gives_it(self):
        spec = document("docker", "compose.yml")
        with tempfile.TemporaryDirectory() as folder:
            certificate_file, key_file = certificate(folder, "server")
            contents = {"master_key": "07" * 32, "jwt_secret": secrets.token_urlsafe(48), "bootstrap": ADMIN_PASSWORD}
            places = {"tls_certificate": certificate_file, "tls_key": key_file}
            for name, text in contents.items():
                places[name] = os.path.join(folder, name)
                with open(places[name], "w", encoding="utf-8") as opened:
                    opened.write(text + "\n")
                os.chmod(places[name], 0o400)
            with open(os.path.join(DEPLOY, "docker", "Dockerfile"), encoding="utf-8") as opened:
                image = dict(re.findall(r"(\w+)=(\S+)", re.search(r"ENV (ENVIRONMENT=.*)", opened.read()).group(1)))
            variables = {**image, **{name: str(value) for name, value in spec["services"]["interlock"]["environment"].items()}}
            for name, value in variables.items():
                value = re.sub(r"\$\{INTERLOCK_HOST[^}]*\}", "localhost", value).replace("${BACKUP_KEY:-}", "")
                secret = value.rpartition("/")[2]
                variables[name] = places[secret] if value.startswith("/run/secrets/") else value
            variables.update(INTERNAL_LISTEN="127.0.0.1:0", BOOTSTRAP_ADMIN_SECRET=None, BIND="127.0.0.1")
            with Orchestrator(variables=variables) as server:
                inside = re.search(r"http://127\.0\.0\.1:\d+/health/ready", server.output()).group(0)
                self.assertEqual(run(program(), "probe", inside), "")
                self.assertIn("404", run(program(), "probe", inside + "/nowhere", code=1))
                self.assertTrue(server.url.startswith("https://"))
            self.assertIn("ask 127.0.0.1", run(program(), "probe", inside, code=1))
            self.assertIn("give an address", run(program(), "probe", "https://127.0.0.1/", code=1))

    def test_nginx_understands_its_file(self):
        with tempfile.TemporaryDirectory() as folder:
            certificate_file, key_file = certificate(folder, "server")
            with open(os.path.join(DEPLOY, "docker", "nginx.conf"), encoding="utf-8") as opened:
                text = opened.read().replace("/run/secrets/tls_certificate", certificate_file).replace("/run/secrets/tls_key", key_file)
            # The Debian package is older than the image, and the names are those of containers.
            text = re.sub(r"server server-(\d):", r"server 127.0.0.\1:", text).replace("    http2 on;\n", "")
            with open(os.path.join(folder, "nginx.conf"), "w", encoding="utf-8") as opened:
                opened.write("pid %s/pid;\nerror_log stderr;\nevents {}\nhttp {\n%s}\n" % (folder, text))
            path = os.environ["PATH"] + ":/usr/sbin"
            run(shutil.which("nginx", path=path) or tool("nginx"), "-t", "-c", os.path.join(folder, "nginx.conf"), "-p", folder)

    def test_kubernetes_takes_the_manifests(self):
        files = [os.path.join(DEPLOY, "kubernetes", name) for name in ("server.yaml", "network.yaml", "secret.example.yaml")]
        said = run(os.path.join(SCRIPTS, "kubernetes-validate"), "--strict", *files)
        self.assertEqual(said.count(" passed for resource "), 6, said)
        with open(files[0], encoding="utf-8") as opened:
            workload = next(part for part in yaml.safe_load_all(opened) if part["kind"] == "StatefulSet")
        pod = workload["spec"]["template"]["spec"]
        self.assertTrue(pod["securityContext"]["runAsNonRoot"])
        self.assertFalse(pod["automountServiceAccountToken"])
        for container in pod["containers"]:
            self.assertEqual(container["securityContext"], {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}})
            self.assertFalse([item for item in container["env"] if re.search("SECRET|TOKEN|_URL|MASTER_KEY", item["name"]) and not item["name"].endswith("_FILE") and item["name"] != "PUBLIC_URL"])


if __name__ == "__main__":
    unittest.main()
