"""A worker that misbehaves, for tests. First argument: how. Speaks docs/reference/worker-protocol.md."""

import json
import os
import signal
import sys
import time

MODE = sys.argv[1]
LAB = os.environ["LAB"]


def note(word):
    with open(os.path.join(LAB, "notes"), "a") as notes:
        notes.write(word + "\n")


def tell(**message):
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def ready():
    actions = [{"name": "act", "parameters": []}]
    tell(type="ready", protocol=2 if MODE == "future" else 1, worker="fake 1", language="fake 1", title=None,
         description=None, actions=actions, hooks={"on_start": False, "safe_state": True}, load_ms=1)


def call(run):
    note("act")
    if MODE == "long_line":
        sys.stdout.write('{"type":"log","run":null,"level":"info","message":"' + "x" * 40_000_000)
        sys.stdout.flush()
    elif MODE == "garbage":
        sys.stdout.write("this is not a message\n")
        sys.stdout.flush()
    elif MODE == "closes":
        os.close(1)
    elif MODE == "last_words":
        tell(type="returned", run=run, result="the end", duration_ms=1)
        os.kill(os.getpid(), signal.SIGKILL)
    elif MODE == "deaf":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    elif MODE == "chatty":
        tell(type="weather", sun=True)
        tell(type="progress", run="run_00000000000070008000000000000000", current=1, total=None, message=None)
        tell(type="returned", run="run_00000000000070008000000000000000", result="not yours", duration_ms=1)
        tell(type="returned", run=run, result="mine", duration_ms=1, extra=[1])
        return
    elif MODE == "long_result":
        tell(type="returned", run=run, result="z" * 1000000, duration_ms=1)
        return
    elif MODE == "flood":
        for _ in range(200000):
            sys.stderr.write("y" * 99 + "\n")
        tell(type="returned", run=run, result=1, duration_ms=1)
        return
    time.sleep(600)


if MODE == "silent":
    time.sleep(600)
for line in sys.stdin:
    command = json.loads(line)
    kind = command["type"]
    if kind == "hello":
        ready()
    elif kind == "start":
        tell(type="started", duration_ms=1)
    elif kind == "safe_state":
        tell(type="safe_state_entered", duration_ms=0)
        note("rest " + command["reason"])
        tell(type="safe_state_done", ok=True, error=None, duration_ms=1)
    elif kind == "call":
        call(command["run"])
    elif kind == "exit":
        sys.exit(0)
