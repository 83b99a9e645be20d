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


class Asvs(unittest.TestCase):
    """Every item of the standard is answered, and what is named as evidence is there."""

    CHAPTERS = {1: 30, 2: 13, 3: 31, 4: 16, 5: 13, 6: 47, 7: 19, 8: 13, 9: 7, 10: 36, 11: 24, 12: 12, 13: 21, 14: 13, 15: 21, 16: 17, 17: 12}
    """Items of each chapter of ASVS 5.0.0."""
    LEVELS = {"1": 70, "2": 183, "3": 92}
    PLACE = re.compile(r"(?<![\w/.-])((?:[\w.{},-]+/)+[\w.{},-]*[\w}]|[\w.-]+\.(?:rs|py|toml|md|snap))(?![\w/])")
    """A path from the root, or the name of a file of the two folders with tests."""
    NAME = re.compile(r"(?<![\w/.-])[a-z0-9]+(?:_[a-z0-9]+){2,}(?![\w*=/.]|\(\))")

    @classmethod
    def setUpClass(cls):
        cls.text = document("docs/asvs.md")
        cls.rows = re.findall(r"^\| V(\d+)\.(\d+)\.(\d+) \| ([123]) \| ([^|]+) \| (pass|open|not applicable) \| (.+) \|$", cls.text, re.M)

    @staticmethod
    def files(place):
        """The files that a place means, more than one with braces or for a folder."""
        choice = re.search(r"\{([^}]*)\}", place)
        if choice:
            parts = choice.group(1).split(",")
            return [file for part in parts for file in Asvs.files(place.replace(choice.group(0), part, 1))]
        folders = ("",) if "/" in place else ("crates/server/tests/it", "crates/server/tests", "tests/blackbox", "")
        for folder in folders:
            path = os.path.join(ROOT, folder, place)
            if os.path.isdir(path):
                return [os.path.join(path, name) for name in sorted(os.listdir(path)) if name.endswith((".rs", ".py"))] or [path]
            if os.path.isfile(path):
                return [path]
        return []

    def test_every_item_of_the_standard_is_answered_once(self):
        self.assertEqual(len(self.rows), len(re.findall(r"^\| V", self.text, re.M)), "a row has another form")
        ids = [tuple(int(part) for part in row[:3]) for row in self.rows]
        self.assertEqual(len(set(ids)), len(ids))
        for chapter, items in self.CHAPTERS.items():
            self.assertEqual(sum(one[0] == chapter for one in ids), items, chapter)
            sections = {one[1] for one in ids if one[0] == chapter}
            self.assertEqual(sections, set(range(1, len(sections) + 1)), chapter)
            for section in sections:
                numbers = {one[2] for one in ids if one[:2] == (chapter, section)}
                self.assertEqual(numbers, set(range(1, len(numbers) + 1)), (chapter, section))
        self.assertEqual({level: sum(row[3] == level for row in self.rows) for level in self.LEVELS}, self.LEVELS)
        counted = [sum(row[5] == state for row in self.rows) for state in ("pass", "open", "not applicable")]
        self.assertIn("%d pass, %d open, %d not applicable of %d." % (*counted, sum(self.CHAPTERS.values())), self.text)

    def test_what_is_named_as_evidence_is_there(self):
        everywhere, missing = sources(), []
        for *item, _, _, state, evidence in self.rows:
            item = "V" + ".".join(item)
            for sentence in evidence.split("; "):
                within = None
                found = sorted([(one.start(), one.group(1), "place") for one in self.PLACE.finditer(sentence)]
                               + [(one.start(), one.group(0), "name") for one in self.NAME.finditer(sentence)])
                for _, word, kind in found:
                    if kind == "place":
                        within = self.files(word)
                        if not within:
                            missing.append((item, word))
                    elif not within:
                        if word not in everywhere:
                            missing.append((item, word))
                    elif not any(re.search(r"\b(?:fn|def) %s\b" % word, document(path)) for path in within if os.path.isfile(path)):
                        missing.append((item, word, "is not in " + within[0]))
        self.assertEqual(missing, [])


class Cryptography(unittest.TestCase):
    """The inventory is of what there is."""

    USES = re.compile(r"\b(?:aws_lc_rs|sha2|argon2|bcrypt|jsonwebtoken|subtle|rcgen|instant_acme|webauthn_rs\w*|(?:\w+_)?rustls\w*)::")
    """What only whoever uses cryptography names."""

    def test_every_use_of_cryptography_is_in_the_inventory(self):
        listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "crates/*/src/*.rs"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
        using = set()
        for path in listed.stdout.splitlines():
            code = re.sub(r"//.*", "", document(path).split("#[cfg(test)]\nmod tests {")[0])
            aside = re.search(r"(?:tests|testing|fuzzing)\.rs$|/tests/", path)
            if self.USES.search(code) and not aside:
                using.add(path)
        self.assertGreater(len(using), 40)
        inventory = set(re.findall(r"`(crates/[\w/]+\.rs)`", document("docs/reference/cryptography.md")))
        self.assertEqual(using, inventory)


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
