"""Find the mix of three dyes that has a given colour: a closed loop over a mixing robot and a plate reader.

    python examples/colour_match.py --mixer https://127.0.0.1:8000 --reader https://127.0.0.1:8001 \\
        --ca-file lab-ca.pem --username ada --password-file ~/.lab-password --target "#7a5c2e" --wells 8 --out out

Each round mixes one well (ot2_colour_mixing.py), reads it (plate_reader.py), and chooses the next mix from all readings
so far (colour_model.py). It writes a picture of the plate and results.csv. The password comes from --password-file or
from INTERLOCK_PASSWORD, never from the command line. Exit code: 0 done, 1 failed, 2 wrong use, 130 interrupted.
"""

import argparse
import csv
import os
import shutil
import sys
import time

from colour_model import DYES, distance, hex_colour, next_mix, parse_colour
from plate_picture import draw_plate

from interlock import Client
from interlock.errors import InterlockError


class Screen:
    """Lines on the terminal: a live line that is overwritten on a terminal and written once elsewhere."""

    def __init__(self, stream=None, environment=None):
        self.stream = stream or sys.stdout
        environment = os.environ if environment is None else environment
        self.live = self.stream.isatty() and environment.get("TERM") != "dumb"
        self.colour = self.live and not environment.get("NO_COLOR")
        self._last = None

    def swatch(self, rgb):
        """Two blanks in this colour, or nothing where colours do not show."""
        return "\033[48;2;%d;%d;%dm  \033[0m " % tuple(rgb) if self.colour else ""

    def style(self, text, code):
        """Text in bold (1), dim (2), red (31) or green (32)."""
        return "\033[%sm%s\033[0m" % (code, text) if self.colour else text

    def update(self, text):
        """Show what goes on now."""
        text = plain(text)
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            self.stream.write("\r\033[K" + self.style(text[:width], "2"))
        elif text != self._last:
            self.stream.write(text + "\n")
        self._last = text
        self.stream.flush()

    def line(self, text=""):
        """Write a line that stays."""
        self.stream.write(("\r\033[K" if self.live else "") + text + "\n")
        self.stream.flush()


def plain(text):
    """Text from a device without control characters, so that it can not steer the terminal."""
    return "".join(character if character.isprintable() or character == "\n" else " " for character in str(text))


def follow(run, screen, label):
    """Show a run's progress until it ends and return its result; Ctrl-C cancels it first."""
    begun = time.monotonic()
    try:
        for event in run.events():
            if event.kind == "progress":
                screen.update("%s %s %s" % (label, bar(event.data), event.data.get("message") or ""))
            elif event.kind == "log" and event.data.get("level") in ("warning", "error"):
                screen.line("  %s: %s" % (event.data["level"], plain(event.data.get("message"))))
            elif event.kind == "state" and screen.live:
                screen.update("%s %s (%.1f s)" % (label, event.data.get("state"), time.monotonic() - begun))
        return run.result(timeout=30)
    except KeyboardInterrupt:
        screen.line("interrupted: cancelling %s" % run.id)
        run.cancel("interrupted at the terminal").wait(timeout=30)
        raise


def bar(progress, width=12):
    """``[####--------]`` for a progress event."""
    total = progress.get("total")
    if not total:
        return "[%s]" % ("." * width)
    filled = int(round(width * min(1.0, max(0.0, progress["current"] / float(total)))))
    return "[%s%s]" % ("#" * filled, "-" * (width - filled))


def free_wells(mixer, screen, wanted, fresh_plate):
    """The first empty wells of the plate on the deck. Raises ``RuntimeError`` when there are too few."""
    if fresh_plate:
        follow(mixer.new_plate(), screen, "new plate")
    state = follow(mixer.plate_state(), screen, "plate")
    if len(state["empty"]) < wanted:
        raise RuntimeError("%d empty wells are needed and %d are left; put in a new plate and add --new-plate"
                           % (wanted, len(state["empty"])))
    return state["empty"][:wanted]


def experiment(mixer, reader, target, wells, screen):
    """Mix, read, choose; once per well. Yields one dict per well as soon as it is known."""
    readings = []
    for number, well in enumerate(wells, 1):
        volumes, expected = next_mix(readings, target)
        words = " ".join("%s=%d" % pair for pair in zip(DYES, volumes))
        label = "%d/%d %s" % (number, len(wells), well)
        run = mixer.mix_color(well=well, **dict(zip(DYES, volumes)))
        follow(run, screen, "%s mix %s" % (label, words))
        reading = follow(reader.read_well(well=well), screen, "%s read" % label)
        rgb = tuple(reading["rgb"])
        readings.append((volumes, rgb))
        yield {"well": well, "volumes": volumes, "rgb": rgb, "distance": distance(rgb, target),
               "expected": None if expected is None else distance(expected, target), "run": run.id,
               "absorbance": reading["absorbance"]}


def report(rows, target, screen):
    """The table of all wells, the best one marked, and what to try next. Returns the best row."""
    best = min(rows, key=lambda row: row["distance"])
    screen.line()
    screen.line(screen.style("  well    red  yellow   blue    colour    distance", "1"))
    for row in rows:
        marker = "*" if row is best else " "
        screen.line("%s %-4s %5d µL %4d µL %4d µL   %s%s  %6.1f" % (
            (marker, row["well"]) + tuple(row["volumes"]) + (screen.swatch(row["rgb"]), hex_colour(row["rgb"]),
                                                            row["distance"])))
    screen.line()
    screen.line("Best: %s with %s, distance %.1f to the target %s%s (below 2 is hardly visible)" % (
        best["well"], " ".join("%s=%d" % pair for pair in zip(DYES, best["volumes"])), best["distance"],
        screen.swatch(target), hex_colour(target)))
    volumes, expected = next_mix([(row["volumes"], row["rgb"]) for row in rows], target)
    if best["distance"] < 2:
        screen.line(screen.style("Found. Repeat the best mix in a few wells to see how well it holds.", "32"))
    else:
        guess = "" if expected is None else ", expected at a distance of %.1f" % distance(expected, target)
        screen.line("Next to try: %s%s" % (" ".join("%s=%d" % pair for pair in zip(DYES, volumes)), guess))
    return best


def save(rows, target, best, folder):
    """Write results.csv and plate.png; returns their paths."""
    os.makedirs(folder, exist_ok=True)
    table, picture = os.path.join(folder, "results.csv"), os.path.join(folder, "plate.png")
    wavelengths = list(rows[0]["absorbance"])
    with open(table, "w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(["well", "red_ul", "yellow_ul", "blue_ul", "colour", "distance", "expected_distance"]
                        + ["absorbance_%s_nm" % wavelength for wavelength in wavelengths] + ["mix_run"])
        for row in rows:
            expected = "" if row["expected"] is None else "%.2f" % row["expected"]
            writer.writerow([row["well"], *row["volumes"], hex_colour(row["rgb"]), "%.2f" % row["distance"], expected]
                            + [row["absorbance"][wavelength] for wavelength in wavelengths] + [row["run"]])
    with open(picture, "wb") as opened:
        opened.write(draw_plate({row["well"]: row["rgb"] for row in rows}, target, best["well"]))
    return table, picture


def read_arguments(arguments=None):
    """The command line."""
    parser = argparse.ArgumentParser(description="Match a colour with a mixing robot and a plate reader.")
    parser.add_argument("--mixer", required=True, metavar="URL", help="server of ot2_colour_mixing.py")
    parser.add_argument("--reader", required=True, metavar="URL", help="server of plate_reader.py")
    parser.add_argument("--ca-file", action="append", default=[], metavar="PEM",
                        help="private certificate authority; given twice, the first is for the mixer")
    parser.add_argument("--username", help="INTERLOCK_USERNAME when left out")
    parser.add_argument("--password-file", metavar="FILE", help="its first line; INTERLOCK_PASSWORD when left out")
    parser.add_argument("--wells", type=int, default=8, help="how many mixes to make (default 8)")
    parser.add_argument("--target", default="#7a5c2e", help="colour to match (default #7a5c2e)")
    parser.add_argument("--new-plate", action="store_true", help="say that a new plate is on the deck")
    parser.add_argument("--out", default="colour-match", metavar="DIR", help="folder for the picture and the table")
    options = parser.parse_args(arguments)
    try:
        options.target = parse_colour(options.target)
    except ValueError as problem:
        parser.error(str(problem))
    if not 1 <= options.wells <= 32:
        parser.error("--wells must be from 1 to 32: a rack holds the tips for 32 mixes")
    if len(options.ca_file) > 2:
        parser.error("--ca-file can be given twice at most")
    return options


def connect(options):
    """The two devices."""
    password = None
    if options.password_file:
        with open(os.path.expanduser(options.password_file), encoding="utf-8") as opened:
            password = opened.readline().rstrip("\r\n")
    authorities = options.ca_file or [None]
    authorities = [authorities[0], authorities[-1]]
    return [Client(url, ca_file=ca_file, username=options.username, password=password).device()
            for url, ca_file in zip((options.mixer, options.reader), authorities)]


def main(arguments=None):
    """Run the experiment. Returns the exit code."""
    options = read_arguments(arguments)
    screen = Screen()
    rows = []
    try:
        mixer, reader = connect(options)
        screen.line("Mixer   %s" % plain(mixer.title or mixer.name))
        screen.line("Reader  %s" % plain(reader.title or reader.name))
        screen.line("Target  %s%s" % (screen.swatch(options.target), hex_colour(options.target)))
        wells = free_wells(mixer, screen, options.wells, options.new_plate)
        for row in experiment(mixer, reader, options.target, wells, screen):
            rows.append(row)
            screen.line("%-4s %s%s  distance %5.1f" % (row["well"], screen.swatch(row["rgb"]), hex_colour(row["rgb"]),
                                                     row["distance"]))
    except KeyboardInterrupt:
        screen.line("stopped after %d wells" % len(rows))
        return 130
    except (InterlockError, LookupError, OSError, RuntimeError, ValueError) as problem:
        screen.line(screen.style("error: ", "31") + plain(problem))
        return 1
    best = report(rows, options.target, screen)
    for path in save(rows, options.target, best, options.out):
        screen.line("Written %s" % path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
