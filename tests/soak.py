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

from kills import LAYOUTS, STAGES, campaign, experiment
from tiny import tiny_gpt2

from parity_jax.models import LinearConfig
from parity_jax.runs.lineage import git_commit

NUM_KILLS = {"one by one": 25, "all at once": 10}


def main() -> int:
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for name, stage in STAGES.items():
            for layout in LAYOUTS:
                model = LinearConfig() if name.startswith("linear") else tiny_gpt2()
                setting = experiment(stage, layout, model)
                workdir, num_kills = Path(place) / name / layout, NUM_KILLS[layout]
                tally = campaign(setting, num_kills, workdir, seed=len(rows))
                counts = dataclasses.asdict(tally)
                rows.append({"stage": name, "layout": layout, **counts})
                print(rows[-1], flush=True)
    total = {name: sum(row[name] for row in rows) for name in counts}
    result = {"commit": git_commit(), "total": total, "rows": rows}
    path = Path(__file__).parents[1] / "results" / "soak.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(total)
    return int(total["differing_runs"] > 0)


if __name__ == "__main__":
    sys.exit(main())
