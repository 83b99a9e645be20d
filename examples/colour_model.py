"""Choosing the next mix from the readings so far, for colour_match.py. Standard library only.

Nothing in here knows how the plate reader works out a colour. It only uses that more dye lets less light through: the
logarithm of what is left of each colour channel changes about evenly with the volumes. That model is fitted anew after
every reading, with the readings near the target counting most, and its best guess is tried next.
"""

import math

DYES = ("r", "y", "b")
_FLOOR = 0.002
"""Light below this share of white is lost in noise; it keeps the logarithm finite."""


def parse_colour(text):
    """``#7a5c2e`` as three bytes. Raises ``ValueError``."""
    digits = text.strip().lstrip("#")
    if len(digits) != 6:
        raise ValueError("a colour looks like #7a5c2e, not %r" % text)
    return tuple(int(digits[index:index + 2], 16) for index in (0, 2, 4))


def hex_colour(rgb):
    """Three bytes as ``#7a5c2e``."""
    return "#%02x%02x%02x" % tuple(rgb)


def to_linear(byte):
    """An sRGB byte as a share of white."""
    value = byte / 255.0
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4


def from_linear(value):
    """A share of white as an sRGB value from 0 to 255, not rounded."""
    value = min(1.0, max(0.0, value))
    return 255 * (12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055)


def lab(rgb):
    """sRGB (0 to 255) as CIE L*a*b* for daylight (D65)."""
    red, green, blue = (to_linear(channel) for channel in rgb)
    xyz = ((0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.95047,
           0.2126 * red + 0.7152 * green + 0.0722 * blue,
           (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.08883)
    x, y, z = (value ** (1 / 3.0) if value > 0.008856 else 7.787 * value + 16 / 116.0 for value in xyz)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def distance(one, two):
    """How different two sRGB colours look (CIE 1976 ΔE*ab): below 2 hardly visible, above 10 plain."""
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(lab(one), lab(two))))


def densities(rgb):
    """How much of each channel was taken away, as natural logarithms."""
    return [-math.log(max(_FLOOR, to_linear(channel))) for channel in rgb]


def solve(matrix, right):
    """Solve a small linear system by elimination with pivoting. Raises ``ZeroDivisionError`` when it is singular."""
    size = len(right)
    rows = [list(row) + [value] for row, value in zip(matrix, right)]
    for column in range(size):
        pivot = max(range(column, size), key=lambda row: abs(rows[row][column]))
        rows[column], rows[pivot] = rows[pivot], rows[column]
        for row in range(size):
            if row != column:
                factor = rows[row][column] / rows[column][column]
                rows[row] = [a - factor * b for a, b in zip(rows[row], rows[column])]
    return [rows[index][size] / rows[index][index] for index in range(size)]


class LocalModel:
    """Densities as an even function of the volumes, fitted around the target.

    ``readings`` is a list of ``(volumes, rgb)`` with volumes as ``(r, y, b)`` in µL.
    """

    def __init__(self, readings, target, reach=18.0):
        weights = [1.0 / (1.0 + (distance(rgb, target) / reach) ** 2) for _, rgb in readings]
        inputs = [[1.0] + [volume / 100.0 for volume in volumes] for volumes, _ in readings]
        outputs = [densities(rgb) for _, rgb in readings]
        matrix = [[sum(weight * row[i] * row[j] for weight, row in zip(weights, inputs)) for j in range(4)]
                  for i in range(4)]
        for index in range(4):  # a little pull towards zero keeps the fit sane with few readings
            matrix[index][index] += 0.05 if index == 0 else 0.002
        self.coefficients = []
        for channel in range(3):
            right = [sum(weight * row[i] * output[channel] for weight, row, output in zip(weights, inputs, outputs))
                     for i in range(4)]
            self.coefficients.append(solve(matrix, right))

    def predict(self, volumes):
        """The expected sRGB colour of a mix, not rounded."""
        row = [1.0] + [volume / 100.0 for volume in volumes]
        found = [sum(a * b for a, b in zip(coefficients, row)) for coefficients in self.coefficients]
        return tuple(from_linear(math.exp(-max(0.0, density))) for density in found)


def allowed(volumes, limit=300, smallest=20):
    """True when the robot can dispense this well: nothing or at least ``smallest`` µL of each, ``limit`` in all."""
    total = sum(volumes)
    return 0 < total <= limit and all(volume == 0 or volume >= smallest for volume in volumes)


def first_mixes():
    """Four mixes that say something about every dye, before there is any model."""
    return [(60, 60, 30), (120, 40, 20), (40, 120, 20), (40, 40, 70)]


def next_mix(readings, target, limit=300, smallest=20):
    """The volumes ``(r, y, b)`` in whole µL to try next, and the colour expected of them (None for the first ones).

    Never proposes a mix that was already made.
    """
    tried = {tuple(volumes) for volumes, _ in readings}
    for volumes in first_mixes():
        if len(readings) < 4 and volumes not in tried:
            return volumes, None
    model = LocalModel(readings, target)

    def cost(volumes):
        return distance(model.predict(volumes), target)

    candidates = [volumes for volumes in _grid(limit) if allowed(volumes, limit, smallest)]
    best = min(candidates, key=cost)
    for step in (5, 2, 1):
        best = _descend(best, step, cost, limit, smallest)
    if best in tried:
        best = min((volumes for volumes in _neighbours(best, 3) if allowed(volumes, limit, smallest)
                    and volumes not in tried), key=cost)
    return best, model.predict(best)


def _grid(limit):
    values = range(0, limit + 1, 20)
    return [(r, y, b) for r in values for y in values for b in values if r + y + b <= limit]


def _neighbours(volumes, step):
    shifts = (-step, 0, step)
    return [tuple(volume + shift for volume, shift in zip(volumes, (i, j, k)))
            for i in shifts for j in shifts for k in shifts if (i, j, k) != (0, 0, 0)]


def _descend(volumes, step, cost, limit, smallest):
    """Walk downhill in steps of ``step`` µL until no neighbour is better."""
    here = cost(volumes)
    while True:
        options = [one for one in _neighbours(volumes, step) if min(one) >= 0 and allowed(one, limit, smallest)]
        found = min(options, key=cost, default=volumes)
        there = cost(found)
        if there >= here:
            return volumes
        volumes, here = found, there
