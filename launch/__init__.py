"""From one command on a laptop to a cluster, on engines that exist.

plan.py     a grid becomes jobs: sweep.json
sweep.py    the command: plan, check, hand over
job.py      one life of a job, the same on every engine
local.py    the engine of one machine: one job after the other
slurm.py    the engine of a cluster, by submitit
status.py   what files and queue say of every job
templates/  Kubernetes, TPU and SkyPilot: README.md says how

All rests on two things that a run does already: the same command continues it, and exit
code 75 asks for that.
"""

import sys

from parity_jax.cli.main import imported

if sys.argv[0] == "-m":  # `python -m launch.sweep`, which is imported next
    needed = ("parity_jax.cli.door", "parity_jax.cli.run")
    if code := imported(needed, "--debug" in sys.argv):
        sys.exit(code)
