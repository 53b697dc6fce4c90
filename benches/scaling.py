"""How each method's cost grows: an epoch's processor time and peak memory with 1, 2, 4 times the users, then the items.

    python benches/scaling.py [--only rrd,de] [--users 10000] [--items 5000] [--steps 4] [--threads 1] [--json]

Each case is one of costs.py, in a process of its own, on a synthetic set with 20 pairs a user: pairs grow with users. Processor
time, since it varies less than wall time on a shared machine; memory is what a case adds to data and libraries.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from measure import report

COSTS = Path(__file__).with_name("costs.py")
GROWN = ((1, 1), (2, 1), (4, 1), (1, 2), (1, 4))
"""Times the users, and the items."""


def cost(case: str, users: int, items: int, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, str(COSTS), "--case", case, "--data", f"{users}x{items}"]
    command += ["--steps", str(options.steps), "--threads", str(options.threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{case}: {done.stderr.strip().splitlines()[-1:]}")
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only")
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--items", type=int, default=5_000)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    from kdrs.distillers import DISTILLERS

    rows = []
    for case in ["alone", *DISTILLERS] if options.only is None else options.only.split(","):
        found = [cost(case, options.users * u, options.items * i, options) for u, i in GROWN]
        row: dict[str, Any] = {"method": case}
        for (users, items), one in zip(GROWN, found, strict=True):
            epoch, memory = one["epoch s of processor"], one["peak MB"] - one["of which data and libraries"]
            if (users, items) == (1, 1):
                row |= {"epoch s": epoch, "MB": memory}
                continue
            grown = f"{users}x users" if users > 1 else f"{items}x items"
            row |= {grown: round(epoch / row["epoch s"], 2), f"MB, {grown}": memory}
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
    report(f"Growth from {options.users} x {options.items}, {options.threads} thread(s)", rows, options)


if __name__ == "__main__":
    main()
