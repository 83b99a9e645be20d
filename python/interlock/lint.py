"""``python -m interlock.lint FILE``: what is missing in the declarations of a device file, as JSON.

Prints ``{"ok", "actions", "findings"}``; ``ok`` is false when the file can not be served. The exit code is 0 or 1.
Functions are not called, but the file is executed, as it is when it is served.
"""

import json
import os
import sys

from ._declare import registry
from ._report import error_of
from .worker import load_file


def findings_of(action):
    """What a reader of one ActionSpec would miss."""
    found = []

    def warn(parameter, message):
        found.append({"action": action["name"], "parameter": parameter, "level": "warning", "message": message})

    if not action["doc"]:
        warn(None, "has no docstring; callers see it as the description")
    resolved = registry.actions[action["name"]].parameters
    for parameter in action["parameters"]:
        name = parameter["name"]
        if not resolved[name].is_annotated:
            warn(name, "has no type; write for example %s: float" % name)
        if _is_numeric(parameter["schema"]):
            if not _has_limits(parameter["schema"]):
                warn(name, "is a number without limits; write = Param(..., min=0, max=300)")
            if parameter["unit"] is None and resolved[name].param.unit is None:
                warn(name, "is a number without a unit; write unit=\"uL\", or unit=\"\" if it has none")
    if action["effects"] is None:
        warn(None, "does not say what it does to the world; write effects=\"moves\", \"reads\" or \"none\"")
    return found


def _numeric_parts(schema):
    """The schemas of numbers in a parameter: itself, the items of a list, the branches of a union."""
    if "enum" in schema or "const" in schema:
        return []
    names = schema.get("type", [])
    names = [names] if isinstance(names, str) else names
    parts = [schema] if "number" in names or "integer" in names else []
    for branch in schema.get("anyOf", []) + ([schema["items"]] if "items" in schema else []):
        parts += _numeric_parts(branch)
    return parts


def _is_numeric(schema):
    return bool(_numeric_parts(schema))


def _has_limits(schema):
    return all("minimum" in part and "maximum" in part for part in _numeric_parts(schema))


def lint(path):
    """The report for one file."""
    os.environ["INTERLOCK_WORKER"] = "1"
    path = os.path.abspath(path)
    registry.strict = True
    try:
        load_file(path)
        actions = [action.spec() for action in registry.actions.values()]
    except BaseException as problem:
        error = error_of(problem, path=path)
        return {"ok": False, "actions": [], "findings": [
            {"action": None, "parameter": None, "level": "error", "file": error["file"], "line": error["line"],
             "message": "%s: %s" % (error["class"], error["message"])}]}
    findings = [finding for action in actions for finding in findings_of(action)]
    if not actions:
        findings.append({"action": None, "parameter": None, "level": "error",
                         "message": "declares no action; put @task on a function"})
    return {"ok": not any(finding["level"] == "error" for finding in findings), "actions": actions,
            "findings": findings}


def main(arguments):
    """Entry point. What the file prints goes to standard error."""
    if len(arguments) != 1:
        print("usage: python -m interlock.lint FILE", file=sys.stderr)
        return 2
    output = os.dup(1)
    os.dup2(2, 1)
    report = lint(arguments[0])
    sys.stdout.flush()
    with os.fdopen(output, "w", encoding="utf-8") as opened:
        json.dump(report, opened, ensure_ascii=False, indent=1)
        opened.write("\n")
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
