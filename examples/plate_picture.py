"""A picture of a 96-well plate as a PNG file, with nothing but the standard library."""

import struct
import zlib

CELL = 52
MARGIN = 46
RADIUS = 21
SAMPLES = 4
BACKGROUND = (250, 250, 249)
PLATE = (229, 231, 235)
EMPTY = (243, 244, 246)
INK = (75, 85, 99)
GLYPHS = {
    "A": "010101111101101", "B": "110101110101110", "C": "011100100100011", "D": "110101101101110",
    "E": "111100110100111", "F": "111100110100100", "G": "011100101101011", "H": "101101111101101",
    "0": "111101101101111", "1": "010110010010111", "2": "110001010100111", "3": "110001010001110",
    "4": "101101111001001", "5": "111100110001110", "6": "011100111101111", "7": "111001010010010",
    "8": "111101111101111", "9": "111101111001110", "#": "101111101111101",
}
"""Three by five dots, row by row."""


class Picture:
    """A grid of RGB pixels."""

    def __init__(self, width, height, colour=BACKGROUND):
        self.width = width
        self.height = height
        self.rows = [bytearray(bytes(colour) * width) for _ in range(height)]

    def rectangle(self, left, top, width, height, colour):
        """Fill a rectangle."""
        for row in self.rows[top:top + height]:
            row[3 * left:3 * (left + width)] = bytes(colour) * width

    def disc(self, centre_x, centre_y, radius, colour):
        """Fill a disc with a smooth edge."""
        for y in range(int(centre_y - radius) - 1, int(centre_y + radius) + 2):
            for x in range(int(centre_x - radius) - 1, int(centre_x + radius) + 2):
                self._blend(x, y, colour, _coverage(x - centre_x, y - centre_y, radius))

    def text(self, left, top, words, colour=INK, size=3):
        """Write digits, ``#`` and the letters A to H."""
        for character in words.upper():
            for index, dot in enumerate(GLYPHS.get(character, "")):
                if dot == "1":
                    self.rectangle(left + size * (index % 3), top + size * (index // 3), size, size, colour)
            left += 4 * size

    def _blend(self, x, y, colour, share):
        if share <= 0 or not (0 <= x < self.width and 0 <= y < self.height):
            return
        row, at = self.rows[y], 3 * x
        for channel in range(3):
            row[at + channel] = int(round(row[at + channel] * (1 - share) + colour[channel] * share))

    def png(self):
        """The picture as the bytes of a PNG file."""
        raw = b"".join(b"\0" + bytes(row) for row in self.rows)
        header = struct.pack(">IIBBBBB", self.width, self.height, 8, 2, 0, 0, 0)
        return (b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(raw, 9))
                + _chunk(b"IEND", b""))


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) & 0xFFFFFFFF)


def _coverage(x, y, radius):
    """The share of the pixel at ``(x, y)`` from the centre that lies inside the disc."""
    far = (x * x + y * y) ** 0.5
    if far < radius - 1:
        return 1.0
    if far > radius + 1:
        return 0.0
    inside = 0
    for i in range(SAMPLES):
        for j in range(SAMPLES):
            dx = x + (i + 0.5) / SAMPLES - 0.5
            dy = y + (j + 0.5) / SAMPLES - 0.5
            inside += dx * dx + dy * dy <= radius * radius
    return inside / float(SAMPLES * SAMPLES)


def draw_plate(colours, target, best=None):
    """PNG bytes of a plate whose wells ``{"A1": (r, g, b), ...}`` have these colours.

    Below it are two swatches side by side: the target, and the colour of the well ``best``, which gets a ring.
    """
    width, plate_height = MARGIN * 2 + CELL * 12, MARGIN * 2 + CELL * 8
    picture = Picture(width, plate_height + 90)
    picture.rectangle(12, 12, width - 24, plate_height - 24, PLATE)
    for column in range(12):
        words = str(column + 1)
        picture.text(MARGIN + CELL * column + CELL // 2 - 6 * len(words) + 1, 22, words)
    for row, letter in enumerate("ABCDEFGH"):
        picture.text(24, MARGIN + CELL * row + CELL // 2 - 7, letter)
        for column in range(12):
            well = letter + str(column + 1)
            x, y = MARGIN + CELL * column + CELL // 2, MARGIN + CELL * row + CELL // 2
            if well == best:
                picture.disc(x, y, RADIUS + 4, (17, 24, 39))
            picture.disc(x, y, RADIUS + 1, (156, 163, 175))
            picture.disc(x, y, RADIUS, colours.get(well, EMPTY))
    middle = width // 2
    picture.rectangle(MARGIN, plate_height, middle - MARGIN, 50, target)
    picture.rectangle(middle, plate_height, middle - MARGIN, 50, colours.get(best, EMPTY))
    picture.text(MARGIN, plate_height + 60, "#%02x%02x%02x" % tuple(target))
    if best in colours:
        picture.text(middle, plate_height + 60, "%s #%02x%02x%02x" % ((best,) + tuple(colours[best])))
    return picture.png()
