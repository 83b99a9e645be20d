"""A simulated plate reader with a camera, to be served beside ot2_colour_mixing.py. Nothing to install.

    interlock device serve examples/plate_reader.py --port 8001 --env INTERLOCK_PLATE_FILE=/tmp/plate.json

It reads the plate file that the mixer writes (the plate that a person has carried over) and works out what the
instrument would measure. Light goes through the well from above. By Beer and Lambert, the absorbance at a wavelength is
the sum over the dyes of (absorption coefficient × concentration × path length), where the path length is the height
of the liquid: its volume over the area of the well. The camera sees the light that is left.
"""

import json
import math
import os
import random

from interlock import Param, PublicError, ctx, safe_state, task

WELLS = [row + str(column) for row in "ABCDEFGH" for column in range(1, 13)]
WELL_AREA_MM2 = math.pi * (6.86 / 2) ** 2
"""Area of a well of a Corning 360 µL flat plate, in mm²."""
WAVELENGTHS_NM = list(range(400, 701, 10))
FILTERS_NM = (450, 520, 630)
"""The three filters whose absorbances are reported, in nm."""

DYES = {
    "red": ((512.0, 40.0, 0.420), (430.0, 40.0, 0.110)),
    "yellow": ((436.0, 36.0, 0.560),),
    "blue": ((622.0, 38.0, 0.600), (412.0, 30.0, 0.070)),
}
"""Absorption of each undiluted stock: bands of (centre in nm, width in nm, absorbance per mm of path)."""

CAMERA = {"r": (605.0, 32.0), "g": (540.0, 34.0), "b": (455.0, 28.0)}
"""Sensitivity of the camera's channels: (centre in nm, width in nm)."""

CHANNEL_NOISE = 0.003
"""Standard deviation of a channel, relative to white."""
ABSORBANCE_NOISE = 0.002
NOISE_SEED = int(os.environ.get("INTERLOCK_READER_SEED", "20"))
_readings = 0


def bell(wavelength, centre, width):
    """A Gaussian of height 1."""
    return math.exp(-((wavelength - centre) / width) ** 2 / 2)


def absorption_per_mm(dye, wavelength):
    """Absorbance per mm of an undiluted stock."""
    return sum(height * bell(wavelength, centre, width) for centre, width, height in DYES[dye])


def absorbance(volumes, wavelength):
    """Absorbance of a well that holds ``{"red": µL, "yellow": µL, "blue": µL}``."""
    total = sum(volumes.values())
    path_mm = total / WELL_AREA_MM2
    return sum(absorption_per_mm(dye, wavelength) * (volume / total) * path_mm for dye, volume in volumes.items())


def linear_rgb(volumes):
    """What the camera's channels see, from 0 (black) to 1 (an empty light table)."""
    transmitted = {wavelength: 10 ** -absorbance(volumes, wavelength) for wavelength in WAVELENGTHS_NM}
    channels = []
    for centre, width in CAMERA.values():
        weights = {wavelength: bell(wavelength, centre, width) for wavelength in WAVELENGTHS_NM}
        seen = sum(weights[wavelength] * transmitted[wavelength] for wavelength in WAVELENGTHS_NM)
        channels.append(seen / sum(weights.values()))
    return channels


def to_srgb(linear):
    """A linear channel (0 to 1) as an sRGB byte."""
    linear = min(1.0, max(0.0, linear))
    encoded = 12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055
    return int(round(255 * encoded))


def load_plate():
    """The plate in the reader. Raises PublicError when there is none."""
    path = os.environ.get("INTERLOCK_PLATE_FILE")
    if not path:
        raise PublicError("the reader does not know its plate: INTERLOCK_PLATE_FILE is not set", code="no_plate")
    try:
        with open(path, encoding="utf-8") as opened:
            return json.load(opened)
    except FileNotFoundError:
        raise PublicError("there is no plate in the reader", code="no_plate")


def measure(plate, well):
    """One reading of one well. Raises PublicError when it is empty."""
    global _readings
    volumes = plate["wells"].get(well) or {}
    if sum(volumes.values()) <= 0:
        raise PublicError("well %s is empty" % well, code="well_empty")
    _readings += 1
    noise = random.Random("%d/%s/%s/%d" % (NOISE_SEED, plate["plate"], well, _readings))
    rgb = [to_srgb(channel + noise.gauss(0, CHANNEL_NOISE)) for channel in linear_rgb(volumes)]
    readings = {str(wavelength): round(absorbance(volumes, wavelength) + noise.gauss(0, ABSORBANCE_NOISE), 4)
                for wavelength in FILTERS_NM}
    return {"well": well, "plate": plate["plate"], "rgb": rgb, "hex": "#%02x%02x%02x" % tuple(rgb),
            "absorbance": readings}


@task(title="Read a well", effects="reads", duration="1 s")
def read_well(well: str = Param("A1", choices=WELLS, widget="plate96", help="a filled well")) -> dict:
    """Measure the colour (sRGB) and the absorbance at 450, 520 and 630 nm of one well."""
    plate = load_plate()
    ctx.progress(0, 2, "moving to %s" % well)
    ctx.checkpoint()
    reading = measure(plate, well)
    ctx.progress(1, 2, "measuring %s" % well)
    for wavelength, value in reading["absorbance"].items():
        ctx.metric("absorbance", value, wavelength_nm=wavelength, well=well)
    ctx.progress(2, 2, "%s is %s" % (well, reading["hex"]))
    return reading


@task(title="Read the plate", effects="reads", duration="20 s")
def read_plate() -> dict:
    """Measure every well that holds something."""
    plate = load_plate()
    filled = [well for well in WELLS if sum((plate["wells"].get(well) or {}).values()) > 0]
    readings = []
    for number, well in enumerate(filled, 1):
        ctx.checkpoint()
        ctx.progress(number, len(filled), "measuring %s" % well)
        readings.append(measure(plate, well))
    ctx.artifact("readings.json", {"plate": plate["plate"], "readings": readings})
    return {"plate": plate["plate"], "readings": readings}


@safe_state
def close_tray():
    """The reader has no moving part that could stay in the way."""
