"""Devices that share the rows of a member: the same numbers as on one device."""

from functools import cache

import jax
import numpy as np
import pytest
from tiny import POLICY_GRADIENT, PRETRAIN, STAR, tiny_stage

from parity_jax.config import ConfigError
from parity_jax.hypers import Hypers
from parity_jax.optim import OptimizerConfig
from parity_jax.population import PopulationConfig, layout, make_population
from parity_jax.runs.checkpoint import to_arrays
from parity_jax.stages import PolicyGradientConfig, RolloutConfig

STAGES = {
    "pretrain": PRETRAIN,
    "policy_gradient": POLICY_GRADIENT,
    # scores of the old policy and of the reference too; at first few rewards differ and
    # the KL has no gradient but rounding, which Adam would amplify
    "two updates": PolicyGradientConfig(
        rollout=RolloutConfig(num_prompts=4, num_generations=4),
        num_minibatches=2,
        kl_estimator="k3",
        optimizer=OptimizerConfig("sgd"),
    ),
    "star": STAR,
    # three prompts, which two devices cannot share alike: each does all
    "odd": PolicyGradientConfig(RolloutConfig(num_prompts=3, num_generations=4)),
}
HYPERS = Hypers(p_cot=0.5, learning_rate=1e-3, beta=0.1)


@cache
def trained(name, num_devices, row_devices=0):
    """States, metrics and scores of a member after three steps."""
    cfg = PopulationConfig(num_devices, row_devices=row_devices)
    stage = tiny_stage(STAGES[name], bias=False)
    population = make_population(cfg, stage, {"seed": (3,)}, HYPERS)
    states = population.init(None)
    states, metrics = population.advance(states, population.no_metrics(), 3)
    return states, metrics, population.scores(states)


@pytest.mark.parametrize("name", STAGES)
def test_shared_rows_give_what_one_device_gives(name):
    states, *measured = trained(name, 1)
    shared, *shared_measured = trained(name, 2)
    assert len(shared.step.sharding.device_set) == 2
    expected, found = to_arrays(states), to_arrays(shared)
    for leaf in expected:
        np.testing.assert_allclose(
            found[leaf], expected[leaf], rtol=1e-4, atol=1e-5, err_msg=leaf
        )
    for one, two in zip(measured, shared_measured, strict=True):
        for metric in one:
            values = two[metric].value(), one[metric].value()
            np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-6, err_msg=metric)


@pytest.mark.parametrize("name", STAGES)
def test_all_devices_that_share_rows_hold_the_same_numbers(name):
    """Bit for bit: from then on they could not go apart unseen."""
    states, *_ = trained(name, 2)
    for leaf in jax.tree.leaves(jax.tree.map(_plain, states)):
        first, second = (np.asarray(shard.data) for shard in leaf.addressable_shards)
        np.testing.assert_array_equal(first, second)


def _plain(x):
    is_key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(x) if is_key else x


@pytest.mark.parametrize(
    ("cfg", "num_members", "shape", "width"),
    [
        (PopulationConfig(), 1, (1, 2), 1),  # a device that would be idle
        (PopulationConfig(), 2, (2, 1), 1),
        (PopulationConfig(), 3, (2, 1), 1),
        (PopulationConfig(num_devices=1), 1, (1, 1), 1),
        (PopulationConfig(row_devices=1), 1, (1, 1), 1),
        (PopulationConfig(row_devices=2, vmap_width=3), 3, (1, 2), 3),
    ],
)
def test_who_shares_rows(cfg, num_members, shape, width):
    mesh, found = layout(cfg, num_members, lambda: 2**20)
    assert ([*mesh.shape.values()][:2], found) == ([*shape], width)


def test_a_large_member_is_not_copied_to_devices_that_are_idle():
    assert layout(PopulationConfig(), 1, lambda: 2**30).mesh.size == 1
    assert layout(PopulationConfig(row_devices=2), 1, lambda: 2**30).mesh.size == 2


def test_what_the_host_judges_is_judged_once():
    """By the clock: two devices might be told other verdicts on the same answers."""
    assert (
        layout(PopulationConfig(), 1, lambda: 0, is_judged_on_host=True).mesh.size == 1
    )
    with pytest.raises(ConfigError, match=r"^population.row_devices=2: must be 1: "):
        layout(PopulationConfig(row_devices=2), 1, lambda: 0, is_judged_on_host=True)


def test_more_devices_than_there_are_cannot_share_rows():
    allowed = r"^population.row_devices=3: must be at most the number of devices, 2$"
    with pytest.raises(ConfigError, match=allowed):
        layout(PopulationConfig(row_devices=3), 4, lambda: 0)
