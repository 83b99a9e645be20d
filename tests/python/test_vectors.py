"""The cases that every implementation of rules and schemas must answer alike."""

import json
import os
import unittest

import support
from interlock._check import compile_schema, json_equal
from interlock._rules import RuleBroken, RuleNameError, RuleSyntaxError, compile_rule, split_rule


def cases(name):
    with open(os.path.join(support.ROOT, "tests", name), encoding="utf-8") as opened:
        document = json.load(opened)
    return document if isinstance(document, list) else document["cases"]


class Vectors(unittest.TestCase):
    def test_rules(self):
        listed = cases("rules.json")
        self.assertGreaterEqual(len(listed), 60)
        for case in listed:
            values = case.get("values", {})
            with self.subTest(expr=case["expr"], values=values):
                try:
                    answer = compile_rule(case["expr"], case.get("names", values))(values)
                except (RuleSyntaxError, RuleNameError, RuleBroken) as problem:
                    self.assertIn("error", case, problem)
                else:
                    self.assertNotIn("error", case)
                    self.assertTrue(json_equal(answer, case["result"]), answer)

    def test_schemas(self):
        listed = cases("schema_vectors.json")
        self.assertGreaterEqual(len(listed), 60)
        for case in listed:
            with self.subTest(schema=case["schema"], value=case.get("value")):
                try:
                    check = compile_schema(case["schema"])
                except ValueError as problem:
                    self.assertIn("error", case, problem)
                else:
                    self.assertNotIn("error", case)
                    self.assertEqual(check(case["value"]) is None, case["ok"], check(case["value"]))

    def test_the_kind_of_error_is_the_documented_one(self):
        kinds = {"syntax": RuleSyntaxError, "name": RuleNameError, "broken": RuleBroken}
        for case in cases("rules.json"):
            if case.get("error") in kinds:
                with self.subTest(expr=case["expr"]), self.assertRaises(kinds[case["error"]]):
                    compile_rule(case["expr"], case.get("names", case["values"]))(case["values"])


class Splitting(unittest.TestCase):
    def test_message_follows_the_first_colon_outside_of_quotes(self):
        self.assertEqual(split_rule("r < 3 : too much: really"), ("r < 3", "too much: really"))
        self.assertEqual(split_rule("w != 'a:b' : not there"), ("w != 'a:b'", "not there"))
        self.assertEqual(split_rule("r < 3"), ("r < 3", "must hold: r < 3"))
        self.assertEqual(split_rule("r < 3 :"), ("r < 3", "must hold: r < 3"))


if __name__ == "__main__":
    unittest.main()
