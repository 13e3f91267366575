"""The test of a task: it passes what is right, and names what is not in a line."""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "outside"))
from toy_task import Copy, CopyConfig

from parity_jax.config import ConfigError, UserCodeError
from parity_jax.responses import response_mask
from parity_jax.tasks import ChainsConfig, MultiplicationConfig, ParityConfig
from parity_jax.testing import check_task


@pytest.mark.parametrize(
    "cfg",
    [
        ParityConfig(5, leap=2),
        MultiplicationConfig(2),
        ChainsConfig(8, ("shuffled",), (1.0,)),
        CopyConfig(3),
    ],
    ids=str,
)
def test_tasks_that_keep_the_contract(cfg):
    check_task(cfg)


class Broken(Copy):
    """A copy of bits with one thing wrong."""

    def __init__(self, wrong):
        super().__init__(3)
        self.wrong, self.calls = wrong, 0
        if wrong == "unpaid":
            self.rewards["cot"] = lambda prompt, response_BxGxT, data: super(
                Broken, self
            ).is_right(prompt, response_BxGxT[..., ::-1])
        if wrong == "generous":
            self.rewards["e2e"] = lambda prompt, response_BxGxT, data: jnp.ones(
                response_BxGxT.shape[:2]
            )
        if wrong == "cot":
            self.rewards["cot"] = self.is_right
        if wrong == "short_len":
            self.format = dataclasses.replace(self.format, short_len=1)

    def sample_prompts(self, key, num_prompts, data=()):
        if self.wrong == "key":
            key = jax.random.key(7)
        prompt = super().sample_prompts(key, num_prompts)
        if self.wrong == "counts":
            self.calls += 1
            bit = 2 + self.calls % 2
            prompt = prompt._replace(token=prompt.token.at[:, 0].set(bit))
        if self.wrong == "raises":
            raise ZeroDivisionError("in my task")
        return prompt.token if self.wrong == "no prompt" else prompt

    def demonstrate(self, key, prompt, hypers, data=()):
        if self.wrong == "mixture":
            hypers = dataclasses.replace(hypers, p_cot=0.5)
        if self.wrong == "square":
            hypers = dataclasses.replace(hypers, p_cot=hypers.p_cot**2)
        batch = super().demonstrate(key, prompt, hypers)
        if self.wrong == "no batch":
            return tuple(batch)
        if self.wrong == "mask":
            return batch._replace(mask=batch.mask.at[:, 0].set(False))
        if self.wrong == "false":
            token = 5 - jnp.clip(batch.response[:, :1], 2, 3)  # the other bit
            token_BxT = jnp.concatenate([token, batch.response[:, 1:]], 1)
            return batch._replace(
                response=token_BxT, mask=response_mask(token_BxT, self.format)
            )
        return batch

    def solution(self, prompt, data=()):
        solution = super().solution(prompt)
        if self.wrong == "no solution" and type(prompt.token) is not jax.Array:
            return [*solution]
        if self.wrong == "endless":
            return solution._replace(worked=jnp.maximum(solution.worked, 2))
        if self.wrong == "behind":
            return solution._replace(short=solution.short.at[:, -1].set(3))
        return solution

    def is_long(self, response_BxGxT):
        is_long = super().is_long(response_BxGxT)
        return ~is_long if self.wrong == "is_long" else is_long

    def diagnostics(self, prompt, response_BxGxT, data=()):
        one_BxG = jnp.ones(response_BxGxT.shape[:2])
        if self.wrong == "triple":
            return {"one": (one_BxG, one_BxG, one_BxG)}
        return None if self.wrong == "no pairs" else {}

    def to_text(self, token_T):
        text = super().to_text(token_T)
        return text.replace("1", "0") if self.wrong == "text" else text

    def from_text(self, text):
        if self.wrong == "reads all" and text == "\0":
            return np.zeros(0, np.int32)
        return super().from_text(text)

    def read_prompt(self, line):
        read = super().read_prompt(line)
        return read[:-1] if self.wrong == "read_prompt" else read


@dataclass(frozen=True)
class BrokenConfig(CopyConfig):
    wrong: str = ""

    def make(self):
        return Broken(self.wrong)


@dataclass(frozen=True)
class ListConfig(CopyConfig):
    """Not to be hashed."""

    words: list[str] = dataclasses.field(default_factory=list)


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ("unpaid", r"\.rewards\['cot'\]=0.0: must be 1 for solution.short"),
        ("cot", r"\.rewards\['cot'\]=1.0: must be 0 for a worked solution of which"),
        ("generous", r"\.rewards\['e2e'\]=1.0: must be 0 for some responses"),
        ("short_len", r"short_len=1: must be in \[2, max_len=4\]"),
        ("key", "sample_prompts='the same prompts': must draw other"),
        ("counts", "sample_prompts='another result': must depend on nothing but"),
        ("mixture", "demonstrate share of long ones=0.*: must be 0.0 with p_cot=0.0"),
        ("square", "demonstrate share of long ones=0.*: must be 0.3 with p_cot=0.3, w"),
        ("no batch", "demonstrate='tuple': must be a Batch"),
        ("no prompt", "sample_prompts='.*': must be a Prompt"),
        ("no solution", "solution='list': must be a Solution"),
        ("triple", r"diagnostics\['one'\]=.*: must be named by a text, a pair of"),
        ("no pairs", "diagnostics='NoneType': must be a dict"),
        ("mask", "demonstrate mask='another': must be true up to"),
        ("false", r"\.rewards\['e2e'\]=0.0: must be 1 for demonstrations"),
        ("endless", r"solution.worked='no end': must contain one of end_ids=\(1,\)"),
        ("behind", r"solution.short=\[3, 3, 3\]: must be pad_id=0 behind the end"),
        ("is_long", "is_long=True: must be False for solution.short"),
        ("text", r"to_text\(\[.*\]\)='.*': must be read back by from_text"),
        ("reads all", "from_text='.x00': must raise a ValueError"),
        ("read_prompt", r"to_text\(.*: must be read back by read_prompt"),
    ],
)
def test_a_broken_task_is_named_in_a_line(wrong, line):
    with pytest.raises(ConfigError, match=line) as info:
        check_task(BrokenConfig(wrong=wrong))
    assert str(info.value).startswith("test_testing:BrokenConfig")
    assert "\n" not in str(info.value)


def test_what_a_task_raises_is_its_own():
    with pytest.raises(UserCodeError, match=r"BrokenConfig.*ZeroDivisionError"):
        check_task(BrokenConfig(wrong="raises"))


def test_a_config_that_cannot_be_hashed():
    with pytest.raises(ConfigError, match=r"ListConfig.*must be a frozen dataclass"):
        check_task(ListConfig())
