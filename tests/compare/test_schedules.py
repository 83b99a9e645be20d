"""10 000 random cron lines and 10 000 random rules in random zones, against croniter and python-dateutil.

Those two say which times a rule names on the wall. What instants these are is said here once more, in another language and
with another copy of the zone database, by the policy of docs/reference/schedules.md: a skipped time moves by the gap, a
repeated one is the first, and rules that fire in every hour go through both. The other differences of that page are left out
of the random rules, or undone here where it says so, and shown one by one at the end.
"""

import calendar
import multiprocessing
import os
import signal
import sys
import unittest
import zoneinfo
from datetime import datetime, timedelta, timezone

from common import ask, seeded

os.environ["PYTHONTZPATH"] = ""
zoneinfo.reset_tzpath(to=())

from croniter import croniter  # noqa: E402
from dateutil import rrule  # noqa: E402

MANY = int(os.environ.get("INTERLOCK_COMPARE_CASES", "10000"))
COUNT = 8
# Names that are no places.
ZONES = sorted(zoneinfo.available_timezones() - {"Factory", "localtime"})
DAYS = ["MO", "TU", "WE", "TH", "FR", "SA", "SU"]
UTC = timezone.utc


class TooLong(Exception):
    pass


class Limit:
    """Ends what takes long: both libraries search without a bound for what fires rarely or never."""

    def __enter__(self):
        signal.signal(signal.SIGALRM, self.ring)
        signal.setitimer(signal.ITIMER_REAL, 0.1)

    def ring(self, *_):
        raise TooLong

    def __exit__(self, *_):
        signal.setitimer(signal.ITIMER_REAL, 0)


def seconds(wall, zone, fold):
    return int(wall.replace(tzinfo=zone, fold=fold).timestamp())


def instants(walls, zone, every_hour):
    """Seconds since the epoch of rising times on a wall, each once, as far as they are sure to be complete."""
    found = set()
    for wall in walls:
        first, second = seconds(wall, zone, 0), seconds(wall, zone, 1)
        # In a gap, fold 0 is read with the offset before it, and so is later than fold 1.
        found.add(first)
        if every_hour and second > first:
            found.add(second)
    # A repeated time may come after what is not here yet.
    complete = seconds(walls[-1], zone, 0) if walls else 0
    return sorted(at for at in found if at <= complete)


def anchor(random, zone):
    """A time at which something was set: half of them near a change of the clocks."""
    at = random.randrange(946_684_800, 2_145_916_800)
    if random.random() < 0.5:
        return at
    offset = datetime.fromtimestamp(at, zone).utcoffset()
    for day in range(1, 400):
        later = at + day * 86_400
        if datetime.fromtimestamp(later, zone).utcoffset() != offset:
            return later - random.randrange(0, 3 * 86_400)
    return at


class Cron:
    kind = "cron"

    def __init__(self, random):
        self.random = random
        self.fields = [self.field(0, 59, 0.2), self.field(0, 23, 0.4), self.field(1, 31, 0.6), self.field(1, 12, 0.7), self.field(0, 7, 0.6)]
        self.expr = " ".join(self.fields)

    def field(self, first, last, star):
        random = self.random
        if random.random() < star:
            return "*" if random.random() < 0.7 else f"*/{random.randint(1, min(last, 20))}"

        def item():
            low = random.randint(first, last)
            high = random.randint(low, last)
            # croniter misreads a range of one value with a step.
            step = f"/{random.randint(1, min(last, 10))}" if high > low and random.random() < 0.4 else ""
            return str(low) if high == low or random.random() < 0.6 else f"{low}-{high}{step}"

        return ",".join(item() for _ in range(random.choice([1, 1, 1, 2, 3])))

    def every_hour(self):
        return self.hours() == set(range(24))

    def hours(self):
        found = set()
        for item in self.fields[1].split(","):
            span, _, step = item.partition("/")
            low, _, high = span.partition("-")
            low, high = (0, 23) if low == "*" else (int(low), int(high or low))
            found |= set(range(low, high + 1, int(step or 1)))
        return found

    def walls(self, start, many):
        either = not (self.fields[2].startswith("*") or self.fields[4].startswith("*"))
        # crontab reads "*/2" as a star in this; croniter would not, and asks us.
        walk = croniter(self.expr, start, day_or=either, max_years_between_matches=400)
        return [walk.get_next(datetime) for _ in range(many)]


class Rule:
    kind = "rrule"

    def __init__(self, random, start):
        self.random = random
        self.frequency = random.choice(["YEARLY", "MONTHLY", "WEEKLY", "DAILY", "HOURLY", "MINUTELY", "SECONDLY"])
        self.parts = {"FREQ": self.frequency}
        self.interval = random.choice([1, 1, 1, 2, 3, 5, 7, 12, 30, 45, 90])
        if self.frequency == "YEARLY":
            self.interval = min(self.interval, 5)
        if self.interval > 1:
            self.parts["INTERVAL"] = str(self.interval)
        wkst = random.choice(DAYS) if random.random() < 0.3 else None
        if wkst:
            self.parts["WKST"] = wkst
        self.choose("BYMONTH", 0.25, 1, 12, 4)
        if self.frequency == "YEARLY" and random.random() < 0.2:
            # The last weeks, and all but -1 from the end, differ at the edges of years.
            self.parts["BYWEEKNO"] = ",".join(str(random.choice([-1, random.randint(1, 51)])) for _ in range(2))
        if self.frequency in ("YEARLY", "DAILY", "HOURLY") and random.random() < 0.15:
            self.parts["BYYEARDAY"] = self.signed(366, 12)
        if self.frequency != "WEEKLY" and random.random() < 0.2:
            self.parts["BYMONTHDAY"] = self.signed(31, 4)
        if random.random() < 0.3:
            numbered = self.frequency in ("YEARLY", "MONTHLY") and "BYWEEKNO" not in self.parts and random.random() < 0.5
            most = 5 if self.frequency == "MONTHLY" or "BYMONTH" in self.parts else 53
            days = random.sample(DAYS, random.randint(1, 4))
            self.parts["BYDAY"] = ",".join((str(random.choice([-1, 1]) * random.randint(1, most)) if numbered else "") + day for day in days)
        self.choose("BYHOUR", 0.25, 0, 23, 5)
        self.choose("BYMINUTE", 0.2, 0, 59, 4)
        self.choose("BYSECOND", 0.1, 0, 59, 3)
        self.start = start
        chosen = any(name in self.parts for name in ("BYMONTH", "BYWEEKNO", "BYYEARDAY", "BYMONTHDAY", "BYDAY", "BYHOUR", "BYMINUTE", "BYSECOND"))
        self.moved = False
        if chosen and random.random() < 0.25:
            self.parts["BYSETPOS"] = self.signed(8, 3)
            # The first week counts as a whole: in effect the rule begins with its week, and gives nothing before its start.
            self.moved = self.frequency == "WEEKLY"
            if self.moved and "BYDAY" not in self.parts:
                self.parts["BYDAY"] = "MO,WE,SU"
        self.count = random.randint(1, 12) if random.random() < 0.2 else None
        self.until = None
        if self.count is None and random.random() < 0.2:
            self.until = start + timedelta(days=random.randint(0, 2000), seconds=random.randrange(86_400))
        text = ";".join(f"{name}={value}" for name, value in self.parts.items())
        end = f";COUNT={self.count}" if self.count else f";UNTIL={self.until:%Y%m%dT%H%M%S}" if self.until else ""
        self.reference = text
        self.expr = f"DTSTART:{start:%Y%m%dT%H%M%S}\nRRULE:{text}{end}"

    def choose(self, name, chance, low, high, most):
        if self.random.random() < chance:
            chosen = {self.random.randint(low, high) for _ in range(self.random.randint(1, most))}
            self.parts[name] = ",".join(map(str, sorted(chosen)))

    def signed(self, high, most):
        chosen = {self.random.choice([1, 1, -1]) * self.random.randint(1, high) for _ in range(self.random.randint(1, most))}
        return ",".join(map(str, sorted(chosen)))

    def every_hour(self):
        if "BYHOUR" in self.parts:
            hours = len(self.parts["BYHOUR"].split(",")) == 24
            return hours and self.frequency in ("YEARLY", "MONTHLY", "WEEKLY", "DAILY") and "BYSETPOS" not in self.parts
        return self.interval <= {"HOURLY": 1, "MINUTELY": 60, "SECONDLY": 3600}.get(self.frequency, 0)

    def walls(self, _, many):
        start = self.start
        if self.moved:
            wkst = DAYS.index(self.parts.get("WKST", "MO"))
            start -= timedelta(days=(start.weekday() - wkst) % 7)
        found = []
        for at in rrule.rrulestr(self.reference, dtstart=start):
            if at >= self.start:
                found.append(at)
            if len(found) == many:
                break
        return found


def expected(case, start, zone, after, many):
    walls = case.walls(start, many)
    whole = len(walls) < many
    at = instants(walls, zone, case.every_hour())
    if getattr(case, "count", None):
        at = at[: case.count]
        whole = whole or len(at) == case.count
    if getattr(case, "until", None):
        until = seconds(case.until, zone, 0)
        whole = whole or any(one > until for one in at)
        at = [one for one in at if one <= until]
    return [one for one in at if one > after], whole


def reference(asked):
    """What the library and the policy say: times, or None if that takes too long."""
    case, name, after = asked
    zone = zoneinfo.ZoneInfo(name)
    # Somewhat earlier, for what a change of the clocks moves.
    start = datetime.fromtimestamp(after, zone).replace(tzinfo=None, fold=0) - timedelta(hours=26)
    try:
        with Limit():
            for many in (40, 400, 4000):
                times, whole = expected(case, start, zone, after, many)
                if whole or len(times) >= COUNT:
                    return times[:COUNT]
            return None
    except (TooLong, OverflowError):
        return None
    except Exception as error:  # noqa: BLE001: croniter and dateutil say so when nothing is left
        if not any(said in str(error) for said in ("failed to find next date", "empty set", "empty rule")):
            raise AssertionError(f"{case.expr!r} in {name}: {error!r}") from error
        return []


def is_far(ours, theirs, after):
    """Whether what we leave out is more than a million steps away, as that page says."""
    return ours == theirs[: len(ours)] and theirs[len(ours)] - after > 500 * 365 * 86_400


class Schedules(unittest.TestCase):
    def compare(self, make, name):
        random = seeded(name)
        asked, questions = [], []
        while len(asked) < MANY:
            name = random.choice(ZONES)
            zone = zoneinfo.ZoneInfo(name)
            after = anchor(random, zone)
            case = make(random, datetime.fromtimestamp(after, zone).replace(tzinfo=None, fold=0))
            del case.random
            asked.append((case, name, after))
            questions.append({"kind": case.kind, "expr": case.expr, "zone": name, "anchor": after, "count": COUNT})
        with multiprocessing.Pool() as pool:
            theirs = pool.map(reference, asked, chunksize=50)
        wrong, gone, never, far = [], 0, 0, 0
        for (case, name, after), times, answer in zip(asked, theirs, ask(questions)):
            if times is None:
                gone += 1
                continue
            got = answer.get("times", [])
            never += not times
            if got == times:
                continue
            if len(got) < len(times) and is_far(got, times, after):
                far += 1
                continue
            shown = [[f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%S}Z" for at in side] for side in (got, times)]
            wrong.append(f"{case.expr!r} in {name} after {after}:\n  ours   {shown[0]} {answer.get('refused', '')}\n  theirs {shown[1]}")
        print(f"  {MANY} compared, {never} of them never fire, {gone} took them too long, {far} are too far away, {len(wrong)} differ", file=sys.stderr)
        self.assertFalse(wrong, "\n".join(wrong[:8]))
        self.assertLess(gone, MANY // 5)

    def test_random_cron_lines_fire_when_croniter_says(self):
        self.compare(lambda random, _: Cron(random), "cron")

    def test_random_rules_fire_when_dateutil_says(self):
        self.compare(lambda random, start: Rule(random, start - timedelta(hours=random.choice([0, 0, 1, 7, 40]))), "rrule")


def walls(expr, many=6, start="20240101T090000"):
    """What dateutil makes of a rule, and what we do, in UTC."""
    begin = datetime.strptime(start, "%Y%m%dT%H%M%S")
    theirs = []
    for at in rrule.rrulestr(expr, dtstart=begin):
        theirs.append(calendar.timegm(at.timetuple()))
        if len(theirs) == many:
            break
    question = {"kind": "rrule", "expr": f"DTSTART:{start}\nRRULE:{expr}", "zone": "UTC", "anchor": calendar.timegm(begin.timetuple()) - 1, "count": many}
    return theirs, ask([question])[0]


class Differences(unittest.TestCase):
    """The rows of docs/reference/schedules.md: each is a difference, so that the page stays true."""

    def test_plain_and_numbered_days_are_either(self):
        theirs, ours = walls("FREQ=MONTHLY;BYDAY=FR,2TU")
        self.assertNotEqual(theirs, ours["times"])
        days = {(at.weekday(), (at.day - 1) // 7) for at in (datetime.fromtimestamp(at, UTC) for at in ours["times"])}
        self.assertTrue({(4, 0), (1, 1)} <= days, days)

    def test_numbered_days_below_a_month_are_refused(self):
        self.assertIn("MONTHLY", walls("FREQ=DAILY;BYDAY=2TU")[1]["refused"])

    def test_places_in_the_first_week_count_the_whole_week(self):
        # 3 January 2024 is a Wednesday: the first of MO, FR in its week is over.
        theirs, ours = walls("FREQ=WEEKLY;BYDAY=MO,FR;BYSETPOS=1", start="20240103T090000")
        self.assertEqual(theirs[1:], ours["times"][: len(theirs) - 1])
        self.assertEqual(datetime.fromtimestamp(ours["times"][0], UTC).day, 8)

    def test_count_and_until_exclude_each_other(self):
        self.assertIn("exclude", walls("FREQ=DAILY;COUNT=3;UNTIL=20300101T000000")[1]["refused"])

    def test_weeks_from_the_end_belong_to_their_year(self):
        theirs, ours = walls("FREQ=YEARLY;BYWEEKNO=-53", many=20)
        self.assertNotEqual(theirs, ours["times"])
        for at in ours["times"]:
            self.assertEqual(datetime.fromtimestamp(at, UTC).isocalendar().week, 1)

    def test_the_first_days_of_a_year_belong_to_the_last_week_of_the_year_before(self):
        theirs, ours = walls("FREQ=YEARLY;BYWEEKNO=52;BYDAY=SA", start="20220101T090000")
        self.assertNotEqual(theirs, ours["times"])
        self.assertEqual(datetime.fromtimestamp(ours["times"][0], UTC).isocalendar()[:2], (2021, 52))
        for at in ours["times"]:
            self.assertEqual(datetime.fromtimestamp(at, UTC).isocalendar().week, 52)

    def test_count_counts_runs(self):
        # 25 October 2026, 02:00 to 03:00 twice in Berlin.
        question = {"kind": "rrule", "expr": "DTSTART:20261025T010000\nRRULE:FREQ=HOURLY;COUNT=4", "zone": "Europe/Berlin", "anchor": 1_792_800_000, "count": 9}
        times = ask([question])[0]["times"]
        self.assertEqual([later - earlier for earlier, later in zip(times, times[1:])], [3600] * 3)


if __name__ == "__main__":
    unittest.main()
