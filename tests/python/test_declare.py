"""Decorators, types, schemas, defaults, conversions, plain calls."""

import asyncio
import dataclasses
import datetime
import enum
import io
import json
import math
import pathlib
import sys
import tempfile
import typing
import unittest

import support  # noqa: F401  (sets the path)
from interlock import Param, PublicError, RunCancelled, ctx, safe_state, task
from interlock import action as action_decorator
from interlock._declare import Action, BadParameters, RuleNotKept, registry
from interlock._types import UnsupportedType, describe
from interlock._wire import encode, format_duration, parse_duration, to_wire
from interlock.errors import DeclarationError
from interlock.testing import call, fake_run


class Speed(enum.Enum):
    SLOW = 100
    FAST = 400


@dataclasses.dataclass
class Recipe:
    red: float
    well: str = "A1"
    when: typing.Optional[datetime.timedelta] = None
    volume: float = dataclasses.field(default=1.0, metadata={"param": Param(unit="uL", min=0, max=9, help="how much")})


def declared(function, **options):
    values = dict(name=None, title=None, effects=None, duration=None, idempotent=False, resources=(), rules=(),
                  approve="never", role=None, timeout=None)
    values.update(options)
    return Action(function, **values).resolve()


class Registered(unittest.TestCase):
    def setUp(self):
        self.kept = dict(registry.actions), list(registry.safe_hooks), registry.strict
        registry.safe_hooks[:] = []

    def tearDown(self):
        registry.actions, registry.safe_hooks[:], registry.strict = self.kept[0], self.kept[1], self.kept[2]


class Schemas(unittest.TestCase):
    def schema(self, annotation, **limits):
        return describe(annotation, Param(**limits) if limits else None).schema

    def test_plain_types(self):
        self.assertEqual(self.schema(int), {"type": "integer"})
        self.assertEqual(self.schema(float, min=0, max=300, step=1),
                         {"type": "number", "minimum": 0, "maximum": 300, "multipleOf": 1})
        self.assertEqual(self.schema(bool), {"type": "boolean"})
        self.assertEqual(self.schema(str, min_length=1, max_length=4),
                         {"type": "string", "minLength": 1, "maxLength": 4})
        self.assertEqual(self.schema(str, choices=["a", "b"]), {"type": "string", "enum": ["a", "b"]})
        self.assertEqual(self.schema(typing.Any), {})
        self.assertEqual(self.schema(datetime.date), {"type": "string", "format": "date"})
        self.assertEqual(self.schema(datetime.datetime), {"type": "string", "format": "date-time"})
        self.assertEqual(self.schema(datetime.timedelta), {"type": "string", "format": "duration"})

    def test_optional_and_union(self):
        self.assertEqual(self.schema(typing.Optional[int]), {"type": ["integer", "null"]})
        self.assertEqual(self.schema(typing.Union[int, str]), {"anyOf": [{"type": "integer"}, {"type": "string"}]})
        self.assertEqual(self.schema(typing.Union[float, str], max=3),
                         {"anyOf": [{"type": "number", "maximum": 3}, {"type": "string"}]})
        self.assertEqual(self.schema(typing.Optional[Speed])["enum"], [100, 400, None])

    def test_containers(self):
        self.assertEqual(self.schema(typing.List[float], min=0, max_items=3),
                         {"type": "array", "items": {"type": "number", "minimum": 0}, "maxItems": 3})
        self.assertEqual(self.schema(list), {"type": "array"})
        self.assertEqual(self.schema(typing.Tuple[int, int]),
                         {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2})
        self.assertEqual(self.schema(typing.Dict[str, int]),
                         {"type": "object", "additionalProperties": {"type": "integer"}})
        self.assertEqual(self.schema(dict), {"type": "object"})

    def test_enum_and_dataclass(self):
        self.assertEqual(self.schema(Speed), {"type": "integer", "enum": [100, 400],
                                              "description": "100 = SLOW, 400 = FAST"})
        schema = self.schema(Recipe)
        self.assertEqual(schema["required"], ["red"])
        self.assertFalse(schema["additionalProperties"])
        self.assertEqual(schema["properties"]["well"], {"type": "string", "default": "A1"})
        self.assertEqual(schema["properties"]["volume"]["maximum"], 9)
        self.assertIn("uL", schema["properties"]["volume"]["description"])

    if sys.version_info >= (3, 8):
        def test_literal(self):
            self.assertEqual(self.schema(typing.Literal["a", "b"]), {"type": "string", "enum": ["a", "b"]})
            self.assertEqual(self.schema(typing.Literal[1, None]), {"type": ["integer", "null"], "enum": [1, None]})

    if sys.version_info >= (3, 9):
        def test_annotated_and_new_generics(self):
            self.assertEqual(self.schema(typing.Annotated[float, Param(max=3)]), {"type": "number", "maximum": 3})
            self.assertEqual(self.schema(list[typing.Annotated[int, Param(min=1)]]),
                             {"type": "array", "items": {"type": "integer", "minimum": 1}})

    if sys.version_info >= (3, 10):
        def test_pipe_union(self):
            self.assertEqual(self.schema(eval("int | None")), {"type": ["integer", "null"]})

    def test_limits_that_do_not_apply_are_refused(self):
        for annotation, limits in ((str, {"max": 3}), (bool, {"min": 0}), (float, {"max_length": 3}),
                                   (list, {"max": 3}), (datetime.date, {"max": 3}), (Speed, {"choices": [100]}),
                                   (float, {"max": "3"})):
            with self.subTest(annotation=annotation), self.assertRaises(UnsupportedType):
                self.schema(annotation, **limits)
        for annotation in (bytes, set, complex, typing.Dict[int, str], typing.Tuple[int, str], typing.Set[int]):
            with self.subTest(annotation=annotation), self.assertRaises(UnsupportedType):
                self.schema(annotation)


class Declaring(Registered):
    def test_spec_of_a_full_action(self):
        @task(title="Mix", effects="doses", duration="3 min", resources=["deck"], approve="r > 200", timeout=300,
              rules=["r + y <= 300 : at most 300 µL"])
        def mix(r: float = Param(0, unit="uL", min=0, max=300, step=1, help="red"), y: float = 0,
                well: str = Param("A1", widget="plate96"), speed: Speed = Speed.SLOW, note=None) -> dict:
            """Mix in one well."""
            return {}

        spec = registry.actions["mix"].spec()
        self.assertEqual(spec["rules"], [{"expr": "r + y <= 300", "message": "at most 300 µL"}])
        self.assertEqual((spec["doc"], spec["timeout_seconds"], spec["approve"]),
                         ("Mix in one well.", 300.0, "r > 200"))
        red, yellow, well, speed, note = spec["parameters"]
        self.assertEqual(red, {"name": "r", "title": None, "help": "red", "required": False, "default": 0,
                               "type": "number", "unit": "uL", "widget": None, "sensitive": False,
                               "schema": {"type": "number", "minimum": 0, "maximum": 300, "multipleOf": 1}})
        self.assertEqual((yellow["default"], well["widget"], speed["default"]), (0, "plate96", 100))
        self.assertEqual((note["type"], note["schema"], note["default"]), ("any", {}, None))
        json.dumps(spec, allow_nan=False)

    def test_plain_calls_get_plain_defaults(self):
        @task
        def mix(r: float = Param(10, min=0), *, well: str = Param("A1")):
            return r, well

        self.assertEqual(mix(), (10, "A1"))
        self.assertEqual(mix(3, well="B2"), (3, "B2"))
        self.assertIs(action_decorator, task)

        @task
        def needs(volume: float = Param(unit="uL")):
            return volume

        with self.assertRaises(TypeError):
            needs()

    def test_required_and_none(self):
        def untyped(a, b=None):
            return a, b

        self.assertEqual([one["required"] for one in declared(untyped).spec()["parameters"]], [True, False])

        def typed(a: int = None, b: float = Param(None, max=3)):
            return a, b

        specs = {one["name"]: one for one in declared(typed).spec()["parameters"]}
        self.assertEqual(specs["a"]["schema"], {"type": ["integer", "null"]})
        self.assertEqual(specs["b"]["schema"], {"type": ["number", "null"], "maximum": 3})

    def test_mistakes_are_refused_with_their_place(self):
        def bad_default(r: float = Param(500, max=300)):
            pass

        def unknown_type(r: bytes):
            pass

        for function, options in ((bad_default, {}), (unknown_type, {}), (lambda **more: 0, {"name": "x"}),
                                  (lambda *more: 0, {"name": "x"}), (lambda r: 0, {"name": "x", "rules": ["q < 1"]}),
                                  (lambda r: 0, {"name": "x", "rules": ["r <"]}), (lambda r: 0, {"name": "ü"}),
                                  (lambda r: 0, {"name": "x", "effects": "explodes"}),
                                  (lambda r: 0, {"name": "x", "approve": "sometimes"}),
                                  (lambda r: 0, {"name": "x", "timeout": 0}),
                                  (lambda r: 0, {"name": "x", "resources": "deck"})):
            with self.subTest(options=options), self.assertRaises(DeclarationError) as caught:
                declared(function, **options)
            self.assertTrue(caught.exception.file.endswith("test_declare.py"))
            self.assertGreater(caught.exception.line, 1)

    def test_two_of_one_name_only_outside_of_a_worker(self):
        task(lambda: 1, name="twice")
        task(lambda: 2, name="twice")
        registry.strict = True
        with self.assertRaises(DeclarationError):
            task(lambda: 3, name="twice")

    def test_hooks_take_no_parameter_or_one(self):
        @safe_state
        def plain():
            return "plain"

        @safe_state(order=-1)
        def first(reason):
            return reason

        self.assertEqual([runner("test") for _, runner, _ in registry.safe_hooks], ["test", "plain"])
        with self.assertRaises(DeclarationError):
            safe_state(lambda a, b: 0)

    def test_param_refuses_contradictions(self):
        for limits in ({"min": 3, "max": 2}, {"step": 0}, {"min_length": -1}, {"choices": []}):
            with self.subTest(limits=limits), self.assertRaises(ValueError):
                Param(**limits)


class Converting(unittest.TestCase):
    def test_values_arrive_as_declared(self):
        def run(speed: Speed, recipe: Recipe, day: datetime.date, at: datetime.datetime, wait: datetime.timedelta,
                volumes: typing.List[float], pair: typing.Tuple[int, ...],
                either: typing.Union[int, Speed, None] = None):
            return speed, recipe, day, at, wait, volumes, pair, either

        arguments = declared(run).arguments({
            "speed": 400, "recipe": {"red": 1, "when": "PT90S"}, "day": "2026-02-28", "at": "2026-02-28T01:02:03.5Z",
            "wait": "P1DT1H", "volumes": [1, 2.5], "pair": [1, 2.0]})
        self.assertIs(arguments["speed"], Speed.FAST)
        self.assertEqual(arguments["recipe"], Recipe(1.0, "A1", datetime.timedelta(seconds=90)))
        self.assertIs(type(arguments["recipe"].red), float)
        self.assertEqual(arguments["day"], datetime.date(2026, 2, 28))
        self.assertEqual(arguments["at"], datetime.datetime(2026, 2, 28, 1, 2, 3, 500000, datetime.timezone.utc))
        self.assertEqual(arguments["wait"], datetime.timedelta(days=1, hours=1))
        self.assertEqual([type(volume) for volume in arguments["volumes"]], [float, float])
        self.assertEqual(arguments["pair"], (1, 2))
        self.assertIsNone(arguments["either"])

    def test_wrong_values_are_refused(self):
        def run(r: float = Param(0, max=3), n: int = 0):
            return r

        action = declared(run, rules=["r < 2 or n == 0 : not both"])
        for given in ({"r": 4}, {"r": "1"}, {"r": True}, {"q": 1}, {"n": 1.5}, {"r": None}):
            with self.subTest(given=given), self.assertRaises(BadParameters):
                action.arguments(given)
        with self.assertRaises(RuleNotKept) as caught:
            action.arguments({"r": 2, "n": 1})
        self.assertEqual(str(caught.exception), "not both")
        self.assertEqual(action.arguments({"r": 2}), {"r": 2.0, "n": 0})

    def test_defaults_are_fresh_and_converted(self):
        def run(items: list = Param([1]), speed: Speed = Param(100), wait: datetime.timedelta = Param("PT1S")):
            items.append(2)
            return items, speed, wait

        action = declared(run)
        for _ in range(2):
            self.assertEqual(run(**action.arguments({})), ([1, 2], Speed.SLOW, datetime.timedelta(seconds=1)))

    def test_durations_round_trip(self):
        for seconds in (0, 0.5, 1, 59, 60, 3600, 86400, 90061.000001, 1e6):
            delta = datetime.timedelta(seconds=seconds)
            self.assertEqual(parse_duration(format_duration(delta)), delta)
        for text in ("P", "PT", "P1Y", "P1M", "PT1.5H", "1H", "P1DT", "-PT1S", "PT1S ", "P1W1D"):
            with self.subTest(text=text), self.assertRaises(ValueError):
                parse_duration(text)

    def test_results_become_json(self):
        value = {"speed": Speed.FAST, "recipe": Recipe(1.0), "day": datetime.date(2026, 1, 2), "set": {1},
                 "path": pathlib.PurePosixPath("/a"), "wait": datetime.timedelta(seconds=5), "pair": (1, 2),
                 "at": datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc)}
        expected = {"speed": 400, "recipe": {"red": 1.0, "well": "A1", "when": None, "volume": 1.0},
                    "day": "2026-01-02", "set": [1], "path": "/a", "wait": "PT5S", "pair": [1, 2],
                    "at": "2026-01-02T00:00:00Z"}
        self.assertEqual(json.loads(encode(value)), expected)
        self.assertEqual(to_wire(value), expected)
        for bad in (math.nan, [math.inf], object(), {(1, 2): 3}, b"bytes"):
            with self.subTest(bad=bad), self.assertRaises((TypeError, ValueError)):
                encode(bad)


class ContextOutsideOfARun(Registered):
    def test_it_is_harmless(self):
        self.assertIsNone(ctx.run_id)
        self.assertFalse(ctx.simulated)
        ctx.progress(1, 2, "text")
        ctx.log("text")
        ctx.metric("m", 1.5, unit="uL", stock="red")
        ctx.artifact("a.txt", "text")
        ctx.checkpoint()
        ctx.sleep(0)
        for wrong in (lambda: ctx.progress(math.nan), lambda: ctx.metric("m", math.inf),
                      lambda: ctx.artifact("a/b", ""), lambda: ctx.artifact("..", ""),
                      lambda: ctx.log("x", level="loud"), lambda: ctx.sleep(-1)):
            with self.assertRaises(ValueError):
                wrong()
        with self.assertRaises(TypeError):
            ctx.artifact("a.bin", object())

    def test_fake_run_records(self):
        @task(name="recorded")
        def act(n: int = 3):
            for number in range(n):
                ctx.checkpoint()
                ctx.progress(number + 1, n)
                ctx.sleep(100)
            ctx.metric("done", n, unit="1", kind="x")
            ctx.artifact("out.json", {"n": n})
            ctx.artifact("out.csv", Table())
            ctx.artifact("figure.png", Figure())
            with tempfile.NamedTemporaryFile() as opened:
                opened.write(b"from disk")
                opened.flush()
                ctx.artifact("copy.bin", pathlib.Path(opened.name))
            return ctx.run_id, ctx.simulated

        with fake_run(simulated=True) as run:
            self.assertEqual(act(), ("test-run", True))
        self.assertEqual([report.current for report in run.progress_reports], [1, 2, 3])
        self.assertEqual(run.slept, 300)
        self.assertEqual(run.metrics[0].labels, {"kind": "x"})
        self.assertEqual(run.artifacts, {"out.json": b'{"n":3}', "out.csv": b"a,b\n", "figure.png": b"png",
                                         "copy.bin": b"from disk"})
        with fake_run(cancel_at=3) as run, self.assertRaises(RunCancelled):
            act()
        self.assertEqual(len(run.progress_reports), 1)
        self.assertEqual(call(act, {"n": 0}), (None, False))
        with self.assertRaises(ValueError):
            call("recorded", {"n": "x"})

    def test_async_actions_stay_coroutines(self):
        @task(name="later")
        async def later(n: int = Param(2)):
            await asyncio.sleep(0)
            return n

        self.assertTrue(registry.actions["later"].is_async)
        self.assertEqual(call("later", {"n": 5}), 5)

    def test_public_error_carries_a_code(self):
        self.assertEqual(PublicError("no", code="well_filled").code, "well_filled")


class Table:
    columns = ["a"]

    def to_csv(self, index, sep):
        return "a%sb\n" % sep


class Figure:
    def savefig(self, target, format):
        assert isinstance(target, io.BytesIO)
        target.write(format.encode())


if __name__ == "__main__":
    unittest.main()
