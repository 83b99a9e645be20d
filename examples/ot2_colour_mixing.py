"""An Opentrons OT-2 that mixes red, yellow and blue stock in a 96-well plate, on ``opentrons.simulate``.

    pip install opentrons==9.0.0            # Python 3.10 or 3.11
    interlock device serve examples/ot2_colour_mixing.py --env INTERLOCK_PLATE_FILE=/tmp/plate.json

Deck: slot 1 a 12-well reservoir (A1 red, A2 yellow, A3 blue), slot 2 the plate, slot 3 a rack of 300 µL tips, a
single-channel p300 on the left mount.

If INTERLOCK_PLATE_FILE names a file, what is on the deck is kept there: it stands for the plate that a person carries
to the reader (plate_reader.py), and lets a restarted process remember which wells and tips were used.
"""

import json
import os
import tempfile
import uuid

from opentrons import simulate

from interlock import Param, PublicError, ctx, on_start, safe_state, task

API_LEVEL = "2.15"
STOCKS = {"red": "A1", "yellow": "A2", "blue": "A3"}
WELLS = [row + str(column) for row in "ABCDEFGH" for column in range(1, 13)]
TIPS = 96
STOCK_UL = 14000.0
"""Usable volume of one reservoir well of 15 mL, in µL; the rest can not be reached by the pipette."""
ACCURATE_UL = 20.0
"""Smallest volume for which the p300 keeps its stated accuracy, in µL."""


class PlateRecord:
    """What is on the deck: volumes per well in µL, tips used, stock left. Kept in a file when a path is given."""

    def __init__(self, path=None):
        self.path = path
        self.clear()
        self.refill()
        if path and os.path.exists(path):
            with open(path, encoding="utf-8") as opened:
                stored = json.load(opened)
            self.plate = stored["plate"]
            self.wells = stored["wells"]
            self.tips_used = stored["deck"]["tips_used"]
            self.stock_ul = stored["deck"]["stock_ul"]

    def clear(self):
        """A new, empty plate."""
        self.plate = uuid.uuid4().hex[:8]
        self.wells = {}

    def refill(self):
        """A full tip rack and full stocks."""
        self.tips_used = 0
        self.stock_ul = {stock: STOCK_UL for stock in STOCKS}

    def add(self, well, stock, volume):
        """Note one dispense at the moment it has happened."""
        content = self.wells.setdefault(well, {name: 0.0 for name in STOCKS})
        content[stock] += volume
        self.stock_ul[stock] -= volume
        self.save()

    def document(self):
        """The record as JSON."""
        return {"plate": self.plate, "wells": self.wells,
                "deck": {"tips_used": self.tips_used, "stock_ul": self.stock_ul}}

    def save(self):
        """Replace the file in one step, so that a reader never sees half of it."""
        if not self.path:
            return
        folder = os.path.dirname(os.path.abspath(self.path))
        descriptor, temporary = tempfile.mkstemp(prefix=".plate-", dir=folder)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
                json.dump(self.document(), opened, indent=1)
                opened.flush()
                os.fsync(opened.fileno())
            os.replace(temporary, self.path)
        except BaseException:
            os.unlink(temporary)
            raise


class Station:
    """The simulated robot with its deck."""

    def __init__(self, record):
        self.record = record
        self.protocol = simulate.get_protocol_api(API_LEVEL)
        self.reservoir = self.protocol.load_labware("nest_12_reservoir_15ml", "1")
        self.plate = self.protocol.load_labware("corning_96_wellplate_360ul_flat", "2")
        self.tips = self.protocol.load_labware("opentrons_96_tiprack_300ul", "3")
        self.pipette = self.protocol.load_instrument("p300_single_gen2", "left")

    def pick_up_tip(self):
        """Take the next unused tip."""
        self.pipette.pick_up_tip(self.tips.wells()[self.record.tips_used])
        self.record.tips_used += 1
        self.record.save()

    def dispense(self, stock, volume, well):
        """Move ``volume`` µL of one stock into a well with a fresh tip, which stays on."""
        self.pick_up_tip()
        self.pipette.aspirate(volume, self.reservoir[STOCKS[stock]])
        self.pipette.dispense(volume, self.plate[well])
        self.record.add(well, stock, volume)

    def stir(self, total, well):
        """Mix the well by drawing in and pushing out half of it, three times."""
        if total >= 2 * ACCURATE_UL:
            self.pipette.mix(3, total / 2, self.plate[well])

    def drop_tip(self):
        """Throw the tip away, if there is one."""
        if self.pipette.has_tip:
            self.pipette.drop_tip()

    def commands(self):
        """What the robot has executed so far, one line of text each."""
        return list(self.protocol.commands())


station = None


@on_start
def connect(sim):
    """Open the simulated protocol context; with ``sim`` nothing is written to the plate file."""
    global station
    station = Station(PlateRecord(None if sim else os.environ.get("INTERLOCK_PLATE_FILE")))
    station.protocol.home()


@safe_state
def park():
    """Get rid of a tip that is still on and move the gantry out of the way."""
    station.drop_tip()
    station.protocol.home()


def rehearsal():
    """A throwaway robot with the same deck, for a simulated run: the real record stays as it is."""
    record = PlateRecord()
    record.__dict__.update(json.loads(json.dumps(station.record.document()["deck"])))
    record.wells = {well: dict(content) for well, content in station.record.wells.items()}
    return Station(record)


def refuse_impossible(record, well, volumes):
    """Raise PublicError when the deck can not do this."""
    if any(volume > 0 for volume in record.wells.get(well, {}).values()):
        raise PublicError("well %s is already filled; use another one or new_plate" % well, code="well_filled")
    needed = sum(1 for volume in volumes.values() if volume > 0)
    if needed > TIPS - record.tips_used:
        raise PublicError("%d tips are needed and %d are left; put in a new rack and call refill"
                          % (needed, TIPS - record.tips_used), code="no_tips")
    for stock, volume in volumes.items():
        if volume > record.stock_ul[stock]:
            raise PublicError("only %.0f µL of %s are left; fill the reservoir and call refill"
                              % (record.stock_ul[stock], stock), code="no_stock")


@task(title="Mix colours", effects="doses", duration="1 min", resources=["deck", "p300"],
      rules=["r + y + b <= 300 : total volume must be at most 300 µL",
             "r + y + b > 0 : there must be something to dispense"])
def mix_color(r: float = Param(0, unit="uL", min=0, max=300, step=1, help="red stock"),
              y: float = Param(0, unit="uL", min=0, max=300, step=1, help="yellow stock"),
              b: float = Param(0, unit="uL", min=0, max=300, step=1, help="blue stock"),
              well: str = Param("A1", choices=WELLS, widget="plate96", help="an empty well of the plate")) -> dict:
    """Mix three stocks in one empty well of the plate, with a fresh tip for each stock."""
    volumes = {"red": float(r), "yellow": float(y), "blue": float(b)}
    robot = rehearsal() if ctx.simulated else station
    refuse_impossible(robot.record, well, volumes)
    executed_before = len(robot.commands())
    steps = [(stock, volume) for stock, volume in volumes.items() if volume > 0]
    for number, (stock, volume) in enumerate(steps, 1):
        ctx.checkpoint()
        ctx.progress(number - 1, len(steps), "dispensing %g µL %s into %s" % (volume, stock, well))
        if volume < ACCURATE_UL:
            ctx.log("%g µL of %s is below the %g µL for which a p300 is accurate" % (volume, stock, ACCURATE_UL),
                    level="warning")
        robot.dispense(stock, volume, well)
        ctx.metric("volume_dispensed", volume, unit="uL", stock=stock)
        if number == len(steps):
            robot.stir(sum(volumes.values()), well)
        robot.drop_tip()
    ctx.progress(len(steps), len(steps), "well %s is ready" % well)
    commands = robot.commands()[executed_before:]
    ctx.artifact("run-log.txt", "\n".join(commands) + "\n")
    return {"well": well, "volumes_ul": volumes, "total_ul": sum(volumes.values()), "tips_used": len(steps),
            "tips_left": TIPS - robot.record.tips_used, "commands": len(commands), "simulated": ctx.simulated}


@task(title="New plate", effects="none")
def new_plate() -> dict:
    """Say that a person has put an empty plate on the deck."""
    if not ctx.simulated:
        station.record.clear()
        station.record.save()
    return {"plate": station.record.plate}


@task(title="Refill", effects="none")
def refill() -> dict:
    """Say that a person has put in a full tip rack and filled the reservoir."""
    if not ctx.simulated:
        station.record.refill()
        station.record.save()
    return {"tips_left": TIPS - station.record.tips_used, "stock_ul": station.record.stock_ul}


@task(title="Plate state", effects="reads", idempotent=True)
def plate_state() -> dict:
    """What is in the wells, in µL, and what is left on the deck."""
    record = station.record
    return {"plate": record.plate, "wells": record.wells, "empty": [well for well in WELLS if well not in record.wells],
            "tips_left": TIPS - record.tips_used, "stock_ul": record.stock_ul}
