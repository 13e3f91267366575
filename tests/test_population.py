"""Many members in one program: each is what it would be alone."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_worlds import make_table, no_evaluation
from tiny import POLICY_GRADIENT, PRETRAIN, tiny_stage

from parity_jax.axes import member_hypers, member_labels, parent_index
from parity_jax.config import ConfigError
from parity_jax.hypers import Hypers
from parity_jax.member import run_member
from parity_jax.metrics import Mean
from parity_jax.population import PopulationConfig, make_population
from parity_jax.program import Program
from parity_jax.runs.checkpoint import to_arrays
from parity_jax.stages.stage import StepKeys
from parity_jax.tasks import ParityConfig
from parity_jax.types import DIVERGED, RUNNING, Data

GRID = {"p_cot": (0.1, 0.6, 1.0), "seed": (0,)}  # 3 members: not divisible by 2 devices
LAYOUTS = {"one by one": (1, 1), "two devices, two at a time": (2, 2)}


@cache
def tiny_pretrain():
    """Without biases: that of the keys has no gradient, Adam would amplify rounding."""
    return tiny_stage(PRETRAIN, bias=False)


def table_stage():
    """Reinforcement of a model that is compiled at once."""
    task = ParityConfig(4).make()
    return POLICY_GRADIENT.make(task, make_table(task), no_evaluation)


@cache
def grid_of(layout):
    """The population of GRID, and its members before the first step."""
    cfg = PopulationConfig(*LAYOUTS[layout])
    population = make_population(cfg, tiny_pretrain(), GRID, Hypers())
    return population, population.init(None)


def advanced(layout, num_steps, states=None):
    """States and metrics after so many steps, from the start if none are given."""
    population, start = grid_of(layout)
    states = jax.tree.map(jnp.copy, start if states is None else states)
    return population.advance(states, population.no_metrics(), num_steps)


@cache
def solo_runs():
    """Every member of GRID, initialised and run for 3 steps without a population."""
    stage, labels = tiny_pretrain(), member_labels(GRID)
    hypers_P = member_hypers(Hypers(), labels)
    metrics = jax.tree.map(lambda x: x[0], grid_of("one by one")[0].no_metrics())

    @jax.jit
    def run(key, hypers):
        return run_member(stage, stage.init(key, hypers, None), metrics, 3, Data())

    return [
        run(jax.random.key(label["seed"]), member(hypers_P, i))
        for i, label in enumerate(labels)
    ]


def member(tree, i):
    return jax.tree.map(lambda x: x[i], tree)


def assert_identical(a, b):
    a, b = to_arrays(a), to_arrays(b)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def poisoned(states, i):
    """The same with one member whose parameters are no numbers."""
    params = jax.tree.map(lambda x: x.at[i].set(jnp.nan), states.params)
    return states._replace(params=params)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_member_is_what_it_would_be_alone(layout):
    assert jax.local_device_count() == 2
    states, metrics = advanced(layout, 3)
    assert states.step.tolist() == [3, 3, 3]
    for i, (state, solo_metrics) in enumerate(solo_runs()):
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
    # A poisoned member is frozen and leaves the others alone, bit for bit.
    start = grid_of(layout)[1]
    found, found_metrics = advanced(layout, 3, poisoned(start, 1))
    assert found.status.tolist() == [RUNNING, DIVERGED, RUNNING]
    assert found.step.tolist() == [3, 0, 3]
    for i in (0, 2):
        assert_identical(member(found, i), member(states, i))
        assert_identical(member(found_metrics, i), member(metrics, i))
    assert np.isnan(found_metrics["loss"].value()[1])
    assert found_metrics["loss"].count[1] == 0


def test_a_member_that_diverges_stays_as_it_was_before():
    """An infinite rate fails at once; with 1e30 the second step overflows."""
    start = grid_of("one by one")[1]
    for learning_rate, last_step in ((np.inf, 0), (1e30, 1)):
        rate_P = start.hypers.learning_rate.at[0].set(learning_rate)
        hypers = Hypers(**vars(start.hypers) | {"learning_rate": rate_P})
        states, _ = advanced("one by one", 4, start._replace(hypers=hypers))
        assert states.status.tolist() == [DIVERGED, RUNNING, RUNNING]
        assert states.step.tolist() == [last_step, 4, 4]
        after = to_arrays(member(states, 0).params)
        assert all(np.isfinite(array).all() for array in after.values())
        if last_step == 0:
            assert_identical(member(states, 0).params, member(start, 0).params)
        again, _ = advanced("one by one", 2, states)
        assert again.step.tolist() == [last_step, 6, 6]
        scores = grid_of("one by one")[0].scores(states)
        for name in ("greedy/accuracy", "t1/p_long"):  # however finite it stayed
            assert np.isnan(scores[name].value()).tolist() == [True, False, False]


@pytest.mark.parametrize("scale_by", ["group", "batch", "none"])
@pytest.mark.parametrize(("weight", "status"), [(1e9, RUNNING), (1e25, DIVERGED)])
def test_rewards_whose_squares_overflow_are_not_trained_on(scale_by, weight, status):
    """The spread of rewards, or what Adam divides by, is infinite: all is 0 or NaN."""
    rollout = replace(POLICY_GRADIENT.rollout, reward_weights=(weight,))
    cfg = replace(POLICY_GRADIENT, scale_rewards=scale_by, rollout=rollout)
    task = ParityConfig(4).make()
    stage = cfg.make(task, make_table(task), no_evaluation)
    population = make_population(PopulationConfig(), stage, {"seed": (0,)}, Hypers())
    start = population.init(None)
    begun = to_arrays(start.params)
    states, _ = population.advance(start, population.no_metrics(), 3)
    assert states.status.tolist() == [status]
    moved = [(begun[k] != x).any() for k, x in to_arrays(states.params).items()]
    assert any(moved) == (status == RUNNING)


def test_chunks_change_nothing():
    """Nor does it matter whether their metrics are added as they go or afterwards."""
    whole, whole_metrics = advanced("one by one", 6)
    population, start = grid_of("one by one")
    states, metrics = jax.tree.map(jnp.copy, start), population.no_metrics()
    for num_steps in (1, 2, 3):
        states, metrics = population.advance(states, metrics, num_steps)
    assert_identical(states, whole)
    assert_identical(metrics, whole_metrics)
    states, parts = start, []
    for num_steps in (1, 2, 3):
        states, metrics = advanced("one by one", num_steps, states)
        parts.append(to_arrays(metrics))
    assert_identical(states, whole)
    for name, total in to_arrays(whole_metrics).items():
        assert (total > 0).all()
        np.testing.assert_allclose(sum(x[name] for x in parts), total, rtol=1e-5)


def test_seeds_differ_in_init_and_data_and_ratios_share_their_key():
    axes = {"p_cot": (0.2, 0.8), "seed": (0, 1)}
    layout = PopulationConfig(1, 1)
    states = make_population(layout, tiny_pretrain(), axes, Hypers()).init(None)
    key = np.asarray(jax.random.key_data(states.key)).reshape(2, 2, -1)
    assert (key[0] == key[1]).all() and (key[:, 0] != key[:, 1]).any(-1).all()
    for name, array in to_arrays(states.params).items():
        if array.std() > 0:  # scales and biases start as constants
            by_ratio = array.reshape(2, 2, *array.shape[1:])
            np.testing.assert_array_equal(by_ratio[0], by_ratio[1], err_msg=name)
            assert (by_ratio[0, 0] != by_ratio[0, 1]).mean() > 0.9, name
    task = ParityConfig(4).make()
    tokens = [
        task.sample_prompts(StepKeys.of(member(states, i)).data, 16).token
        for i in (0, 1)
    ]
    assert (tokens[0] != tokens[1]).any()
    np.testing.assert_array_equal(states.hypers.p_cot, np.float32([0.2, 0.2, 0.8, 0.8]))


def test_samples_differ_between_seeds_and_steps():
    stage, axes = table_stage(), {"seed": (0, 1, 2, 3)}
    hypers = Hypers(learning_rate=0.0)  # the policy stays the same
    population = make_population(PopulationConfig(1, 1), stage, axes, hypers)
    params = jax.jit(stage.init)(jax.random.key(9), hypers, None).params
    params_P = jnp.stack([params] * 4)
    states, none = population.init(params_P), population.no_metrics
    states, first = population.advance(states, none(), 1)
    assert_identical(states.params, params_P)
    _, second = population.advance(states, none(), 1)

    def draw(metrics, i):
        names = ("entropy", "tokens", "reward", "completions/mean_length")
        return tuple(float(metrics[name].value()[i]) for name in names)

    draws = {draw(metrics, i) for metrics in (first, second) for i in range(4)}
    assert len(draws) == 8


def test_one_trace_for_a_whole_grid():
    counts = []
    for axes in ({"seed": (0,)}, {"p_cot": (0.1, 0.2, 0.5), "seed": (0, 1)}):
        traces = []

        def step(state, data, traces=traces):
            traces.append(1)
            metrics = {"loss": Mean.over(state.hypers.p_cot)}
            return state._replace(step=state.step + 1), metrics

        stage = table_stage()._replace(step=step)
        population = make_population(PopulationConfig(1, 1), stage, axes, Hypers())
        states, none = population.init(None), population.no_metrics
        states, _ = population.advance(states, none(), 1)
        counts.append(len(traces))
        population.advance(states, none(), 2)  # nor does another number of steps
        assert len(traces) == counts[-1]
    assert counts[0] == counts[1]


def test_a_program_that_does_not_fit_is_refused_before_it_runs():
    def wide(x):
        return jnp.broadcast_to(x, (2**20, 2**20))

    with pytest.raises(MemoryError, match=r"^4096\.0 GiB needed, .* GiB there$"):
        Program(jax.jit(wide), jax.local_devices())(jnp.float32(0))


# Labels and parents


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


def test_a_member_without_parent_is_an_error():
    for axes, pinned, message in (
        ({"p_cot": (0.3,), "seed": (0,)}, {}, r"p_cot=0.3: must be one of .*\(0.1, "),
        ({"seed": (2,)}, {}, r"seed=2: must be one of the parent's \(0, 1\)"),
        ({"seed": (0,)}, {"seed": 3.0}, "seed=3.0: must be one of"),
        ({"seed": (0,)}, {"sed": 1.0}, r"parent_member\.sed.* did you mean 'seed'"),
    ):
        with pytest.raises(ConfigError, match=message):
            parents_of(axes, pinned)


def test_no_key_is_used_twice():
    with jax.debug_key_reuse(True):
        for cfg in (PRETRAIN, POLICY_GRADIENT):
            stage = tiny_stage(cfg)

            def init_and_step(key, stage=stage):
                return stage.step(stage.init(key, Hypers(), None), Data())

            jax.jit(init_and_step).trace(jax.random.key(0))
        with pytest.raises(jax.errors.KeyReuseError):  # that the check is on
            jax.jit(lambda k: jax.random.normal(k) + jax.random.normal(k))(
                jax.random.key(0)
            )


def test_what_cannot_fit_is_known_before_anything_runs():
    """Of a trace, loops included, and of states; nothing is compiled for it."""

    def steps(x):
        def step(_, carry):
            return carry + jnp.ones((10**8, 10**5)).sum()

        return jax.lax.fori_loop(0, 3, step, x)

    program = Program(jax.jit(steps), jax.local_devices())
    with pytest.raises(MemoryError, match=r"^37252\.9 GiB needed, "):
        program.eval_shape(jnp.float32(0))
    with pytest.raises(MemoryError, match="GiB needed"):
        program.require_room(jax.ShapeDtypeStruct((10**8, 10**5), jnp.float32))
    program.require_room(jax.ShapeDtypeStruct((3,), jnp.float32))
