"""The examples: what they return, their physics, the optimiser, the picture, the closed loop."""

import csv
import datetime
import io
import json
import os
import random
import struct
import sys
import tempfile
import types
import unittest
import zlib
from unittest import mock

import support  # noqa: F401  (sets the path)
import colour_match
import colour_model
import hello
import ot2_secure
import plate_reader
from interlock import PublicError, RunCancelled
from interlock._events import Event
from interlock.testing import call, fake_run
from plate_picture import draw_plate

TARGET = colour_model.parse_colour("#7a5c2e")


class Small(unittest.TestCase):
    def test_hello(self):
        self.assertEqual(hello.greet("Ada"), "Hello, Ada!")
        with fake_run() as run:
            self.assertEqual(hello.count(4, 2.5), {"counted": 4})
        self.assertEqual(run.slept, 10)
        with fake_run(cancel_at=3), self.assertRaises(RunCancelled):
            hello.count()
        with self.assertRaises(ValueError):
            call("count", {"steps": 100, "pause": 1})

    def test_secure(self):
        self.assertEqual(call("secure_mix_colors", {"r": 255, "g": 128, "b": 64, "well": "A1"}),
                         "Securely mixed RGB(255,128,64) in well A1")
        status = call("secure_get_status")
        self.assertEqual(sorted(status), ["security", "status", "timestamp"])
        self.assertEqual((status["status"], status["security"]), ("ready", "enabled"))
        self.assertIn("+00:00", status["timestamp"])
        datetime.datetime.strptime(status["timestamp"][:19], "%Y-%m-%dT%H:%M:%S")
        with self.assertRaises(ValueError):
            call("secure_mix_colors", {"r": 256, "g": 0, "b": 0, "well": "A1"})
        self.assertEqual(ot2_secure.WELLS[-1], "H12")


class Reader(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = os.path.join(folder.name, "plate.json")
        patch = mock.patch.dict(os.environ, {"INTERLOCK_PLATE_FILE": self.path})
        patch.start()
        self.addCleanup(patch.stop)
        plate_reader._readings = 0

    def fill(self, **wells):
        with open(self.path, "w") as opened:
            json.dump({"plate": "p", "wells": wells, "deck": {}}, opened)

    def test_beer_and_lambert(self):
        volumes = {"red": 60.0, "yellow": 30.0, "blue": 10.0}
        for wavelength in plate_reader.FILTERS_NM:
            parts = sum(plate_reader.absorbance({dye: volume}, wavelength) for dye, volume in volumes.items())
            self.assertAlmostEqual(plate_reader.absorbance(volumes, wavelength), parts)
            twice = {dye: 2 * volume for dye, volume in volumes.items()}
            self.assertAlmostEqual(plate_reader.absorbance(twice, wavelength), 2 * parts)
        brighter, darker = plate_reader.linear_rgb({"red": 50.0}), plate_reader.linear_rgb({"red": 100.0})
        self.assertTrue(all(one > two for one, two in zip(brighter, darker)))
        self.assertGreater(brighter[0], brighter[1])

    def test_reading(self):
        self.fill(A1={"red": 60.0, "yellow": 60.0, "blue": 30.0}, B2={"red": 0.0, "yellow": 0.0, "blue": 0.0})
        first = call("read_well", {"well": "A1"})
        second = call("read_well", {"well": "A1"})
        self.assertEqual(sorted(first["absorbance"]), ["450", "520", "630"])
        self.assertLess(colour_model.distance(first["rgb"], second["rgb"]), 3)
        self.assertNotEqual(first["absorbance"], second["absorbance"])
        plate_reader._readings = 0
        self.assertEqual(call("read_well", {"well": "A1"}), first)
        with fake_run() as run:
            self.assertEqual([one["well"] for one in call("read_plate")["readings"]], ["A1"])
        self.assertEqual(len(run.progress_reports), 1)
        for well in ("B2", "C3"):
            with self.assertRaises(PublicError) as caught:
                plate_reader.read_well(well)
            self.assertEqual(caught.exception.code, "well_empty")

    def test_no_plate(self):
        with self.assertRaises(PublicError) as caught:
            plate_reader.read_well("A1")
        self.assertEqual(caught.exception.code, "no_plate")


def measured(volumes, noise):
    channels = plate_reader.linear_rgb(dict(zip(("red", "yellow", "blue"), volumes)))
    return tuple(plate_reader.to_srgb(channel + noise.gauss(0, 0.003)) for channel in channels)


class Optimiser(unittest.TestCase):
    def test_it_gets_close_in_eight_wells(self):
        for colour in ("#7a5c2e", "#406040", "#b09030", "#604868"):
            target = colour_model.parse_colour(colour)
            for seed in range(3):
                noise, readings = random.Random(seed), []
                for _ in range(8):
                    volumes, _ = colour_model.next_mix(readings, target)
                    self.assertTrue(colour_model.allowed(volumes))
                    self.assertNotIn(volumes, [tried for tried, _ in readings])
                    readings.append((volumes, measured(volumes, noise)))
                best = min(colour_model.distance(rgb, target) for _, rgb in readings)
                self.assertLess(best, 6, (colour, seed))

    def test_colours(self):
        self.assertEqual(colour_model.hex_colour(TARGET), "#7a5c2e")
        self.assertAlmostEqual(colour_model.distance((255, 255, 255), (0, 0, 0)), 100, delta=0.1)
        self.assertEqual(colour_model.distance(TARGET, TARGET), 0)
        for wrong in ("#12", "zzzzzz", ""):
            with self.assertRaises(ValueError):
                colour_model.parse_colour(wrong)
        for found, expected in zip(colour_model.solve([[2, 1], [1, 3]], [3, 5]), (0.8, 1.4)):
            self.assertAlmostEqual(found, expected)


class Picture(unittest.TestCase):
    def test_it_is_a_png_with_the_wells_colours(self):
        png = draw_plate({"A1": (10, 20, 30)}, TARGET, "A1")
        self.assertEqual(png[:8], b"\x89PNG\r\n\x1a\n")
        width, height = struct.unpack(">II", png[16:24])
        at, data = 8, b""
        while at < len(png):
            length, = struct.unpack(">I", png[at:at + 4])
            kind, body = png[at + 4:at + 8], png[at + 8:at + 8 + length]
            self.assertEqual(struct.unpack(">I", png[at + 8 + length:at + 12 + length])[0],
                             zlib.crc32(kind + body) & 0xFFFFFFFF)
            data += body if kind == b"IDAT" else b""
            at += 12 + length
        raw = zlib.decompress(data)
        self.assertEqual(len(raw), height * (1 + 3 * width))
        y, x = 46 + 26, 46 + 26
        pixel = raw[y * (1 + 3 * width) + 1 + 3 * x:][:3]
        self.assertEqual(tuple(pixel), (10, 20, 30))


class FinishedRun:
    """A run of a stand-in device: everything has already happened."""

    def __init__(self, value):
        self.value = value
        self.id = "run"

    def events(self):
        yield Event(1, "t", "progress", {"current": 1, "total": 2, "message": "half \033[31m"})
        yield Event(2, "t", "state", {"state": "succeeded"})

    def result(self, timeout=None):
        return self.value


class StandInMixer:
    title = name = "mixer"

    def __init__(self):
        self.wells = {}

    def new_plate(self):
        self.wells.clear()
        return FinishedRun({})

    def plate_state(self):
        return FinishedRun({"empty": [well for well in plate_reader.WELLS if well not in self.wells]})

    def mix_color(self, well, r, y, b):
        self.wells[well] = {"red": r, "yellow": y, "blue": b}
        return FinishedRun({})


class StandInReader:
    title = name = "reader"

    def __init__(self, mixer):
        self.mixer = mixer

    def read_well(self, well):
        return FinishedRun(plate_reader.measure({"plate": "p", "wells": self.mixer.wells}, well))


class ClosedLoop(unittest.TestCase):
    def run_main(self, folder, *more):
        mixer = StandInMixer()
        output = io.StringIO()
        with mock.patch.object(colour_match, "connect", return_value=(mixer, StandInReader(mixer))), \
                mock.patch.object(sys, "stdout", output):
            code = colour_match.main(["--mixer", "http://a", "--reader", "http://b", "--out", folder, *more])
        return code, output.getvalue()

    def test_it_matches_the_colour_and_writes_its_results(self):
        with tempfile.TemporaryDirectory() as folder:
            code, text = self.run_main(folder, "--wells", "8", "--new-plate")
            self.assertEqual(code, 0, text)
            with open(os.path.join(folder, "results.csv"), newline="", encoding="utf-8") as opened:
                rows = list(csv.DictReader(opened))
            self.assertEqual(len(rows), 8)
            self.assertLess(min(float(row["distance"]) for row in rows), 6)
            self.assertTrue(os.path.getsize(os.path.join(folder, "plate.png")) > 1000)
        self.assertNotIn("\033", text)
        self.assertIn("Best:", text)

    def test_failures_have_an_exit_code(self):
        with tempfile.TemporaryDirectory() as folder:
            code, text = self.run_main(folder, "--wells", "8")
            self.assertEqual(code, 0)
            with mock.patch.object(plate_reader, "measure", side_effect=ValueError("broken lamp")):
                code, text = self.run_main(folder, "--wells", "1")
        self.assertEqual(code, 1)
        self.assertIn("broken lamp", text)
        with mock.patch.object(sys, "stderr", io.StringIO()), self.assertRaises(SystemExit) as caught:
            colour_match.main(["--mixer", "a", "--reader", "b", "--target", "brown"])
        self.assertEqual(caught.exception.code, 2)

    def test_colour_only_on_a_terminal_that_wants_it(self):
        terminal = types.SimpleNamespace(isatty=lambda: True)
        self.assertTrue(colour_match.Screen(terminal, {}).colour)
        self.assertFalse(colour_match.Screen(terminal, {"NO_COLOR": "1"}).colour)
        self.assertFalse(colour_match.Screen(io.StringIO(), {}).colour)


class Opentrons(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        os.environ["INTERLOCK_PLATE_FILE"] = os.path.join(cls.folder.name, "plate.json")
        import ot2_colour_mixing
        cls.robot = ot2_colour_mixing
        cls.robot.connect(False)

    @classmethod
    def tearDownClass(cls):
        del os.environ["INTERLOCK_PLATE_FILE"]
        cls.folder.cleanup()

    def setUp(self):
        call("new_plate")
        call("refill")

    def test_mixing(self):
        with fake_run() as run:
            result = self.robot.mix_color(r=60, y=60, b=30, well="B3")
        self.assertEqual((result["tips_used"], result["total_ul"], result["tips_left"]), (3, 150, 93))
        self.assertGreater(result["commands"], 9)
        log = run.artifacts["run-log.txt"].decode()
        self.assertIn("Aspirating 60.0 uL from A1 of NEST 12 Well Reservoir", log)
        self.assertEqual(len(log.strip().split("\n")), result["commands"])
        self.assertEqual([metric.value for metric in run.metrics], [60, 60, 30])
        self.assertEqual(call("plate_state")["wells"]["B3"], {"red": 60, "yellow": 60, "blue": 30})
        self.assertEqual(call("read_well", {"well": "B3"})["well"], "B3")

    def test_refusals(self):
        call("mix_color", {"r": 50, "well": "A1"})
        for prepare, well, code in ((lambda: None, "A1", "well_filled"),
                                    (lambda: setattr(self.robot.station.record, "tips_used", 95), "A2", "no_tips"),
                                    (lambda: self.robot.station.record.stock_ul.update(red=10), "A3", "no_stock")):
            call("refill")
            prepare()
            with self.assertRaises(PublicError) as caught:
                call("mix_color", {"r": 50, "y": 50, "well": well})
            self.assertEqual(caught.exception.code, code)
        with self.assertRaises(ValueError) as caught:
            call("mix_color", {"r": 200, "y": 200, "well": "A4"})
        self.assertIn("at most 300 µL", str(caught.exception))

    def test_simulated_runs_leave_the_deck_alone(self):
        before = call("plate_state")
        with fake_run(simulated=True):
            self.assertTrue(self.robot.mix_color(r=100, well="C1")["simulated"])
        self.assertEqual(call("plate_state"), before)

    def test_cancelling_keeps_the_record_true(self):
        with fake_run(cancel_at=2), self.assertRaises(RunCancelled):
            self.robot.mix_color(r=50, y=50, well="D1")
        self.robot.park()
        self.assertEqual(call("plate_state")["wells"]["D1"], {"red": 50, "yellow": 0, "blue": 0})

    def test_a_new_process_remembers(self):
        call("mix_color", {"b": 40, "well": "E5"})
        self.robot.connect(False)
        self.assertEqual(call("plate_state")["wells"]["E5"]["blue"], 40)


if not os.environ.get("INTERLOCK_TEST_OPENTRONS"):
    # Not for every interpreter: ./check runs these with the one that has the robot's package, and there they must run.
    del Opentrons


if __name__ == "__main__":
    unittest.main()
