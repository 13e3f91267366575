"""Command: make soak. Interrupts every stage in every layout; writes results/soak.json.

At least 200 SIGKILLs at random moments; every run that was killed is finished and
compared bit for bit with the undisturbed one.
"""

import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from kills import LAYOUTS, STAGES, campaign
from parity_jax.lineage import git_commit

NUM_KILLS = {"one by one": 30, "all at once": 12}


def main() -> int:
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for stage in STAGES:
            for layout in LAYOUTS:
                workdir = Path(place) / stage / layout
                num_kills = NUM_KILLS[layout]
                tally = campaign(stage, layout, num_kills, workdir, seed=len(rows))
                counts = dataclasses.asdict(tally)
                rows.append({"stage": stage, "layout": layout, **counts})
                print(rows[-1], flush=True)
    total = {name: sum(row[name] for row in rows) for name in counts}
    result = {"commit": git_commit(), "total": total, "rows": rows}
    path = Path(__file__).parents[1] / "results" / "soak.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(total)
    return int(total["differing_runs"] > 0)


if __name__ == "__main__":
    sys.exit(main())
