"""Code of a user's own that breaks its contract is refused before it is trained on."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import WalkConfig, train, walk, walks

from parity_jax.cli import main
from parity_jax.config import ConfigError, UserCodeError, in_code_of
from parity_jax.hypers import Hypers
from parity_jax.metrics import Mean
from parity_jax.runs import RunDirectory, RunError, resolve
from parity_jax.stages import PolicyGradientConfig, RolloutConfig, StarConfig
from parity_jax.stages.rollout import own_reward, resolve_rewards
from parity_jax.tasks import ParityConfig
from parity_jax.tasks.contract import check_task
from parity_jax.tasks.parity import PAD

# Rewards, named "test_own_code:..".


def transposed(prompt, response_BxGxT, data):
    return jnp.zeros(response_BxGxT.shape[1::-1])


def imaginary(prompt, response_BxGxT, data):
    return (response_BxGxT[..., 0] != 0) * (1 + 2j)


def nothing(prompt, response_BxGxT, data):
    return None


def words(prompt, response_BxGxT, data):
    return np.full(response_BxGxT.shape[:2], "good")


def five(prompt, response_BxGxT, data):
    return jnp.full(response_BxGxT.shape[:2], 5.0)


def infinite(prompt, response_BxGxT, data):
    """Where a response begins with what no demonstration does."""
    return jnp.where(response_BxGxT[..., 0] == PAD, jnp.inf, 1.0)


@pytest.mark.parametrize(
    ("reward", "part"),
    [
        ("infinite", "must be finite for every response, not [inf]"),
        ("transposed", "must return an array of shape (3, 2)"),
        ("imaginary", "must return real numbers, not complex64"),
        ("nothing", "must return real numbers, not NoneType"),
        ("words", "must return real numbers, not ndarray"),
    ],
)
def test_an_own_reward_is_checked_at_sizes_that_differ(reward, part):
    cfg = RolloutConfig(4, 4, rewards=(f"test_own_code:{reward}",))
    with pytest.raises(ConfigError, match=reward) as info:
        resolve_rewards(cfg, ParityConfig(2).make())
    assert part in str(info.value)


def test_what_own_code_raises_is_named_but_for_a_line():
    """A StopIteration too, of `next`; what tells itself comes as it is."""
    with (
        pytest.raises(UserCodeError, match=r"^mine: StopIteration"),
        in_code_of("mine"),
    ):
        next(iter(()))
    with pytest.raises(RunError, match=r"^damaged$"), in_code_of("mine"):
        raise RunError("damaged")


def insatiable(prompt, response_BxGxT, data):
    raise MemoryError("too much")


@pytest.mark.parametrize("flag", ["--quiet", "--dry_run"])
def test_memory_that_own_code_wants_is_told(tmp_path, capsys, monkeypatch, flag):
    """In one line; JAX adds a note of several to what is raised below it."""
    monkeypatch.chdir(tmp_path)
    rewards = "--config.runs.grpo.stage.rollout.rewards=test_own_code:insatiable"
    config = Path(__file__).parents[1] / "experiments/example.py"
    command = ["run", f"--config={config}", "--workdir=run", rewards, flag]
    assert main.run(command) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match("error: .*out of memory.*test_own_code:insatiable: too much", line)
    assert line.count("insatiable") == 1 and not (tmp_path / "run").exists()


def test_whole_numbers_beyond_32_bits_are_rewards_too():
    large = own_reward("mine:f", lambda *_: np.full((3, 2), 2**40))
    assert large(None, jnp.zeros((3, 2, 1)), ()).tolist() == [[2.0**40] * 2] * 3


@pytest.mark.parametrize("name", ["false_positive", "false_negative"])
@pytest.mark.parametrize("kind", [PolicyGradientConfig, StarConfig])
def test_noise_is_for_rewards_that_are_0_or_1(kind, name):
    rollout = RolloutConfig(64, 2, rewards=("cot",))
    own = dataclasses.replace(rollout, rewards=("test_own_code:five",))
    kind(rollout=rollout).check(None, Hypers(**{name: 0.5}))
    kind(rollout=own).check(None, Hypers())
    with pytest.raises(ConfigError, match=f"^{name}=0.5: must be 0 with the reward"):
        kind(rollout=own).check(None, Hypers(**{name: 0.5}))


# Algorithms


@dataclass(frozen=True)
class OddConfig(WalkConfig):
    """A walk with one thing wrong."""

    mode: str = ""

    @property
    def sequences_per_step(self):
        return {"text": "8", "negative": -8, "raises": 8}[self.mode]

    def check(self, model, hypers):
        if self.mode == "raises":
            raise ZeroDivisionError("in my check")


@pytest.mark.parametrize("mode", ["text", "negative"])
def test_sequences_per_step_is_a_number(mode):
    with pytest.raises(ConfigError, match=r"run\.stage\.sequences_per_step=.*at least"):
        resolve(walks(run=walk(stage=OddConfig(mode=mode))))


def test_an_exception_in_an_own_check_is_the_users(tmp_path):
    stage = OddConfig(mode="raises")
    with pytest.raises(UserCodeError, match="OddConfig: ZeroDivisionError") as info:
        train(walks(run=walk(stage=stage)), tmp_path / "run")
    assert info.value.is_early and not (tmp_path / "run").exists()


@dataclass(frozen=True)
class SpoiltConfig(WalkConfig):
    """A walk whose step or evaluation has one thing wrong."""

    mode: str = ""

    def make(self, task, model, evaluate):
        stage = super().make(task, model, evaluate)
        if self.mode == "none":
            return None

        def init(key, hypers, params=None):
            state = stage.init(key, hypers, params)
            match self.mode:
                case "begun":
                    state = state._replace(step=jnp.int32(5))
                case "begun status":
                    state = state._replace(status=jnp.int32(77))
            return state

        def step(state, data):
            new, metrics = stage.step(state, data)
            match self.mode:
                case "stands":
                    new = new._replace(step=state.step)
                case "status":
                    new = new._replace(status=jnp.int32(77))
                case "half":
                    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), new.params)
                    new = new._replace(params=params)
                case "state":
                    return {}, metrics
                case "vector":
                    metrics["v"] = Mean(jnp.ones(3), jnp.ones(3))
                case "array":
                    metrics["v"] = jnp.float32(3)
                case "loss":
                    metrics = {}
                case "seed" | "step" | "" | "a\nb":
                    metrics[self.mode] = Mean.over(jnp.float32(0))
                case "calls back":
                    shape = jax.ShapeDtypeStruct((), jnp.float32)
                    number = jax.pure_callback(
                        fails_at_3, shape, state.step, vmap_method="sequential"
                    )
                    metrics["number"] = Mean.over(number)
            return new, metrics

        def scores(state, data):
            match self.mode:
                case "no score":
                    return {}
                case "vector score":
                    return {"v": Mean(jnp.ones(3), jnp.ones(3))}
                case "array score":
                    return {"v": jnp.float32(3)}
                case "sequences":
                    own = Mean.over(jnp.float32(0))
                    return {**stage.evaluate(state, data), "sequences": own}
            return stage.evaluate(state, data)

        return stage._replace(init=init, step=step, evaluate=scores)


def fails_at_3(step):
    if step == 3:
        raise ValueError("boom at 3")
    return np.float32(0)


@pytest.mark.parametrize(
    ("mode", "part"),
    [
        ("half", "stage.step params.w='bfloat16[3]': must be float32[3], as init"),
        ("state", "stage.step='dict': must return a StageState"),
        ("vector", "stage.step v=(3,): must be one number"),
        ("array", "stage.step v='ShapeDtypeStruct': must be a metrics.Mean"),
        ("loss", "must have the metric 'loss'"),
        ("no score", "stage.evaluate={}: must return at least one score"),
        ("vector score", "stage.evaluate v=(3,): must be one number"),
        ("array score", "must be a metrics.Mean"),
        ("none", "stage.make='NoneType': must return a Stage"),
        ("seed", "stage.step metric='seed': must be printable and none of sequences"),
        ("step", "stage.step metric='step': must be"),
        ("", "stage.step metric='': must be"),
        ("a\nb", "stage.step metric='a\\nb': must be"),
        ("sequences", "stage.evaluate metric='sequences': must be"),
    ],
)
def test_a_stage_that_breaks_the_form_is_refused_before_it_runs(tmp_path, mode, part):
    with pytest.raises(ConfigError) as info:
        train(walks(run=walk(stage=SpoiltConfig(mode=mode))), tmp_path / "run")
    assert str(info.value).startswith("runs.run.stage.") and part in str(info.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("mode", "part"),
    [
        ("stands", "a step of it left step=0: must be 1"),
        ("status", "a step of it left status=77"),
    ],
)
def test_a_stage_that_breaks_its_promise_stops_after_the_first_chunk(
    tmp_path, mode, part
):
    experiment = walks(run=walk(stage=SpoiltConfig(mode=mode)))
    with pytest.raises(RunError, match=f"SpoiltConfig.*{part}"):
        train(experiment, tmp_path)
    assert [r.step for r in RunDirectory(tmp_path / "run").metrics.read()] == [0]


@pytest.mark.parametrize(
    ("mode", "part"),
    [("begun", "init left step=5: must be 0"), ("begun status", "left status=77")],
)
def test_a_stage_that_begins_elsewhere_is_refused(tmp_path, mode, part):
    with pytest.raises(RunError, match=part):
        train(walks(run=walk(stage=SpoiltConfig(mode=mode))), tmp_path)


def test_what_a_callback_of_own_code_raises_is_told(tmp_path):
    experiment = walks(run=walk(stage=SpoiltConfig(mode="calls back")))
    told = rf"{re.escape(__file__)}:\d+: ValueError: boom at 3$"
    with pytest.raises(RunError, match=told):
        train(experiment, tmp_path)
    assert RunDirectory(tmp_path / "run").saved_steps() == [0, 2]


# Tasks


@dataclass(frozen=True)
class OddTaskConfig(ParityConfig):
    """Parity with one thing wrong."""

    mode: str = ""

    def make(self):
        task, mode = super().make(), self.mode
        sample, demonstrate = task.sample_prompts, task.demonstrate

        class Odd(type(task)):
            def sample_prompts(self, key, num_prompts, data):
                prompt = sample(key, num_prompts, data)
                shift = {"above": 7, "negative": -9}.get(mode, 0)
                return prompt._replace(token=prompt.token + shift)

            def demonstrate(self, key, prompt, hypers, data):
                batch = demonstrate(key, prompt, hypers, data)
                shift = 50 if mode == "response" else 0
                mask = {"all": True, "none": False}.get(mode)
                if mask is not None:
                    batch = batch._replace(mask=jnp.full_like(batch.mask, mask))
                return batch._replace(response=batch.response + shift)

        odd = object.__new__(Odd)
        odd.__dict__ |= task.__dict__
        if mode == "reward":
            odd.rewards = task.rewards | {"cot": five}
        if mode == "third":
            odd.rewards = task.rewards | {"log": lambda *args: jnp.log(five(*args) - 5)}
        if mode == "endless":
            odd.format = dataclasses.replace(task.format, end_ids=())
        return odd


@pytest.mark.parametrize(
    ("mode", "part"),
    [
        ("above", "sample_prompts=[9, 10, 11]: must be tokens in [0, vocab_size=5)"),
        ("negative", "sample_prompts=[-7, -6, -5]: must be tokens"),
        ("response", "demonstrate=["),
        ("all", "demonstrate mask='another': must be true up to and including"),
        ("none", "demonstrate mask='another'"),
        ("reward", "rewards['cot']=[5.0]: must be 0 or 1"),
        ("third", "rewards['log']\": must be finite for every response, not [-inf]"),
        ("endless", "end_ids=(): must name at least one"),
    ],
)
def test_values_of_an_own_task_are_looked_at(mode, part):
    check_task(OddTaskConfig(4), OddTaskConfig(4).make())
    cfg = OddTaskConfig(4, mode=mode)
    with pytest.raises(ConfigError) as info:
        check_task(cfg, cfg.make())
    assert part in str(info.value) and "\n" not in str(info.value)
