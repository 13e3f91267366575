"""Prompts, rewards and the groups that a policy-gradient step trains on."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_worlds import (
    always_a_tenth,
    first_gradient,
    make_table,
    no_evaluation,
    starts_with_plus,
)

from parity_jax.config import (
    ConfigError,
    ParityConfig,
    PolicyGradientConfig,
    RolloutConfig,
    reinforce,
)
from parity_jax.objectives import advantages, is_zero_std
from parity_jax.stages.policy_gradient import (
    draw_rollout,
    fill_groups,
    make_policy_gradient,
)
from parity_jax.stages.rollout import (
    Rollout,
    Sampler,
    noisy_reward,
    resolve_rewards,
    rollout_metrics,
    training_prompts,
)
from parity_jax.stages.stage import StepKeys
from parity_jax.tasks.parity import MINUS, PLUS, Parity
from parity_jax.types import EOS, PAD, Hypers, Response

TASK = Parity(ParityConfig(2))  # T = 3
TABLE = make_table(TASK)
WIDE = Parity(ParityConfig(30))
DEFAULT = Hypers()
OWN = "small_worlds:starts_with_plus"


def make_sampler(cfg, task=TASK, model=TABLE):
    return Sampler(cfg, task, model, resolve_rewards(cfg, task))


def a_state(hypers=DEFAULT, seed=0, task=TASK):
    stage = make_policy_gradient(reinforce(), task, make_table(task), no_evaluation)
    return stage.init(jax.random.key(seed), hypers, None)


def draw(cfg, hypers=DEFAULT, seed=0):
    state = a_state(hypers, seed)
    sampler = make_sampler(cfg)
    return jax.jit(lambda s: sampler(s, StepKeys.of(s)))(state)


# Rewards


@pytest.mark.parametrize("clean", [0.0, 1.0])
def test_noise_flips_at_its_rate(clean):
    num, hypers = 20_000, Hypers(false_positive=0.1, false_negative=0.3)
    seen = noisy_reward(jax.random.key(0), jnp.full((num // 4, 4), clean), hypers)
    rate = float(jnp.abs(seen - clean).mean())
    expected = 0.3 if clean else 0.1
    assert set(np.unique(seen)) == {0, 1}
    assert abs(rate - expected) < 4 * np.sqrt(expected * (1 - expected) / num)


@pytest.mark.parametrize("positive", [0.0, 1.0])
@pytest.mark.parametrize("negative", [0.0, 1.0])
def test_certain_noise_is_certain(positive, negative):
    clean = jnp.array([[0.0, 1.0]] * 500)
    hypers = Hypers(false_positive=positive, false_negative=negative)
    seen = noisy_reward(jax.random.key(1), clean, hypers)
    np.testing.assert_array_equal(seen, np.array([[positive, 1 - negative]] * 500))


def test_rewards_are_weighted_and_accuracy_is_not():
    rewards = ("e2e", "cot", OWN)
    cfg = RolloutConfig(64, 8, rewards=rewards, reward_weights=(0.5, 0.25, 2.0))
    rollout = draw(cfg)
    e2e, cot, own = (
        np.asarray(reward(rollout.prompt, rollout.response.token))
        for reward in (TASK.reward_e2e, TASK.reward_cot, starts_with_plus)
    )
    assert min(np.ptp(e2e), np.ptp(e2e - cot), np.ptp(e2e - own)) > 0  # all differ
    expected = 0.5 * e2e + 0.25 * cot + 2.0 * own
    np.testing.assert_allclose(rollout.reward, expected, rtol=1e-6)
    np.testing.assert_array_equal(rollout.correct, e2e)


def test_every_reward_has_its_own_noise():
    cfg = RolloutConfig(256, 8, rewards=("e2e", "e2e"), reward_weights=(1.0, 10.0))
    reward = np.asarray(
        draw(cfg, Hypers(false_positive=0.5, false_negative=0.5)).reward
    )
    first, second = reward % 10, reward // 10
    assert set(np.unique(first)) == set(np.unique(second)) == {0, 1}
    assert abs((first == second).mean() - 0.5) < 4 * 0.5 / np.sqrt(reward.size)


@pytest.mark.parametrize("mode", ["additive", "multiplicative"])
def test_longer_responses_cost_more(mode):
    cfg = RolloutConfig(64, 8, length_price=mode)
    rollout = draw(cfg, Hypers(length_price=0.4))
    token = np.asarray(rollout.response.token)
    length = np.where(token == EOS, np.arange(3), 3).min(-1)
    assert set(np.unique(length)) == {0, 1, 2, 3}
    cost = 0.4 * length / 2
    correct = np.asarray(rollout.correct)
    expected = correct - cost if mode == "additive" else correct * (1 - cost)
    np.testing.assert_allclose(rollout.reward, expected, rtol=1e-6)


def test_a_reward_of_ones_own_is_found_by_name():
    cfg = RolloutConfig(rewards=(OWN, "cot"), reward_weights=(1.0, 1.0))
    own, cot = resolve_rewards(cfg, TASK)
    assert own is starts_with_plus
    assert cot == TASK.reward_cot


@pytest.mark.parametrize(
    "name",
    [
        "e2",
        "no_such_module:f",
        "small_worlds:no_such_function",
        "small_worlds:not_a_function",
        "small_worlds:",
        ":f",
        ".relative:f",
    ],
)
def test_rewards_that_do_not_exist_are_config_errors(name):
    with pytest.raises(ConfigError) as error:
        resolve_rewards(RolloutConfig(rewards=(name,)), TASK)
    assert error.value.name == "rewards"
    assert repr(name) in str(error.value)
    assert "\n" not in str(error.value)


# Prompts


def prompts_of_steps(cfg, num_steps, seed=0):
    state = a_state(seed=seed, task=WIDE)
    for step in range(num_steps):
        at_step = state._replace(step=jnp.int32(step))
        key = StepKeys.of(at_step).data
        prompts = np.asarray(training_prompts(cfg, WIDE, at_step, key))
        yield [tuple(row) for row in prompts]


def test_a_pool_is_fixed_and_its_own_for_every_member():
    cfg = RolloutConfig(num_prompts=16, num_unique_prompts=20)
    steps = list(prompts_of_steps(cfg, 12))
    assert all(len(set(prompts)) == 16 for prompts in steps)  # no repeat in a step
    pool = set().union(*steps)
    assert len(pool) == 20  # all of the pool, and nothing else, in the long run
    assert steps[0] != steps[1]
    assert not pool & set().union(*prompts_of_steps(cfg, 2, seed=1))


def test_a_pool_smaller_than_a_step_repeats_its_prompts():
    cfg = RolloutConfig(num_prompts=64, num_unique_prompts=3)
    for prompts in prompts_of_steps(cfg, 2):
        assert len(prompts) == 64
        assert len(set(prompts)) == 3


def test_without_a_pool_prompts_are_fresh():
    first, second = prompts_of_steps(RolloutConfig(num_prompts=16), 2)
    assert len(set(first) | set(second)) == 32


# Groups without signal


def numbered(reward_BxG, start):
    """A rollout whose prompts and tokens carry the number of their group."""
    reward = jnp.asarray(reward_BxG, jnp.float32)
    number_B = jnp.arange(start, start + len(reward))
    token = jnp.broadcast_to(number_B[:, None, None], (*reward.shape, 3))
    response = Response(token, 1.0 * token, token > 0)
    return Rollout(number_B[:, None], response, reward, reward)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        # Groups 0 and 2 are constant; the useful new ones are 11 and 12, in that order.
        (["00", "01", "11"], ["00", "01", "10"], [11, 1, 12]),
        # One useful group for two places: the first place takes it.
        (["00", "01", "11"], ["00", "11", "10"], [12, 1, 2]),
        (["00", "01", "11"], ["00", "11", "00"], [0, 1, 2]),  # nothing to take
        (["10", "01", "01"], ["10", "01", "10"], [0, 1, 2]),  # nothing to replace
        (["11", "11", "11"], ["10", "01", "10"], [10, 11, 12]),
        (["01", "11", "10"], ["00", "00", "01"], [0, 12, 2]),
    ],
)
def test_useful_groups_fill_the_places_of_constant_ones(old, new, expected):
    old, new = ([[int(c) for c in group] for group in rows] for rows in (old, new))
    filled = fill_groups(numbered(old, 0), numbered(new, 10))
    assert filled.prompt[:, 0].tolist() == expected
    assert filled.response.token[:, 0, 0].tolist() == expected
    assert filled.response.log_prob[:, -1, -1].tolist() == expected
    rewards = dict(enumerate(old)) | {10 + i: row for i, row in enumerate(new)}
    assert filled.reward.tolist() == [rewards[i] for i in expected]
    assert filled.correct.tolist() == [rewards[i] for i in expected]


def resampled(reward, max_resamples, seed=0):
    rollout = RolloutConfig(8, 2, rewards=(reward,))
    cfg = PolicyGradientConfig(
        rollout=rollout, zero_std_groups="resample", max_resamples=max_resamples
    )
    state, sampler = a_state(seed=seed), make_sampler(rollout)
    return jax.jit(
        lambda s: (*draw_rollout(cfg, sampler, s), sampler(s, StepKeys.of(s)))
    )(state)


def test_resampling_is_bounded():
    rollout, ratio, _ = resampled("small_worlds:always_a_tenth", 3)
    np.testing.assert_allclose(ratio, 1 / (1 + 3))
    assert is_zero_std(rollout.reward).all()


def test_resampling_fills_every_group_and_keeps_those_that_had_signal():
    rollout, ratio, first = resampled(OWN, 50)
    had_signal = ~np.asarray(is_zero_std(first.reward))
    assert 0 < had_signal.sum() < 8
    assert not is_zero_std(rollout.reward).any()
    assert 1 / 51 < ratio <= 1 / 2
    np.testing.assert_allclose(1 / ratio, round(1 / float(ratio)), rtol=1e-5)
    for x, y in zip(jax.tree.leaves(rollout), jax.tree.leaves(first), strict=True):
        np.testing.assert_array_equal(x[had_signal], y[had_signal])
    # What was filled in is consistent: prompts, responses and rewards moved together.
    token = rollout.response.token
    np.testing.assert_array_equal(starts_with_plus(None, token), rollout.reward)
    correct = TASK.reward_e2e(rollout.prompt, token)
    np.testing.assert_array_equal(correct, rollout.correct)


# The gradient of a step, from its tokens alone: the policy is a table of logits.


@lru_cache
def compiled(cfg):
    """The stage, and one step together with the rollout that it must have drawn."""
    stage = make_policy_gradient(cfg, TASK, TABLE, no_evaluation)
    sampler = make_sampler(cfg.rollout)
    both = jax.jit(lambda s: (stage.step(s), sampler(s, StepKeys.of(s))))
    return stage, both


def first_step(cfg, hypers=DEFAULT, seed=0):
    """State before and after one step, its metrics, and its rollout."""
    stage, both = compiled(cfg)
    state = stage.init(jax.random.key(seed), hypers, None)
    (new, metrics), rollout = both(state)
    metrics = {name: (float(m.total), float(m.count)) for name, m in metrics.items()}
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


MASKED, DROP = {"mask_truncated_completions": True}, {"zero_std_groups": "drop"}


@pytest.mark.parametrize(
    ("loss_type", "options"),
    [
        ("grpo", {}),
        ("dapo", {}),
        ("dr_grpo", {}),
        ("grpo", MASKED),
        ("bnpo", MASKED),
        ("bnpo", DROP),
        ("dapo", MASKED | DROP),
        ("reinforce", MASKED | DROP),
    ],
)
def test_the_gradient_of_a_step_from_its_tokens(loss_type, options):
    """Rows that predict prompt tokens have gradient exactly 0."""
    # Every reward is positive and none is centred: what is dropped would show.
    rewards = ("small_worlds:always_a_tenth", OWN)
    rollout = RolloutConfig(6, 3, rewards=rewards, reward_weights=(1.0, 1.0))
    cfg = PolicyGradientConfig(
        rollout=rollout,
        loss_type=loss_type,
        baseline="none",
        scale_rewards="none",
        **options,
    )
    state, new, metrics, rollout = first_step(cfg)
    token, reward = np.asarray(rollout.response.token), np.asarray(rollout.reward)
    ended = (token == EOS).any(-1)
    mask = np.cumsum(token == EOS, -1) - (token == EOS) == 0
    constant = np.ptp(reward, 1) == 0
    assert ended.any() and not ended.all()
    assert constant.any() and not constant.all()
    if "mask_truncated_completions" in options:
        mask &= ended[..., None]
    if "zero_std_groups" in options:
        mask &= ~constant[:, None, None]
    denominator = {
        "grpo": 18 * np.maximum(mask.sum(-1, keepdims=True), 1),
        "bnpo": mask.sum(),
        "dapo": mask.sum(),
        "dr_grpo": 18 * 3,
        "reinforce": 18,
    }[loss_type]
    weight = mask * reward[..., None] / denominator
    expected = table_gradient(np.asarray(state.params, float), token, weight)
    grad = np.asarray(first_gradient(new))
    np.testing.assert_allclose(grad, expected, atol=1e-6)
    np.testing.assert_array_equal(grad[: TASK.prompt_len - 1], 0)
    np.testing.assert_array_equal(grad[TASK.prompt_len + 2 :], 0)
    assert (np.abs(grad[TASK.prompt_len - 1 : TASK.prompt_len + 1]).max(1) > 1e-3).all()
    # Token metrics count the tokens that carry loss.
    assert metrics["entropy"][1] == mask.sum()


@pytest.mark.parametrize("baseline", ["group", "leave_one_out"])
def test_constant_groups_leave_the_parameters_alone(baseline):
    """Adam would turn the smallest rounding error into a full step."""
    rollout = RolloutConfig(4, 3, rewards=("small_worlds:always_a_tenth",))
    cfg = reinforce(rollout=rollout, baseline=baseline)
    state, new, metrics, rollout = first_step(cfg)
    np.testing.assert_array_equal(
        rollout.reward, always_a_tenth(None, rollout.reward[..., None])
    )
    np.testing.assert_array_equal(first_gradient(new), 0)
    np.testing.assert_array_equal(new.params, state.params)
    assert metrics["frac_reward_zero_std"] == (4, 4)
    assert metrics["grad_norm"] == (0, 1)


def losses_of(loss_type, num_minibatches):
    rewards = ("small_worlds:always_a_tenth", OWN)
    cfg = PolicyGradientConfig(
        rollout=RolloutConfig(9, 3, rewards=rewards, reward_weights=(1.0, 1.0)),
        loss_type=loss_type,
        baseline="none",
        scale_rewards="none",
        num_minibatches=num_minibatches,
    )
    return first_step(cfg, Hypers(learning_rate=0.0))[2]["loss"]


def test_minibatches_of_dapo_add_up_and_those_of_bnpo_do_not():
    whole, _ = losses_of("bnpo", 1)
    dapo, num_updates = losses_of("dapo", 3)
    bnpo, _ = losses_of("bnpo", 3)
    assert num_updates == 3
    np.testing.assert_allclose(dapo / 3, whole, rtol=1e-5)
    assert abs(bnpo / 3 - whole) > 1e-3 * abs(whole)


def test_advantages_of_a_step_are_those_of_the_rollout():
    cfg = PolicyGradientConfig(rollout=RolloutConfig(6, 3, rewards=(OWN,)))
    _, _, metrics, rollout = first_step(cfg)
    expected = np.abs(advantages(rollout.reward, cfg)).sum()
    np.testing.assert_allclose(metrics["advantage_abs"][0], expected, rtol=1e-5)
    assert metrics["advantage_abs"][1] == 18
    assert metrics["updates"] == (1, 1)


# Metrics


def test_rollout_metrics_by_hand():
    task = Parity(ParityConfig(3))
    token = np.array(
        [
            [[PLUS, EOS, PAD, PAD], [PLUS, MINUS, PLUS, EOS]],  # lengths 1 and 3
            [[MINUS, MINUS, MINUS, MINUS], [EOS, PAD, PAD, PAD]],  # truncated; empty
            [[PLUS, PLUS, EOS, PAD], [MINUS, EOS, PAD, PAD]],  # lengths 2 and 1
        ]
    )
    mask = np.cumsum(token == EOS, -1) - (token == EOS) == 0
    response = Response(jnp.asarray(token), jnp.zeros(token.shape), jnp.asarray(mask))
    reward = jnp.array([[0.0, 1.0], [0.5, 0.5], [0.25, 0.75]])
    correct = jnp.array([[0.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
    metrics = rollout_metrics(
        Rollout(jnp.zeros((3, 4)), response, reward, correct), task
    )
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
