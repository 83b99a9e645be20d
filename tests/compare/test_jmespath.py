"""20 000 random expressions on random data, against the Python library of JMESPath.

Three differences are known and left out here: `to_string` of the library writes what is not ASCII as escapes (told not to), its
`merge` looks at the type of the first argument only, and a slice straight after an index (`a[0][::1]`) is no projection to it, though the
specification makes every slice one.
"""

import functools
import json
import os
import sys
import types
import unittest

import jmespath
from jmespath import exceptions

from common import ask, seeded

jmespath.functions.json = types.SimpleNamespace(dumps=functools.partial(json.dumps, ensure_ascii=False))

MANY = 2 * int(os.environ.get("INTERLOCK_COMPARE_CASES", "10000"))
NAMES = ["a", "b", "c", "deep", "list"]
FUNCTIONS = [
    ("abs", "v"), ("avg", "v"), ("ceil", "v"), ("contains", "vv"), ("ends_with", "vv"), ("floor", "v"), ("join", "vv"), ("keys", "v"),
    ("length", "v"), ("map", "rv"), ("max", "v"), ("max_by", "vr"), ("merge", "vv"), ("min", "v"), ("min_by", "vr"), ("not_null", "vv"),
    ("reverse", "v"), ("sort", "v"), ("sort_by", "vr"), ("starts_with", "vv"), ("sum", "v"), ("to_array", "v"), ("to_number", "v"),
    ("to_string", "v"), ("type", "v"), ("values", "v"),
]


class Maker:
    def __init__(self, random):
        self.random = random

    def data(self, depth=3):
        random = self.random
        kind = random.randrange(9) if depth else random.randrange(6)
        if kind < 3:
            return random.choice([0, 1, 2, -3, 7.5, -0.25, 10])
        if kind < 5:
            return random.choice(["", "a", "ab", "7", "größe", "b"])
        if kind == 5:
            return random.choice([None, True, False])
        if kind == 6:
            return [self.data(depth - 1) for _ in range(random.randrange(4))]
        if kind == 7:
            # Lists of one kind, so that functions have something to do.
            one = random.choice([lambda: random.randrange(9), lambda: random.choice("abc"), lambda: {"a": random.randrange(5), "b": "x"}])
            return [one() for _ in range(random.randrange(5))]
        # In the order in which we hold them: what * gives has none of its own.
        return {name: self.data(depth - 1) for name in sorted(random.sample(NAMES, random.randrange(1, 5)))}

    def literal(self):
        random = self.random
        value = self.data(1)
        if isinstance(value, str) and random.random() < 0.5:
            return "'" + value + "'"
        return "`" + json.dumps(value).replace("`", "\\`") + "`"

    def index(self):
        random = self.random
        number = lambda: str(random.randint(-3, 3))  # noqa: E731
        kind = random.randrange(6)
        if kind == 0:
            return "[*]"
        if kind == 1:
            return "[]"
        if kind == 2:
            return "[?" + self.expression(1) + "]"
        if kind == 3:
            return f"[{random.choice([number(), ''])}:{random.choice([number(), ''])}:{random.choice(['1', '2', '-1', ''])}]"
        return f"[{number()}]"

    def chain(self, depth):
        random = self.random
        text = random.choice([random.choice(NAMES), random.choice(NAMES), "@", '"a"', "*"])
        for _ in range(random.randrange(4)):
            kind = random.randrange(5)
            if kind < 2:
                text += "." + random.choice(NAMES)
            elif kind == 2:
                text += self.index()
            elif kind == 3 and depth:
                text += random.choice([f".[{self.expression(depth - 1)}, {self.expression(0)}]", f".{{x: {self.expression(depth - 1)}, y: {self.expression(0)}}}", ".*"])
            else:
                text += " | " + random.choice(NAMES + ["[0]", "@"]) if random.random() < 0.3 else ""
        return text

    def expression(self, depth=2):
        random = self.random
        kind = random.randrange(12) if depth else random.randrange(5)
        if kind < 4:
            return self.chain(depth)
        if kind == 4:
            return self.literal()
        left, right = self.expression(depth - 1), self.expression(depth - 1)
        if kind == 5:
            return f"{left} {random.choice(['==', '!=', '<', '<=', '>', '>='])} {right}"
        if kind == 6:
            return f"{left} {random.choice(['||', '&&', '|'])} {right}"
        if kind == 7:
            return f"!{left}" if random.random() < 0.5 else f"({left})"
        if kind == 8:
            return f"({left}){self.index()}" if random.random() < 0.5 else f"[{left}, {right}]"
        name, kinds = random.choice(FUNCTIONS)
        arguments = [("&" + self.expression(0)) if kind == "r" else self.expression(depth - 1) for kind in kinds]
        return f"{name}({', '.join(arguments)})"


def slice_after_index(node):
    """Whether the library joined a slice to an index before it, and so lost the projection that the slice begins."""
    if not isinstance(node, dict):
        return False
    children = node.get("children", [])
    joined = node.get("type") == "index_expression" and any(child.get("type") == "slice" for child in children[2:])
    return joined or any(map(slice_after_index, children))


def theirs(expression, data):
    try:
        compiled = jmespath.compile(expression)
    except exceptions.JMESPathError:
        return ("refused",)
    if slice_after_index(compiled.parsed):
        return ("broken",)
    try:
        return ("value", compiled.search(data))
    except exceptions.JMESPathError:
        return ("failed",)
    except (TypeError, AttributeError, ValueError, KeyError, IndexError, OverflowError):
        # A mistake of the library, not of the expression: there is nothing to compare.
        return ("broken",)


def same(one, two):
    """As JSON: true is not 1, and 1.0 is 1."""
    if isinstance(one, bool) or isinstance(two, bool) or one is None or two is None:
        return one is two
    if isinstance(one, (int, float)) and isinstance(two, (int, float)):
        return one == two or abs(one - two) <= 1e-12 * max(abs(one), abs(two))
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(same(one[name], two[name]) for name in one)
    return one == two


class Expressions(unittest.TestCase):
    def test_random_expressions_answer_as_in_python(self):
        maker = Maker(seeded("jmespath"))
        questions = [{"expression": maker.expression(), "data": {name: maker.data() for name in NAMES}} for _ in range(MANY)]
        wrong, tally = [], {}
        for question, answer in zip(questions, ask(questions)):
            expected = theirs(question["expression"], question["data"])
            kind = next(iter(answer))
            tally[expected[0]] = tally.get(expected[0], 0) + 1
            if expected[0] == "broken" or "merge takes" in answer.get("failed", ""):
                continue
            if kind != expected[0] or (kind == "value" and not same(answer["value"], expected[1])):
                wrong.append(f"{question['expression']} on {json.dumps(question['data'])}:\n  ours   {answer}\n  theirs {expected}")
        print(f"  {MANY} compared, {tally}, {len(wrong)} differ", file=sys.stderr)
        self.assertGreater(tally["value"], MANY // 4)
        self.assertFalse(wrong, "\n".join(wrong[:8]))


if __name__ == "__main__":
    unittest.main()
