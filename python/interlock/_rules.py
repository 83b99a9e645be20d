"""Rules across parameters, such as ``r + y + b <= 300``.

The grammar is that of docs/reference/worker-protocol.md, the same in the browser, the server and here; the cases in
tests/rules.json hold for every implementation. Nothing is ever passed to ``eval``.

The points that the grammar leaves open are decided like this:

* ``and``, ``or`` and ``not`` take true and false only; ``and`` and ``or`` do not look at the right side when the left
  one decides.
* ``== != in`` compare any kinds: different kinds are unequal, lists and objects are compared by content. ``< <= > >=``
  take two numbers or two texts; texts are ordered by code point.
* ``in`` looks for an item in a list or for a part of a text.
* ``+ - * /`` and ``abs`` take numbers; ``min`` and ``max`` take numbers or one list of numbers; ``len`` takes a text
  (counted in code points), a list or an object.
* A result that is not a finite number breaks the rule, as dividing by zero does.
* A text has no escapes: it ends at the next quote of the kind it started with.
* A level is one opening bracket: of a group, a call or a list.
"""

import math
import re

from ._check import json_equal

MAX_LENGTH = 500
MAX_LEVELS = 32

_TOKEN = re.compile(r"""
    (?P<space>[ \t\r\n]+)
  | (?P<number>[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)
  | (?P<text>"[^"]*"|'[^']*')
  | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
  | (?P<sign><=|>=|==|!=|[-+*/<>()\[\],])
""", re.VERBOSE)
_CONSTANTS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}
_WORDS = {"and", "or", "not", "in"}
_ORDERINGS = {"<": lambda a, b: a < b, "<=": lambda a, b: a <= b, ">": lambda a, b: a > b, ">=": lambda a, b: a >= b}


class RuleSyntaxError(ValueError):
    """The text is not a rule."""


class RuleNameError(ValueError):
    """The rule uses a name that is neither a parameter nor a function."""


class RuleBroken(Exception):
    """The rule has no value for these parameters: kinds do not fit, or a division by zero."""


def compile_rule(text, names):
    """Compile ``text`` over the parameter names ``names`` to ``evaluate(values)``.

    ``evaluate`` returns a JSON value or raises :class:`RuleBroken`; a name missing from ``values`` is null.
    Raises :class:`RuleSyntaxError` or :class:`RuleNameError`.
    """
    if len(text) > MAX_LENGTH:
        raise RuleSyntaxError("a rule has at most %d characters" % MAX_LENGTH)
    return _Parser(_tokens(text), set(names)).whole()


def split_rule(text):
    """``"expression : message"`` as ``(expression, message)``; a message is made up when there is none."""
    quote = None
    for index, character in enumerate(text):
        if quote is not None:
            quote = None if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character == ":":
            expression, message = text[:index].strip(), text[index + 1:].strip()
            return expression, message or "must hold: %s" % expression
    expression = text.strip()
    return expression, "must hold: %s" % expression


def _tokens(text):
    tokens, position = [], 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise RuleSyntaxError("unexpected %r at character %d" % (text[position], position + 1))
        kind = match.lastgroup
        if kind != "space":
            tokens.append((kind, match.group(), position + 1))
        position = match.end()
    tokens.append(("end", "the end", len(text) + 1))
    return tokens


class _Parser:
    """Recursive descent; every method returns a function from the values to a JSON value."""

    def __init__(self, tokens, names):
        self.tokens = tokens
        self.names = names
        self.at = 0
        self.level = 0

    def whole(self):
        value = self.either()
        if self.tokens[self.at][0] != "end":
            self.fail()
        return value

    def fail(self):
        _, text, position = self.tokens[self.at]
        raise RuleSyntaxError("unexpected %s at character %d" % (text, position))

    def take(self, *texts):
        """The next token's text if it is one of these signs or words, else None."""
        kind, text, _ = self.tokens[self.at]
        if text in texts and kind in ("sign", "name"):
            self.at += 1
            return text
        return None

    def expect(self, text):
        if self.take(text) is None:
            self.fail()

    def either(self):
        left = self.both()
        while self.take("or"):
            left = _either(left, self.both())
        return left

    def both(self):
        left = self.negation()
        while self.take("and"):
            left = _both(left, self.negation())
        return left

    def negation(self):
        if self.take("not"):
            inner = self.comparison()
            return lambda values: not _truth(inner(values))
        return self.comparison()

    def comparison(self):
        left = self.sum()
        sign = self.take("<=", "<", ">=", ">", "==", "!=", "in")
        if sign is None and self.take("not"):
            self.expect("in")
            sign = "not in"
        return left if sign is None else _comparison(sign, left, self.sum())

    def sum(self):
        left = self.term()
        sign = self.take("+", "-")
        while sign:
            left = _arithmetic(sign, left, self.term())
            sign = self.take("+", "-")
        return left

    def term(self):
        left = self.unary()
        sign = self.take("*", "/")
        while sign:
            left = _arithmetic(sign, left, self.unary())
            sign = self.take("*", "/")
        return left

    def unary(self):
        if self.take("-"):
            inner = self.atom()
            return lambda values: -_number(inner(values))
        return self.atom()

    def atom(self):
        kind, text, _ = self.tokens[self.at]
        if kind == "number":
            self.at += 1
            return _constant(_literal_number(text))
        if kind == "text":
            self.at += 1
            return _constant(text[1:-1])
        if kind == "name" and text not in _WORDS:
            self.at += 1
            return self.named(text)
        if self.take("("):
            self.deeper()
            inner = self.either()
            self.expect(")")
            self.level -= 1
            return inner
        if self.take("["):
            items = self.sequence("]")
            return lambda values: [item(values) for item in items]
        return self.fail()

    def named(self, name):
        if name in _CONSTANTS:
            return _constant(_CONSTANTS[name])
        if self.take("("):
            arguments = self.sequence(")")
            return _call(name, arguments)
        if name not in self.names:
            raise RuleNameError("%s is not a parameter" % name)
        return lambda values: _from_json(values.get(name))

    def sequence(self, end):
        self.deeper()
        items = []
        if not self.take(end):
            items.append(self.either())
            while self.take(","):
                items.append(self.either())
            self.expect(end)
        self.level -= 1
        return items

    def deeper(self):
        self.level += 1
        if self.level > MAX_LEVELS:
            raise RuleSyntaxError("a rule is at most %d levels deep" % MAX_LEVELS)


def _constant(value):
    return lambda values: value


def _literal_number(text):
    number = float(text)
    if not math.isfinite(number):
        raise RuleSyntaxError("the number %s is too large" % text)
    return number


def _from_json(value):
    """A parameter as the rules see it: every number is a double."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, (int, float)):
        try:
            return _finite(float(value))
        except OverflowError:
            raise RuleBroken("a number is too large")
    if isinstance(value, (list, tuple)):
        return [_from_json(item) for item in value]
    if isinstance(value, dict):
        return {key: _from_json(item) for key, item in value.items()}
    raise RuleBroken("a parameter is not a JSON value")


def _finite(number):
    if not math.isfinite(number):
        raise RuleBroken("the result is not a number")
    return number


def _number(value):
    if type(value) is not float:
        raise RuleBroken("a number is needed")
    return value


def _truth(value):
    if value is True or value is False:
        return value
    raise RuleBroken("true or false is needed")


def _either(left, right):
    return lambda values: _truth(left(values)) or _truth(right(values))


def _both(left, right):
    return lambda values: _truth(left(values)) and _truth(right(values))


def _arithmetic(sign, left, right):
    def evaluate(values):
        one, two = _number(left(values)), _number(right(values))
        if sign == "+":
            return _finite(one + two)
        if sign == "-":
            return _finite(one - two)
        if sign == "*":
            return _finite(one * two)
        if two == 0:
            raise RuleBroken("division by zero")
        return _finite(one / two)

    return evaluate


def _comparison(sign, left, right):
    if sign == "==":
        return lambda values: json_equal(left(values), right(values))
    if sign == "!=":
        return lambda values: not json_equal(left(values), right(values))
    if sign in ("in", "not in"):
        wanted = sign == "in"
        return lambda values: _contains(right(values), left(values)) is wanted
    compare = _ORDERINGS[sign]

    def evaluate(values):
        one, two = left(values), right(values)
        if type(one) is not type(two) or type(one) not in (float, str):
            raise RuleBroken("only two numbers or two texts can be ordered")
        return compare(one, two)

    return evaluate


def _contains(container, item):
    if isinstance(container, list):
        return any(json_equal(item, one) for one in container)
    if isinstance(container, str) and isinstance(item, str):
        return item in container
    raise RuleBroken("in needs a list, or a text in a text")


def _call(name, arguments):
    function = _FUNCTIONS.get(name)
    if function is None:
        raise RuleNameError("%s is not a function; there are abs, min, max and len" % name)
    if not arguments or (name in ("abs", "len") and len(arguments) != 1):
        raise RuleSyntaxError("%s takes %s" % (name, "one value" if name in ("abs", "len") else "at least one value"))
    return lambda values: function([argument(values) for argument in arguments])


def _extreme(choose):
    def function(values):
        if len(values) == 1 and isinstance(values[0], list):
            values = values[0]
        if not values:
            raise RuleBroken("min and max need at least one number")
        return choose(_number(value) for value in values)

    return function


def _length(values):
    if not isinstance(values[0], (str, list, dict)):
        raise RuleBroken("len needs a text, a list or an object")
    return float(len(values[0]))


_FUNCTIONS = {
    "abs": lambda values: abs(_number(values[0])),
    "min": _extreme(min),
    "max": _extreme(max),
    "len": _length,
}
