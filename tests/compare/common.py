"""What the comparisons share: our answers, and seeds that are printed."""

import json
import os
import random
import subprocess
import sys


def seeded(name):
    """A generator, and a line that tells how to get the same one again. `./check` asks for one seed, so that a change is judged by
    what it changes; with `INTERLOCK_COMPARE_SEED=` (empty) every run is a new search."""
    seed = int(os.environ.get("INTERLOCK_COMPARE_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"{name}: INTERLOCK_COMPARE_SEED={seed}", file=sys.stderr)
    return random.Random(seed)


def ask(questions):
    """Our answers to these questions, in order."""
    text = "".join(json.dumps(question) + "\n" for question in questions)
    done = subprocess.run([os.environ["INTERLOCK_COMPARE"]], input=text, capture_output=True, text=True, check=True, timeout=600)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(questions)
    return answers
