"""A run as one line of text and as a card for notebooks. Everything the server said is made harmless first."""

import html

_COLOURS = {"queued": "#6b7280", "running": "#2563eb", "succeeded": "#15803d", "failed": "#b91c1c",
            "cancelled": "#b45309", "timed_out": "#b91c1c", "uncertain": "#7c3aed"}
_CARD = ("<div style=\"border:1px solid #d1d5db;border-radius:8px;padding:10px 14px;max-width:40em;"
         "font-family:system-ui,sans-serif\">%s</div>")


def clean(text):
    """Text without control characters, so that nothing from a device can steer a terminal."""
    return "".join(character if character.isprintable() or character == " " else "\ufffd" for character in str(text))


def run_text(run):
    """One line: action, state, progress, the end of the story."""
    parts = ["%s %s" % (clean(run.get("action")), clean(run.get("state")))]
    if run.get("simulated"):
        parts.append("SIMULATED")
    progress = _progress_text(run.get("progress"))
    if progress and run.get("state") in ("queued", "running"):
        parts.append(progress)
    error = run.get("error")
    if error:
        parts.append(clean(error.get("message")))
    elif run.get("state") == "succeeded":
        parts.append("result %s" % _short(run.get("result")))
    return "<Run %s: %s>" % (clean(run.get("id")), ", ".join(parts))


def run_html(run):
    """A card with state, progress bar, result and artifacts."""
    state = clean(run.get("state"))
    rows = ["<div><b>%s</b> <span style=\"color:%s\">● %s</span>%s <span style=\"color:#6b7280\">%s</span></div>" % (
        _escape(run.get("action")), _COLOURS.get(state, "#6b7280"), _escape(state),
        " <b style=\"color:#b45309\">SIMULATED</b>" if run.get("simulated") else "", _escape(run.get("id")))]
    progress = run.get("progress")
    if progress:
        total = progress.get("total")
        if isinstance(total, (int, float)) and total > 0:
            rows.append("<progress style=\"width:100%%\" max=\"%g\" value=\"%g\"></progress>" % (
                total, progress.get("current") or 0))
        rows.append("<div>%s</div>" % _escape(_progress_text(progress)))
    if run.get("error"):
        rows.append("<div style=\"color:#b91c1c\">%s</div>" % _escape(run["error"].get("message")))
    elif state == "succeeded":
        rows.append("<div>result <code>%s</code></div>" % _escape(_short(run.get("result"), 400)))
    names = [_escape(one.get("name")) for one in run.get("artifacts") or ()]
    if names:
        rows.append("<div>files: %s</div>" % ", ".join(names))
    return _CARD % "".join(rows)


def _progress_text(progress):
    if not progress:
        return ""
    text = "%g" % (progress.get("current") or 0)
    if progress.get("total") is not None:
        text += "/%g" % progress["total"]
    message = progress.get("message")
    return "%s %s" % (text, clean(message)) if message else text


def _short(value, limit=80):
    text = clean(repr(value))
    return text if len(text) <= limit else text[:limit - 1] + "…"


def _escape(value):
    return html.escape(clean("" if value is None else value))
