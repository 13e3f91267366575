"""One member over eight virtual devices against one device; run by test_mesh.py.

Prints a JSON line of numbers: largest differences, and how arrays lie.
"""

import json
import os
import sys
from pathlib import Path

os.environ["NPROC"] = "64"  # threads: collectives of eight devices wait for each other
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_cpu_use_fusion_emitters=false"
)

import jax
import numpy as np
from flax.core import FrozenDict
from tiny import POLICY_GRADIENT, PRETRAIN, tiny_experiment

from parity_jax.experiment import RunConfig
from parity_jax.mesh import MeshConfig
from parity_jax.models import llama
from parity_jax.population import PopulationConfig
from parity_jax.runs import RunDirectory, make_program, resolve, run_experiment
from parity_jax.runs.checkpoint import from_arrays

MODEL = llama(2, 32, num_heads=4, num_kv_heads=2, mlp_width=48, scan=True, remat=True)
STAGES = {"pretrain": (PRETRAIN, 5), "grpo": (POLICY_GRADIENT, 3)}


def experiment(mesh, num_steps, seeds=(0,), stage=PRETRAIN):
    """One run of these seeds, each spread over the mesh."""
    run = RunConfig(stage=stage, num_steps=num_steps, log_every=1, eval_every=9)
    return tiny_experiment(
        model=MODEL,
        runs=FrozenDict({"run": run}),
        axes=FrozenDict({"seed": seeds}),
        mesh=MeshConfig(*mesh),
        population=PopulationConfig(num_devices=1 if mesh == (1, 1) else 8),
    )


def trained(mesh, num_steps, seeds, stage):
    """States and metrics after some steps, and the parameters before."""
    program = make_program(resolve(experiment(mesh, num_steps, seeds, stage))["run"])
    states, metrics = program.init(None), program.no_metrics()
    begun = jax.tree.map(np.asarray, states.params)
    return *program.advance(states, metrics, num_steps), begun


def difference(a, b):
    """The largest, over all leaves."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in pairs)


def share(states):
    """Of all bytes of parameters and optimizer that one device holds."""
    leaves = jax.tree.leaves((states.params, states.opt_state))
    here = sum(x.addressable_shards[0].data.nbytes for x in leaves)
    return here / sum(x.nbytes for x in leaves)


def against_one_device():
    """Parameters and losses on every mesh, for both stages."""
    found = {}
    for name, (stage, num_steps) in STAGES.items():
        expected = trained((1, 1), num_steps, (0,), stage)
        for mesh in ((8, 1), (4, 2), (2, 4)):
            states, metrics, begun = trained(mesh, num_steps, (0,), stage)
            key = f"{name} {mesh[0]}x{mesh[1]}"
            found[key] = {
                "params": difference(states.params, expected[0].params),
                "loss": difference(metrics["loss"], expected[1]["loss"]),
                "moved": difference(states.params, begun),
                "share": share(states),
            }
    return found


def two_members():
    """A population of two, four devices each, against two runs alone."""
    both, *_ = trained((2, 2), 5, (0, 1), PRETRAIN)
    alone = [trained((1, 1), 5, (seed,), PRETRAIN)[0] for seed in (0, 1)]
    apart = [
        difference(jax.tree.map(lambda x, i=i: x[i : i + 1], both.params), one.params)
        for i, one in enumerate(alone)
    ]
    return {"params": max(apart), "seeds": difference(alone[0].params, alone[1].params)}


def saved_and_restored(workdir):
    """Saved on eight devices; continued on 8, 2 and 1."""
    states = {}
    for mesh in ((4, 2), (2, 1), (1, 1)):
        path = Path(workdir) / f"on{mesh[0] * mesh[1]}"
        run_experiment(experiment((4, 2), 3), path, quiet=True)
        run_experiment(experiment(mesh, 5), path, quiet=True)
        run = resolve(experiment(mesh, 5))["run"]
        with RunDirectory(path / "run").saved() as checkpoints:
            arrays = checkpoints.read(5).arrays
        template = jax.eval_shape(make_program(run).init, None)
        states[mesh] = from_arrays(arrays, template)
    first = states.pop((4, 2))
    return {str(mesh): difference(s.params, first.params) for mesh, s in states.items()}


if __name__ == "__main__":
    parts = {
        "meshes": against_one_device,
        "members": two_members,
        "restored": lambda: saved_and_restored(sys.argv[2]),
    }
    print(json.dumps(parts[sys.argv[1]]()))
