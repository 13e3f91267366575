"""Small worlds where every prompt and every response is enumerated: exact gradients."""

import itertools
from functools import cache
from math import factorial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit
from small_worlds import (
    Heads,
    all_prompts,
    all_responses,
    first_gradient,
    make_heads,
    no_evaluation,
    replicate,
)
from tiny import tiny_stage

from parity_jax import theory
from parity_jax.hypers import Hypers
from parity_jax.models import (
    Model,
    TransformerConfig,
    response_logits,
)
from parity_jax.models.model import forced_scores, run_prompt
from parity_jax.objectives import (
    advantages,
    policy_loss,
    policy_target,
    priced_reward,
)
from parity_jax.policy import TokenScores
from parity_jax.stages import (
    PolicyGradientConfig,
    RolloutConfig,
    dr_grpo,
    gspo,
    reinforce,
    rloo,
)
from parity_jax.stages.policy_gradient import make_policy_gradient
from parity_jax.tasks import Parity
from parity_jax.tasks.parity import EOS, MINUS, PAD, PLUS, SEP
from parity_jax.types import Data, Params, Prompt

# The reduced policy of the theory: an answer is long (and right), short with y_1 = x_1,
# or short with y_1 = -x_1. Two prompts stand for the two halves of all: the parity is
# x_1 in the first and -x_1 in the second. Everything else is symmetric.


def two_prompts(d):
    return np.array([[PLUS] * d + [SEP], [PLUS] * (d - 1) + [MINUS, SEP]])


def three_outcomes(d):
    """Responses long, short right, short wrong (of y_1 = x_1), 2 x 3 x (d + 1)."""
    chain = [[PLUS] * d + [EOS], [PLUS] * (d - 1) + [MINUS, EOS]]
    tail = [EOS] + [PAD] * (d - 1)
    return np.array([[row, [PLUS, *tail], [MINUS, *tail]] for row in chain])


def expected_ascent(u, v, d, cfg, num_generations, alpha=0.0, mode="additive", tau=1.0):
    """Minus the exact expected gradient of the loss code: the sum over all groups.

    Groups of one prompt each, as multisets with their multinomial probability.
    """
    task = Parity(d)
    model, size = make_heads(task), num_generations
    A, C = expit(u / tau), expit(v / tau)
    prob = np.array([A * C, A * (1 - C), 1 - A])
    outcome = three_outcomes(d)
    groups = np.array(
        list(itertools.combinations_with_replacement(range(3), num_generations))
    )
    counts = (groups[..., None] == np.arange(3)).sum(1)
    ways = [factorial(size) / np.prod([factorial(n) for n in c]) for c in counts]
    weight = np.tile(np.array(ways) * (prob**counts).prod(-1) / 2, 2)
    assert weight.sum() == pytest.approx(1)

    prompt = Prompt(jnp.repeat(jnp.array(two_prompts(d)), len(groups), 0))
    token = jnp.array(outcome[:, groups].reshape(-1, size, d + 1))
    mask = token != PAD
    num_tokens = mask.sum(-1) - 1
    correct = task.rewards["e2e"](prompt, token)
    reward = priced_reward(correct, num_tokens, d, alpha, mode)
    scale = (cfg.baseline, cfg.scale_rewards, cfg.std_ddof, cfg.std_eps)
    advantage = advantages(reward, *scale)
    rollout_tokens = size * (2 + (d - 1) * prob[0])  # of an average group

    def group_loss(scores, token, mask, advantage):
        constants = (token[None], mask[None], None, None, advantage[None])
        target = policy_target(*constants, rollout_tokens, cfg.loss_type)
        scores = TokenScores(*(x[None] for x in scores))
        return policy_loss(scores, target, Hypers())[0]

    def loss(params):
        begun = run_prompt(model, params, prompt)
        scores = forced_scores(model, params, begun, token, tau)
        losses = jax.vmap(group_loss)(scores, token, mask, advantage)
        return (weight * losses).sum()

    grad = jax.jit(jax.grad(loss))(Heads(jnp.float32(u), jnp.float32(v)))
    return -np.array([grad.first, grad.gate_right])


def reward_ascent(u, v):
    """The gradient of the expected reward: REINFORCE of any baseline, d and G."""
    return theory.pg_expected_update(u, v, d=3, G=2)


def estimator_config(G, adv, norm, eps=0.0, ddof=0):
    baseline, scale = {
        "reinforce": ("none", "none"),
        "dr": ("group", "none"),
        "grpo": ("group", "group"),
    }[adv]
    loss_type = {
        "const": "reinforce",
        "seq": "grpo",
        "token": "dapo",
        "token_group": "bnpo",
    }[norm]
    std = {} if scale == "none" else {"std_eps": eps, "std_ddof": ddof}
    return PolicyGradientConfig(
        rollout=RolloutConfig(1, G),
        baseline=baseline,
        scale_rewards=scale,
        loss_type=loss_type,
        **std,
    )


def on_curve(p):
    """Logits of the policy that is pre-trained on D(p)."""
    return np.log((1 + p) / (1 - p)), np.log(2 * p / (1 - p))


@pytest.mark.parametrize(
    ("adv", "norm", "p", "printed"),
    [
        ("grpo", "const", 0.1, (0.04189810, 0.07617836)),
        ("grpo", "token", 0.1, (0.01197089, 0.02176525)),
        ("grpo", "seq", 0.1, (0.00431304, 0.00784189)),
        ("grpo", "token_group", 0.1, (0.00892406, 0.01622556)),
        ("grpo", "token_group", 0.25, (0.01446044, 0.02313670)),
        ("dr", "const", 0.1, (0.01968750, 0.03579545)),
        ("dr", "seq", 0.1, (0.00202665, 0.00368483)),
    ],
)
def test_groups_of_eight_match_the_printed_updates(adv, norm, p, printed):
    ascent = expected_ascent(*on_curve(p), 16, estimator_config(8, adv, norm), 8)
    np.testing.assert_allclose(ascent, printed, rtol=1e-5)


@pytest.mark.parametrize(
    ("adv", "norm", "options", "price"),
    [
        ("reinforce", "const", {}, {}),
        ("reinforce", "seq", {}, {"alpha": 0.3}),
        ("reinforce", "token_group", {}, {"alpha": 0.3, "penalty": "mult"}),
        ("dr", "token", {}, {}),
        ("dr", "token_group", {}, {"alpha": 0.3}),
        ("grpo", "const", {"eps": 1e-4, "ddof": 1}, {}),
        ("grpo", "seq", {"eps": 0.1, "ddof": 1}, {}),
        ("grpo", "seq", {}, {"alpha": 0.3}),
        ("grpo", "const", {"eps": 0.1}, {"alpha": 0.3, "penalty": "mult"}),
    ],
)
def test_the_loss_code_reproduces_the_closed_form(adv, norm, options, price):
    u, v, d, G = 0.5, -1.0, 5, 3
    cfg = estimator_config(G, adv, norm, **options)
    mode = {"add": "additive", "mult": "multiplicative"}[price.get("penalty", "add")]
    alpha = price.get("alpha", 0.0)
    ascent = expected_ascent(u, v, d, cfg, G, alpha, mode)
    expected = theory.pg_expected_update(u, v, d, G, adv, norm, **options, **price)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(ascent, expected, rtol=1e-5, atol=1e-6)


def test_two_priced_rewards_have_no_size():
    """The std of two divides it away: GRPO does not learn from any additive price."""
    cfg = estimator_config(2, "grpo", "seq")
    ascent = expected_ascent(0.5, -1.0, 5, cfg, 2, alpha=0.3)
    expected = theory.pg_expected_update(0.5, -1.0, 5, 2, "grpo", "seq", alpha=0.3)
    np.testing.assert_allclose(ascent, expected, atol=1e-6)
    np.testing.assert_allclose(ascent, 0, atol=1e-6)
    without_price = expected_ascent(0.5, -1.0, 5, cfg, 2)
    assert np.abs(without_price).max() > 1e-3


def test_dr_grpo_divides_by_the_longest_response():
    u, v, d, G = 0.5, -1.0, 5, 3
    cfg = dr_grpo(rollout=RolloutConfig(1, G))
    expected = theory.pg_expected_update(u, v, d, G, "dr", "const") / (d + 1)
    ascent = expected_ascent(u, v, d, cfg, G)
    np.testing.assert_allclose(ascent, expected, rtol=1e-5)


def test_leave_one_out_is_unbiased_and_the_group_mean_is_not():
    u, v, d, G = 0.5, -1.0, 5, 3
    ascent = expected_ascent(u, v, d, rloo(rollout=RolloutConfig(1, G)), G)
    np.testing.assert_allclose(ascent, reward_ascent(u, v), rtol=1e-5)
    own_mean = expected_ascent(u, v, d, estimator_config(G, "dr", "const"), G)
    np.testing.assert_allclose(own_mean, reward_ascent(u, v) * 2 / 3, rtol=1e-5)


@pytest.mark.parametrize("tau", [0.7, 1.5])
@pytest.mark.parametrize(("adv", "norm"), [("reinforce", "const"), ("grpo", "seq")])
def test_temperature_rescales_logits_and_gradient(adv, norm, tau):
    u, v, d, G = 0.5, -1.0, 5, 3
    cfg = estimator_config(G, adv, norm)
    ascent = expected_ascent(u, v, d, cfg, G, tau=tau)
    expected = theory.pg_expected_update(u / tau, v / tau, d, G, adv, norm) / tau
    np.testing.assert_allclose(ascent, expected, rtol=1e-5, atol=1e-6)


def test_the_critical_price_stops_the_gradient():
    d, G = 5, 4
    u, v = on_curve(0.25)
    alpha = theory.alpha_critical(d)
    cfg = estimator_config(G, "grpo", "const", eps=1e-4)
    assert abs(expected_ascent(u, v, d, cfg, G, alpha)[1]) < 1e-6
    assert expected_ascent(u, v, d, cfg, G, alpha - 0.05)[1] > 1e-4
    assert expected_ascent(u, v, d, cfg, G, alpha + 0.05)[1] < -1e-4


# A real transformer on d = 3: 8 prompts, 341 responses.


class World(NamedTuple):
    """All prompts, all responses to each of them, and a model without symmetries."""

    task: Parity
    model: Model
    params: Params
    prompt: Prompt
    token: np.ndarray  # BxNxT, the same for all prompts
    mask: np.ndarray  # BxNxT
    reward: np.ndarray  # BxN


@cache
def world() -> World:
    task, sizes = Parity(3), {"depth": 1, "width": 8, "num_heads": 2, "num_kv_heads": 2}
    model = TransformerConfig(**sizes, mlp_width=16, init_std=0.4).make(task)
    prompt, (token, mask) = all_prompts(task), all_responses(task)
    num_prompts = len(prompt.token)
    token_BxNxT = np.broadcast_to(token, (num_prompts, *token.shape))
    mask_BxNxT = np.broadcast_to(mask, token_BxNxT.shape)
    reward_BxN = np.asarray(task.rewards["e2e"](prompt, token_BxNxT))
    params = model.init(jax.random.key(11))
    return World(task, model, params, prompt, token_BxNxT, mask_BxNxT, reward_BxN)


TEMPERATURES = (0.7, 1.0, 1.5)


@jax.jit
def log_prob_of_responses(params, temperature):
    """log pi(y | x) of every response to every prompt, 8 x 341, written out anew."""
    w = world()
    logits = response_logits(w.model, params, w.prompt, w.token) / temperature
    log_prob = jax.nn.log_softmax(logits)
    chosen = (log_prob * jax.nn.one_hot(w.token, 5)).sum(-1)
    return (chosen * w.mask).sum(-1)


@jax.jit
@jax.grad
def weighted_score(params, weight_BxN, temperature):
    """Gradient of sum weight * log pi at a temperature, the weights held fixed."""
    return (weight_BxN * log_prob_of_responses(params, temperature)).sum()


@jax.jit
@jax.grad
def reward_gradient(params, temperature):
    """Gradient of E[reward]."""
    prob_BxN = jnp.exp(log_prob_of_responses(params, temperature))
    return (prob_BxN * world().reward).sum(1).mean()


@jax.jit
@jax.grad
def reinforce_gradient(params, advantage_BxN, temperature):
    """Gradient of the loss code if all responses are the groups of all prompts."""
    w = world()
    begun = run_prompt(w.model, params, w.prompt)
    scores = forced_scores(w.model, params, begun, w.token, temperature)
    constants = (w.token, w.mask, None, None, advantage_BxN)
    target = policy_target(*constants, w.mask[0].sum(), "reinforce")
    return policy_loss(scores, target, Hypers())[0]


@cache
def response_probs(temperature):
    """pi^(1/temperature)(y | x) in 64 bits, 8 x 341."""
    log_prob = log_prob_of_responses(world().params, temperature)
    return np.exp(np.asarray(log_prob, np.float64))


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def test_expected_reinforce_gradient_is_the_gradient_of_the_reward():
    """On-policy the loss is linear in the advantage: probabilities can ride on it."""
    w = world()
    num_responses = w.reward.shape[1]
    for temperature in TEMPERATURES:
        prob_BxN = response_probs(temperature)
        np.testing.assert_allclose(prob_BxN.sum(1), 1, atol=1e-5)  # all are there
        success = (prob_BxN * w.reward).sum(1)
        assert 0.03 < success.min() < success.max() < 0.98  # something is to be learnt
        advantage = (prob_BxN * w.reward * num_responses).astype(np.float32)
        exact = flat(reward_gradient(w.params, temperature))
        estimated = -flat(reinforce_gradient(w.params, advantage, temperature))
        assert np.abs(exact).max() > 1e-2
        np.testing.assert_allclose(estimated, exact, atol=1e-5)


NUM_REPLICAS, NUM_PROMPTS, NUM_GENERATIONS = 64, 64, 4
ROLLOUT = RolloutConfig(NUM_PROMPTS, NUM_GENERATIONS)


@cache
def replicas_step(cfg):
    """The gradients of the first step of independent members, compiled once."""
    w = world()
    stage = make_policy_gradient(cfg, w.task, w.model, no_evaluation)

    def one(key, hypers):
        state = stage.init(key, hypers, w.params)
        return first_gradient(stage.step(state, Data())[0])

    return jax.jit(jax.vmap(one))


def sampled_gradients(cfg, temperature):
    """Minus the gradients that the stage used in 64 independent first steps, 64 x n."""
    keys = jax.random.split(jax.random.key(11), NUM_REPLICAS)
    hypers = replicate(Hypers(temperature=temperature), NUM_REPLICAS)
    grads = replicas_step(cfg)(keys, hypers)
    return -np.concatenate(
        [np.reshape(x, (NUM_REPLICAS, -1)) for x in jax.tree.leaves(grads)], 1
    )


def standard_errors_between(sampled_RxN, exact_N):
    """Largest z-score of the mean along the exact and along some random directions."""
    rng = np.random.default_rng(5)
    direction = np.vstack([exact_N, rng.normal(size=(8, exact_N.size))])
    sampled_RxK, exact_K = sampled_RxN @ direction.T, direction @ exact_N
    error = sampled_RxK.std(0, ddof=1) / np.sqrt(len(sampled_RxN))
    return np.abs((sampled_RxK.mean(0) - exact_K) / error).max()


def group_gain(cfg, temperature):
    """E[advantage f] = gain * Cov(reward, f) for each prompt, 8 x 1."""
    success = (response_probs(temperature) * world().reward).sum(1)
    gain = np.ones(len(success))
    if cfg.scale_rewards == "group":
        gain = theory.grpo_gain(success, NUM_GENERATIONS, cfg.std_eps, cfg.std_ddof)
    return gain[:, None], success[:, None]


def exact_gradient(cfg, temperature, trained_at=None):
    """Expected ascent direction of a stage whose rewards are 0 or 1, by enumeration.

    `trained_at` is the temperature of the trained log-probabilities, if it differs.
    """
    w, prob_BxN = world(), response_probs(temperature)
    gain, success = group_gain(cfg, temperature)
    weight_BxN = prob_BxN * gain * (w.reward - success) / len(prob_BxN)
    if cfg.loss_type == "grpo":
        weight_BxN /= w.mask.sum(-1)
    trained_at = temperature if trained_at is None else trained_at
    return flat(weighted_score(w.params, weight_BxN.astype(np.float32), trained_at))


@pytest.mark.parametrize("preset", [rloo, PolicyGradientConfig])
def test_the_stage_trains_the_policy_that_it_samples(preset):
    cfg = preset(rollout=ROLLOUT)
    for temperature in TEMPERATURES:
        sampled = sampled_gradients(cfg, temperature)
        exact = exact_gradient(cfg, temperature)
        assert standard_errors_between(sampled, exact) < 4
        if temperature != 1:  # neither rule that forgets the temperature would pass
            untempered = exact_gradient(cfg, temperature, trained_at=1.0)
            assert standard_errors_between(sampled, untempered) > 6
            unsampled = exact_gradient(cfg, 1.0)
            assert standard_errors_between(sampled, unsampled) > 6


def test_reinforce_without_a_baseline():
    cfg = reinforce(rollout=ROLLOUT)
    sampled, exact = sampled_gradients(cfg, 1.0), exact_gradient(cfg, 1.0)
    assert standard_errors_between(sampled, exact) < 4
    assert standard_errors_between(sampled, 1.3 * exact) > 4


# The two-logit policy through the whole stage, where estimates are sharp.


def heads_gradients(cfg, hypers, params, d=4, at=None, num_replicas=64):
    """Minus gradients of first steps; a stage started at `params` is moved to `at`."""
    task = Parity(d)
    stage = make_policy_gradient(cfg, task, make_heads(task), no_evaluation)
    params = jax.tree.map(jnp.float32, params)

    def one(key, hypers):
        state = stage.init(key, hypers, params)
        if at is not None:
            state = state._replace(params=jax.tree.map(jnp.float32, at))
        return first_gradient(stage.step(state, Data())[0])

    keys = jax.random.split(jax.random.key(7), num_replicas)
    grads = jax.jit(jax.vmap(one))(keys, replicate(hypers, num_replicas))
    return -np.stack([grads.first, grads.gate_right], 1)


def clipped_shares(num_iterations):
    """(temperature) -> shares of tokens clipped low, high and at all in one step."""
    cfg = PolicyGradientConfig(RolloutConfig(16, 8), num_iterations=num_iterations)
    task, start = Parity(4), jax.tree.map(jnp.float32, Heads(1.0, -0.5))
    stage = make_policy_gradient(cfg, task, make_heads(task), no_evaluation)
    step = jax.jit(stage.step)

    def shares(temperature):
        hypers = Hypers(temperature=temperature, epsilon=1e-5, epsilon_high=1e-5)
        _, metrics = step(stage.init(jax.random.key(0), hypers, start), Data())
        names = ("low", "high", "region")
        return [float(metrics[f"clip_ratio/{name}_mean"].value()) for name in names]

    return shares


def test_only_the_first_update_is_on_policy():
    """Nothing is clipped in it; in later ones there is something to clip."""
    first, later = clipped_shares(1), clipped_shares(3)
    for temperature in (0.7, 1.5):
        assert first(temperature) == [0, 0, 0]
        assert min(later(temperature)) > 0


@pytest.mark.parametrize(
    ("preset", "dtype", "num_updates"),
    [
        (gspo, "float32", 4),
        (gspo, "bfloat16", 4),
        (PolicyGradientConfig, "bfloat16", 1),
    ],
)
def test_ratios_are_those_of_the_trained_pass(preset, dtype, num_updates):
    """Those of the sampler are rounded otherwise: narrow bounds would clip some.

    Without a step between the updates every ratio is 1.
    """
    stage = tiny_stage(preset(rollout=RolloutConfig(16, 8)), dtype=dtype)
    step = jax.jit(stage.step)

    def update(epsilon):
        hypers = Hypers(epsilon=epsilon, epsilon_high=epsilon, learning_rate=0.0)
        state = stage.init(jax.random.key(0), hypers, None)
        _, metrics = step(state, Data())
        assert float(metrics["clip_ratio/region_mean"].value()) == 0
        assert float(metrics["updates"].value()) == num_updates
        return float(metrics["grad_norm"].value())

    assert update(1e-6) == update(0.5) > 0


def assert_mean_is(sampled, expected, relative_error=0.1):
    error = sampled.std(0, ddof=1) / np.sqrt(len(sampled))
    assert (error < relative_error * np.abs(expected).max()).all()  # sharp enough
    assert (np.abs(sampled.mean(0) - expected) < 4 * error).all()


@pytest.mark.parametrize(
    ("adv", "norm", "options", "price"),
    [
        ("grpo", "seq", {"eps": 1e-4}, {}),
        ("dr", "const", {}, {"alpha": 0.3}),
        ("grpo", "token", {"eps": 1e-4, "ddof": 1}, {}),
    ],
)
def test_the_stage_reproduces_the_closed_form(adv, norm, options, price):
    u, v, d, G, tau = 1.0, -0.5, 4, 4, 1.5
    options_of_stage = estimator_config(G, adv, norm, **options)
    rollout = RolloutConfig(num_prompts=512, num_generations=G)
    cfg = PolicyGradientConfig(**vars(options_of_stage) | {"rollout": rollout})
    hypers = Hypers(temperature=tau, length_price=price.get("alpha", 0.0))
    sampled = heads_gradients(cfg, hypers, Heads(u, v), d)
    arguments = (u / tau, v / tau, d, G, adv, norm)
    expected = theory.pg_expected_update(*arguments, **options, **price) / tau
    assert_mean_is(sampled, expected)


def test_batch_baseline_takes_its_own_sample_into_the_mean():
    """One sample each of three prompts: the gradient shrinks by 1 - 1/3."""
    cfg = reinforce(baseline="batch", rollout=RolloutConfig(3, 1))
    sampled = heads_gradients(cfg, Hypers(), Heads(1.0, -0.5), num_replicas=16384)
    assert_mean_is(sampled, reward_ascent(1.0, -0.5) * 2 / 3, relative_error=0.05)


def test_kl_in_the_reward_is_the_gradient_of_the_kl():
    """k1 in the reward: the expected step is that of E[reward] - beta KL."""
    reference, at, beta = (0.2, -1.5), (1.0, -0.5), 0.5

    def objective(logits):
        """(1 + A C)/2 - beta KL of the outcomes to the reference's."""
        log_prob, log_reference = (
            jnp.stack(
                [
                    jax.nn.log_sigmoid(u) + jax.nn.log_sigmoid(v),
                    jax.nn.log_sigmoid(u) + jax.nn.log_sigmoid(-v),
                    jax.nn.log_sigmoid(-u),
                ]
            )
            for u, v in (logits, reference)
        )
        prob = jnp.exp(log_prob)
        kl = (prob * (log_prob - log_reference)).sum()
        return (1 + prob[0]) / 2 - beta * kl

    expected = np.array(jax.grad(objective)(tuple(map(jnp.float32, at))))
    rollout = RolloutConfig(512, 4)
    cfg = reinforce(kl_estimator="k1", kl_in="reward", rollout=rollout)
    hypers = Hypers(beta=beta)
    sampled = heads_gradients(cfg, hypers, Heads(*reference), at=Heads(*at))
    assert_mean_is(sampled, expected)
    assert np.abs(expected - reward_ascent(*at)).max() > 0.05  # beta matters
