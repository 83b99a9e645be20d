"""The declaration of one parameter of an action."""


class _Missing:
    """The type of :data:`MISSING`: "no default was given", which is not the same as ``None``."""

    def __repr__(self):
        return "<required>"

    def __bool__(self):
        return False


MISSING = _Missing()


class Param:
    """What a caller may pass for one parameter; written as its default or inside ``Annotated``.

    default      value when the caller leaves it out; without one the parameter is required
    unit         unit of a number, as a UCUM code: ``"uL"``, ``"mm"``, ``"Cel"``, ``"s"``. ``""`` states that a number
                 has no unit, which keeps ``interlock action lint`` quiet
    min, max     inclusive limits of a number; of every item when the parameter is a list of numbers
    step         a number must be a whole number of steps away from ``min`` (from 0 when there is no ``min``)
    choices      the only values allowed
    min_length, max_length   limits of the number of characters of a text
    min_items, max_items     limits of the number of items of a list
    widget       how a form should ask for it, for example ``"plate96"``
    help         one line of explanation
    title        label in forms
    sensitive    True: never shown, logged or recorded

    Limits are checked in the browser, in the server and again in the worker; a value outside is refused, never
    clamped. Raises ``ValueError`` when the limits contradict each other.
    """

    __slots__ = ("default", "unit", "min", "max", "step", "choices", "min_length", "max_length", "min_items",
                 "max_items", "widget", "help", "title", "sensitive")

    def __init__(self, default=MISSING, *, unit=None, min=None, max=None, step=None, choices=None, min_length=None,
                 max_length=None, min_items=None, max_items=None, widget=None, help=None, title=None,
                 sensitive=False):
        if min is not None and max is not None and min > max:
            raise ValueError("min=%r is above max=%r" % (min, max))
        if step is not None and not step > 0:
            raise ValueError("step=%r must be above 0" % (step,))
        for name, value in (("min_length", min_length), ("max_length", max_length), ("min_items", min_items),
                            ("max_items", max_items)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
                raise ValueError("%s=%r must be a whole number, 0 or more" % (name, value))
        if choices is not None:
            choices = list(choices)
            if not choices:
                raise ValueError("choices must not be empty")
        self.default = default
        self.unit = unit
        self.min = min
        self.max = max
        self.step = step
        self.choices = choices
        self.min_length = min_length
        self.max_length = max_length
        self.min_items = min_items
        self.max_items = max_items
        self.widget = widget
        self.help = help
        self.title = title
        self.sensitive = bool(sensitive)

    @property
    def required(self):
        """True when there is no default."""
        return self.default is MISSING

    def __repr__(self):
        parts = [] if self.required else [repr(self.default)]
        for name in self.__slots__[1:]:
            value = getattr(self, name)
            if value is not None and value is not False:
                parts.append("%s=%r" % (name, value))
        return "Param(%s)" % ", ".join(parts)
