"""Prompts, rewards and the groups that a policy-gradient step trains on."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_worlds import (
    first_gradient,
    make_table,
    no_evaluation,
    starts_with_plus,
)

from parity_jax.config import ConfigError, UserCodeError
from parity_jax.hypers import Hypers
from parity_jax.stages import PolicyGradientConfig, RolloutConfig, reinforce, rloo
from parity_jax.stages.policy_gradient import draw_rollout, fill_groups
from parity_jax.stages.rollout import (
    Rollout,
    make_sampler,
    noisy_reward,
    own_reward,
    resolve_rewards,
    rollout_metrics,
    training_prompts,
)
from parity_jax.stages.stage import StepKeys
from parity_jax.tasks import ParityConfig
from parity_jax.tasks.parity import EOS, MINUS, PAD, PLUS
from parity_jax.types import Data, Prompt, Response

TASK = ParityConfig(2).make()  # T = 3
DEFAULT = Hypers()
OWN, TENTH = "small_worlds:starts_with_plus", "small_worlds:always_a_tenth"


def sampler_of(cfg, task=TASK):
    return make_sampler(cfg, task, make_table(task))


def a_state(hypers=DEFAULT, seed=0, task=TASK):
    stage = reinforce().make(task, make_table(task), no_evaluation)
    return stage.init(jax.random.key(seed), hypers, None)


@lru_cache
def compiled_sampler(cfg):
    sampler = sampler_of(cfg)
    return jax.jit(lambda s: sampler(s, StepKeys.of(s), Data()))


def draw(cfg, hypers=DEFAULT):
    return jax.device_get(compiled_sampler(cfg)(a_state(hypers)))


# Rewards


def test_noise_flips_at_its_rate():
    num, hypers = 20_000, Hypers(false_positive=0.1, false_negative=0.3)
    for clean, expected in ((0.0, 0.1), (1.0, 0.3)):
        seen = noisy_reward(jax.random.key(0), jnp.full((num // 4, 4), clean), hypers)
        rate = float(jnp.abs(seen - clean).mean())
        assert set(np.unique(seen)) == {0, 1}
        assert abs(rate - expected) < 4 * np.sqrt(expected * (1 - expected) / num)


def test_certain_noise_is_certain():
    clean = jnp.array([[0.0, 1.0]] * 500)
    for positive, negative in ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0)):
        hypers = Hypers(false_positive=positive, false_negative=negative)
        seen = noisy_reward(jax.random.key(1), clean, hypers)
        np.testing.assert_array_equal(seen, [[positive, 1 - negative]] * 500)


def test_rewards_are_weighted_and_priced_and_accuracy_is_not():
    rewards, weights = ("e2e", "cot", OWN), (0.5, 0.25, 2.0)
    functions = (TASK.reward_e2e, TASK.reward_cot, starts_with_plus)
    scores_of = jax.jit(lambda *args: [f(*args, ()) for f in functions])
    for form in ("additive", "multiplicative"):
        cfg = RolloutConfig(64, 8, rewards, weights, length_price_form=form)
        rollout = draw(cfg, Hypers(length_price=0.4))
        token = rollout.response.token
        e2e, cot, own = jax.device_get(scores_of(rollout.prompt, token))
        assert min(np.ptp(e2e), np.ptp(e2e - cot), np.ptp(e2e - own)) > 0  # all differ
        length = np.where(token == EOS, np.arange(3), 3).min(-1)
        assert set(np.unique(length)) == {0, 1, 2, 3}
        total, cost = 0.5 * e2e + 0.25 * cot + 2.0 * own, 0.4 * length / 2
        expected = total - cost if form == "additive" else total * (1 - cost)
        np.testing.assert_allclose(rollout.reward, expected, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(rollout.correct, e2e)


def test_every_reward_has_its_own_noise():
    cfg = RolloutConfig(256, 8, rewards=("e2e", "e2e"), reward_weights=(1.0, 10.0))
    reward = np.asarray(
        draw(cfg, Hypers(false_positive=0.5, false_negative=0.5)).reward
    )
    first, second = reward % 10, reward // 10
    assert set(np.unique(first)) == set(np.unique(second)) == {0, 1}
    assert abs((first == second).mean() - 0.5) < 4 * 0.5 / np.sqrt(reward.size)


def test_a_reward_of_ones_own_is_found_by_name():
    cfg = RolloutConfig(rewards=(OWN, "cot"), reward_weights=(1.0, 1.0))
    own, cot = resolve_rewards(cfg, TASK)
    token = jnp.array([[[PLUS, EOS, PAD], [MINUS, EOS, PAD]]])
    assert own(None, token, ()).tolist() == starts_with_plus(None, token, ()).tolist()
    assert cot == TASK.reward_cot


def test_rewards_that_do_not_exist_are_config_errors():
    for name in (
        "e2",
        "no_such_module:f",
        "small_worlds:no_such_function",
        "small_worlds:not_a_function",
        "small_worlds:",
        ":f",
        ".relative:f",
    ):
        with pytest.raises(ConfigError) as error:
            resolve_rewards(RolloutConfig(rewards=(name,)), TASK)
        assert error.value.name == "rollout.rewards"
        assert repr(name) in str(error.value)
        assert "\n" not in str(error.value)


def test_a_reward_of_another_shape_is_refused_by_name():
    """Broadcasting would pay responses for their neighbours, most quietly if B == G."""
    for num_prompts in (4, 3):
        token = jnp.zeros((num_prompts, 3, 3), int)
        for shape in ((num_prompts,), (), (num_prompts, 1), (3,), (1, 3)):
            reward = own_reward("mine:f", lambda *_, shape=shape: jnp.ones(shape))
            with pytest.raises(ConfigError) as error:
                jax.eval_shape(reward, None, token, ())
            expected = f"must return an array of shape ({num_prompts}, 3), "
            assert str(error.value).startswith(f"rollout.rewards='mine:f': {expected}")
            assert str(error.value).endswith(f", not {shape}")
            assert "\n" not in str(error.value)
    right = own_reward("mine:f", lambda *_: np.ones((3, 3), int))(None, token, ())
    assert right.shape == (3, 3) and right.dtype == jnp.float32
    failing = own_reward("mine:f", lambda *_: {}["no such key"])
    with pytest.raises(UserCodeError, match=r"^mine:f: KeyError: 'no such key'$"):
        failing(None, token, ())


# Prompts


@lru_cache
def compiled_prompts(cfg, num_bits):
    task = ParityConfig(num_bits).make()
    state = a_state(task=task)

    @jax.jit
    def prompts(seed, step):
        at = state._replace(key=jax.random.key(seed), step=step)
        return training_prompts(cfg, task, at, StepKeys.of(at).data, Data()).token

    return prompts


def prompts_of(cfg, seed, step, num_bits=30):
    """The prompts of one step of a member, as tuples."""
    token = np.asarray(compiled_prompts(cfg, num_bits)(seed, step))
    return [tuple(row) for row in token.tolist()]


def test_a_pool_is_fixed_and_its_own_for_every_member():
    cfg = RolloutConfig(num_prompts=16, num_unique_prompts=20)
    steps = [prompts_of(cfg, 0, step) for step in range(12)]
    assert all(len(set(prompts)) == 16 for prompts in steps)  # no repeat in a step
    pool = set().union(*steps)
    assert len(pool) == 20  # all of the pool, and nothing else, in the long run
    assert steps[0] != steps[1]
    assert not pool & {*prompts_of(cfg, 1, 0), *prompts_of(cfg, 1, 1)}


def test_a_pool_smaller_than_a_step_repeats_its_prompts():
    cfg = RolloutConfig(num_prompts=64, num_unique_prompts=3)
    for step in (0, 1):
        prompts = prompts_of(cfg, 0, step)
        assert len(prompts) == 64
        assert len(set(prompts)) == 3


def test_the_prompts_of_a_pool_are_distinct():
    """8 of 64 possible prompts, whoever draws them; even all 64."""
    for size, num_seeds in ((8, 50), (64, 5)):
        cfg = RolloutConfig(num_prompts=size, num_unique_prompts=size)
        for seed in range(num_seeds):
            assert len(set(prompts_of(cfg, seed, 0, num_bits=6))) == size, seed


def test_a_pool_of_more_prompts_than_there_are_is_refused():
    with pytest.raises(ConfigError, match=r"unique_prompts=65: .* the task has 64"):
        sampler_of(RolloutConfig(num_unique_prompts=65), ParityConfig(6).make())
    sampler_of(RolloutConfig(num_unique_prompts=64), ParityConfig(6).make())


def test_without_a_pool_prompts_are_fresh():
    cfg = RolloutConfig(num_prompts=16)
    assert len({*prompts_of(cfg, 0, 0), *prompts_of(cfg, 0, 1)}) == 32


# Groups without signal


def numbered(reward_BxG, start):
    """A rollout whose prompts and tokens carry the number of their group."""
    reward = np.array(reward_BxG, np.float32)
    number_B = np.arange(start, start + len(reward))
    token = np.broadcast_to(number_B[:, None, None], (*reward.shape, 3))
    response = Response(token, 1.0 * token, token > 0)
    return Rollout(Prompt(number_B[:, None]), response, reward, reward)


def test_useful_groups_fill_the_places_of_constant_ones():
    fill = jax.jit(fill_groups)
    for old, new, expected in (
        # Groups 0 and 2 are constant; the useful new ones are 11 and 12, in that order.
        (["00", "01", "11"], ["00", "01", "10"], [11, 1, 12]),
        # One useful group for two places: the first place takes it.
        (["00", "01", "11"], ["00", "11", "10"], [12, 1, 2]),
        (["00", "01", "11"], ["00", "11", "00"], [0, 1, 2]),  # nothing to take
        (["10", "01", "01"], ["10", "01", "10"], [0, 1, 2]),  # nothing to replace
        (["11", "11", "11"], ["10", "01", "10"], [10, 11, 12]),
        (["01", "11", "10"], ["00", "00", "01"], [0, 12, 2]),
    ):
        old, new = ([[int(c) for c in group] for group in rows] for rows in (old, new))
        filled = jax.device_get(fill(numbered(old, 0), numbered(new, 10)))
        assert filled.prompt.token[:, 0].tolist() == expected
        assert filled.response.token[:, 0, 0].tolist() == expected
        assert filled.response.log_prob[:, -1, -1].tolist() == expected
        rewards = dict(enumerate(old)) | {10 + i: row for i, row in enumerate(new)}
        assert filled.reward.tolist() == [rewards[i] for i in expected]
        assert filled.correct.tolist() == [rewards[i] for i in expected]


def resampled(reward, max_resamples):
    """What is trained on, the metrics and number of draws, and the first draw."""
    rollout = RolloutConfig(8, 2, rewards=(reward,))
    cfg = PolicyGradientConfig(
        rollout=rollout, zero_std_groups="resample", max_resamples=max_resamples
    )
    sampler = sampler_of(rollout)

    @jax.jit
    def both(state):
        drawn = draw_rollout(cfg, sampler, state, Data())
        return *drawn, sampler(state, StepKeys.of(state), Data())

    return jax.device_get(both(a_state()))


def value(mean):
    return float(mean.total / mean.count)


def test_resampling_is_bounded():
    rollout, metrics, num_draws, _ = resampled(TENTH, 3)
    assert num_draws == 1 + 3
    assert (np.ptp(rollout.reward, 1) == 0).all()
    assert value(metrics["rollouts"]) == 4 * 16


@pytest.mark.parametrize("way", ["keep", "drop", "resample"])
def test_nothing_that_carries_loss_is_a_ratio_of_0(way):
    """All groups have equal rewards: what is kept has advantages of 0."""
    bounded = {"max_resamples": 2} if way == "resample" else {}
    cfg = PolicyGradientConfig(
        RolloutConfig(8, 2, rewards=(TENTH,)), zero_std_groups=way, **bounded
    )
    _, new, metrics, _ = first_step(cfg)
    found = {name: total / count for name, (total, count) in metrics.items() if count}
    assert found["effective_rollout_ratio"] == (0 if way != "keep" else 1)
    assert found["frac_reward_zero_std"] == 1
    assert not first_gradient(new).any()


def test_resampling_fills_every_group_and_keeps_those_that_had_signal():
    rollout, metrics, num_draws, first = resampled(OWN, 50)
    had_signal = np.ptp(first.reward, 1) > 0
    assert 0 < had_signal.sum() < 8
    assert (np.ptp(rollout.reward, 1) > 0).all()
    assert 2 <= num_draws <= 51
    for x, y in zip(jax.tree.leaves(rollout), jax.tree.leaves(first), strict=True):
        np.testing.assert_array_equal(x[had_signal], y[had_signal])
    # What was filled in is consistent: prompts, responses and rewards moved together.
    token = rollout.response.token
    np.testing.assert_array_equal(token[..., 0] == PLUS, rollout.reward)
    correct = jax.jit(TASK.reward_e2e)(rollout.prompt, token)
    np.testing.assert_array_equal(correct, rollout.correct)
    # Metrics are of all that was drawn, and beside them of what is trained on.
    assert value(metrics["rollouts"]) == metrics["reward"].count == num_draws * 16
    assert value(metrics["frac_reward_zero_std"]) > 0
    assert value(metrics["trained/frac_reward_zero_std"]) == 0
    trained = rollout.reward.mean()
    np.testing.assert_allclose(value(metrics["trained/reward"]), trained, rtol=1e-6)


# The gradient of a step, from its tokens alone: the policy is a table of logits.


def first_step(cfg, hypers=DEFAULT):
    """State before and after one step, its metrics, and its rollout."""
    stage = cfg.make(TASK, make_table(TASK), no_evaluation)
    state = stage.init(jax.random.key(0), hypers, None)
    new, metrics = jax.device_get(jax.jit(stage.step)(state, Data()))
    metrics = {name: (float(m.total), float(m.count)) for name, m in metrics.items()}
    rollout = jax.device_get(compiled_sampler(cfg.rollout)(state))
    return state, new, metrics, rollout


def table_gradient(params, token, weight):
    """Gradient of -sum weight * log pi(token) in the table; weight is BxGxT."""
    grad = np.zeros(params.shape)
    prob = np.exp(params) / np.exp(params).sum(1, keepdims=True)
    for t in range(token.shape[-1]):
        row = TASK.prompt_len - 1 + t
        one_hot = token[..., t, None] == np.arange(5)
        grad[row] = -(weight[..., t, None] * (one_hot - prob[row])).sum((0, 1))
    return grad


@pytest.mark.parametrize(
    ("loss_type", "scaled_by", "is_masked", "zero_std_groups"),
    [
        ("grpo", "group", False, "keep"),
        ("dr_grpo", "none", False, "drop"),
        ("bnpo", "none", True, "keep"),
        ("dapo", "none", True, "drop"),
        ("reinforce", "none", True, "drop"),
    ],
)
def test_the_gradient_of_a_step_from_its_tokens(
    loss_type, scaled_by, is_masked, zero_std_groups
):
    """Rows that predict prompt tokens have gradient exactly 0."""
    # Every reward is positive and most are not centred: what is dropped would show.
    rewards = (TENTH, OWN)
    rollout = RolloutConfig(6, 3, rewards=rewards, reward_weights=(1.0, 1.0))
    cfg = PolicyGradientConfig(
        rollout=rollout,
        loss_type=loss_type,
        baseline=scaled_by,
        scale_rewards=scaled_by,
        mask_truncated_completions=is_masked,
        zero_std_groups=zero_std_groups,
    )
    state, new, metrics, rollout = first_step(cfg)
    token, reward = rollout.response.token, rollout.reward
    ended = (token == EOS).any(-1)
    mask = np.cumsum(token == EOS, -1) - (token == EOS) == 0
    constant = np.ptp(reward, 1) == 0
    assert ended.any() and not ended.all()
    assert constant.any() and not constant.all()
    if is_masked:
        mask &= ended[..., None]
    if zero_std_groups == "drop":
        mask &= ~constant[:, None, None]
    advantage = reward
    if scaled_by == "group":
        centred = reward - reward.mean(1, keepdims=True)
        advantage = centred / (reward.std(1, keepdims=True) + cfg.std_eps)
    denominator = {
        "grpo": 18 * np.maximum(mask.sum(-1, keepdims=True), 1),
        "bnpo": mask.sum(),
        "dapo": mask.sum(),
        "dr_grpo": 18 * 3,
        "reinforce": 18,
    }[loss_type]
    weight = mask * advantage[..., None] / denominator
    expected = table_gradient(np.asarray(state.params, float), token, weight)
    grad = np.asarray(first_gradient(new))
    np.testing.assert_allclose(grad, expected, atol=1e-6)
    np.testing.assert_array_equal(grad[: TASK.prompt_len - 1], 0)
    np.testing.assert_array_equal(grad[TASK.prompt_len + 2 :], 0)
    assert (np.abs(grad[TASK.prompt_len - 1 : TASK.prompt_len + 1]).max(1) > 1e-3).all()
    # Token metrics count the tokens that carry loss.
    assert metrics["entropy"][1] == mask.sum()
    total, count = metrics["advantage_abs"]
    np.testing.assert_allclose(total, np.abs(advantage).sum(), rtol=1e-5)
    assert count == 18 and metrics["updates"] == (1, 1)


def test_constant_groups_leave_the_parameters_alone():
    """Adam would turn the smallest rounding error into a full step."""
    rollout = RolloutConfig(4, 3, rewards=(TENTH,))
    cfg = rloo(rollout=rollout)
    state, new, metrics, rollout = first_step(cfg)
    np.testing.assert_array_equal(rollout.reward, np.float32(0.1))
    np.testing.assert_array_equal(first_gradient(new), 0)
    np.testing.assert_array_equal(new.params, state.params)
    assert metrics["frac_reward_zero_std"] == (4, 4)
    assert metrics["grad_norm"] == (0, 1)


def test_minibatches_of_dapo_add_up():
    """Their losses are divided by the tokens of an average minibatch."""
    rewards = (TENTH, OWN)
    cfg = PolicyGradientConfig(
        rollout=RolloutConfig(6, 3, rewards=rewards, reward_weights=(1.0, 1.0)),
        loss_type="dapo",
        baseline="none",
        scale_rewards="none",
        num_minibatches=3,
    )
    _, _, metrics, rollout = first_step(cfg, Hypers(learning_rate=0.0))
    mask = rollout.response.mask
    expected = -(mask * rollout.reward[..., None]).sum() / (mask.sum() / 3)
    by_part = mask.reshape(3, -1).sum(1)
    assert len(set(by_part.tolist())) > 1  # dividing each by its own would differ
    assert metrics["loss"][1] == metrics["updates"][0] == 3
    np.testing.assert_allclose(metrics["loss"][0], expected, rtol=1e-5)


# Metrics


def test_rollout_metrics_by_hand():
    task = ParityConfig(3).make()
    token = np.array(
        [
            [[PLUS, EOS, PAD, PAD], [PLUS, MINUS, PLUS, EOS]],  # lengths 1 and 3
            [[MINUS, MINUS, MINUS, MINUS], [EOS, PAD, PAD, PAD]],  # truncated; empty
            [[PLUS, PLUS, EOS, PAD], [MINUS, EOS, PAD, PAD]],  # lengths 2 and 1
        ]
    )
    mask = np.cumsum(token == EOS, -1) - (token == EOS) == 0
    response = Response(token, np.zeros(token.shape), mask)
    reward = np.float32([[0.0, 1.0], [0.5, 0.5], [0.25, 0.75]])
    correct = np.float32([[0.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
    rollout = Rollout(Prompt(np.zeros((3, 4))), response, reward, correct)
    metrics = jax.jit(lambda rollout: rollout_metrics(rollout, task))(rollout)
    parts = {name: (float(m.total), float(m.count)) for name, m in metrics.items()}
    assert parts == {
        "reward": (3.0, 6),
        "reward_std": (0.5 + 0 + 0.25, 3),
        "frac_reward_zero_std": (1, 3),
        "accuracy": (3, 6),
        "p_long": (3, 6),  # lengths 3, 4 and 2
        "completions/mean_length": (1 + 3 + 4 + 0 + 2 + 1, 6),
        "completions/min_length": (0, 1),
        "completions/max_length": (4, 1),
        "completions/mean_terminated_length": (1 + 3 + 0 + 2 + 1, 5),
        "completions/mean_correct_length": (3 + 2 + 1, 3),
        "completions/mean_wrong_length": (1 + 4 + 0, 3),
        "completions/clipped_ratio": (1, 6),
        "rollouts": (6, 1),
        "tokens": (2 + 4 + 4 + 1 + 3 + 2, 1),
    }
