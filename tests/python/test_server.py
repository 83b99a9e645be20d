"""``DeviceServer`` builds the right command, and the linter says what is missing."""

import json
import os
import stat
import subprocess
import sys
import tempfile
import textwrap
import unittest
import warnings
from unittest import mock

import support
from interlock import DeviceServer
from interlock._declare import registry
from interlock.server import find_program


class Serving(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.program = os.path.join(folder.name, "interlock")
        self.write(self.program, "#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
        os.chmod(self.program, stat.S_IRWXU)
        self.addCleanup(setattr, registry, "title", registry.title)
        self.addCleanup(setattr, registry, "description", registry.description)

    def write(self, path, text):
        with open(path, "w") as opened:
            opened.write(text)

    def test_the_command(self):
        with mock.patch.dict(os.environ, {"INTERLOCK_BIN": self.program}), \
                mock.patch.object(sys.modules["__main__"], "__file__", "/devices/thing.py", create=True):
            command = DeviceServer(title="Thing").command("0.0.0.0", 8443, "c.pem", "k.pem")
            self.assertEqual(command, [self.program, "device", "serve", "/devices/thing.py", "--host", "0.0.0.0",
                                       "--port", "8443", "--tls-cert", "c.pem", "--tls-key", "k.pem", "--title",
                                       "Thing", "--python", sys.executable])
            self.assertNotIn("--title", DeviceServer().command())
            for wrong in ({"port": "8000"}, {"port": 70000}, {"ssl_certfile": "c.pem"}):
                with self.subTest(wrong=wrong), self.assertRaises(ValueError):
                    DeviceServer().command(**wrong)

    def test_sign_in_can_not_be_switched_off(self):
        with self.assertRaises(ValueError) as caught:
            DeviceServer(require_auth=False)
        self.assertIn("can not be switched off", str(caught.exception))

    def test_finding_the_program(self):
        with mock.patch.dict(os.environ, {"INTERLOCK_BIN": "", "PATH": self.folder}):
            self.assertEqual(find_program(), self.program)
        with mock.patch.dict(os.environ, {"INTERLOCK_BIN": "", "PATH": "/nowhere"}):
            with self.assertRaises(FileNotFoundError):
                find_program()
        with mock.patch.dict(os.environ, {"INTERLOCK_BIN": "/nowhere/interlock"}):
            with self.assertRaises(FileNotFoundError):
                find_program()

    def test_options(self):
        with mock.patch.dict(os.environ, {"INTERLOCK_WORKER": "1"}):
            self.assertIsNone(DeviceServer().run(nonsense=True))
        with mock.patch.dict(os.environ, {"INTERLOCK_WORKER": "", "INTERLOCK_BIN": self.program}), \
                mock.patch("os.execve") as execute, \
                mock.patch.object(sys.modules["__main__"], "__file__", "/devices/thing.py", create=True):
            with self.assertRaises(TypeError):
                DeviceServer().run(nonsense=True)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                DeviceServer().run(log_level="info")
            self.assertIn("log_level", str(caught[0].message))
            self.assertEqual(execute.call_args[0][0], self.program)

    def test_running_a_file(self):
        path = os.path.join(self.folder, "thing.py")
        self.write(path, "from interlock import DeviceServer\n"
                         "if __name__ == '__main__': DeviceServer(title='T', description='D').run(port=8001)\n")
        environment = dict(os.environ, PYTHONPATH=support.PACKAGE, INTERLOCK_BIN=self.program)
        environment.pop("INTERLOCK_WORKER", None)
        output = subprocess.check_output([sys.executable, path], env=environment).decode().split("\n")
        self.assertEqual(output[:5], ["device", "serve", path, "--host", "127.0.0.1"])
        self.assertEqual(output[output.index("--description") + 1], "D")


class Linting(unittest.TestCase):
    def lint(self, source):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "device.py")
            with open(path, "w", encoding="utf-8") as opened:
                opened.write(textwrap.dedent(source))
            process = subprocess.run([sys.executable, "-m", "interlock.lint", path], stdout=subprocess.PIPE,
                                     stderr=subprocess.PIPE, env=dict(os.environ, PYTHONPATH=support.PACKAGE))
            return process.returncode, json.loads(process.stdout.decode("utf-8"))

    def test_findings(self):
        code, report = self.lint("""
            print("noise on standard output")
            from typing import List
            from interlock import task, Param, DeviceServer
            @task
            def loose(a, b: float, c: float = Param(0, unit="uL", min=0, max=3), d: List[int] = Param([])): pass
            @task(effects="none")
            def tidy(n: int = Param(1, unit="", min=0, max=3), s: str = "x"):
                "Does it."
            DeviceServer().run()
            """)
        self.assertEqual((code, report["ok"]), (0, True))
        self.assertEqual([action["name"] for action in report["actions"]], ["loose", "tidy"])
        found = {(one["action"], one["parameter"]) for one in report["findings"]}
        self.assertEqual(found, {("loose", None), ("loose", "a"), ("loose", "b"), ("loose", "d")})
        words = " ".join(one["message"] for one in report["findings"] if one["parameter"] == "b")
        self.assertIn("without limits", words)
        self.assertIn("without a unit", words)

    def test_errors(self):
        for source, line in (("def broken(:\n", 1), ("x = 1\nraise OSError('no')\n", 2)):
            code, report = self.lint(source)
            self.assertEqual((code, report["ok"], report["findings"][0]["line"]), (1, False, line))
        code, report = self.lint("x = 1\n")
        self.assertEqual((code, report["ok"]), (1, False))

    def test_the_examples_are_clean(self):
        for name in ("hello.py", "ot2_secure.py", "plate_reader.py"):
            with self.subTest(name=name):
                process = subprocess.run([sys.executable, "-m", "interlock.lint", os.path.join(support.EXAMPLES, name)],
                                         stdout=subprocess.PIPE, env=dict(os.environ, PYTHONPATH=support.PACKAGE))
                self.assertEqual(json.loads(process.stdout.decode("utf-8"))["findings"], [])


if __name__ == "__main__":
    unittest.main()
