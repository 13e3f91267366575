"""Advantages, ratios, divergences and denominators against arithmetic done by hand."""

from dataclasses import replace
from functools import partial
from math import exp, log, sqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parity_jax.hypers import Hypers
from parity_jax.objectives import (
    MAX_KL_LOG_RATIO,
    MAX_LOG_RATIO,
    Target,
    advantages,
    is_zero_std,
    kl_estimate,
    next_token_loss,
    policy_loss,
    policy_target,
    priced_reward,
    token_weights,
)
from parity_jax.policy import (
    TokenScores,
    tempered,
    token_entropy,
    token_log_probs,
    token_scores,
)

DEFAULT = Hypers()
LOSS_TYPES = ("grpo", "bnpo", "dapo", "dr_grpo", "reinforce")

# Two groups of four: 2 and 3 successes, 5 of 8 in all.
REWARD = np.array([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0]])
BASELINE = {
    "none": np.zeros((2, 4)),
    "batch": np.full((2, 4), 5 / 8),
    "group": np.array([[2 / 4] * 4, [3 / 4] * 4]),
    # Successes of the three others, over three.
    "leave_one_out": np.array(
        [[1 / 3, 2 / 3, 2 / 3, 1 / 3], [2 / 3, 2 / 3, 2 / 3, 3 / 3]]
    ),
}
# Variance of K successes among n: (K/n)(1 - K/n), times n/(n - 1) for ddof=1.
STD = {
    ("batch", 0): np.full((2, 1), sqrt(5 / 8 * 3 / 8)),
    ("batch", 1): np.full((2, 1), sqrt(5 / 8 * 3 / 8 * 8 / 7)),
    ("group", 0): np.array([[1 / 2], [sqrt(3) / 4]]),
    ("group", 1): np.array([[sqrt(1 / 3)], [1 / 2]]),
}


jit_advantages = jax.jit(advantages, static_argnums=(1, 2, 3))


def test_advantages_by_hand():
    for baseline, value in BASELINE.items():
        found = jit_advantages(REWARD, baseline, "none", 0, 0.0)
        np.testing.assert_allclose(found, REWARD - value, atol=1e-6)
    cases = [("none", 0.0), ("batch", 1e-4), ("group", 0.5)]
    for (scale_by, ddof), std in STD.items():
        for baseline, eps in cases:
            found = jit_advantages(REWARD, baseline, scale_by, ddof, eps)
            expected = (REWARD - BASELINE[baseline]) / (std + eps)
            np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-6)
    # GRPO, one success in four: mean 1/4, std sqrt(3)/4, 3/4 / (sqrt(3)/4) = sqrt(3).
    reward = np.array([[1.0, 0, 0, 0]] * 2)
    advantage = jit_advantages(reward, "group", "group", 0, 0.0)
    expected = [[sqrt(3), -1 / sqrt(3), -1 / sqrt(3), -1 / sqrt(3)]] * 2
    np.testing.assert_allclose(advantage, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("baseline", "scale_by", "ddof", "eps"),
    [
        ("group", "none", 0, 0.0),
        ("group", "group", 0, 0.0),
        ("group", "group", 1, 1e-4),
        ("group", "batch", 0, 0.0),
        ("leave_one_out", "none", 0, 0.0),
    ],
)
def test_constant_groups_have_no_advantage_whatever_rounding_does(
    baseline, scale_by, ddof, eps
):
    # 0.1 and 0.7 have no exact float, and their mean over 3 need not be themselves.
    level = np.array([0.1, 0.7, 1 / 3, 1.0, 0.0, 0.43], np.float32)
    for num_generations in (3, 7):
        constant = np.repeat(level[:, None], num_generations, 1)

        def of(reward):
            return np.asarray(jit_advantages(reward, baseline, scale_by, ddof, eps))

        np.testing.assert_array_equal(of(constant), 0)
        same = np.full_like(constant, 0.1)  # the whole batch
        np.testing.assert_array_equal(of(same), 0)
        # Beside a group that has signal the constant ones still have none.
        constant[-1] = np.arange(num_generations) / 7
        advantage = of(constant)
        np.testing.assert_array_equal(advantage[:-1], 0)
        assert np.abs(advantage[-1]).max() > 0.05
        assert np.isfinite(advantage).all()


@pytest.mark.parametrize("scale_by", ["group", "batch"])
@pytest.mark.parametrize(("scale", "is_whole"), [(1e15, True), (1e25, False)])
def test_rewards_whose_squares_overflow_are_no_signal_of_0(scale, is_whole, scale_by):
    reward = np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]], np.float32)
    plain = jit_advantages(reward, "group", scale_by, 1, 0.0)
    huge = jit_advantages(reward * np.float32(scale), "group", scale_by, 1, 0.0)
    expected = plain if is_whole else np.full_like(plain, np.nan)
    np.testing.assert_allclose(huge, expected, rtol=1e-5)


def test_is_zero_std():
    reward = jnp.array([[0.1, 0.1, 0.1], [0, 0, 0], [0, 0, 1], [1, 0, 1]])
    assert is_zero_std(reward).tolist() == [True, True, False, False]


# Three tokens of mask, seven of all: lengths 1, 4, 2 and an empty mask.
LOSS = np.array(
    [[[1.0, 9, 9, 9], [1, 2, 3, 4]], [[2, 6, 9, 9], [9, 9, 9, 9]]], np.float32
)
MASK = np.array(
    [[[1, 0, 0, 0], [1, 1, 1, 1]], [[1, 1, 0, 0], [0, 0, 0, 0]]],
    bool,
)


@partial(jax.jit, static_argnums=2)
@jax.value_and_grad
def aggregate(loss, mask, loss_type, rollout_tokens):
    return (token_weights(mask, loss_type, rollout_tokens) * loss).sum()


def test_denominators_by_hand():
    expected = {
        "grpo": (1 / 1 + 10 / 4 + 8 / 2 + 0) / 4,
        "bnpo": (1 + 10 + 8) / 7,
        "dapo": (1 + 10 + 8) / 10,  # ten tokens per minibatch in the whole rollout
        "dr_grpo": (1 + 10 + 8) / (4 * 4),
        "reinforce": (1 + 10 + 8) / 4,
    }
    nothing = np.zeros_like(MASK)
    for loss_type in LOSS_TYPES:
        loss, _ = aggregate(LOSS, MASK, loss_type, 10.0)
        np.testing.assert_allclose(loss, expected[loss_type], rtol=1e-6)
        # Nothing to train on is zero.
        value, grad = aggregate(LOSS, nothing, loss_type, 0.0)
        assert value == 0
        np.testing.assert_array_equal(grad, 0)


def test_bnpo_and_dapo_differ_over_minibatches():
    # Prompt 0 has loss 11 in 5 tokens, prompt 1 has 8 in 2: 3.5 tokens on average.
    parts = [(LOSS[:1], MASK[:1]), (LOSS[1:], MASK[1:])]
    bnpo = [float(aggregate(*part, "bnpo", 3.5)[0]) for part in parts]
    dapo = [float(aggregate(*part, "dapo", 3.5)[0]) for part in parts]
    np.testing.assert_allclose(bnpo, [11 / 5, 8 / 2], rtol=1e-6)
    np.testing.assert_allclose(dapo, [11 / 3.5, 8 / 3.5], rtol=1e-6)
    whole, _ = aggregate(LOSS, MASK, "bnpo", 10.0)
    np.testing.assert_allclose(np.mean(dapo), whole, rtol=1e-6)
    assert abs(np.mean(bnpo) - whole) > 0.1


def logits_of(log_prob):
    """Logits over two tokens, the first of which has this log-probability."""
    return jnp.stack([log_prob, jnp.log1p(-jnp.exp(log_prob))], -1)


def surrogate(
    log_ratio,
    advantage,
    hypers=DEFAULT,
    mask=None,
    reference=None,
    at=-0.9,
    loss_type="reinforce",
    **options,
):
    """Loss, its gradient to each token's log-probability, and the metrics.

    Always one prompt, two responses, three tokens; what is not given is masked. The
    tokens have log-probability `at` and had `at - log_ratio` when sampled.
    """
    mask_BxGxT, log_ratio_BxGxT = np.zeros((1, 2, 3), bool), np.zeros((1, 2, 3))
    for g, row in enumerate(log_ratio):
        log_ratio_BxGxT[0, g, : len(row)] = row
        mask_BxGxT[0, g, : len(row)] = True if mask is None else mask[g]
    advantage_BxG = np.resize(np.array([advantage], np.float32), (1, 2))
    old_BxGxT = (at - log_ratio_BxGxT).astype(np.float32)
    constants = (mask_BxGxT, old_BxGxT, reference, advantage_BxG)
    options = (loss_type, *sorted(options.items()))
    log_prob = np.full((1, 2, 3), at, np.float32)
    found = _surrogate(log_prob, constants, hypers, options)
    (value, metrics), grad = jax.device_get(found)
    return value, grad[0], {k: float(m.total / m.count) for k, m in metrics.items()}


@partial(jax.jit, static_argnums=3)
@partial(jax.value_and_grad, has_aux=True)
def _surrogate(log_prob, constants, hypers, options):
    token = jnp.zeros(log_prob.shape, int)
    loss_type, *options = options
    mask, old, reference, advantage = constants
    arguments = (token, mask, old, reference, advantage, mask.sum(), loss_type)
    scores = token_scores(logits_of(log_prob), token)
    return policy_loss(scores, policy_target(*arguments), hypers, **dict(options))


CLIP = Hypers(epsilon=0.2, epsilon_high=0.3, delta=1.5)


def test_clipping_by_hand():
    for ratio, advantage, delta, loss, grad in (
        (1.0, 2.0, 1.5, -2.0, -2.0),
        (1.2, 1.0, 1.5, -1.2, -1.2),  # within 1 + 0.3
        (1.4, 1.0, 1.5, -1.3, 0.0),  # clipped high
        (0.5, 1.0, 1.5, -0.5, -0.5),  # too low to gain: free to rise
        (0.9, -1.0, 1.5, 0.9, 0.9),  # within 1 - 0.2
        (0.5, -1.0, 1.5, 0.8, 0.0),  # clipped low
        (1.4, -1.0, 1.5, 1.4, 1.4),  # beyond 1 + 0.3 but free to fall
        (2.0, -1.0, 1.5, 1.5, 0.0),  # capped by delta
        (2.0, -1.0, 1e6, 2.0, 2.0),  # no cap
    ):
        hypers = replace(CLIP, delta=delta)
        value, slope, _ = surrogate([[log(ratio)]], [advantage], hypers)
        # A sum over two responses, the second of which is empty.
        np.testing.assert_allclose(value, loss / 2, rtol=1e-5)
        np.testing.assert_allclose(slope[0, 0], grad / 2, rtol=1e-5, atol=1e-7)


def test_a_ratio_beyond_all_bounds_has_no_gradient_and_is_finite():
    hypers = Hypers(delta=1e30)
    value, slope, _ = surrogate([[MAX_LOG_RATIO + 100]], [-1.0], hypers)
    np.testing.assert_allclose(value, exp(MAX_LOG_RATIO) / 2, rtol=1e-4)
    np.testing.assert_array_equal(slope, 0)


def test_the_first_update_is_the_ratio_one_with_its_gradient():
    """Without old log-probabilities they are the scores' own, exactly."""
    rng = np.random.default_rng(3)
    shape, mask = (2, 2, 3), np.ones((2, 2, 3), bool)
    token, advantage = np.zeros(shape, int), rng.normal(size=(2, 2)).astype(np.float32)
    log_prob = rng.normal(-2, 1, shape).astype(np.float32)

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def gradient(log_prob, old):
        target = policy_target(token, mask, old, None, advantage, 1.0, "grpo")
        return policy_loss(TokenScores(log_prob, log_prob), target, CLIP)

    found, expected = gradient(log_prob, None), gradient(log_prob, log_prob)
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert float(found[0][0]) == pytest.approx(-advantage.mean(), rel=1e-5)


def test_clip_metrics_count_tokens_of_the_mask():
    # Of the five tokens under the mask: row 0 (advantage > 0) has one too high and one
    # too low, row 1 (advantage < 0) one too high and two too low.
    log_ratio = [np.log([2.0, 0.1, 2.0]), np.log([2.0, 0.1, 0.1])]
    mask = [[True, True, False], [True, True, True]]
    *_, metrics = surrogate(log_ratio, [1.0, -1.0], CLIP, mask)
    assert metrics["clip_ratio/high_mean"] == pytest.approx(1 / 5)
    assert metrics["clip_ratio/low_mean"] == pytest.approx(2 / 5)
    assert metrics["clip_ratio/region_mean"] == pytest.approx(3 / 5)


def test_sequence_level_ratio_is_the_mean_log_ratio_of_the_mask():
    log_ratio, mask = [[0.2, 0.4, 50.0]], [[True, True, False]]
    hypers = Hypers(epsilon_high=0.5)
    value, grad, _ = surrogate(log_ratio, [2.0], hypers, mask, level="sequence")
    # Two tokens with ratio e^0.3 over two responses; each slope is half of both tokens.
    np.testing.assert_allclose(value, -2 * 2 * exp(0.3) / 2, rtol=1e-5)
    expected = [-2 * exp(0.3) / 2, -2 * exp(0.3) / 2, 0]
    np.testing.assert_allclose(grad[0], expected, rtol=1e-5, atol=0)
    # The second token alone would be clipped at 1.35, the sequence is not.
    hypers = Hypers(epsilon_high=0.35 + 1e-3)
    _, by_sequence, _ = surrogate(log_ratio, [2.0], hypers, mask, level="sequence")
    _, by_token, _ = surrogate(log_ratio, [2.0], hypers, mask)
    assert (by_sequence[0, :2] != 0).all()
    assert by_token[0, 0] != 0
    assert by_token[0, 1] == 0


P = np.array([0.5, 0.3, 0.2])  # the policy
Q = np.array([0.2, 0.5, 0.3])  # the reference
KL = float((P * np.log(P / Q)).sum())


def test_kl_estimates_by_hand():
    log_prob = jnp.log(jnp.array([0.5, 0.25]))
    reference = jnp.log(jnp.array([0.25, 0.5]))
    for estimator, expected in {
        "k1": [log(2), -log(2)],
        "k2": [log(2) ** 2 / 2, log(2) ** 2 / 2],
        "k3": [1 / 2 + log(2) - 1, 2 - log(2) - 1],
    }.items():
        values = kl_estimate(log_prob, reference, estimator)
        np.testing.assert_allclose(values, expected, rtol=1e-5)
    bound = exp(MAX_KL_LOG_RATIO) - MAX_KL_LOG_RATIO - 1
    np.testing.assert_allclose(kl_estimate(-500.0, -1.0, "k3"), bound, rtol=1e-5)


def test_k3_of_policies_that_hardly_differ():
    """exp(-x) + x - 1 in float32 is below 0, and a fifth off at x = 1e-3."""
    x = np.float32([1e-8, 1e-6, 1e-4, 1e-3, 1e-2])
    x = np.concatenate([x, -x])
    exact = np.expm1(-np.float64(x)) + np.float64(x)
    k3 = kl_estimate(jnp.asarray(x), jnp.zeros_like(x), "k3")
    assert (np.asarray(k3) >= 0).all()
    np.testing.assert_allclose(k3, exact, rtol=2e-3, atol=1e-12)


def test_kl_estimates_in_expectation():
    mean = {
        k: float((P * kl_estimate(jnp.log(P), jnp.log(Q), k)).sum())
        for k in ("k1", "k2", "k3")
    }
    assert mean["k1"] == pytest.approx(KL, rel=1e-5)
    assert mean["k3"] == pytest.approx(KL, rel=1e-5)
    assert abs(mean["k2"] - KL) > 0.01  # biased


def test_k1_in_the_loss_has_no_expected_gradient_and_k2_that_of_the_kl():
    def expected_gradient(estimator):
        def sampled(logits):  # samples come from P, their weights are no function of it
            log_prob = jax.nn.log_softmax(logits)
            return (P * kl_estimate(log_prob, jnp.log(Q), estimator)).sum()

        return jax.grad(sampled)(jnp.log(P))

    def kl(logits):
        log_prob = jax.nn.log_softmax(logits)
        return (jnp.exp(log_prob) * (log_prob - jnp.log(Q))).sum()

    of_kl = jax.grad(kl)(jnp.log(P))
    assert np.abs(of_kl).max() > 0.1
    np.testing.assert_allclose(expected_gradient("k1"), 0, atol=1e-6)
    np.testing.assert_allclose(expected_gradient("k2"), of_kl, atol=1e-6)


def test_kl_enters_the_loss_only_if_told_to():
    x = log(2)  # log-probability less that of the reference
    reference = np.full((1, 2, 3), -0.9 - x, np.float32)
    k3 = exp(-x) + x - 1
    for is_kl_in_loss in (True, False):
        options = {"kl_estimator": "k3", "is_kl_in_loss": is_kl_in_loss}
        hypers = Hypers(beta=0.1)
        value, _, metrics = surrogate(
            [[0.0]], [1.0], hypers, reference=reference, **options
        )
        expected = (-1 + 0.1 * k3 * is_kl_in_loss) / 2
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        assert metrics["kl"] == pytest.approx(k3, rel=1e-5)


def test_entropy_by_hand():
    logits = jnp.log(jnp.array([[0.25] * 4, [0.5, 0.25, 0.125, 0.125]]))
    np.testing.assert_allclose(
        token_entropy(logits), [log(4), 1.75 * log(2)], rtol=1e-6
    )


def test_entropy_bonus_is_a_mean_over_tokens_for_every_loss_type():
    for loss_type in LOSS_TYPES:
        value, _, metrics = surrogate(
            [[0.0, 0.0], [0.0]],
            [0.0],
            Hypers(entropy_coef=0.3),
            at=log(0.5),
            loss_type=loss_type,
        )
        np.testing.assert_allclose(value, -0.3 * log(2), rtol=1e-5)
        assert metrics["entropy"] == pytest.approx(log(2), rel=1e-5)


KINDS = [*((x, "token") for x in LOSS_TYPES), ("grpo", "sequence")]


def test_masked_tokens_have_no_influence():
    rng = np.random.default_rng(0)
    shape = (2, 5, 3)
    mask = np.arange(3) < np.array([[1, 3, 2, 0, 3], [2, 1, 1, 3, 2]])[..., None]
    old, reference = rng.normal(-2, 0.1, (2, *shape)).astype(np.float32)
    logits = rng.normal(size=(*shape, 6)).astype(np.float32)
    token = rng.integers(0, 6, shape)
    advantage = rng.normal(size=shape[:2]).astype(np.float32)
    hypers = Hypers(beta=0.5, entropy_coef=0.1, epsilon=0.99, epsilon_high=99.0)

    @jax.jit
    def grads_of(logits, token, old, reference):
        """Of all kinds at once: it is compiled once."""

        def loss(logits, loss_type, level):
            arguments = (token, mask, old, reference, advantage, 5.0, loss_type)
            scores, target = token_scores(logits, token), policy_target(*arguments)
            return policy_loss(scores, target, hypers, level, "k3")

        return [jax.value_and_grad(loss, has_aux=True)(logits, *kind) for kind in KINDS]

    found = jax.device_get(grads_of(logits, token, old, reference))
    changed = grads_of(
        np.where(mask[..., None], logits, 7.0 * logits + 1),
        np.where(mask, token, 5 - token),
        np.where(mask, old, -30.0).astype(np.float32),
        np.where(mask, reference, -40.0).astype(np.float32),
    )
    for (value, grad), (other, _) in zip(found, jax.device_get(changed), strict=True):
        np.testing.assert_array_equal(grad[~mask], 0)
        assert (np.abs(grad[mask]).max(-1) > 0).all()
        for a, b in zip(*map(jax.tree.leaves, (value, other)), strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_order_within_a_group_means_nothing():
    rng = np.random.default_rng(1)
    shape = (2, 5, 3)
    features = rng.normal(size=(*shape, 4)).astype(np.float32)
    token = rng.integers(0, 6, shape)
    mask = np.arange(3) < rng.integers(1, 4, shape[:2])[..., None]
    old = rng.normal(-2, 0.3, shape).astype(np.float32)
    reward = rng.normal(size=shape[:2]).astype(np.float32)
    params = rng.normal(size=(4, 6)).astype(np.float32)
    scales = [("group", "group"), ("leave_one_out", "none"), ("batch", "batch")]

    @jax.jit
    def grads_of(params, order):
        """Of all kinds at once: it is compiled once."""
        feature, tokens, masks, olds, rewards = (
            jnp.array(x)[:, order] for x in (features, token, mask, old, reward)
        )

        def loss(params, kind, scale):
            advantage = advantages(rewards, *scale, 0, 1e-4)
            target = policy_target(tokens, masks, olds, None, advantage, 9.0, kind[0])
            scores = token_scores(feature @ params, tokens)
            return policy_loss(scores, target, DEFAULT, kind[1])[0]

        pairs = zip(KINDS, 2 * scales, strict=True)
        return [jax.value_and_grad(loss)(params, *pair) for pair in pairs]

    found, other = (
        jax.device_get(grads_of(params, np.array(order)))
        for order in ([0, 1, 2, 3, 4], [3, 0, 4, 2, 1])
    )
    for a, b in zip(*map(jax.tree.leaves, (found, other)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert all(np.abs(grad).max() > 1e-2 for _, grad in found)


def test_prices_of_length_by_hand():
    correct, num_tokens = np.array([[1.0, 1.0, 0.0]]), np.array([[16, 1, 8]])
    additive = priced_reward(correct, num_tokens, 16, 0.4, "additive")
    np.testing.assert_allclose(additive, [[1 - 0.4, 1 - 0.4 / 16, -0.4 / 2]], rtol=1e-6)
    multiplicative = priced_reward(correct, num_tokens, 16, 0.4, "multiplicative")
    np.testing.assert_allclose(
        multiplicative, [[1 - 0.4, 1 - 0.4 / 16, 0.0]], rtol=1e-6
    )


def test_next_token_loss_sums_tokens_and_averages_sequences():
    log_prob = jnp.log(jnp.array([[[0.5, 0.25, 0.1]], [[0.5, 0.1, 0.1]]]))
    mask = jnp.array([[[True, True, False]], [[True, False, False]]])
    target = Target(jnp.zeros(mask.shape, int), mask)
    scores = token_scores(logits_of(log_prob), target.token)
    loss, metrics = next_token_loss(scores, target, 2)
    np.testing.assert_allclose(loss, (log(8) + log(2)) / 2, rtol=1e-6)
    np.testing.assert_allclose(metrics["token_loss"].value(), log(16) / 3, rtol=1e-6)


def test_token_log_probs_normalise():
    logits = np.full((3, 3), [1.0, 2.0, 3.0])
    log_prob = np.asarray(token_log_probs(logits, np.arange(3)))
    assert np.exp(log_prob).sum() == pytest.approx(1)
    np.testing.assert_allclose(log_prob[2] - log_prob[0], 2.0, rtol=1e-6)


def test_tempered_leaves_greedy_logits_alone():
    logits = jnp.array([1.0, -2.0])
    np.testing.assert_array_equal(tempered(logits, jnp.float32(0)), logits)
    np.testing.assert_array_equal(tempered(logits, jnp.float32(2)), logits / 2)
