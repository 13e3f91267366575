"""A tiny model over four devices: what several processes train in `test_hosts.py`."""

import matplotlib.pyplot as plt
from flax.core import FrozenDict
from tiny import PRETRAIN, tiny_experiment

from parity_jax.analysis import Claim, Results
from parity_jax.experiment import Experiment, RunConfig
from parity_jax.mesh import MeshConfig
from parity_jax.models import llama
from parity_jax.population import PopulationConfig


def get_config() -> Experiment:
    """Long enough to be stopped on the way."""
    run = RunConfig(
        stage=PRETRAIN, num_steps=24, log_every=1, eval_every=12, checkpoint_every=12
    )
    return tiny_experiment(
        model=llama(1, 16, num_heads=4, num_kv_heads=2, mlp_width=32),
        runs=FrozenDict({"run": run}),
        axes=FrozenDict({"seed": (0,)}),
        mesh=MeshConfig(fsdp=4),
        population=PopulationConfig(),
    )


def claims(results: Results) -> list[Claim]:
    """What can be told of any run."""
    return [Claim.at_least("C1", results["run"]["greedy/accuracy"], 0)]


def figure(results: Results) -> plt.Figure:
    """Its accuracy."""
    fig, axis = plt.subplots()
    results["run"]["greedy/accuracy"].plot.line(x="step", ax=axis)
    return fig
