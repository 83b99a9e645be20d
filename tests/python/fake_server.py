"""A device server for the client's tests: the wire of docs/reference/device-http.md, with faults on demand."""

import json
import socket
import struct
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ACTIONS = {"device": {"name": "sim", "title": "Simulated", "description": None}, "actions": [
    {"name": "mix", "title": "Mix", "doc": "Mix in one well.", "is_async": False, "role": None, "idempotent": False,
     "effects": "doses", "timeout_seconds": None, "duration": None, "resources": [], "approve": "never",
     "rules": [{"expr": "r <= 300", "message": "at most 300"}],
     "parameters": [
         {"name": "r", "title": None, "help": "red stock", "required": True, "default": None, "type": "number",
          "unit": "uL", "widget": None, "sensitive": False, "schema": {"type": "number", "minimum": 0, "maximum": 300}},
         {"name": "well", "title": None, "help": None, "required": False, "default": "A1", "type": "string",
          "unit": None, "widget": None, "sensitive": False, "schema": {"type": "string"}}]},
    {"name": "stop", "title": None, "doc": None, "is_async": False, "role": None, "idempotent": True, "effects": None,
     "timeout_seconds": None, "duration": None, "resources": [], "approve": "never", "rules": [], "parameters": []}]}


FINAL = ("succeeded", "failed", "cancelled", "timed_out", "uncertain")


def problem(status, code, message, **more):
    return status, dict({"status": status, "code": code, "error": code, "message": message, "detail": message,
                         "request_id": "req-1"}, **more), {}


class FakeServer:
    """Counts what happened. ``faults`` is a list of things to do to the next requests, one each:

    "drop"      execute, then close the connection without an answer
    "reset"     the same, with a reset
    "expire"    forget all tokens first
    a tuple     answer with this (status, body, headers)
    """

    def __init__(self, tls=None):
        self.requests = []
        self.executed = []
        self.keys = {}
        self.tokens = set()
        self.logins = 0
        self.issued = 0
        self.codes = None
        """Codes of the second factor, each good once; None: there is no second factor, and no refresh token."""
        self.refresh_tokens = set()
        self.fresh = False
        self.faults = []
        self.runs = {}
        self.stream_breaks = 0
        self.hold = threading.Event()
        self.closing = threading.Event()
        self.hold.set()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                fake.handle(self, "GET")

            def do_POST(self):
                fake.handle(self, "POST")

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None
        if tls is not None:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.url = "%s://127.0.0.1:%d" % ("http" if tls is None else "https", self.server.server_address[1])
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(10)

    def handle(self, handler, method):
        length = int(handler.headers.get("Content-Length") or 0)
        body = handler.rfile.read(length)
        parts = urllib.parse.urlsplit(handler.path)
        self.requests.append((method, handler.path, dict(handler.headers), body))
        fault = self.faults.pop(0) if self.faults and parts.path != "/auth/login" else None
        if fault == "expire":
            self.tokens.clear()
        if isinstance(fault, tuple):
            return self.answer(handler, *fault)
        if parts.path.endswith("/events") and "event-stream" in handler.headers.get("Accept", ""):
            return self.stream(handler, parts.path.split("/")[2])
        answer = self.route(method, parts.path, urllib.parse.parse_qs(parts.query), handler.headers, body)
        if fault in ("drop", "reset"):
            if fault == "reset":
                handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.close_connection = True
            handler.wfile.flush()
            handler.connection.close()
            return None
        return self.answer(handler, *answer)

    def answer(self, handler, status, body, headers):
        content = body if isinstance(body, bytes) else json.dumps(body).encode("utf-8")
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(content)))
        handler.send_header("X-Request-ID", "req-header")
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)

    def route(self, method, path, query, headers, body):
        if path == "/auth/login":
            self.logins += 1
            form = urllib.parse.parse_qs(body.decode("ascii"))
            if form.get("username") != ["ada"] or form.get("password") != ["se cret&ü"]:
                return problem(401, "unauthorized", "wrong user name or password")
            if self.codes is not None and (form.get("otp") or [None])[0] not in self.codes:
                return problem(401, "second_factor_required", "send a code")
            if self.codes is not None:
                self.codes.remove(form["otp"][0])
            return self.issue()
        if path == "/auth/refresh":
            spent = json.loads(body.decode("utf-8"))["refresh_token"]
            if spent not in self.refresh_tokens:
                return problem(401, "unauthorized", "sign in")
            self.refresh_tokens.remove(spent)
            return self.issue()
        if headers.get("Authorization", "")[7:] not in self.tokens:
            return problem(401, "unauthorized", "sign in")
        if path == "/actions":
            return 200, ACTIONS, {}
        if path.startswith("/execute/"):
            return self.execute(path[len("/execute/"):], headers, json.loads(body.decode("utf-8")))
        if path.startswith("/check/"):
            given = json.loads(body.decode("utf-8"))
            if not isinstance(given.get("r"), (int, float)) or given["r"] > 300:
                return problem(400, "invalid_parameters", "a parameter was refused",
                               errors=[{"loc": ["body", "r"], "type": "range", "msg": "must be at most 300"}])
            return 200, {"task_name": path[7:], "parameters": given, "ok": True}, {}
        if path.startswith("/runs/"):
            return self.run(path.split("/")[2:], query)
        if path == "/auth/step-up":
            given = json.loads(body.decode("utf-8"))
            if given.get("otp") not in (self.codes or ()):
                return problem(401, "unauthorized", "the code is not right")
            self.codes.remove(given["otp"])
            self.tokens.clear()
            self.fresh = True
            return self.issue()
        if path == "/stop/release":
            if not self.fresh:
                return problem(403, "step_up_required", "prove again who you are")
            return 200, {"engaged": False}, {}
        if path == "/stop":
            reason = json.loads(body.decode("utf-8")).get("reason")
            return 200, {"engaged": True, "confirmed": 1, "of": 1, "reason": reason}, {}
        if path == "/device":
            return 200, {"name": "sim", "state": "ready"}, {}
        return problem(404, "not_found", "no such path")

    def issue(self):
        self.issued += 1
        token = "token-%d" % self.issued
        self.tokens.add(token)
        answer = {"access_token": token, "token_type": "bearer", "expires_in": 60, "user": "ada"}
        if self.codes is not None:
            answer["refresh_token"] = "refresh-%d" % self.issued
            self.refresh_tokens = {answer["refresh_token"]}
        return 200, answer, {}

    def execute(self, name, headers, parameters):
        key = headers.get("Idempotency-Key")
        if key in self.keys:
            return self.keys[key]
        self.executed.append((name, parameters, key))
        run_id = "run-%d" % len(self.executed)
        result = {"mixed": parameters, "simulated": headers.get("Interlock-Simulate") == "true"}
        self.runs[run_id] = {"id": run_id, "action": name, "state": "queued", "simulated": result["simulated"],
                             "parameters": parameters, "result": None, "error": None, "progress": None,
                             "request_id": "req-1", "artifacts": []}
        if headers.get("Prefer") == "respond-async":
            answer = (202, dict(self.runs[run_id]), {"Location": "/runs/" + run_id})
            if self.hold.is_set():
                self.finish(run_id, result)
        else:
            answer = (200, {"task_name": name, "parameters": parameters, "result": result, "status": "success",
                            "run_id": run_id}, {})
        self.keys[key] = answer
        return answer

    def finish(self, run_id, result=None, state="succeeded", error=None):
        self.runs[run_id].update(state=state, result=result, error=error, artifacts=[
            {"name": "a.txt", "media_type": "text/plain", "bytes": 3}])

    def run(self, parts, query):
        run = self.runs.get(parts[0])
        if run is None:
            return problem(404, "run_not_found", "no such run")
        if len(parts) == 1:
            return 200, run, {}
        if parts[1] == "cancel":
            run["state"] = "cancelled"
            return 202, run, {}
        if parts[1] == "artifacts":
            return 200, b"abc", {}
        after = int(query["after"][0])
        items = [event for event in self.events() if event["seq"] > after]
        return 200, {"items": items[:2], "next_after": items[:2][-1]["seq"] if items else after,
                     "done": len(items) <= 2}, {}

    def events(self):
        return [{"seq": 1, "at": "t", "kind": "state", "data": {"state": "running"}},
                {"seq": 2, "at": "t", "kind": "progress", "data": {"current": 1, "total": 2, "message": "half"}},
                {"seq": 3, "at": "t", "kind": "log", "data": {"level": "info", "message": "line"}},
                {"seq": 4, "at": "t", "kind": "state", "data": {"state": "succeeded"}}]

    def stream(self, handler, run_id):
        if handler.headers.get("Authorization", "")[7:] not in self.tokens:
            return self.answer(handler, *problem(401, "unauthorized", "sign in"))
        after = int(handler.headers.get("Last-Event-ID") or 0)
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(b": hello\n\n")
        for event in self.events():
            if event["seq"] <= after:
                continue
            while event["seq"] == 4 and self.runs[run_id]["state"] not in FINAL:
                if self.closing.wait(0.005):
                    return None
            text = "id: %d\nevent: %s\ndata: %s\n\n" % (event["seq"], event["kind"], json.dumps(event))
            handler.wfile.write(text.encode("utf-8"))
            if self.stream_breaks:
                self.stream_breaks -= 1
                break
        handler.close_connection = True
        return None
