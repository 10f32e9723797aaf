"""A long attack: random paths, methods, hosts, ids and headers at a service with everything on.

    python -m tests.hostile.fuzz --requests 1000000

prints, now and then, how many series there are, how much memory the process has, and how many
errors of our own were counted.  The service runs in the same process, so that nothing is kept
anywhere unseen.  Fails if series or memory grow after the first tenth, or anything of ours failed.
"""

from __future__ import annotations

import argparse
import random
import resource
import time
from pathlib import Path

from tests.hostile.target import TOKEN, Connection, target

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "PROPFIND", "LINK", "FOO")
HEADERS = (
    "traceparent", "tracestate", "baggage", "X-Request-ID", "Forwarded", "X-Forwarded-For", "X-Real-IP",
    "User-Agent", "Cookie", "Authorization", "Accept", "Content-Type", "Referer", "Origin",
)  # fmt: skip
STARTS = ("/", "/items/", "/items/", "/fail", "/metrics", "/_tasks", "/_tasks/", "/_tasks/requests/")
VISIBLE = "".join(map(chr, range(0x21, 0x7F)))
ANYTHING = VISIBLE + " \udc80\udcff\udcc3\udca9"
_GROWTH = 1.1


def text(chance: random.Random, letters: str, longest: int) -> str:
    return "".join(chance.choices(letters, k=chance.randrange(longest)))


def head(chance: random.Random) -> str:
    """A request that no other is quite like."""
    method = chance.choice(METHODS) if chance.random() < 0.9 else text(chance, "ABCDEFGH-_", 9) + "X"
    path = chance.choice(STARTS) + text(chance, VISIBLE, 20)
    if chance.random() < 0.3:
        path += "?" + "&".join(f"{text(chance, VISIBLE, 8)}={text(chance, VISIBLE, 12)}" for _ in range(3))
    lines = [f"{method} {path} HTTP/1.1", f"Host: {text(chance, ANYTHING, 20)}"]
    lines += [f"{chance.choice(HEADERS)}: {text(chance, ANYTHING, 40)}" for _ in range(chance.randrange(4))]
    if chance.random() < 0.5:
        lines.append(f"X-Request-ID: {chance.getrandbits(64):x}")
        lines.append(f"traceparent: 00-{chance.getrandbits(128):032x}-{chance.getrandbits(64):016x}-01")
    if path.startswith("/_tasks") and chance.random() < 0.05:
        lines.append(f"Authorization: Bearer {TOKEN}")
    return "\n".join(lines)


def memory() -> float:
    """Resident, in MiB."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    except OSError:  # not Linux: the most it ever was
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after as long")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    begun, every = time.monotonic(), max(options.requests // 40, 1)
    first: tuple[int, float] | None = None
    with target() as served:
        connection = Connection(served.port)
        statuses: dict[int, int] = {}
        for number in range(1, options.requests + 1):
            status, _ = connection.send(head(chance))
            statuses[status] = statuses.get(status, 0) + 1
            if number % 1000 == 0:
                served.log.take()
            passed = time.monotonic() - begun
            if number % every == 0 or passed > options.seconds:
                now = served.series(), memory()
                print(
                    f"{number:>9} requests {passed:6.0f} s  {now[0]:>6} series  {now[1]:7.1f} MiB  "
                    f"{served.internal_errors():.0f} internal errors",
                    flush=True,
                )
                if first is None and number >= options.requests / 10:
                    first = now
            if passed > options.seconds:
                break
        connection.close()
        print("statuses:", dict(sorted(statuses.items())))
        assert served.internal_errors() == 0
        if first is not None:
            assert served.series() <= first[0] * _GROWTH
            assert memory() <= first[1] * _GROWTH


if __name__ == "__main__":
    main()
