"""Many members in one program: each is what it would be alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import POLICY_GRADIENT, PRETRAIN, tiny_stage

from parity_jax.checkpoint import to_arrays
from parity_jax.config import ConfigError, ParityConfig, PopulationConfig
from parity_jax.population import (
    make_population,
    member_hypers,
    member_labels,
    parent_index,
    run_member,
)
from parity_jax.stages.stage import StepKeys
from parity_jax.tasks import make_task
from parity_jax.types import DIVERGED, RUNNING, Hypers

GRID = {"p_cot": (0.1, 0.6, 1.0), "seed": (0,)}  # 3 members: not divisible by 2 devices
AXES = {"learning_rate": (1e-3, 1e-2), "seed": (0, 1)}
LAYOUTS = {
    "one by one": PopulationConfig(num_devices=1, vmap_width=1),
    "all at once": PopulationConfig(num_devices=1, vmap_width=3),
    "two devices": PopulationConfig(num_devices=2, vmap_width=1),
}


@pytest.fixture(scope="module")
def stage():
    """Without biases: that of the keys has no gradient, Adam would amplify rounding."""
    return tiny_stage(PRETRAIN, bias=False)


@pytest.fixture(scope="module")
def population(stage):
    """2 learning rates x 2 seeds, one by one."""
    return make_population(PopulationConfig(1, 1), stage, AXES, Hypers())


def member(tree, i):
    return jax.tree.map(lambda x: x[i], tree)


def assert_identical(a, b):
    a, b = to_arrays(a), to_arrays(b)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture(scope="module")
def solo_runs(stage):
    """Every member of GRID, initialised and run for 3 steps without a population."""
    labels = member_labels(GRID)
    hypers_P = member_hypers(Hypers(), labels)
    init = jax.jit(lambda key, hypers: stage.init(key, hypers, None))
    run = jax.jit(lambda state: run_member(stage, state, 3))
    return [
        run(init(jax.random.key(label["seed"]), member(hypers_P, i)))
        for i, label in enumerate(labels)
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_member_equals_its_solo_run(stage, solo_runs, layout):
    assert jax.local_device_count() == 2
    population = make_population(LAYOUTS[layout], stage, GRID, Hypers())
    states, metrics = population.run(population.init(None), 3)
    assert states.step.tolist() == [3, 3, 3]
    for i, (state, solo_metrics) in enumerate(solo_runs):
        expected, actual = to_arrays(state), to_arrays(member(states, i))
        for name in expected:
            np.testing.assert_allclose(
                actual[name], expected[name], rtol=1e-4, atol=1e-5, err_msg=name
            )
        for name, mean in solo_metrics.items():
            value = metrics[name].value()[i]
            np.testing.assert_allclose(value, mean.value(), rtol=1e-4, err_msg=name)
    loss_P = metrics["loss"].value()
    assert (np.abs(np.diff(loss_P)) > 1e-2).all()  # members are told apart


def test_seeds_differ_in_init_and_data_and_ratios_share_their_key(stage):
    axes = {"p_cot": (0.2, 0.8), "seed": (0, 1)}
    population = make_population(PopulationConfig(1, 1), stage, axes, Hypers())
    states = population.init(None)
    key = np.asarray(jax.random.key_data(states.key)).reshape(2, 2, -1)
    assert (key[0] == key[1]).all() and (key[:, 0] != key[:, 1]).any(-1).all()
    for name, array in to_arrays(states.params).items():
        if array.std() > 0:  # scales and biases start as constants
            by_ratio = array.reshape(2, 2, *array.shape[1:])
            np.testing.assert_array_equal(by_ratio[0], by_ratio[1], err_msg=name)
            assert (by_ratio[0, 0] != by_ratio[0, 1]).mean() > 0.9, name
    task = make_task(ParityConfig(4))
    prompts = [
        task.sample_prompts(StepKeys.of(member(states, i)).data, 16) for i in (0, 1)
    ]
    assert (prompts[0] != prompts[1]).any()
    np.testing.assert_array_equal(states.hypers.p_cot, np.float32([0.2, 0.2, 0.8, 0.8]))


def test_samples_differ_between_seeds_and_steps():
    stage = tiny_stage(POLICY_GRADIENT)
    axes = {"seed": (0, 1, 2, 3)}
    hypers = Hypers(learning_rate=0.0)  # the policy stays the same
    population = make_population(PopulationConfig(1, 1), stage, axes, hypers)
    params = jax.jit(stage.init)(jax.random.key(9), hypers, None).params
    params_P = jax.tree.map(lambda x: jnp.stack([x] * 4), params)
    states, first = population.run(population.init(params_P), 1)
    assert_identical(states.params, params_P)
    _, second = population.run(states, 1)

    def draw(metrics, i):
        names = ("entropy", "tokens", "reward", "completions/mean_length")
        return tuple(float(metrics[name].value()[i]) for name in names)

    draws = {draw(metrics, i) for metrics in (first, second) for i in range(4)}
    assert len(draws) == 8


def count_traces(stage):
    traces = []

    def step(state):
        traces.append(1)
        return stage.step(state)

    return stage._replace(step=step), traces


def test_one_trace_for_a_whole_grid(stage):
    counts = []
    for axes in ({"seed": (0,)}, {"p_cot": (0.1, 0.2, 0.5), "seed": (0, 1)}):
        counted, traces = count_traces(stage)
        population = make_population(PopulationConfig(1, 1), counted, axes, Hypers())
        states, _ = population.run(population.init(None), 1)
        counts.append(len(traces))
        states, _ = population.run(states, 2)  # nor does another number of steps
        assert len(traces) == counts[-1]
    assert counts[0] == counts[1]


def poisoned(states, i):
    def poison(x):
        return x.at[i].set(jnp.nan)

    return states._replace(params=jax.tree.map(poison, states.params))


def test_a_poisoned_member_is_frozen_and_leaves_the_others_alone(population):
    healthy, healthy_metrics = population.run(population.init(None), 3)
    states, metrics = population.run(poisoned(population.init(None), 1), 3)
    assert states.status.tolist() == [RUNNING, DIVERGED, RUNNING, RUNNING]
    assert states.step.tolist() == [3, 0, 3, 3]
    for i in (0, 2, 3):
        assert_identical(member(states, i), member(healthy, i))
        assert_identical(member(metrics, i), member(healthy_metrics, i))
    assert np.isnan(metrics["loss"].value()[1])
    assert metrics["loss"].count[1] == 0


def test_a_poisoned_member_of_a_vmap_leaves_the_others_alone(stage):
    layout = PopulationConfig(num_devices=1, vmap_width=4)
    population = make_population(layout, stage, {"seed": (0, 1, 2, 3)}, Hypers())
    healthy, _ = population.run(population.init(None), 3)
    states, _ = population.run(poisoned(population.init(None), 2), 3)
    assert states.status.tolist() == [RUNNING, RUNNING, DIVERGED, RUNNING]
    for i in (0, 1, 3):
        assert_identical(member(states, i), member(healthy, i))


@pytest.mark.parametrize(("learning_rate", "last_step"), [(np.inf, 0), (1e30, 1)])
def test_a_member_that_diverges_stays_as_it_was_before(
    population, learning_rate, last_step
):
    """An infinite rate fails at once; with 1e30 the second step overflows."""
    start = population.init(None)
    rate_P = start.hypers.learning_rate.at[0].set(learning_rate)
    hypers = start.hypers.__class__(**vars(start.hypers) | {"learning_rate": rate_P})
    before = to_arrays(start)
    states, _ = population.run(start._replace(hypers=hypers), 4)
    assert states.status.tolist() == [DIVERGED, RUNNING, RUNNING, RUNNING]
    assert states.step.tolist() == [last_step, 4, 4, 4]
    after = to_arrays(member(states, 0).params)
    assert all(np.isfinite(array).all() for array in after.values())
    if last_step == 0:
        for name, array in after.items():
            np.testing.assert_array_equal(array, before[f"params.{name}"][0])
    again, _ = population.run(states, 2)
    assert again.step.tolist() == [last_step, 6, 6, 6]


def test_chunks_change_nothing(population):
    whole, whole_metrics = population.run(population.init(None), 6)
    states, total = population.init(None), None
    for num_steps in (1, 2, 3):
        states, metrics = population.run(states, num_steps)
        total = metrics if total is None else jax.tree.map(jnp.add, total, metrics)
    assert_identical(states, whole)
    for name, mean in whole_metrics.items():
        np.testing.assert_allclose(total[name].value(), mean.value(), rtol=1e-5)
        assert (mean.count > 0).all()


def test_last_axis_is_the_fastest():
    labels = member_labels({"p_cot": (0.1, 0.2), "seed": (0, 1)})
    assert [(x["p_cot"], x["seed"]) for x in labels] == [
        (0.1, 0),
        (0.1, 1),
        (0.2, 0),
        (0.2, 1),
    ]
    hypers = member_hypers(Hypers(p_leap=0.3), labels)
    np.testing.assert_array_equal(hypers.p_cot, np.float32([0.1, 0.1, 0.2, 0.2]))
    np.testing.assert_array_equal(hypers.p_leap, np.float32([0.3] * 4))


PARENT_AXES = {"p_cot": (0.1, 0.25), "seed": (0, 1)}


def parents_of(axes, pinned=(), hypers=Hypers(), parent_axes=PARENT_AXES):  # noqa: B008
    index_P = parent_index(member_labels(axes), hypers, parent_axes, dict(pinned))
    return index_P.tolist()


def test_parents_match_by_axis_and_broadcast_over_new_axes():
    assert parents_of(PARENT_AXES) == [0, 1, 2, 3]
    some = {"seed": (1, 0), "p_cot": (0.25,)}  # another order, a part
    assert parents_of(some) == [3, 2]
    more = {"p_cot": (0.25,), "beta": (0.0, 1.0), "seed": (0, 1)}
    assert parents_of(more) == [2, 3, 2, 3]


def test_without_an_axis_the_value_of_the_run_counts():
    seeds = {"seed": (1, 0)}
    assert parents_of(seeds, hypers=Hypers(p_cot=0.25)) == [3, 2]
    assert parents_of(seeds, hypers=Hypers(p_cot=0.1)) == [1, 0]


def test_a_pinned_axis_counts_for_all_members():
    seeds = {"seed": (0, 1, 7)}
    assert parents_of(seeds, {"seed": 1.0}) == [3, 3, 3]
    assert parents_of(seeds, {"seed": 0.0, "p_cot": 0.1}) == [0, 0, 0]
    assert parents_of(PARENT_AXES, {"p_cot": 0.1}) == [0, 1, 0, 1]


def test_a_step_of_the_parent_is_no_step_of_its_parent():
    parent_axes = {"parent_step": (0, 5), "seed": (0, 1)}
    axes = {"parent_step": (0, 5), "seed": (1,)}
    assert parents_of(axes, {"parent_step": 5.0}, parent_axes=parent_axes) == [3, 3]
    with pytest.raises(ConfigError, match=r"parent_member\.parent_step=0"):
        parents_of(axes, parent_axes=parent_axes)


@pytest.mark.parametrize(
    ("axes", "pinned", "message"),
    [
        ({"p_cot": (0.3,), "seed": (0,)}, {}, r"p_cot=0.3: must be one of .*\(0.1, "),
        ({"seed": (2,)}, {}, r"seed=2: must be one of the parent's \(0, 1\)"),
        ({"seed": (0,)}, {"seed": 3.0}, "seed=3.0: must be one of"),
        ({"seed": (0,)}, {"sed": 1.0}, r"parent_member\.sed.* did you mean 'seed'"),
    ],
)
def test_a_member_without_parent_is_an_error(axes, pinned, message):
    with pytest.raises(ConfigError, match=message):
        parents_of(axes, pinned)


@pytest.mark.parametrize("cfg", [PRETRAIN, POLICY_GRADIENT], ids=lambda x: x.kind)
def test_no_key_is_used_twice(cfg):
    stage = tiny_stage(cfg)
    with jax.debug_key_reuse(True):

        def init_and_step(key):
            return stage.step(stage.init(key, Hypers(), None))

        jax.jit(init_and_step).trace(jax.random.key(0))
        with pytest.raises(jax.errors.KeyReuseError):  # that the check is on
            jax.jit(lambda k: jax.random.normal(k) + jax.random.normal(k))(
                jax.random.key(0)
            )
