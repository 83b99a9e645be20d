"""Documents that name tests name tests that there are."""

import os
import re
import subprocess
import unittest

from support import ROOT, tool


def sources():
    """Every line of the tests and of the modules that have some: the names of functions."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.rs", "*.py", "*.js"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    names = set()
    for path in listed.stdout.split("\0")[:-1]:
        with open(os.path.join(ROOT, path), encoding="utf-8") as opened:
            names.update(re.findall(r"\b(?:fn|def|mod|class) (\w+)", opened.read()))
        names.add(os.path.splitext(os.path.basename(path))[0])
    return names


def document(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as opened:
        return opened.read()


class Documents(unittest.TestCase):
    """A renamed or deleted test is noticed where somebody relies on it."""

    @classmethod
    def setUpClass(cls):
        cls.names = sources()

    def test_every_risk_of_owasp_has_a_test_that_there_is(self):
        text = document("docs/explanation/owasp.md")
        rows = re.findall(r"^\| ((?:A|API)\d+) [^|]*\|[^|]*\| (.*) \|$", text, re.M)
        self.assertEqual([risk for risk, _ in rows], ["A%02d" % n for n in range(1, 11)] * 2 + ["API%d" % n for n in range(1, 11)])
        for risk, proof in rows:
            self.assertTrue(proof.strip("`") in self.names, (risk, proof))

    def test_what_is_met_names_tests_that_there_are(self):
        rows = re.findall(r"^\| ((?:S0|S1|P|D)-\d+) \|.*?\| (met|partly|open) \| (.*) \|$", document("docs/requirements.md"), re.M)
        self.assertEqual(len(rows), len({row[0] for row in rows}))
        counted = [sum(row[1] == state for row in rows) for state in ("met", "partly", "open")]
        self.assertIn("%d met, %d partly, %d open of %d." % (*counted, len(rows)), document("docs/requirements.md"))
        missing = []
        for requirement, state, proof in rows:
            # Names of tests have three words at least; a star or an ellipsis stands for several.
            for name in re.findall(r"(?<![\w/.-])([a-z0-9]+(?:_[a-z0-9]+){2,})(?![\w*=/.]|\(\))", proof) if state == "met" else []:
                if name not in self.names:
                    missing.append((requirement, name))
        self.assertEqual(missing, [])


class Postgresql(unittest.TestCase):
    """The guide names the versions that work, and the tests run on one of them."""

    def test_the_version_of_the_tests_is_one_of_the_guide(self):
        rows = re.findall(r"^\| (\d+) \| works\b.*\| (\w+) (\d{4}) \|$", document("docs/how-to/postgresql.md"), re.M)
        versions = [int(version) for version, _, _ in rows]
        self.assertEqual(versions, list(range(versions[0], versions[-1] - 1, -1)))
        asked = subprocess.run([tool("psql"), os.environ["INTERLOCK_TEST_POSTGRES"], "--no-align", "--tuples-only", "--command", "SHOW server_version_num"],
                               capture_output=True, text=True, check=True, timeout=60)
        self.assertIn(int(asked.stdout) // 10000, versions)


class Dependencies(unittest.TestCase):
    """The lock file: what is linked, exactly, and from where."""

    FIXED = {"jsonwebtoken": ("10.3.0", "CVE-2026-25537"), "bcrypt": ("0.19.2", "RUSTSEC-2026-0199"), "rustls-webpki": ("0.103.13", "RUSTSEC-2026-0049")}
    """First version without a weakness that concerned us."""

    @classmethod
    def setUpClass(cls):
        blocks = document("Cargo.lock").split("[[package]]")[1:]
        cls.packages = [dict(re.findall(r'^(\w+) = "(.*)"$', block, re.M)) for block in blocks]

    def test_every_dependency_is_locked_with_its_checksum(self):
        self.assertGreater(len(self.packages), 100)
        for package in self.packages:
            if package["name"] == "interlock" or package["name"].startswith("interlock-"):
                self.assertNotIn("source", package)
                continue
            self.assertTrue(package.get("source", "").startswith("registry+"), package)
            self.assertRegex(package.get("checksum", ""), r"^[0-9a-f]{64}$", package)
        # And the lock file is what is built from.
        self.assertIn("cargo test --locked", document("check"))

    def test_what_advisories_warned_of_is_not_in_the_lock_file(self):
        number = lambda version: tuple(int(part) for part in version.split("-")[0].split("."))
        for name, (first, advisory) in self.FIXED.items():
            versions = [package["version"] for package in self.packages if package["name"] == name]
            self.assertTrue(versions, name)
            for version in versions:
                self.assertGreaterEqual(number(version), number(first), advisory)


if __name__ == "__main__":
    unittest.main()
