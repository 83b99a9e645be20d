"""Times refused sign-ins of known and unknown names; prints medians and whether the two can be told apart."""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

ADMIN = "Kestrel-lantern-plinth-42"
GUESSES_PER_NAME = 60  # below the ceiling of an account


def call(url, path, body, address=None, token=None):
    """Status and answer of a POST that comes from `address`."""
    headers = {"Content-Type": "application/json"}
    if address:
        headers["X-Forwarded-For"] = address
    if token:
        headers["Authorization"] = "Bearer " + token
    request = urllib.request.Request(url + path, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        error.read()
        return error.code, None


def separable(first, second):
    """Two-sided p of the Mann-Whitney U test, by its normal approximation."""
    ranked = sorted([(value, 0) for value in first] + [(value, 1) for value in second])
    ranks = sum(rank for rank, (_, kind) in enumerate(ranked, 1) if kind == 0)
    n, m = len(first), len(second)
    u = ranks - n * (n + 1) / 2
    z = (u - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12)
    return math.erfc(abs(z) / math.sqrt(2))


def main():
    program, samples = sys.argv[1], int(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder:
        ready = os.path.join(folder, "ready.json")
        variables = dict(os.environ, BOOTSTRAP_ADMIN_SECRET=ADMIN, RATE_LIMIT_ENABLED="false", TRUSTED_PROXIES="127.0.0.1")
        with open(os.path.join(folder, "log"), "wb") as log:
            server = subprocess.Popen(
                [program, "server", "--state", os.path.join(folder, "state"), "--listen", "127.0.0.1:0", "--ready-file", ready],
                env=variables, stdout=subprocess.DEVNULL, stderr=log)
        try:
            while not os.path.exists(ready):
                if server.poll() is not None:
                    raise SystemExit("the server did not start")
                time.sleep(0.05)
            with open(ready, encoding="utf-8") as file:
                url = json.load(file)["url"]
            token = call(url, "/auth/login", {"username": "admin", "password": ADMIN})[1]["access_token"]
            count = -(-samples // GUESSES_PER_NAME)
            names = {"known": ["person-%03d" % i for i in range(count)], "unknown": ["nobody-%03d" % i for i in range(count)]}
            for name in names["known"]:
                call(url, "/users", {"name": name, "password": "Marmot-violin-harbour-17", "roles": ["viewer"]}, token=token)
            times = {"known": [], "unknown": []}
            for number in range(samples):
                # The order alternates, so that whatever else the machine does falls on both.
                for kind in ("known", "unknown") if number % 2 else ("unknown", "known"):
                    name = names[kind][number % count]
                    address = "10.%d.%d.%d" % (1 + (kind == "known"), number >> 8, number & 255)
                    begun = time.perf_counter()
                    status, _ = call(url, "/auth/login", {"username": name, "password": "a wrong guess of ours"}, address)
                    times[kind].append((time.perf_counter() - begun) * 1000)
                    if status != 401:
                        raise SystemExit("a guess was answered with %d" % status)
        finally:
            server.terminate()
            server.wait()
    medians = {kind: statistics.median(values) for kind, values in times.items()}
    apart = abs(medians["known"] - medians["unknown"]) / medians["unknown"]
    for kind, values in times.items():
        values.sort()
        print("%-8s p50 %.2f ms  p99 %.2f ms  (%d guesses)" % (kind, medians[kind], values[int(len(values) * 0.99)], len(values)))
    print("medians apart: %.2f %%; Mann-Whitney p = %.3f (they can be told apart below 0.05)" % (apart * 100, separable(times["known"], times["unknown"])))


if __name__ == "__main__":
    main()
