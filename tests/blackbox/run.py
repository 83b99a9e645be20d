"""Run the black-box tests, two files at a time, as each mostly waits for its servers.

    run.py                every file test_*.py
    run.py NAME...        these files, as in `run.py test_tls test_stop`

Prints what each file prints when it is over, with its time, and ends with 1 when one failed or nothing was run.
"""

import concurrent.futures
import os
import re
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
LANES = 2

# Measures what thousands of connections cost those beside them; nothing else may.
ALONE = ["test_slow"]
# Share what an OpenID provider remembers of a user.
TOGETHER = [["test_directory", "test_workloads"]]


def carried_out(names):
    """Runs these files one after the other in a process of their own. Returns whether all passed, and how many tests ran."""
    begun = time.monotonic()
    over = subprocess.run([sys.executable, "-m", "unittest", *names], cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          stdin=subprocess.DEVNULL, check=False)
    text = over.stdout.decode("utf-8", "replace")
    ran = re.search(r"^Ran (\d+) tests? in", text, re.MULTILINE)
    count = int(ran.group(1)) if ran else 0
    passed = over.returncode == 0 and count > 0
    print("%s%s: %s, %d tests in %.0f s" % (text, " ".join(names), "passed" if passed else "FAILED", count, time.monotonic() - begun),
          flush=True)
    return passed, count


def main(asked):
    files = asked or sorted(name[:-3] for name in os.listdir(HERE) if name.startswith("test_") and name.endswith(".py"))
    for name in files:
        if not os.path.exists(os.path.join(HERE, name + ".py")):
            sys.exit("there is no tests/blackbox/%s.py" % name)
    bundles = [[name for name in bundle if name in files] for bundle in TOGETHER]
    bundled = {name for bundle in bundles for name in bundle}
    bundles += [[name] for name in files if name not in bundled and name not in ALONE]
    # The long ones first, so that none of them is left over at the end.
    bundles = sorted(filter(None, bundles), key=lambda bundle: -sum(os.path.getsize(os.path.join(HERE, name + ".py")) for name in bundle))
    with concurrent.futures.ThreadPoolExecutor(LANES) as lanes:
        ends = list(lanes.map(carried_out, bundles))
    ends += [carried_out([name]) for name in ALONE if name in files]
    print("black box: %d tests in %d files" % (sum(count for _, count in ends), len(files)))
    return 0 if ends and all(passed for passed, _ in ends) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
