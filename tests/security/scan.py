#!/usr/bin/env python3
"""Scanners of other people against a running server on loopback: `./check --security`, about ten minutes.

Each tool has a time of its own and must run: one that is missing is a failure. A finding is a line `tool: what`; those in
`allowed.txt` (three lines at most, each with its reason) are accepted, any other fails the check, as does any answer of 5xx, any
panic, and a server that does not answer at the end. Request screening is off: what stands behind the tripwire is looked at. A last
round with everything on shows that the tripwire stops the same tools. Nothing leaves this machine.
"""

import concurrent.futures
import json
import os
import re
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tests", "blackbox"))

from orchestra import SYSTEM, Orchestrator  # noqa: E402
from support import EXAMPLES, Server, tool  # noqa: E402

ENDS = "^/(stop|auth/logout|auth/sessions|tokens/revoke|bans)"
"""Paths that no random walk goes: the stop, and what ends the session or bans the address of the one that walks."""
HERE = os.path.dirname(os.path.abspath(__file__))
SAMPLES = {"name": "admin", "network": "192.0.2.7", "by": "actor", "since": "2026-01-01T00:00:00Z", "until": "2126-01-01T00:00:00Z", "role": "viewer",
           "start_time": "2026-01-01T00:00:00Z", "end_time": "2126-01-01T00:00:00Z", "state": "succeeded", "status": "active", "action": "mix",
           **{name: SYSTEM for name in ("agent_id", "run_id", "task_id", "created_by")}}
"""What stands in a place before anything is tried there."""
BODIES = [("/auth/login", '{"username":"admin*","password":"x"}')]
AGENTS_BODIES = [("/agents/auth/token", '{"agent_id":"%s*","agent_secret":"x"}' % SYSTEM), ("/events", '{"topic":"lab*","payload":{},"source_agent_id":"%s"}' % SYSTEM),
                 ("/tasks", '{"title":"t*","description":"d","schedule_kind":"manual","payload":{"pipeline":[]},"dedupe_key":"k*","concurrency_key":"c*",'
                  '"created_by":"%s"}' % SYSTEM)]
HELLO = os.path.join(EXAMPLES, "hello.py")
OPEN = {"docs", "health", "health/live", "health/ready", "metrics", "metrics/", "openapi.json", "panel", "oauth/jwks", ".well-known/security.txt"}
"""Paths of the word list that answer strangers, as crates/server/tests/it/routes.snap has them; metrics because this is the same machine."""
FREE = {"RATE_LIMIT_ENABLED": "true", "MAX_REQUESTS_PER_MINUTE": "10000000", "MAX_REQUESTS_PER_HOUR": "100000000",
        "BLOCK_SUSPICIOUS_PATTERNS": "off", "SECURITY_CONTACT": "mailto:security@lab.example"}


def run(command, seconds, **more):
    """What a tool said, and its exit code. One that takes too long is ended: what it has said until then counts."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               errors="replace", **more)
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            said, _ = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
    return said, process.returncode


class Scan:
    """One server and what was found on it."""

    def __init__(self, server, token=None):
        self.server = server
        self.url = server.ready["url"]
        self.token = server.token("admin") if token is None else token
        self.folder = os.path.join(server.folder, "scan")
        os.makedirs(self.folder, exist_ok=True)
        self.findings = []
        self.notes = []

    def path(self, name):
        return os.path.join(self.folder, name)

    def found(self, name, what):
        self.findings.append("%s: %s" % (name, " ".join(str(what).split())[:300]))

    def note(self, name, text):
        self.notes.append("%-12s %s" % (name, text))

    # tools

    def ffuf(self):
        """Files and routes that nobody has listed."""
        out = self.path("ffuf.json")
        said, _ = run([tool("ffuf"), "-s", "-u", self.url + "/FUZZ", "-w", os.path.join(HERE, "words.txt"), "-mc", "all",
                       "-fc", "401,404,405", "-o", out, "-of", "json"], 120)
        if not os.path.exists(out):
            return self.found("ffuf", "did not run: " + said)
        with open(out, encoding="utf-8") as opened:
            results = json.load(opened)["results"]
        for one in results:
            word = one["input"]["FUZZ"]
            if word not in OPEN:
                self.found("ffuf", "%s answers %d" % (word, one["status"]))
        self.note("ffuf", "%d answers of the %d that are open" % (len(results), len(OPEN)))

    def document(self):
        """The server's own API document."""
        with self.server.http(self.token) as client:
            return client.get("/openapi.json").json()

    def places(self):
        """Every text that a request can carry in its path or query, once for each path: `(method, URL, name)`. Reading before writing,
        as what is read goes the same way to the database."""
        found = {}
        for path, operations in self.document()["paths"].items():
            for method in sorted(operations, key=("get", "delete", "patch", "put", "post").index):
                given = [one for one in operations[method].get("parameters", []) if one["in"] in ("path", "query")]
                texts = [one for one in given if one["schema"].get("type") == "string"]
                address = re.sub(r"\{(\w+)\}", lambda name: SAMPLES.get(name.group(1), "x"), path)
                query = "&".join("%s=%s" % (one["name"], SAMPLES.get(one["name"], "x")) for one in texts if one["in"] == "query")
                for one in texts:
                    url = self.url + address + ("?" + query if query else "")
                    if one["in"] == "path":
                        before, _, after = path.partition("{%s}" % one["name"])
                        marked = [re.sub(r"\{(\w+)\}", lambda name: SAMPLES.get(name.group(1), "x"), part) for part in (before, after)]
                        url = self.url + marked[0] + SAMPLES.get(one["name"], "x") + "*" + marked[1] + ("?" + query if query else "")
                    if not re.match(ENDS, path):
                        found.setdefault((path, one["in"], one["name"]), (method.upper(), url, one["name"] if one["in"] == "query" else None))
        return list(found.values())

    def inject(self, target):
        """sqlmap at its most thorough against one place; what it found, and how many ways it tried. It compares answers, so they carry one
        request id. What "appears to be" injectable it tries again by itself, and says at the end whether it was mistaken."""
        method, url, name, body = target
        folder = tempfile.mkdtemp(dir=self.folder)
        command = [tool("sqlmap"), "-u", url, "--method", method, "--headers=Authorization: Bearer %s\nX-Request-ID: scan%s" % (
            self.token, "\nContent-Type: application/json" if body else ""), "--batch", "--level=5", "--risk=3",
                   "--technique=BEUST", "--time-sec=1", "--dbms=SQLite", "--flush-session", "--disable-coloring", "--threads=4", "--ignore-code=*",
                   "--output-dir=" + folder]
        if body:
            command += ["--data", body]
        if name:
            command += ["-p", name]
        said, _ = run(command, 180, env=dict(os.environ, HOME=folder))
        bad = ["%s %s: %s" % (method, url, line) for line in said.splitlines() if re.search(r"(is vulnerable|identified the following injection)", line)]
        tried = len(re.findall(r"\[INFO\] testing '", said))
        if tried < 15 or "all tested parameters do not appear to be injectable" not in said and not bad:
            bad.append("tried only %d ways on %s: %s" % (tried, url, said[-200:]))
        return bad, tried

    def sqlmap(self, bodies):
        """Injection into every text of paths and queries, and into these bodies."""
        targets = [(*place, None) for place in self.places()]
        targets += [("POST", self.url + path, None, body) for path, body in bodies]
        with concurrent.futures.ThreadPoolExecutor(2) as lanes:
            results = list(lanes.map(self.inject, targets))
        for bad, _ in results:
            for line in bad:
                self.found("sqlmap", line)
        self.note("sqlmap", "%d places, %d to %d ways each" % (len(targets), min(tried for _, tried in results), max(tried for _, tried in results)))

    def wapiti(self):
        """A crawl with the modules that fit an API."""
        out = self.path("wapiti.json")
        said, _ = run([tool("wapiti"), "-u", self.url + "/docs", "-s", self.url + "/runs?limit=5", "-s", self.url + "/audit?action=x",
                       "-H", "Authorization: Bearer " + self.token, "--flush-session", "--store-session", self.folder, "--max-scan-time", "90",
                       "-m", "exec,file,sql,xss,crlf,redirect,ssrf,xxe,backup,htaccess,methods,csp,http_headers,cookieflags",
                       "-f", "json", "-o", out], 200, env=dict(os.environ, HOME=self.folder))
        if not os.path.exists(out):
            return self.found("wapiti", "did not run: " + said[-300:])
        with open(out, encoding="utf-8") as opened:
            report = json.load(opened)
        for kind in ("vulnerabilities", "anomalies"):
            for name, cases in report[kind].items():
                for case in cases:
                    self.found("wapiti", "%s %s" % (name, case.get("info", "")))
        self.note("wapiti", "%s pages" % report["infos"].get("crawled_pages_nbr", "?"))

    def schemathesis(self, left_out):
        """Requests made from the server's own API document, good and bad, with every check but one: answers of 5xx, status, form and
        headers as documented, bad input refused, methods and missing tokens refused.

        The one that is left out holds that whatever fits the schema is accepted; a wrong password fits it. `left_out` are paths.
        """
        document = self.path("openapi.json")
        said, _ = run(["curl", "-sS", "-H", "Authorization: Bearer " + self.token, "-o", document, self.url + "/openapi.json"], 30)
        program = os.path.join(os.path.dirname(sys.executable), "schemathesis")
        said, code = run([program, "run", document, "--url", self.url, "--header", "Authorization: Bearer " + self.token, "--checks", "all",
                          "--exclude-checks", "positive_data_acceptance", "--exclude-path-regex", left_out, "--max-examples", "15",
                          "--phases", "examples,coverage,fuzzing", "--workers", "1", "--seed", "7", "--no-color", "--request-timeout", "10"], 240,
                         env=dict(os.environ, HOME=self.folder), cwd=self.folder)
        tested = re.search(r"Tested: (\d+)", said)
        if not tested:
            return self.found("schemathesis", "did not run: " + said[-300:])
        for line in said.splitlines():
            if re.match(r"- ST\d+ |.*Error: \d+$", line):
                self.found("schemathesis", line)
        if code and not self.findings:
            self.found("schemathesis", "exit %s: %s" % (code, said[-200:]))
        self.note("schemathesis", "%s operations, exit %s" % (tested.group(1), code))

    def sslyze(self, place):
        """Mozilla's modern profile."""
        said, code = run([os.path.join(os.path.dirname(sys.executable), "sslyze"), "--mozilla_config=modern", "--certinfo_ca_file=" + self.server.ready["ca_file"],
                          "--certinfo", "--heartbleed", "--openssl_ccs", "--reneg", "--robot", "--tlsv1_2", "--tlsv1_3", "--elliptic_curves", "--early_data", place], 180)
        if "COMPLIANCE" not in said:
            self.found("sslyze", "did not run: " + said[-300:])
        compliance = said[said.find("COMPLIANCE"):]
        if "FAILED" in compliance or code:
            for line in compliance.splitlines():
                if line.strip().startswith("*"):
                    self.found("sslyze", line)
        self.note("sslyze", "compliant" if "OK - Compliant" in compliance else "not compliant")

    def testssl(self, place):
        """Everything that testssl.sh looks for, from medium severity on."""
        out = self.path("testssl.json")
        said, _ = run([tool("testssl"), "--quiet", "--color", "0", "--warnings", "off", "--add-ca", self.server.ready["ca_file"], "--jsonfile", out, place], 300)
        if not os.path.exists(out):
            return self.found("testssl", "did not run: " + said[-300:])
        with open(out, encoding="utf-8") as opened:
            text = opened.read()
        entries = re.findall(r'"id"\s*:\s*"([^"]*)".*?"severity"\s*:\s*"([^"]*)".*?"finding"\s*:\s*"([^"]*)"', text, re.DOTALL)
        for name, severity, what in entries:
            if severity in ("MEDIUM", "HIGH", "CRITICAL"):
                self.found("testssl", "%s %s" % (name, what))
        self.note("testssl", "%d results" % len(entries))

    def slowhttptest(self):
        """Slow heads, bodies and readers; the tool says whether the service stayed available."""
        for name, flags in (("heads", ["-H"]), ("bodies", ["-B"]), ("readers", ["-X", "-k", "3"])):
            said, _ = run([tool("slowhttptest"), *flags, "-c", "1000", "-r", "250", "-i", "5", "-l", "15", "-p", "3", "-u", self.url + "/docs"], 60)
            verdicts = re.findall(r"service available:\s*\S*?(YES|NO)", re.sub(r"\x1b\[[0-9;]*m", "", said))
            if not verdicts:
                self.found("slowhttptest", "did not run: " + said[-300:])
            elif "NO" in verdicts:
                self.found("slowhttptest", "slow %s made the service unavailable" % name)
            self.note("slowhttptest", "slow %s: available %d of %d times" % (name, verdicts.count("YES"), len(verdicts)))

    def h2load(self):
        """A flood over HTTP/2."""
        said, _ = run([tool("h2load"), "-n", "20000", "-c", "10", "-m", "50", self.url + "/health/live"], 120)
        line = next((line for line in said.splitlines() if line.startswith("status codes")), "")
        if not line or not re.search(r"\b20000 2xx", line):
            self.found("h2load", line or "did not run: " + said[-300:])
        self.note("h2load", line)

    # afterwards

    def aftermath(self):
        """What holds whatever was sent."""
        with self.server.http() as client:
            if client.get("/health/live").status_code != 200:
                self.found("server", "does not answer any more")
            metrics = client.get("/metrics", headers={"Authorization": "Bearer " + self.token}).text
        for line in metrics.splitlines():
            if re.match(r'orchestrator_http_requests_total\{.*status_code="5', line):
                self.found("server", "answered 5xx: " + line)
        if "panicked" in self.server.log():
            self.found("server", "panicked")


def tripwire(notes):
    """The same kind of tool against everything switched on: it must be refused, and banned, within a few requests."""
    findings = []
    with Server(file=HELLO, variables={"RATE_LIMIT_ENABLED": "true", "MAX_REQUESTS_PER_MINUTE": "10000000", "MAX_REQUESTS_PER_HOUR": "100000000"}) as server:
        said, _ = run([tool("sqlmap"), "-u", server.ready["url"] + "/runs?action=x", "--batch", "--level=2", "--flush-session", "--disable-coloring",
                       "--ignore-code=*", "--output-dir=" + server.folder], 45, env=dict(os.environ, HOME=server.folder))
        answered = [line["status"] for line in server.log_lines() if line.get("target") == "access"]
        first = next((number for number, status in enumerate(answered, 1) if status == 403), None)
        events = [line["event_type"] for line in server.log_lines() if line.get("event_type") in ("pattern_observed", "request_blocked", "ip_blocked")]
        if not events or "ip_blocked" not in events or first is None or first > 30:
            findings.append("tripwire: sqlmap was not banned within 30 requests: %s %s" % (first, said[-200:].replace("\n", " ")))
        elif set(answered[first:]) != {403}:
            findings.append("tripwire: sqlmap was banned and answered all the same: %s" % sorted(set(answered[first:])))
        notes.append("%-12s sqlmap: refused from request %d of %d on" % ("tripwire", first or 0, len(answered)))
    return findings


def main():
    begun = time.monotonic()
    findings, notes = [], []
    def finish(scan):
        scan.aftermath()
        findings.extend(scan.findings)
        notes.extend(scan.notes)

    with Server(file=HELLO, variables=FREE) as plain:
        scan = Scan(plain)
        for one in (scan.ffuf, scan.slowhttptest):
            one()
        finish(scan)
    # Signing in is limited however high the limits are, and what is limited is not looked at.
    open_wide = dict(FREE, RATE_LIMIT_ENABLED="false")
    for what in ("schemathesis", "sqlmap"):
        with Server(file=HELLO, variables=open_wide) as device:
            scan = Scan(device)
            scan.schemathesis(ENDS) if what == "schemathesis" else scan.sqlmap(BODIES)
            finish(scan)
        with Orchestrator(variables=open_wide) as orchestrator:
            scan = Scan(orchestrator)
            scan.schemathesis(ENDS) if what == "schemathesis" else scan.sqlmap(AGENTS_BODIES)
            finish(scan)
    with Orchestrator(variables=open_wide) as orchestrator:
        # What only agents may. One that changes itself is no longer let in.
        orchestrator.agent().close()
        scan = Scan(orchestrator, orchestrator.tokens[SYSTEM])
        scan.schemathesis("(%s|^/agents)" % ENDS)
        finish(scan)
    with Server(file=HELLO, options=["--tls", "internal"], variables=FREE) as secure:
        scan = Scan(secure)
        place = secure.ready["url"].split("//")[1]
        scan.wapiti()
        scan.sslyze(place)
        scan.testssl(place)
        scan.h2load()
        finish(scan)
    findings += tripwire(notes)
    with open(os.path.join(HERE, "allowed.txt"), encoding="utf-8") as opened:
        allowed = [line.split(" # ")[0].strip() for line in opened if line.strip() and not line.startswith("#")]
    if len(allowed) > 3:
        findings.append("allowed.txt: more than three lines")
    bad = [one for one in findings if not any(one.startswith(line) for line in allowed)]
    for line in notes:
        print(line)
    for one in findings:
        print("%s  %s" % ("ALLOWED" if one not in bad else "FOUND  ", one))
    print("%d findings, %d of them allowed, in %d s" % (len(findings), len(findings) - len(bad), time.monotonic() - begun))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
