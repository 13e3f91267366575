"""A test of a task of one's own: whether it keeps all of the contract in tasks/task.py.

    def test_my_task():
        check_task(MyConfig(num_bits=3))

What a run checks before it trains is part of it; the rest takes seconds, not hours.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from parity_jax.config import ConfigError, from_dict, in_code_of, kind_of, require
from parity_jax.config import to_dict as plain
from parity_jax.hypers import Hypers
from parity_jax.responses import has_ended, num_tokens, response_mask
from parity_jax.tasks import Task, TaskConfig, contract, num_begun
from parity_jax.tasks.task import BINARY, FiniteTask
from parity_jax.types import Key

NUM_PROMPTS, NUM_MIXED = 16, 2048  # of which the mixture is counted


def check_task(cfg: TaskConfig) -> None:
    """ConfigError, a line, for the first thing that is not as the contract has it.

    Shapes and types; tokens, masks and rewards of drawn responses; the same results
    compiled or not, and other prompts from another key; solutions that end, are paid
    and are told apart by is_long; demonstrations in the mixture that p_cot asks for;
    text that is read back as the same tokens; a config that config.json can hold.
    """
    name, task = kind_of(type(cfg)), cfg.make()
    contract.check_task(cfg, task)
    contract.check_values(name, task)
    check_config(name, cfg)
    with in_code_of(name):
        outputs = compiled_and_not(name, task)
        check_keys(name, task)
        check_solutions(name, task, outputs)
        check_every_token(name, task)
        check_mixture(name, task)
        check_text(name, task, outputs)


def check_config(name: str, cfg: TaskConfig) -> None:
    """The config can be hashed, written to config.json and read back."""
    try:
        hash(cfg)
    except TypeError as error:
        text = "must be a frozen dataclass of fields that can be hashed"
        raise ConfigError(name, cfg, text) from error
    back = from_dict(TaskConfig, plain(cfg))
    require(back == cfg, name, back, f"must be read back from config.json as {cfg}")


def outputs_of(task: Task, key: Key, data: Any) -> dict[str, Any]:
    """What every function of arrays returns, by its name."""
    k_prompt, k_batch, k_response = jax.random.split(key, 3)
    prompt = task.sample_prompts(k_prompt, NUM_PROMPTS, data)
    batch = task.demonstrate(k_batch, prompt, Hypers(p_cot=0.5), data)
    solution = task.solution(prompt, data)
    shape = batch.response.shape
    drawn_BxT = jax.random.randint(k_response, shape, 0, task.vocab_size)
    response = jnp.stack([batch.response, drawn_BxT, solution.short], 1)
    response_BxGxT = jnp.concatenate([response, solution.worked], 1)
    rewards = {
        f"rewards[{name!r}]": reward(prompt, response_BxGxT, data)
        for name, reward in task.rewards.items()
    }
    return rewards | {
        "sample_prompts": prompt,
        "demonstrate": batch,
        "solution": solution,
        "is_long": task.is_long(response_BxGxT),
        "diagnostics": task.diagnostics(prompt, response_BxGxT, data),
    }


def compiled_and_not(name: str, task: Task) -> dict[str, Any]:
    """The outputs, which are the same compiled and not compiled."""
    key = jax.random.key(0)
    program = jax.jit(lambda key, data: outputs_of(task, key, data))
    compiled = jax.device_get(program(key, task.data))
    eager = jax.device_get(outputs_of(task, key, task.data))
    for part in sorted(eager, key=lambda part: part != "sample_prompts"):
        leaves = [jax.tree.leaves(outputs[part]) for outputs in (eager, compiled)]
        pairs = zip(*leaves, strict=True)
        is_same = all(np.allclose(a, b, atol=1e-5, equal_nan=True) for a, b in pairs)
        allowed = "must depend on nothing but its arguments, compiled or not"
        require(is_same, f"{name}.{part}", "another result", allowed)
    return compiled


def check_keys(name: str, task: Task) -> None:
    """Prompts of two keys differ."""
    keys = jax.random.split(jax.random.key(1))
    token = [task.sample_prompts(key, NUM_PROMPTS, task.data).token for key in keys]
    allowed = "must draw other prompts with another key"
    differ = bool((token[0] != token[1]).any())
    require(differ, f"{name}.sample_prompts", "the same prompts", allowed)


def check_solutions(name: str, task: Task, outputs: dict[str, Any]) -> None:
    """Solutions end, are padded behind, are paid and are told apart by is_long."""
    fmt, solution = task.format, outputs["solution"]
    for part, token in (("short", solution.short), ("worked", solution.worked)):
        where = f"{name}.solution.{part}"
        ended = bool(has_ended(token, fmt).all())
        require(ended, where, "no end", f"must contain one of end_ids={fmt.end_ids}")
        behind = token[~np.asarray(response_mask(token, fmt))]
        allowed = f"must be pad_id={fmt.pad_id} behind the end"
        wrong = behind[behind != fmt.pad_id]
        require(not wrong.size, where, wrong[:3].tolist(), allowed)
    longest = int(num_tokens(solution.short, fmt).max()) + 1
    allowed = f"must hold short solutions with their ends: {longest} tokens"
    require(longest <= fmt.short_len, f"{name} short_len", fmt.short_len, allowed)
    for reward in BINARY:
        where, value_BxG = (
            f"{name}.rewards[{reward!r}]",
            outputs[f"rewards[{reward!r}]"],
        )
        for part, g in (("solution.short", 2), ("the first of solution.worked", 3)):
            paid = value_BxG[:, g].min()
            require(paid == 1, where, float(paid), f"must be 1 for {part}")
        allowed = "must be 0 for some responses of random tokens"
        require(value_BxG[:, 1].min() == 0, where, 1.0, allowed)
    demonstrated = outputs["rewards['e2e']"][:, 0].min()
    allowed = "must be 1 for demonstrations without noise"
    where = f"{name}.rewards['e2e']"
    require(demonstrated == 1, where, float(demonstrated), allowed)
    differs_B = (solution.short != solution.worked[:, 0]).any(-1)
    for part, g, expected in (("short", 2, False), ("worked", 3, True)):
        is_right = (outputs["is_long"][differs_B, g] == expected).all()
        allowed = f"must be {expected} for solution.{part}"
        require(bool(is_right), f"{name}.is_long", not expected, allowed)


def check_every_token(name: str, task: Task) -> None:
    """The reward of every token is not paid where one of them is another.

    A task of rows may take several texts for one solution.
    """
    if isinstance(task, FiniteTask):
        return

    def changed(key: Key) -> tuple[Array, Array]:
        prompt = task.sample_prompts(key, NUM_PROMPTS, task.data)
        short, worked = task.solution(prompt, task.data)
        token_BxT = worked[:, 0]
        at_1xTxT = jnp.eye(worked.shape[-1], dtype=bool)[None]
        other_BxT = (token_BxT + 1) % task.vocab_size
        token_BxTxT = jnp.where(at_1xTxT, other_BxT[:, None], token_BxT[:, None])
        is_own = response_mask(token_BxT, task.format)[:, None] & at_1xTxT
        solutions = jnp.concatenate([short[:, None], worked], 1)
        mask = response_mask(token_BxTxT, task.format)
        whole = jnp.where(mask, token_BxTxT, task.format.pad_id)
        is_other = ~(whole[:, :, None] == solutions[:, None]).all(-1).any(-1)
        num_BxT = num_begun(task, prompt, token_BxTxT, task.data)
        is_other &= num_BxT < worked.shape[-1]  # another way to work it out
        paid_BxT = task.rewards["cot"](prompt, token_BxTxT, task.data)
        return paid_BxT, is_own.any(-1) & is_other

    paid_BxT, is_changed = jax.device_get(jax.jit(changed)(jax.random.key(3)))
    most = float(paid_BxT[is_changed].max(initial=0))
    allowed = "must be 0 for a worked solution of which a token is another"
    require(most == 0, f"{name}.rewards['cot']", most, allowed)


def check_mixture(name: str, task: Task) -> None:
    """p_cot is the share of demonstrations that show their work."""

    def longs(key: Key, p_cot: Array, data: Any) -> tuple[Array, Array]:
        prompt = task.sample_prompts(key, NUM_MIXED, data)
        batch = task.demonstrate(key, prompt, Hypers(p_cot=p_cot), data)
        solution = task.solution(batch.prompt, data)
        differs_B = (solution.short != solution.worked[:, 0]).any(-1)
        return task.is_long(batch.response[:, None])[:, 0], differs_B

    where = f"{name}.demonstrate share of long ones"
    for p_cot in (0.0, 1.0, 0.3, 0.7):
        long_B, differs_B = jax.jit(longs)(jax.random.key(2), p_cot, task.data)
        count = int(differs_B.sum())
        share = float(long_B[differs_B].mean()) if count else p_cot
        # five standard deviations of the mean: none at 0 and 1
        room = 5 * (p_cot * (1 - p_cot) / max(count, 1)) ** 0.5
        allowed = f"must be {p_cot} with p_cot={p_cot}"
        allowed += f", within {room:.2g}" if room else ""
        require(abs(share - p_cot) <= room, where, share, allowed)


def check_text(name: str, task: Task, outputs: dict[str, Any]) -> None:
    """Tokens as text are read back as they were; what is no text is a ValueError.

    So are every token alone and a prompt that is typed, but of a task of rows: its
    tokens may be parts of signs, any text may be some, and a template is put around
    what is typed.
    """
    prompt, batch = outputs["sample_prompts"], outputs["demonstrate"]
    mask_BxL = np.ones_like(prompt.token, bool) if prompt.mask is None else prompt.mask
    prompts = [t[m] for t, m in zip(prompt.token, mask_BxL, strict=True)]
    responses = [t[m] for t, m in zip(batch.response, batch.mask, strict=True)]
    allowed = "must be read back by {} as the same tokens"
    has_rows = isinstance(task, FiniteTask)
    num_alone = 0 if has_rows else task.vocab_size
    for token in (*prompts, *responses, *np.arange(num_alone)[:, None]):
        text = task.to_text(token)
        is_same = np.array_equal(task.from_text(text), token)
        where = f"{name}.to_text({token.tolist()})"
        require(is_same, where, text, allowed.format("from_text"))
    if has_rows:
        return
    for token in prompts:
        text = task.to_text(token)
        is_same = np.array_equal(task.read_prompt(text), token)
        where = f"{name}.to_text({token.tolist()})"
        require(is_same, where, text, allowed.format("read_prompt"))
    try:
        task.from_text("\0")
    except ValueError:
        return
    raise ConfigError(f"{name}.from_text", "\0", "must raise a ValueError for no text")
