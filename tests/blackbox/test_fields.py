"""Every text of every request keeps to the grammar and the bound that the API document gives it.

The document of a running server is walked. For every text field of every operation (bodies, queries, paths, headers) what the
document rules out is sent in an otherwise valid request, and nothing of it may be taken. The document is the oracle: a value
is sent only if its schema rules it out, so a field without a grammar and a bound fails by having nothing to send.
"""

import itertools
import json
import re
import sys
import unittest
import urllib.parse

import httpx

from orchestra import NAP, Orchestrator
from support import PASSWORD, Server, wait_for

SOURCE = """
    from interlock import Param, task

    @task
    def say(text: str = Param(max_length=40), free: str = "any", colour: str = Param("red", choices=["red", "blue"])) -> None:
        pass
"""
SIZE = 65536
"""MAX_REQUEST_SIZE of the servers here: it bounds what has no bound of its own."""
UUID = "018f6b1e-2c3d-7a4b-8c9d-0e1f2a3b4c5d"
SEALED = {"BLOCK_SUSPICIOUS_PATTERNS": "false", "MAX_REQUEST_SIZE": str(SIZE)}
"""Screening off: it is the grammars that are tried, not what stands before them."""
TOO = ["", "\x00", "a\x00b", "a\x01b", "a\x7fb", "a\x85b", "a\nb", "\u00e9", "' OR '1'='1", "<script>", "../..", "a b", "-", "7", "ZZZ", "\U0001f916"]
"""What somebody might send. What the field's grammar rules out is sent, alone and behind a valid value."""
WRONG_TYPES = [5, 1.5, True, ["a"], {"a": "b"}]
ANONYMOUS = {"login", "agent_token", "agent_refresh", "refresh", "accept_invitation", "finish_reset", "oidc_exchange", "passkey_sign_in",
             "sign_in_by_certificate", "agent_revoke"}
"""Who cannot prove who he is hears the same whatever was wrong, so no field is named; the valid request shows that it is the field."""
REFUSED_ALIKE = (400, 401, 404, 413, 415, 422, 429)


def resolved(document, schema):
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def kinds(schema):
    kind = schema.get("type", [])
    return kind if isinstance(kind, list) else [kind]


def texts(document, schema, place=()):
    """Places and schemas of the texts in a body: names of members, 0 for an element of a list."""
    schema = resolved(document, schema)
    branches = schema.get("anyOf", [])
    nullable = any("null" in kinds(branch) for branch in branches)
    for branch in branches:
        for found in texts(document, branch, place):
            yield (found[0], found[1], found[2] or (nullable and found[0] == place))
    if "string" in kinds(schema):
        yield place, schema, "null" in kinds(schema)
    for name, member in schema.get("properties", {}).items():
        yield from texts(document, member, (*place, name))
    if isinstance(schema.get("items"), dict):
        yield from texts(document, schema["items"], (*place, 0))


def holds(schema, text):
    """Whether a text is what its schema allows. The formats here say no more than the patterns beside them."""
    if "enum" in schema:
        return text in schema["enum"]
    pattern = schema.get("pattern", "^[\\s\\S]*$")
    if not schema.get("minLength", 0) <= len(text) <= schema["maxLength"]:
        return False
    return re.match(pattern[:-1] + r"\Z", text) is not None


def wrong_texts(schema, valid):
    """Texts that the schema rules out. The first is too long by one and nothing else, if it can be."""
    if "enum" not in schema:
        fill = "0" if schema.get("format") == "date-time" else valid[-1]
        end = "Z" if schema.get("format") == "date-time" else ""
        body = valid[:-1] + "." if end else valid
        long = body + fill * (schema["maxLength"] + 1 - len(body) - len(end)) + end
        assert holds(dict(schema, maxLength=len(long)), long), (schema, long[:80])
        yield long
    for text in TOO:
        for candidate in (text, valid + text):
            if not holds(schema, candidate):
                yield candidate


def put(body, place, value):
    """A copy of a body with another value in one place."""
    if not place:
        return value
    copy = json.loads(json.dumps(body)) if body is not None else {}
    inner = copy
    for here, after in zip(place, place[1:]):
        kind = list if after == 0 else dict
        if isinstance(inner, list):
            inner[:1] = [inner[0] if inner and isinstance(inner[0], kind) else kind()]
        elif not isinstance(inner.get(here), kind):
            inner[here] = kind()
        inner = inner[here]
    if isinstance(inner, list):
        inner[:1] = [value]
    else:
        inner[place[-1]] = value
    return copy


class Walk:
    """One server and what is sent to it."""

    def __init__(self, case, server, valid, bodies, targets, queries):
        self.case, self.server, self.bodies, self.targets, self.queries = case, server, bodies, targets, queries
        self.valid = valid
        self.number = itertools.count()
        self.fields = self.sent = 0
        self.taken, self.broken, self.elsewhere, self.untyped, self.astray = [], [], [], [], []
        self.client, self.stranger = (server.http(limits=httpx.Limits(max_keepalive_connections=4)) for _ in range(2))
        self.sign_in()

    def sign_in(self):
        self.client.headers["Authorization"] = "Bearer " + self.server.login("root")

    def walk(self):
        document = self.client.get("/openapi.json").json()
        last = {"cancel_task": 1, "change_password": 2, "end_sessions": 3, "emergency_stop": 4, "release_stop": 5, "clear_attention": 6, "logout": 7}
        # What takes away what others need comes late.
        operations = [(last.get(operation["operationId"], method == "delete"), path, method, operation)
                      for path, item in document["paths"].items() for method, operation in item.items()]
        for _, path, method, operation in sorted(operations, key=lambda each: each[:3]):
            self.operation(document, path, method, operation)
        return self

    def operation(self, document, path, method, operation):
        name = operation["operationId"]
        parameters = operation["parameters"]
        content = operation.get("requestBody", {}).get("content", {})
        form = "application/x-www-form-urlencoded" in content
        schema = next(iter(content.values()))["schema"] if content and name != "report_page" else {}
        fields = list(texts(document, schema))
        target = {each["name"]: self.targets.get((name, each["name"]), self.targets.get(each["name"])) for each in parameters if each["in"] == "path"}
        where = dict(path=path, method=method, name=name, form=form, anonymous=operation.get("security") == [])
        for place, field, nullable in fields:
            self.bounded(name, place, field)
            build = self.bodies.get((name, *place[:1]), self.bodies.get(name, lambda n: {}))
            body = build(next(self.number))
            valid = self.value(name, place, field, body)
            # Nothing but a field of the document is tried, and it can hold what is valid.
            self.case.assertTrue(holds(field, valid), (name, place, valid))
            for text in wrong_texts(field, valid):
                self.ask(where, target, put(build(next(self.number)), place, text), place)
            for other in [] if form else WRONG_TYPES + ([] if nullable or not place else [None]):
                # A list of texts may be a text's place, and the body that may be a text may be an object.
                if place == () and isinstance(other, dict):
                    continue
                self.ask(where, target, put(build(next(self.number)), place, other), place)
        build = self.bodies.get(name, lambda n: {})
        for parameter in parameters:
            if parameter["schema"].get("type") == "string":
                self.bounded(name, (parameter["name"],), parameter["schema"])
                self.parameter(where, target, parameter, build)
        self.baseline(where, target, build)

    def bounded(self, name, place, schema):
        self.fields += 1
        if "enum" not in schema and not ("maxLength" in schema and ("pattern" in schema or "format" in schema or schema.get("x-free-text"))):
            self.untyped.append((name, place))

    def value(self, name, place, schema, body):
        """A value that the field can hold."""
        inner = body
        for part in place:
            inner = inner[part] if isinstance(inner, list) and inner else inner.get(part) if isinstance(inner, dict) else None
        if isinstance(inner, str) and inner:
            return inner
        if "enum" in schema:
            return schema["enum"][0]
        for example in (self.valid.get((name, place)), "2026-01-01T00:00:00Z", UUID, "run_" + "0" * 32, "https://lab.example/", "dns:lab.example",
                        "10.9.8.0/24", "a" * 64, "1780000000000-0", "abcd"):
            if example and holds(schema, example):
                return example
        raise AssertionError((name, place, schema))

    def parameter(self, where, target, parameter, build):
        name, place, schema = parameter["name"], parameter["in"], parameter["schema"]
        valid = self.targets.get(name) if place == "path" else self.value(where["name"], (name,), schema, None)
        valid = valid if valid and holds(schema, valid) else self.value(where["name"], (name,), schema, None)
        for text in wrong_texts(schema, valid):
            if place == "path" and text not in ("", "-", "../.."):
                self.ask(where, dict(target, **{name: text}), build(next(self.number)), None)
            elif place == "query":
                self.ask(where, target, build(next(self.number)), (name,), query={name: text})
            elif place == "header" and text and not re.search(r"[\x00-\x1f\x7f\u0100-\U0010ffff]", text) and text == text.strip():
                self.ask(where, target, build(next(self.number)), None, headers={name: text.encode("latin-1")})

    def send(self, where, target, body, query=None, headers=None):
        path = where["path"]
        for part, value in target.items():
            path = path.replace("{%s}" % part, urllib.parse.quote(value, safe=""))
        query = dict(self.queries.get(where["name"], {}), **(query or {}))
        if query:
            path += "?" + urllib.parse.urlencode(query)
        client = self.stranger if where["anonymous"] else self.client
        options = {"data": body} if where["form"] else {} if where["method"] in ("get", "delete") else {"json": body}
        with client.stream(where["method"].upper(), path, headers=headers, **options) as answer:
            # A stream of events has no end of its own.
            if answer.headers.get("content-type", "").startswith("text/event-stream"):
                return answer, {}
            answer.read()
        return answer, answer.json() if "json" in answer.headers.get("content-type", "") and answer.content else {}

    def ask(self, where, target, body, place, query=None, headers=None):
        """Sends what must be refused for one field."""
        answer, told = self.send(where, target, body, query, headers)
        self.sent += 1
        said = (where["name"], place, str(query or headers or (target if place is None else ""))[:120], json.dumps(body)[:200], answer.status_code, str(told)[:300])
        if answer.status_code >= 500:
            self.broken.append(said)
        elif answer.status_code < 400:
            self.taken.append(said)
        elif place is None:
            # Of a path it is told that there is no such thing, or what is wrong; of a header, its name.
            right = answer.status_code in ((404, 422) if headers is None else (400, 422))
            if not right or (headers and next(iter(headers)).lower() not in answer.text.lower()):
                self.elsewhere.append(said)
        elif where["name"] in ANONYMOUS or where["path"].startswith("/oauth/") or where["path"] == "/auth/oidc/logout" or answer.status_code == 413:
            if answer.status_code not in REFUSED_ALIKE:
                self.elsewhere.append(said)
        else:
            locations = [tuple(error["loc"]) for error in told.get("errors") or []]
            begin = ("query" if query else "body", *place[:1])
            if answer.status_code not in (400, 422) or not any(loc[:len(begin)] == begin for loc in locations):
                self.elsewhere.append(said)

    def baseline(self, where, target, build):
        """The same request with nothing wrong: it is taken, or only what it names is not there, or what it acts on."""
        wanted = BASELINES.get(where["name"], (200, 201, 202, 204))
        def answered():
            answer, told = self.send(where, target, build(next(self.number)))
            # Who has guessed must wait, and those were guesses.
            return None if answer.status_code == 429 else (answer, told)

        answer, told = wait_for(answered, "the end of the wait for %s" % where["name"])
        if answer.status_code not in wanted:
            self.astray.append((where["name"], answer.status_code, str(told)[:400]))
        if where["name"] in ("change_password", "end_sessions", "logout", "step_up"):
            with self.server.http(self.server.token()) as admin:
                admin.post("/users/root/password", json={"password": PASSWORD}).raise_for_status()
            self.sign_in()


BASELINES = {
    # Nothing of these is set up here, or there is nothing to act on: there is no such thing, or it is no credential of anybody. What
    # browsers report is not written as this walk writes bodies.
    "oidc_login": (404,), "oidc_callback": (303, 400, 401, 404), "oidc_exchange": (401,), "oidc_logout": (404,), "sign_in_by_certificate": (404,),
    "begin_passkey": (404,), "begin_passkey_sign_in": (404,), "passkey_sign_in": (404,), "confirm_passkey": (404,),
    "accept_invitation": (404,), "finish_reset": (404,), "device_code_page": (200,), "show_device_code": (404,), "approve_device": (404,),
    "deny_device": (404,), "step_up": (200, 409), "unlock": (404,), "remove_factor": (404,), "end_session": (404,), "revoke_api_key": (404,),
    "revoke_invitation": (404,), "delete_role": (404,), "remove_ban": (404,), "decide_approval": (404,), "retry_delivery": (404,),
    "artifact": (404,), "show_run": (404,), "run_events": (404,), "cancel_run": (404,), "show_task_run": (404,), "follow_task_run": (404,),
    "task_run_log": (404,), "cancel_task_run": (404,), "clear_attention": (200, 409), "prove_entry": (200, 404), "read_checkpoint": (200, 404),
    "security_txt": (404,), "renew_recovery_codes": (404, 409), "confirm_totp": (422,), "report_page": (415,), "metrics": (200,), "skip_task": (409,), "revoke_reset": (200, 404),
}


def identity(server, client):
    """Bodies by operation and values for paths, of what both profiles have."""
    agent = client.post("/agents", json={"name": "keeper", "scopes": ["runs:read"]}).json()["id"]
    secret = client.post("/agents/%s/credentials" % agent).json()["agent_secret"]
    pair = client.post("/agents/auth/token", json={"agent_id": agent, "agent_secret": secret}).json()["refresh_token"]
    own = client.post("/auth/login", json={"username": "root", "password": PASSWORD}).json()["refresh_token"]
    key = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo", "kid": "k1"}
    credential = {"id": "abcd", "rawId": "abcd", "type": "public-key", "response": {"clientDataJSON": "abcd"}}
    machine = client.post("/agents", json={"name": "machine", "scopes": ["runs:read"]}).json()["id"]
    client_of = {"client_id": machine, "client_secret": client.post("/agents/%s/credentials" % machine).json()["agent_secret"]}
    bodies = {
        "login": lambda n: {"username": "root", "password": PASSWORD, "scope": "runs:read"},
        "oidc_exchange": lambda n: {"code": "abcd"}, "oidc_logout": lambda n: {"logout_token": "a.b.c"},
        "refresh": lambda n: {"refresh_token": own}, "agent_refresh": lambda n: {"refresh_token": pair},
        "read_notices": lambda n: {"until": "2026-01-01T00:00:00Z"},
        "change_password": lambda n: {"current": PASSWORD, "new": "Otter-cinnamon-bridge-%d" % n},
        "step_up": lambda n: {"password": PASSWORD},
        ("step_up", "passkey"): lambda n: {"passkey": {"state": "abcd", "credential": credential}},
        "enrol_totp": lambda n: {"name": "app %d" % n}, "begin_passkey": lambda n: {"name": "key"},
        "confirm_totp": lambda n: {"code": "123456"},
        "confirm_passkey": lambda n: {"state": "abcd", "credential": credential},
        "passkey_sign_in": lambda n: {"state": "abcd", "credential": credential},
        "create_api_key": lambda n: {"name": "key %d" % n, "scopes": ["runs:read"], "expires_in_days": 1},
        "revoke_tokens": lambda n: {"principal": agent},
        "agent_token": lambda n: {"agent_id": agent, "agent_secret": secret},
        "agent_revoke": lambda n: {"token": "junk"},
        "create_agent": lambda n: {"name": "agent %d" % n, "scopes": ["runs:read"], "webhook_url": "https://lab.example/hook", "grant_types": ["client_credentials"],
                                   "token_endpoint_auth_method": "private_key_jwt"},
        "update_agent": lambda n: {"name": "agent %d" % n, "scopes": ["runs:read"], "webhook_url": "https://lab.example/hook"},
        "set_agent_secret": lambda n: {"password": "Walrus-saffron-lintel-%d" % n},
        "set_agent_keys": lambda n: {"keys": [dict(key)]},
        "set_agent_certificates": lambda n: {"names": ["dns:mixer.lab.example"]},
        "oauth_token": lambda n: dict(client_of, grant_type="client_credentials", scope="runs:read"),
        "device_authorization": lambda n: {"client_id": "bench", "scope": "runs:read"},
        "show_device_code": lambda n: {"user_code": "BCDF-GHJK"}, "approve_device": lambda n: {"user_code": "BCDF-GHJK"}, "deny_device": lambda n: {"user_code": "BCDF-GHJK"},
        "oauth_revoke": lambda n: dict(client_of, token="junk"), "oauth_introspect": lambda n: {"token": "junk"},
        "invite": lambda n: {"name": "guest%d" % n, "roles": ["viewer"]},
        "accept_invitation": lambda n: {"token": "abcd", "password": PASSWORD},
        "start_reset": lambda n: {"what": "password"}, "finish_reset": lambda n: {"token": "abcd", "password": PASSWORD},
        "put_role": lambda n: {"scopes": ["runs:read"], "description": "looks on"},
        "test_policy": lambda n: {"principal": "root", "scope": "runs:read"},
        "create_user": lambda n: {"name": "user%d" % n, "password": PASSWORD, "roles": ["viewer"]},
        "update_user": lambda n: {"roles": ["viewer"]}, "set_password": lambda n: {"password": "Walrus-saffron-lintel-%d" % n},
        "add_ban": lambda n: {"network": "10.9.%d.0/24" % (n % 250), "reason": "a test"},
        "release_stop": lambda n: {"reason": "looked"}, "emergency_stop": lambda n: {"reason": "a test"}, "clear_attention": lambda n: {"reason": "looked"},
    }
    targets = {"agent_id": agent, "name": "visitor", "id": "abcd", "role": "looker", "network": "10.1.2.0-24", "run_id": "run_" + "0" * 32, "task": "say",
               ("delete_role", "role"): "nobody", ("artifact", "name"): "plate.csv"}
    valid = {("oauth_token", ("refresh_token",)): "a.b.c", ("login", ("otp",)): "123456"}
    queries = {"count_audit": {"by": "actor"}, "prove_entry": {"entry": "1"}}
    return bodies, targets, valid, queries


class Fields(unittest.TestCase):
    """Zero taken, no 5xx, and each refused for its field, in both profiles."""

    def walked(self, server, prepare):
        with server:
            with server.http(server.token()) as admin:
                for name, roles in (("root", ["admin", "operator", "viewer", "auditor"]), ("visitor", ["viewer"])):
                    made = admin.post("/users", json={"name": name, "password": PASSWORD, "roles": roles})
                    self.assertEqual(made.status_code, 201, made.text)
            with server.http(server.login("root")) as client:
                bodies, targets, valid, queries = identity(server, client)
                prepare(client, bodies, targets)
            done = Walk(self, server, valid, bodies, targets, queries).walk()
        shown = "%d fields, %d requests that must be refused, %d taken, %d failed, %d refused for something else" % (
            done.fields, done.sent, len(done.taken), len(done.broken), len(done.elsewhere))
        print(shown, file=sys.stderr)
        found = [("%s %s" % (what, each)) for what in ("untyped", "astray", "broken", "taken", "elsewhere") for each in getattr(done, what)]
        self.assertFalse(found, "%s\n%s" % (shown, "\n".join(found[:800])))
        # A document that has lost its fields, or a walk that has lost its way, is no pass.
        self.assertGreater(done.fields, 100)
        self.assertGreater(done.sent, 15 * done.fields)

    def test_an_orchestrator_takes_no_text_that_its_document_rules_out(self):
        def prepare(client, bodies, targets):
            task = {"title": "A task", "description": "For a test", "schedule_kind": "manual", "payload": {"pipeline": [NAP]}, "created_by": "root"}
            made = client.post("/tasks", json=task)
            self.assertEqual(made.status_code, 201, made.text)
            targets.update({"task_id": made.json()["id"], "run_id": UUID, "approval_id": UUID})
            bodies.update({
                "create_task": lambda n: dict(task, dedupe_key="once %d" % n),
                "update_task": lambda n: {"title": "A task"},
                "snooze_task": lambda n: {"delay_seconds": 60, "reason": "later"}, "skip_task": lambda n: {"reason": "not now"},
                "preview_schedule": lambda n: {"schedule_kind": "cron", "schedule_expr": "0 9 * * 1", "timezone": "UTC", "from": "2026-01-01T00:00:00Z"},
                "publish_event": lambda n: {"topic": "plate.ready", "payload": {}, "source_agent_id": "root"},
                "decide_approval": lambda n: {"decision": "deny", "note": "no"}, "cancel_task_run": lambda n: {"reason": "enough"},
            })

        self.walked(Orchestrator(variables=SEALED), prepare)

    def test_a_device_takes_no_text_that_its_document_rules_out(self):
        def prepare(client, bodies, targets):
            say = lambda n: {"text": "hello", "free": "any", "colour": "red"}
            bodies.update({"execute": say, "check": say, "execute_say": say, "cancel_run": lambda n: {"reason": "enough"}})

        self.walked(Server(SOURCE, variables=SEALED), prepare)


if __name__ == "__main__":
    unittest.main()
