"""Packet filter and VPNs under ``deploy/``, tried with the real programs in network namespaces: nft, OpenVPN, WireGuard.

Two machines on a cable: ``machine`` runs the server, ``outside`` everything else. Nothing touches the network of this host.
"""

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import unittest

from lab import LAB
from support import Server, end_process, together, tool, wait_for
from test_deploy import DEPLOY, put, run, shipped, system_tool

RULES = os.path.join(DEPLOY, "nftables", "interlock.nft")
APPLY = os.path.join(DEPLOY, "nftables", "apply")
MAKE_PKI = os.path.join(DEPLOY, "openvpn", "make-pki")
LISTEN = """
import socket, sys, threading
def tcp(port):
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
    def serve():
        while True:
            listener.accept()[0].close()
    threading.Thread(target=serve, daemon=True).start()
def udp(port):
    listener = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind(("::", port))
    def serve():
        while True:
            data, address = listener.recvfrom(100)
            listener.sendto(data, address)
    threading.Thread(target=serve, daemon=True).start()
for word in sys.argv[1:]:
    (udp if word.startswith("u") else tcp)(int(word.strip("u")))
print("ready", flush=True)
sys.stdin.read()
"""
PROBE = """
import socket, sys
source, target, port, seconds = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])
family = socket.AF_INET6 if ":" in target else socket.AF_INET
probe = socket.socket(family, socket.SOCK_DGRAM if port.startswith("u") else socket.SOCK_STREAM)
probe.settimeout(seconds)
if source != "-":
    probe.bind((source, 0))
try:
    probe.connect((target, int(port.strip("u"))))
    if port.startswith("u"):
        probe.send(b"x")
        probe.recv(10)
    print("open")
except TimeoutError:
    print("filtered")
except OSError as error:
    print(type(error).__name__)
"""


class Machine:
    """A network namespace with its own /run, held by a process."""

    def __init__(self, inside=None):
        root = ["--map-root-user"] if os.geteuid() and inside is None else []
        self.holder = subprocess.Popen([*(inside.enter if inside else []), tool("unshare"), *root, "--net", "--mount", "sh", "-c",
                                        "mount -t tmpfs tmpfs /run && echo ready && exec sleep infinity"],
                                       stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if self.holder.stdout.readline().strip() != "ready":
            raise AssertionError("this system lets no namespace be made: " + self.holder.stderr.read())
        user = ["--user", "--preserve-credentials"] if os.geteuid() else []
        self.enter = [tool("nsenter"), "--target", str(self.holder.pid), *user, "--net", "--mount"]
        self("ip", "link", "set", "lo", "up")

    def __call__(self, *command, **options):
        """Run a command in it, which must succeed; its output."""
        done = run(*self.enter, *command, **options)
        assert done.returncode == 0, (command, done.returncode, done.stdout + done.stderr)
        return done.stdout

    def spawn(self, *command, **options):
        return subprocess.Popen([*self.enter, *command], **options)

    def close(self):
        end_process(self.holder)
        self.holder.stdout.close()
        self.holder.stderr.close()


class Networks(unittest.TestCase):
    """``machine`` at 198.51.100.1 and 2001:db8:1::1, ``outside`` at .2, which is also an administrator's address."""

    def setUp(self):
        path = os.environ["PATH"]
        os.environ["PATH"] = path + ":/usr/sbin:/sbin"
        self.addCleanup(os.environ.__setitem__, "PATH", path)
        for name in ("nft", "ip", "nsenter"):
            system_tool(name)
        self.folder = tempfile.mkdtemp(prefix="interlock-net-")
        os.chmod(self.folder, 0o755)
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.machine = Machine()
        self.addCleanup(self.machine.close)
        self.outside = Machine(self.machine)
        self.addCleanup(self.outside.close)
        self.cable("lan0", "198.51.100.1/24", "198.51.100.2/24", "2001:db8:1::1/64", "2001:db8:1::2/64")
        for address in ("192.0.2.1/32", "2001:db8:a::1/128"):
            self.outside("ip", "address", "add", address, "dev", "lan0", *(["nodad"] if ":" in address else []))
            self.machine("ip", "route", "add", address, "dev", "lan0")

    def cable(self, name, *addresses):
        """A cable between the two; ``machine`` has the first of each two addresses."""
        self.machine("ip", "link", "add", "name", name, "type", "veth", "peer", "name", "peer0")
        self.machine("ip", "link", "set", "peer0", "netns", str(self.outside.holder.pid))
        self.outside("ip", "link", "set", "peer0", "name", name)
        for number, address in enumerate(addresses):
            (self.machine, self.outside)[number % 2]("ip", "address", "add", address, "dev", name, *(["nodad"] if ":" in address else []))
        for end in (self.machine, self.outside):
            end("ip", "link", "set", name, "up")

    def listen(self, machine, *ports):
        process = machine.spawn(sys.executable, "-c", LISTEN, *ports, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.stdin.close)
        self.addCleanup(end_process, process)
        self.assertEqual(process.stdout.readline(), "ready\n")

    def probe(self, source, target, port, seconds=1.0, machine=None):
        return (machine or self.outside)(sys.executable, "-c", PROBE, source, target, port, str(seconds)).strip()

    def assertOpen(self, *arguments, **options):
        self.assertEqual(self.probe(*arguments, seconds=10, **options), "open", arguments)

    def assertFiltered(self, *arguments, **options):
        self.assertEqual(self.probe(*arguments, **options), "filtered", arguments)

    def load(self):
        self.machine("nft", "--file", RULES)


class PacketFilter(Networks):
    def test_the_file_is_checked_by_the_real_program_and_can_be_loaded_again(self):
        self.machine("nft", "--check", "--file", RULES)
        self.assertEqual(self.machine("nft", "list", "tables"), "", "checking must change nothing")
        self.machine("nft", "add", "table", "inet", "another")
        self.load()
        first = self.machine("nft", "--stateless", "list", "ruleset")
        self.load()
        self.assertEqual(self.machine("nft", "--stateless", "list", "ruleset"), first)
        self.assertIn("table inet another", first)
        self.assertIn("hook input priority filter; policy drop;", first)
        self.assertIn("hook forward priority filter; policy drop;", first)
        self.assertIn("hook output priority filter; policy accept;", first)

    def test_each_port_is_open_to_those_it_is_for_in_both_protocols(self):
        self.cable("tun0", "10.8.0.1/24", "10.8.0.2/24", "fd00:8::1/64", "fd00:8::2/64")
        self.listen(self.machine, "22", "80", "443", "8000", "8443", "u1194", "u51820", "u53")
        self.listen(self.outside, "9000")
        lan4, lan6 = ("198.51.100.2", "198.51.100.1"), ("2001:db8:1::2", "2001:db8:1::1")
        admin4, admin6 = ("192.0.2.1", "198.51.100.1"), ("2001:db8:a::1", "2001:db8:1::1")
        vpn4, vpn6 = ("10.8.0.2", "10.8.0.1"), ("fd00:8::2", "fd00:8::1")
        closed = [(*ends, port) for ends in (lan4, lan6) for port in ("22", "80", "8000", "8443", "u53")]
        closed += [(*ends, port) for ends in (vpn4, vpn6) for port in ("22", "80", "8443")]
        for arguments in closed:
            self.assertOpen(*arguments)
        self.load()
        # Neighbours have to find each other anew, through the filter.
        for end in (self.machine, self.outside):
            end("ip", "neighbour", "flush", "all")
        self.assertEqual(together(len(closed), lambda number: self.probe(*closed[number])), ["filtered"] * len(closed))
        for ends in (lan4, lan6):
            for port in ("443", "u1194", "u51820"):
                self.assertOpen(*ends, port)
        for ends in (admin4, admin6):
            self.assertOpen(*ends, "22")
            self.assertFiltered(*ends, "8000")
        for ends in (vpn4, vpn6):
            self.assertOpen(*ends, "8000")
            self.assertOpen(*ends, "443")
        # Answers to what the machine asks itself, and loopback.
        for source, target in (("198.51.100.1", "198.51.100.2"), ("2001:db8:1::1", "2001:db8:1::2")):
            self.assertOpen(source, target, "9000", machine=self.machine)
        for address in ("127.0.0.1", "::1"):
            self.assertOpen("-", address, "8000", machine=self.machine)

    def test_a_vpn_address_that_comes_from_elsewhere_is_dropped(self):
        self.listen(self.machine, "443")
        for address in ("10.8.0.7", "fd00:8::7"):
            self.outside("ip", "address", "add", address + ("/128" if ":" in address else "/32"), "dev", "lan0",
                         *(["nodad"] if ":" in address else []))
            self.machine("ip", "route", "add", address, "dev", "lan0")
        forged = [("10.8.0.7", "198.51.100.1", "443"), ("fd00:8::7", "2001:db8:1::1", "443")]
        for arguments in forged:
            self.assertOpen(*arguments)
        self.load()
        for arguments in forged:
            self.assertFiltered(*arguments)

    def test_nothing_is_passed_on_to_the_network_behind(self):
        behind = Machine(self.machine)
        self.addCleanup(behind.close)
        self.machine("ip", "link", "add", "name", "lab0", "type", "veth", "peer", "name", "peer1")
        self.machine("ip", "link", "set", "peer1", "netns", str(behind.holder.pid))
        self.machine("ip", "address", "add", "203.0.113.1/24", "dev", "lab0")
        self.machine("ip", "link", "set", "lab0", "up")
        behind("ip", "address", "add", "203.0.113.2/24", "dev", "peer1")
        behind("ip", "link", "set", "peer1", "up")
        behind("ip", "route", "add", "default", "via", "203.0.113.1")
        self.outside("ip", "route", "add", "default", "via", "198.51.100.1")
        self.machine("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
        self.listen(behind, "443")
        self.assertOpen("198.51.100.2", "203.0.113.2", "443")
        self.load()
        self.assertFiltered("198.51.100.2", "203.0.113.2", "443")

    def apply(self, word, *arguments, file=RULES, seconds="30", **variables):
        """``apply`` with this word typed; ``None`` types nothing and holds the line."""
        variables = dict(os.environ, APPLY_SECONDS=seconds, TMPDIR=self.folder, **variables)
        process = self.machine.spawn(APPLY, file, *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                     text=True, env=variables, start_new_session=True)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.stdin.close)
        if word is None:
            return process
        process.stdin.write(word + "\n")
        process.stdin.flush()
        said = process.stdout.read()
        return process.wait(60), said

    def changed(self):
        """The rules with another public port."""
        path = os.path.join(self.folder, "changed.nft")
        with open(path, "w", encoding="utf-8") as opened:
            opened.write(put(shipped("nftables", "interlock.nft"), "elements = { 443 }", "elements = { 4443 }", 1))
        return path

    def ports(self):
        return re.findall(r"elements = \{ ([^}]+) \}", self.machine("nft", "list", "set", "inet", "interlock", "public_ports"))

    def test_confirmed_rules_stay_and_are_saved_for_the_next_boot(self):
        saved = os.path.join(self.folder, "nftables.d", "interlock.nft")
        code, said = self.apply("keep", "--save", APPLY_SAVE=saved)
        self.assertEqual(code, 0, said)
        self.assertEqual(self.ports(), ["443"])
        with open(saved, encoding="utf-8") as opened:
            self.assertEqual(opened.read(), shipped("nftables", "interlock.nft"))
        # The next boot: an empty rule set, and the file that the service of the system includes.
        self.machine("nft", "flush", "ruleset")
        boot = os.path.join(self.folder, "nftables.conf")
        with open(boot, "w", encoding="utf-8") as opened:
            opened.write('flush ruleset\ninclude "%s/*.nft"\n' % os.path.dirname(saved))
        self.machine("nft", "--file", boot)
        self.assertEqual(self.ports(), ["443"])

    def test_rules_that_are_not_confirmed_are_taken_back(self):
        self.load()
        code, said = self.apply("no", file=self.changed())
        self.assertEqual(code, 2, said)
        self.assertEqual(self.ports(), ["443"])

    def test_the_first_rules_are_taken_back_to_none(self):
        self.machine("nft", "add", "table", "inet", "another")
        self.apply("", file=RULES)
        self.assertEqual(self.machine("nft", "list", "tables"), "table inet another\n")

    def test_rules_are_taken_back_when_nobody_can_answer_any_more(self):
        self.load()
        process = self.apply(None, file=self.changed(), seconds="3")
        wait_for(lambda: self.ports() == ["4443"], "the new rules")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
        wait_for(lambda: self.ports() == ["443"], "the old rules", 20)

    def test_a_file_with_an_error_or_with_more_than_its_table_changes_nothing(self):
        self.load()
        for added in ("table inet interlock { chain input { no such words } }", "flush ruleset", "table ip nat { }"):
            with open(self.changed(), "a", encoding="utf-8") as opened:
                opened.write(added + "\n")
            code, said = self.apply("keep", file=opened.name)
            self.assertEqual(code, 1, (added, said))
            self.assertEqual(self.ports(), ["443"])


class Ban(Networks):
    """fail2ban itself, with the shipped filter and jail, on the log of a real server and with the real packet filter."""

    def test_who_keeps_failing_is_shut_out_and_an_administrator_is_not(self):
        self.load()
        self.listen(self.machine, "443")
        server = Server(LAB, variables={"TRUSTED_PROXIES": "127.0.0.1"})
        self.addCleanup(server.close)
        server.start()
        folder = os.path.join(self.folder, "fail2ban")
        shutil.copytree("/etc/fail2ban", folder)
        for name in os.listdir(os.path.join(folder, "jail.d")):
            os.unlink(os.path.join(folder, "jail.d", name))
        shutil.copy(os.path.join(DEPLOY, "fail2ban", "filter.d", "interlock.conf"), os.path.join(folder, "filter.d"))
        with open(os.path.join(folder, "jail.d", "interlock.conf"), "w", encoding="utf-8") as opened:
            opened.write(put(shipped("fail2ban", "jail.d", "interlock.conf"), "/var/log/interlock/*.log", server.log_path, 1))
        with open(os.path.join(folder, "fail2ban.local"), "w", encoding="utf-8") as opened:
            opened.write("[Definition]\ndbfile = None\nlogtarget = %(0)s/log\nsocket = %(0)s/socket\npidfile = %(0)s/pid\n" % {"0": folder})
        process = self.machine.spawn(system_tool("fail2ban-server"), "-c", folder, "-s", folder + "/socket", "-p", folder + "/pid", "-f", "start",
                                     stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(end_process, process)

        def status():
            return run(*self.machine.enter, system_tool("fail2ban-client"), "-c", folder, "-s", folder + "/socket", "status", "interlock").stdout

        wait_for(lambda: "Currently failed" in status(), "fail2ban", 30, 0.2)
        self.assertOpen("198.51.100.2", "198.51.100.1", "443")
        with server.http() as client:
            for address in ("192.0.2.1", "198.51.100.2"):
                for _ in range(11):
                    headers = {"X-Forwarded-For": address, "Authorization": "Bearer x.y.z"}
                    self.assertEqual(client.get("/tasks", headers=headers).status_code, 401)
        wait_for(lambda: re.search(r"Banned IP list:\s+198\.51\.100\.2\n", status()), "the ban", 30, 0.2)
        wait_for(lambda: self.probe("198.51.100.2", "198.51.100.1", "443") != "open", "the ban in the packet filter", 20)
        self.assertOpen("192.0.2.1", "198.51.100.1", "443")


class Vpn(Networks):
    """Both VPNs through the packet filter, with the shipped files."""

    def setUp(self):
        super().setUp()
        self.load()
        self.listen(self.machine, "8000", "22")

    def keys(self):
        """Keys by ``make-pki``, with a client that is revoked."""
        folder = os.path.join(self.folder, "keys")
        passphrase = os.path.join(self.folder, "passphrase")
        with open(passphrase, "w", encoding="utf-8") as opened:
            opened.write("a passphrase of this test\n")
        for words in ("authority", "server server", "client ada", "client eve", "revoke eve", "list"):
            done = run(MAKE_PKI, folder, *words.split(), env=dict(os.environ, PKI_PASSPHRASE_FILE=passphrase))
            self.assertEqual(done.returncode, 0, (words, done.stderr))
        return folder

    def test_the_keys_are_for_one_purpose_each_and_nobody_else_can_read_them(self):
        folder = self.keys()
        for name in os.listdir(folder):
            if name.endswith(".key"):
                self.assertEqual(stat.S_IMODE(os.stat(os.path.join(folder, name)).st_mode), 0o600, name)
        self.assertEqual(stat.S_IMODE(os.stat(folder).st_mode), 0o700)
        with open(os.path.join(folder, "ca.key"), encoding="utf-8") as opened:
            self.assertIn("ENCRYPTED", opened.read())

        def verifies(name, purpose):
            return run("openssl", "verify", "-CAfile", folder + "/ca.crt", "-CRLfile", folder + "/crl.pem", "-crl_check", "-purpose", purpose,
                       os.path.join(folder, name)).returncode == 0

        self.assertEqual([verifies(*each) for each in (("server.crt", "sslserver"), ("server.crt", "sslclient"), ("ada.crt", "sslclient"),
                                                       ("ada.crt", "sslserver"), ("eve.revoked.crt", "sslclient"))],
                         [True, False, True, False, False])
        self.assertIn("id-ecPublicKey", run("openssl", "x509", "-in", folder + "/ada.crt", "-noout", "-text").stdout)
        self.assertNotEqual(run(MAKE_PKI, folder, "client", "../ada").returncode, 0)

    def test_the_openvpn_files_say_what_they_must(self):
        server, client = (set(shipped("openvpn", name + ".conf").splitlines()) for name in ("server", "client"))
        self.assertLessEqual({"port 1194", "proto udp", "server 10.8.0.0 255.255.255.0", "keepalive 10 120", "verb 3", "persist-key",
                              "persist-tun", "status /run/openvpn-server/status-interlock.log", "verify-client-cert require"}, server)
        self.assertLessEqual({"remote-cert-tls server", "verify-x509-name server name", "persist-key", "persist-tun"}, client)

    def openvpn(self, machine, name, replacements):
        """Start the shipped file with other paths; the process and its log."""
        text = shipped("openvpn", name + ".conf")
        for old, new, count in replacements:
            text = put(text, old, new, count)
        if os.geteuid():
            text = put(put(text, "user nobody\n", "", 1), "group nogroup\n", "", 1)
        path = tempfile.mktemp(suffix=".conf", prefix=name, dir=self.folder)
        with open(path, "w", encoding="utf-8") as opened:
            opened.write(text)
        log = open(path + ".log", "w", encoding="utf-8")
        self.addCleanup(log.close)
        process = machine.spawn(system_tool("openvpn"), "--config", path, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.addCleanup(end_process, process)

        def read():
            with open(path + ".log", encoding="utf-8") as opened:
                return opened.read()

        return process, read

    def said(self, process, read, pattern):
        """Wait until the log of a program that runs holds this."""
        def look():
            self.assertIsNone(process.poll(), read())
            return re.search(pattern, read())

        try:
            return wait_for(look, pattern, 30)
        except AssertionError as error:
            raise AssertionError("%s\n%s" % (error, read())) from None

    def test_openvpn_connects_with_current_ciphers_and_carries_its_range_only(self):
        keys = self.keys()
        revoked = shutil.copy(keys + "/crl.pem", self.folder)
        server, server_log = self.openvpn(self.machine, "server", [
            ("/etc/openvpn/server/crl.pem", revoked, 1), ("/etc/openvpn/server", keys, 6), ("/run/openvpn-server", self.folder, 1)])
        self.said(server, server_log, "Initialization Sequence Completed")

        def client(name):
            return self.openvpn(self.outside, "client", [
                ("vpn.lab.example", "198.51.100.1", 1), ("/etc/openvpn/client/ca.crt", keys + "/ca.crt", 1),
                ("/etc/openvpn/client/client", os.path.join(keys, name), 3)])

        ada, ada_log = client("ada")
        self.said(ada, ada_log, "Initialization Sequence Completed")
        self.said(ada, ada_log, "Control Channel: TLSv1.3, cipher TLSv1.3 TLS_(AES_256_GCM|CHACHA20)")
        self.said(ada, ada_log, "Data Channel: cipher 'AES-256-GCM'")
        for log in (ada_log(), server_log()):
            self.assertNotIn("WARNING", log)
            self.assertNotIn("DEPRECATED", log)
        # In the tunnel the server's port is open, and not from outside; SSH stays for administrators.
        self.assertOpen("-", "10.8.0.1", "8000")
        self.assertOpen("-", "fd00:8::1", "8000")
        self.assertFiltered("-", "198.51.100.1", "8000")
        self.assertFiltered("-", "10.8.0.1", "22")
        with open(os.path.join(self.folder, "status-interlock.log"), encoding="utf-8") as opened:
            self.assertIn("TITLE,OpenVPN", opened.read())
        # Split tunnel: no default route.
        routes = self.outside("ip", "route") + self.outside("ip", "-6", "route")
        self.assertRegex(routes, r"10\.8\.0\.0/24 dev tun")
        self.assertNotRegex(routes, r"default|0\.0\.0\.0/1|128\.0\.0\.0/1|2000::/3")
        if not os.geteuid():
            for process in (server, ada):
                self.assertEqual(os.stat("/proc/%d" % process.pid).st_uid, 65534, "privileges are dropped")
        end_process(ada)
        # A client on the list of the revoked.
        os.rename(keys + "/eve.revoked.crt", keys + "/eve.crt")
        eve, eve_log = client("eve")
        self.said(server, server_log, "VERIFY ERROR: .*certificate revoked: CN=eve")
        self.assertNotIn("Initialization Sequence Completed", eve_log())

    def wireguard(self, machine, name, interface, values):
        text = shipped("wireguard", name + ".conf")
        for old, new in values.items():
            text = text.replace(old, new)
        path = os.path.join(self.folder, interface + ".conf")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="utf-8") as opened:
            opened.write(text)
        stripped = machine("wg-quick", "strip", path)
        self.assertNotIn("Address", stripped)
        self.assertIn("PresharedKey = " + values["PRESHARED_KEY"], stripped)
        # Where the kernel has no WireGuard, wg-quick takes the program wireguard-go.
        machine("wg-quick", "up", path)
        self.addCleanup(machine, "wg-quick", "down", path)

    def test_wireguard_connects_and_carries_its_range_only(self):
        def make(*words, **options):
            done = run(tool("wg"), *words, **options)
            self.assertEqual(done.returncode, 0, done.stderr)
            return done.stdout.strip()

        private = {name: make("genkey") for name in ("SERVER", "CLIENT")}
        values = {name + "_PRIVATE_KEY": key for name, key in private.items()}
        values.update({name + "_PUBLIC_KEY": make("pubkey", input=key.encode()) for name, key in private.items()})
        values["PRESHARED_KEY"] = make("genpsk")
        values["vpn.lab.example"] = "198.51.100.1"
        self.wireguard(self.machine, "server", "wg0", values)
        self.wireguard(self.outside, "client", "wgc0", values)
        self.assertOpen("-", "10.9.0.1", "8000")
        self.assertOpen("-", "fd00:9::1", "8000")
        self.assertFiltered("-", "198.51.100.1", "8000")
        self.assertFiltered("-", "10.9.0.1", "22")
        self.assertNotIn("default", self.outside("ip", "route", "show", "table", "all"))
        self.assertRegex(self.machine("wg", "show", "wg0", "latest-handshakes"), r"\t[1-9]")


if __name__ == "__main__":
    unittest.main()
