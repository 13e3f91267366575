"""Judges in processes of their own: what hangs is killed, what dies starts again."""

import os
import signal
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_texts import small_text
from text_rewards import brevity

from parity_jax.config import ConfigError
from parity_jax.platform import made_for
from parity_jax.tasks.text import ProcessPool, RewardError
from parity_jax.tasks.text.host import HostReward
from parity_jax.tasks.text.pool import START, Job
from parity_jax.types import Prompt

SECONDS = 0.5


@pytest.fixture
def pool():
    made = ProcessPool(2, SECONDS)
    yield made
    made.close()


def jobs(name, *responses, answer="4"):
    return [Job(name, "2 + 2?", response, answer) for response in responses]


def test_a_function_of_ones_own(pool):
    strange = "שלום " + "x" * 100_000 + "<|im_end|>\x00"
    found = pool.judge(jobs("text_rewards:brevity", "abc", strange))
    expected = [brevity("", "abc", ""), brevity("", strange, "")]
    assert [v.value for v in found] == expected
    found = pool.judge(jobs("text_rewards:echo", "a 4", "a 5"))
    assert [v.value for v in found] == [1, 0]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("raises", "text_rewards:raises: KeyError: 'oh no'"),
        ("interrupts", "text_rewards:interrupts: KeyboardInterrupt: "),
        ("nan", "text_rewards:nan: returned nan, which is no finite number"),
        ("much", "text_rewards:much: returned 1e+39, which is no finite number (float"),
        ("text", "text_rewards:text: returned 'much', which is no number"),
        ("nothing", "text_rewards:nothing: AttributeError"),
        ("not_a_function", "text_rewards:not_a_function: TypeError"),
    ],
)
def test_one_that_fails_is_named(pool, name, told):
    with pytest.raises(RewardError) as error:
        pool.judge(jobs(f"text_rewards:{name}", "a", "b", "c"))
    assert str(error.value).startswith(told)
    found = pool.judge(jobs("text_rewards:echo", "4"))  # the others go on
    assert found == [(1.0, "judged")]


def test_what_hangs_or_dies(pool, tmp_path, monkeypatch):
    monkeypatch.setenv("FAIL_WHEN", str(tmp_path / "died"))
    pool.judge(jobs("text_rewards:hangs", "a", "b"))  # both have imported it
    found = pool.judge(jobs("text_rewards:hangs", "wait", "a", "power", "b"))
    assert [v.state for v in found] == ["timeout", "judged", "timeout", "judged"]
    assert [v.value for v in found] == [0, 1, 0, 1]
    started = time.monotonic()
    late = pool.judge(jobs("text_rewards:hangs", *["wait"] * 4))  # in new processes
    assert [v.state for v in late] == ["timeout"] * 4
    assert time.monotonic() - started < START  # whose imports are not counted
    found = pool.judge(jobs("text_rewards:dies", "once", "always", "a"))
    assert [v.state for v in found] == ["judged", "died", "judged"]
    for worker in pool._workers:  # killed from outside while it waits
        os.kill(worker.process.pid, signal.SIGKILL)
        worker.process.wait()
    assert pool.judge(jobs("text_rewards:echo", "4")) == [(1.0, "judged")]


def test_no_process_outlives_its_pool(pool):
    pool.judge(jobs("text_rewards:echo", "4"))
    (pid,) = [worker.process.pid for worker in pool._workers]
    pool.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_math_verify(pool):
    pytest.importorskip("math_verify")
    right = ["So \\boxed{\\frac{1}{2}}.", "$0.5$", "\\boxed{1/2}"]
    wrong = ["\\boxed{2}", "$\\frac{1}{3}$"]
    found = pool.judge(jobs("math", *right, *wrong, answer="\\frac{1}{2}"))
    assert [v.value for v in found] == [1, 1, 1, 0, 0]
    (none,) = pool.judge(jobs("math", "no idea", answer="1"))
    assert none == (0.0, "unreadable")
    (none,) = pool.judge(jobs("math", "", answer=""))  # a gold answer that is nothing
    assert none == (0.0, "unreadable")
    started = time.monotonic()
    pool.seconds = 2.0
    (late,) = pool.judge(jobs("math", "$9^{9^{9}}$", answer="387420489"))
    assert late.value == 0
    assert time.monotonic() - started < 100  # it was killed; CPU may be scarce


def test_verdicts_are_remembered_and_only_of_what_has_ended(pool, monkeypatch):
    def text_of(tokens):
        return "".join(map(chr, tokens)) if 0 not in tokens else None

    reward = HostReward("text_rewards:echo", pool, text_of, ["q", "r"], ["4", "5"])
    asked = []
    judge = pool.judge
    monkeypatch.setattr(pool, "judge", lambda new: asked.append(len(new)) or judge(new))
    token = np.array([[[52, 53], [52, 0]], [[52, 52], [52, 52]]])
    row = np.array([[0, 0], [1, 1]])
    for _ in range(2):
        value, state = reward.values(row, token)
        assert value.tolist() == [[1, 0], [0, 0]]
        assert state.tolist() == [[0, 0], [0, 0]]
    assert asked == [2, 0]


def test_nothing_calls_back_where_a_target_is_compiled_for(pool):
    reward = HostReward("text_rewards:echo", pool, lambda tokens: None, ["q"], ["4"])
    token = jnp.ones((1, 2, 3), jnp.int32)

    def program(token):
        prompt = Prompt(token[:, 0], token[:, 0] > 0, row=jnp.zeros(1, jnp.int32))
        return reward.reward(prompt, token, ())

    assert "pure_callback" in str(jax.make_jaxpr(program)(token))
    with made_for("gpu"):
        told = str(jax.make_jaxpr(partial(program))(token))
    assert "pure_callback" not in told


def test_one_that_dies_on_a_right_answer_is_refused(tmp_path):
    """Before anything is trained: every answer would be worth 0."""
    with pytest.raises(ConfigError, match=r"must judge a right answer.*died"):
        small_text(tmp_path, text_rewards=("text_rewards:always_dies",)).resolved()
