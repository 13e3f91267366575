"""The linear model, its SGD and STaR on it, against exact enumeration."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict

from parity_jax import theory
from parity_jax.config import ConfigError, from_dict, to_dict
from parity_jax.decode import sample
from parity_jax.evaluate import EvaluateConfig, make_evaluate
from parity_jax.experiment import Experiment, RunConfig
from parity_jax.hypers import Hypers
from parity_jax.models import LinearConfig, response_logits
from parity_jax.models.linear import (
    LinearParams,
    exact_policy,
    greedy_signs,
    prompt_signs,
)
from parity_jax.optim import OptimizerConfig
from parity_jax.policy import token_log_probs
from parity_jax.runs import resolve
from parity_jax.stages import (
    LinearPretrainConfig,
    LinearStarConfig,
    PolicyGradientConfig,
    RolloutConfig,
    SgdConfig,
)
from parity_jax.stages.linear import (
    Examples,
    exact_scores,
    head_losses,
    scored_inputs,
    sgd_update,
    zero_sgd,
)
from parity_jax.tasks import ParityConfig
from parity_jax.tasks.parity import EOS, MINUS, PAD, PLUS, SEP
from parity_jax.types import NOTHING_KEPT, Data, Prompt

D = 4
TASK = ParityConfig(num_bits=D).make()
MODEL = LinearConfig().make(TASK)


@pytest.fixture(scope="module")
def params() -> LinearParams:
    """Random weights; those of bits that a head cannot see are 0, as in training."""
    rng = np.random.default_rng(0)
    first, gate = rng.normal(size=D), rng.normal(size=2 * D + 2)
    chain = rng.normal(size=(D - 1, 3 * D - 1))
    chain[:, D : 2 * D - 1] = np.tril(chain[:, D : 2 * D - 1])
    return LinearParams(*map(jnp.float32, (first, gate, chain)))


def all_inputs(d: int = D) -> np.ndarray:
    return np.array(list(itertools.product((-1.0, 1.0), repeat=d)), np.float32)


def tokens_of(sign: np.ndarray) -> np.ndarray:
    return np.where(sign > 0, PLUS, MINUS)


def as_prompt(x: np.ndarray) -> Prompt:
    return Prompt(np.pad(tokens_of(x), ((0, 0), (0, 1)), constant_values=SEP))


def by_hand(params: LinearParams, x: np.ndarray, y: list[float]) -> float:
    """log P(y, EOS | x) from the features as the paper writes them."""

    def log_sigmoid(z: float) -> float:
        return -np.log1p(np.exp(-z))

    p = jax.tree.map(lambda w: np.asarray(w, np.float64), params)
    total = log_sigmoid(y[0] * (p.first @ x))
    gate = p.gate @ np.concatenate([[1], x, [y[0]], y[0] * x])
    if len(y) == 1:
        return total + log_sigmoid(-gate)
    total += log_sigmoid(gate)
    for step in range(2, D + 1):
        earlier = np.zeros(D - 1)
        earlier[: step - 1] = y[: step - 1]
        features = np.concatenate([x, earlier, y[step - 2] * x])
        total += log_sigmoid(y[step - 1] * (p.chain[step - 2] @ features))
    return total


def every_response() -> list[list[float]]:
    return [list(y) for n in (1, D) for y in itertools.product((-1.0, 1.0), repeat=n)]


def as_tokens(y: list[float]) -> np.ndarray:
    tokens = np.full(D + 1, PAD)
    tokens[: len(y)] = tokens_of(np.array(y))
    tokens[len(y)] = EOS
    return tokens


def test_log_probs_are_those_of_the_papers_features(params) -> None:
    """And gradients are finite; those of what comes later than a head are 0."""
    x, ys = all_inputs(), every_response()
    token_BxGxT = jnp.array([[as_tokens(y) for y in ys]] * len(x))

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def loss(params):
        logits = response_logits(MODEL, params, as_prompt(x), token_BxGxT)
        log_prob = token_log_probs(logits, token_BxGxT)
        total_BxG = jnp.where(token_BxGxT != PAD, log_prob, 0).sum(-1)
        return -total_BxG.mean(), total_BxG

    (_, total_BxG), grads = jax.device_get(loss(params))
    expected = np.array([[by_hand(params, row, y) for y in ys] for row in x])
    np.testing.assert_allclose(total_BxG, expected, atol=2e-5)
    np.testing.assert_allclose(np.exp(total_BxG).sum(-1), 1, atol=1e-5)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    later = np.triu(grads.chain[:, D : 2 * D - 1], 1)
    assert (later == 0).all()
    assert (np.abs(grads.chain) > 0).sum() > D * D


def test_decoding_samples_the_teacher_forced_policy(params) -> None:
    """At temperatures 1 and 2, 300 times each."""
    prompt, tau_G = as_prompt(all_inputs()), np.repeat(np.float32([1, 2]), 300)

    @jax.jit
    def everything(params):
        response = sample(
            jax.random.key(1), MODEL, params, prompt, jnp.array(tau_G), TASK.format
        )
        logits = response_logits(MODEL, params, prompt, response.token)
        logits = logits / tau_G[None, :, None, None]
        policy = exact_policy(params, prompt_signs(prompt))
        chain = TASK.solution(prompt).worked[:, :1]
        return response, token_log_probs(logits, response.token), policy, chain

    response, log_prob, policy, chain = jax.device_get(everything(params))
    error = np.where(response.mask, log_prob - response.log_prob, 0)
    assert np.abs(error).max() < 1e-4
    lengths = (response.token != PAD).sum(-1)
    assert set(np.unique(lengths)) == {2, D + 1}
    is_chain = (response.token[:, :300] == chain).all(-1).mean(-1)
    sd = np.sqrt(policy.long * (1 - policy.long) / 300)
    assert (np.abs(is_chain - policy.long) < 4 * sd + 1e-3).all()


def optimal_params(p: float, d: int, ridge: float) -> LinearParams:
    """The closed-form optimum in the layout of the model."""
    logits = theory.fit_logits(theory.pretrain_state(p, d), ridge)
    first, gate, chain = np.zeros(d), np.zeros(2 * d + 2), np.zeros((d - 1, 3 * d - 1))
    first[0] = logits.A
    gate[0] = (logits.C_plus + logits.C_minus) / 2
    gate[d + 2] = (logits.C_plus - logits.C_minus) / 2  # of y_1 x_1
    for i, logit in enumerate(logits.eps):
        chain[i, 2 * d + i] = logit  # of y_{l-1} x_l, l = i + 2
    return LinearParams(*map(jnp.float32, (first, gate, chain)))


def test_optimal_weights_give_theorem_1() -> None:
    """At the ridge optimum in closed form the scores are those of `ridge_stats`."""
    p, ridge, d = 0.4, 1e-3, 8
    params = optimal_params(p, d, ridge)
    both = jax.jit(lambda *args: (exact_policy(*args), greedy_signs(*args)))
    policy, (is_long, is_right) = jax.device_get(both(params, all_inputs(d)))
    stats = theory.ridge_stats(p, d, ridge)
    np.testing.assert_allclose(policy.first, stats["A"], atol=1e-6)
    np.testing.assert_allclose(policy.gate_right, stats["C_plus"], atol=1e-6)
    np.testing.assert_allclose(policy.gate_wrong, stats["C_minus"], atol=1e-6)
    np.testing.assert_allclose(policy.chain_error, stats["eps"], atol=1e-6)
    assert is_long.all() and is_right.all()


@pytest.mark.parametrize("loss_type, norm", [("reinforce", "const"), ("grpo", "seq")])
def test_a_policy_gradient_step_moves_bias_and_weight_alike(loss_type, norm) -> None:
    """One SGD step of GRPO is the theory's (du, dv); the gate's logit gets 2 dv."""
    p, num_generations = 0.4, 4
    cfg = PolicyGradientConfig(
        rollout=RolloutConfig(num_prompts=16384, num_generations=num_generations),
        loss_type=loss_type,
        optimizer=OptimizerConfig("sgd"),
    )
    params = optimal_params(p, D, 1e-4)
    stage = stage_of(cfg, D)
    state = stage.init(jax.random.key(0), Hypers(learning_rate=1.0), params)
    new, _ = jax.jit(stage.step)(state, Data())
    u, v = np.log((1 + p) / (1 - p)), np.log(2 * p / (1 - p))
    du, dv = theory.pg_expected_update(
        u, v, D, num_generations, adv="grpo", norm=norm, eps=1e-4
    )
    moved = jax.tree.map(np.subtract, *jax.device_get((new.params, params)))
    found = [moved.first[0], moved.gate[0], moved.gate[D + 2]]
    np.testing.assert_allclose(found, [du, dv, dv], atol=0.006)
    assert dv > 0.03


def numpy_sgd(examples, ridge: float, cfg: SgdConfig) -> list[np.ndarray]:
    """The paper's algorithm one head at a time; average of first, gate and chain."""
    dims = [D, 2 * D + 2] + [2 * D + step - 1 for step in range(2, D + 1)]
    w: list[list[np.ndarray]] = [[np.zeros(n)] for n in dims]  # all iterates

    def update(i: int, features: np.ndarray, label: float) -> None:
        now, t = w[i][-1], len(w[i])
        cap = cfg.max_step_size if i < 2 else cfg.max_chain_step_size
        step_size = 1 / (ridge * t + (1 / cap if cap else 0))
        slope = -label / (1 + np.exp(label * (now @ features)))
        w[i].append(now - step_size * (slope * features + ridge * now))

    for x, y in examples:
        is_long = y[1] != 0
        update(0, x, y[0])
        gate = np.concatenate([[1], x, [y[0]], y[0] * x])
        update(1, gate, 1.0 if is_long else -1.0)
        for step in range(2, D + 1) if is_long else []:
            features = np.concatenate([x, y[: step - 1], y[step - 2] * x])
            update(step, features, y[step - 1])

    def average(iterates: list[np.ndarray]) -> np.ndarray:
        """Those before the last; the t-th weighs t (t + 1) .. (t + power - 1)."""
        t = np.arange(1.0, len(iterates))
        weight = np.prod([t + k for k in range(cfg.average_power)] or [t**0], axis=0)
        return weight @ np.array(iterates[:-1]) / weight.sum()

    return [average(iterates) for iterates in w]


def draw_examples(num: int, p: float, seed: int = 0) -> list[tuple]:
    rng, out = np.random.default_rng(seed), []
    for _ in range(num):
        x = rng.choice([-1.0, 1.0], D)
        chain = np.cumprod(x)
        short = np.array([chain[-1]] + [0.0] * (D - 1))
        out.append((x, chain if rng.random() < p else short))
    return out


@pytest.mark.parametrize(("cap", "chain_cap", "power"), [(0, 0, 0), (0.5, 2, 3)])
def test_batch_size_1_is_the_papers_algorithm_head_by_head(
    cap, chain_cap, power
) -> None:
    cfg = SgdConfig(1, cap, chain_cap, power)
    examples, ridge = draw_examples(200, 0.4), 0.05
    sgd = zero_sgd(D)
    step = jax.jit(lambda s, e: sgd_update(cfg, jnp.float32(ridge), s, e)[0])
    for x, y in examples:
        sgd = step(sgd, Examples(np.float32(x)[None], np.float32(y)[None]))
    sgd, mean = jax.device_get(sgd), numpy_sgd(examples, ridge, cfg)
    np.testing.assert_allclose(sgd.average.first, mean[0], atol=2e-3)
    np.testing.assert_allclose(sgd.average.gate, mean[1], atol=2e-3)
    for i, row in enumerate(sgd.average.chain):
        own = np.concatenate([row[: D + i + 1], row[2 * D - 1 :]])
        np.testing.assert_allclose(own, mean[2 + i], atol=2e-3)
        assert (row[D + i + 1 : 2 * D - 1] == 0).all()
    num_long = sum(y[1] != 0 for _, y in examples)
    assert (int(sgd.t.first), int(sgd.t.chain)) == (200, num_long)


def test_a_batch_without_long_examples_leaves_the_chain_alone() -> None:
    cfg = SgdConfig(batch_size=8)
    examples = draw_examples(16, 1.0), draw_examples(8, 0.0)
    sgd = zero_sgd(D)
    before = None
    step = jax.jit(lambda s, e: sgd_update(cfg, jnp.float32(0.1), s, e))
    for part in (examples[0][:8], examples[0][8:], examples[1]):
        before = sgd
        x, y = (jnp.float32(np.array(column)) for column in zip(*part, strict=True))
        sgd, loss = step(sgd, Examples(x, y))
        assert np.isfinite(loss)
    assert (before.weights.chain == sgd.weights.chain).all()
    assert (before.average.chain == sgd.average.chain).all()
    assert int(sgd.t.chain) == 2 and int(sgd.t.gate) == 3
    assert (before.weights.gate != sgd.weights.gate).any()


def test_head_losses_by_hand() -> None:
    x, y = np.ones((2, D)), np.array([[1.0] * D, [1.0] + [0.0] * (D - 1)])
    losses = jax.jit(head_losses)(zero_sgd(D).weights, Examples(x, y))
    np.testing.assert_allclose(losses.first, np.log(2), rtol=1e-6)
    np.testing.assert_allclose(losses.chain, (D - 1) * np.log(2), rtol=1e-6)


def stage_of(cfg, num_bits: int):
    task = ParityConfig(num_bits=num_bits).make()
    model = LinearConfig().make(task)
    evaluate = make_evaluate(EvaluateConfig(num_prompts=8), task, model)
    return cfg.make(task, model, evaluate)


P, RIDGE, BITS = 0.3, 1e-3, 5
SGD = SgdConfig(64, max_step_size=0.5, max_chain_step_size=2.0, average_power=3)
HYPERS = Hypers(p_cot=P, ridge=RIDGE)


@pytest.fixture(scope="module")
def pretrained():
    stage = stage_of(LinearPretrainConfig(SGD, 2000), BITS)
    state = stage.init(jax.random.key(1), HYPERS, None)
    state, metrics = jax.jit(stage.step)(state, Data())
    scores = jax.jit(stage.evaluate)(state, Data())
    return state.params, values(metrics), values(scores)


def values(metrics) -> dict[str, float]:
    found = jax.device_get(metrics)
    with np.errstate(invalid="ignore"):  # of nothing there is no mean
        return {k: float(mean.total / mean.count) for k, mean in found.items()}


def test_pretraining_reaches_the_ridge_optimum(pretrained) -> None:
    _, metrics, scores = pretrained
    stats = theory.ridge_stats(P, BITS, RIDGE)
    assert abs(scores["exact/first"] - stats["A"]) < 0.005
    assert abs(scores["exact/gate_right"] - stats["C_plus"]) < 0.015
    assert abs(scores["exact/gate_wrong"] - stats["C_minus"]) < 0.005
    assert abs(scores["exact/chain_error"] - stats["eps"]) < 0.003
    assert scores["exact/greedy_long"] == 0
    assert abs(scores["exact/p_long"] - P) < 0.02
    assert 1 < metrics["loss"] < 1.5


def test_a_star_round_follows_the_recursion(pretrained) -> None:
    rollout = RolloutConfig(num_prompts=16384, num_generations=1, rewards=("cot",))
    stage = stage_of(LinearStarConfig(rollout, SGD, 2000), BITS)
    state = stage.init(jax.random.key(2), HYPERS, pretrained[0])
    state, metrics = jax.jit(stage.step)(state, Data())
    logits = theory.fit_logits(theory.pretrain_state(P, BITS), RIDGE)
    kept, keep_rate = theory.star_state_step(logits, 1.0, "cot")
    inputs = scored_inputs(state.key, ParityConfig(num_bits=BITS).make())
    scores = values(jax.jit(exact_scores)(state.params, inputs, P))
    assert abs(values(metrics)["kept_ratio"] - keep_rate) < 0.02
    assert abs(scores["exact/first"] - kept.A) < 0.02
    assert abs(scores["exact/gate_right"] - kept.C_plus) < 0.04
    assert scores["exact/greedy_right"] == 1  # n* = 1


def test_star_stops_when_nothing_is_kept() -> None:
    rollout = RolloutConfig(
        num_prompts=8, num_generations=1, rewards=("e2e",), reward_weights=(0.5,)
    )
    stage = stage_of(LinearStarConfig(rollout, SgdConfig(batch_size=4), 2), D)
    state = stage.init(jax.random.key(0), HYPERS, None)
    state, metrics = jax.jit(stage.step)(state, Data())
    assert int(state.status) == NOTHING_KEPT and values(metrics)["kept_ratio"] == 0


def test_config_round_trip_and_what_the_linear_model_refuses() -> None:
    run = RunConfig(stage=LinearPretrainConfig(), task=ParityConfig(num_bits=6))
    runs = {"a": run, "b": RunConfig()}
    experiment = Experiment(model=LinearConfig(), runs=FrozenDict(runs))
    assert from_dict(Experiment, to_dict(experiment)) == experiment
    assert list(resolve(experiment)) == ["a", "b"]
    with pytest.raises(
        ConfigError, match=r"model\.kind='transformer': must be 'linear'"
    ):
        resolve(Experiment(runs=FrozenDict({"a": run})))
    leap = Experiment(ParityConfig(8, 2), LinearConfig(), runs=FrozenDict(runs))
    with pytest.raises(ConfigError, match=r"task\.leap=2: must be 1"):
        resolve(leap)
