"""The contract between a model and everything else, and its teacher-forced use."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from parity_jax.config import Configured, in_code_of, require
from parity_jax.platform import platform
from parity_jax.policy import TokenScores, in_pieces, tempered, token_scores
from parity_jax.tasks.task import Task, TaskConfig
from parity_jax.types import Key, Params, Prompt

# So many logits of a loss are held at once on a CPU; where there are more they come in
# pieces. An accelerator takes more: each adds a whole gradient of the unembedding.
MAX_LOGITS, MAX_LOGITS_ACCELERATOR = 2**24, 2**27
MAX_DEPTH = 1000  # blocks of one model: the compiler sees each that is not scanned

Context = Any  # what the responses need of their prompts; floats, B in front
Cache = Any  # what responses need of their earlier tokens; N = B G rows in front


def _as_they_are(params: Params, context: Context) -> tuple[Params, Context]:
    return params, context


class Model(NamedTuple):
    """Pure functions of parameters; a prompt is run once for all of its responses.

    Hidden states and their unembedding are apart: where the vocabulary is large, the
    logits of a whole batch never exist.
    """

    init: Callable[[Key], Params]
    # (params, prompt) -> hidden_BxD that predicts the first response token, context
    prompt_pass: Callable[[Params, Prompt], tuple[Array, Context]]
    # (params, token_BxGxT, context) -> hidden_BxGxTxD that predicts the token after
    response_pass: Callable[[Params, Array, Context], Array]
    # (context, num_generations, response_len) -> cache of no token yet
    empty_cache: Callable[[Context, int, int], Cache]
    # (params, token_BxG, index, context, cache) -> hidden_BxGxD of the next, cache
    decode_step: Callable[..., tuple[Array, Cache]]
    # (params, hidden, any shape x D) -> float32 logits, the same shape x V
    unembed: Callable[[Params, Array], Array]
    # (params, context) -> the same as `empty_cache`, `decode_step` and the `unembed` of
    # its results read them fastest, many times over
    for_decoding: Callable[[Params, Context], tuple[Params, Context]] = _as_they_are
    # So many long responses are trained on at once, to accumulate; 0: as many as suit
    # the platform (`blocks.gradient_rows`)
    gradient_rows: int = 0


def require_one_length(task: Task, name: str, value: str, allowed: str) -> None:
    """ConfigError of a field unless all prompts of a task are of one length."""

    def drawn(key: Key, data: Any) -> Prompt:
        return task.sample_prompts(key, 1, data)

    with in_code_of("sample_prompts"):
        prompt = jax.eval_shape(drawn, jax.random.key(0), task.data)
    is_even = getattr(prompt, "mask", None) is None
    require(is_even, name, value, f"{allowed}: prompts are not of one length")


class ModelConfig(Configured):
    """A frozen dataclass that makes a model."""

    def make(self, task: Task) -> Model:
        """The model for the vocabulary and the lengths of a task."""
        raise NotImplementedError

    def check(self, task: TaskConfig) -> None:
        """ConfigError if the model cannot learn this task at all."""


def applied(module: nn.Module, method: str) -> Callable[..., Any]:
    """A method of a module as a pure function of its parameters and arguments."""

    def call(params: Params, *args: Any) -> Any:
        return module.apply({"params": params}, *args, method=method)

    return call


class Start(NamedTuple):
    """A prompt pass, from which its responses are scored or sampled."""

    first_BxV: Array  # float32 logits of the first response token
    context: Context


def run_prompt(model: Model, params: Params, prompt: Prompt) -> Start:
    """Run the prompts, once for all of their responses."""
    hidden_BxD, context = model.prompt_pass(params, prompt)
    return Start(model.unembed(params, hidden_BxD), context)


def forced_logits(
    model: Model, params: Params, start: Start, token_BxGxT: Array
) -> Array:
    """Teacher-forced logits of every response token, BxGxTxV, after a prompt pass."""
    shape = (*token_BxGxT.shape[:2], 1, start.first_BxV.shape[-1])
    first_BxGx1xV = jnp.broadcast_to(start.first_BxV[:, None, None], shape)
    rest = model.response_pass(params, token_BxGxT[..., :-1], start.context)
    return jnp.concatenate([first_BxGx1xV, model.unembed(params, rest)], 2)


def forced_scores(
    model: Model,
    params: Params,
    start: Start,
    token_BxGxT: Array,
    temperature: Array | float = 1.0,
) -> TokenScores:
    """Teacher-forced `TokenScores` of every response token, BxGxT each.

    Where it would be large, no array of all tokens times the vocabulary exists.
    """
    num_logits = token_BxGxT.size * start.first_BxV.shape[-1]
    max_logits = MAX_LOGITS if platform() == "cpu" else MAX_LOGITS_ACCELERATOR
    if num_logits <= max_logits:
        logits = forced_logits(model, params, start, token_BxGxT)
        return token_scores(tempered(logits, temperature), token_BxGxT)
    first_BxG = first_scores(start.first_BxV, token_BxGxT[..., 0], temperature)
    # with the last token, which nothing reads: shapes stay those that hardware divides
    all_BxGxTxD = model.response_pass(params, token_BxGxT, start.context)
    rest_BxGxTxD = all_BxGxTxD[..., :-1, :]

    def score(hidden_RxD: Array, token_R: Array) -> TokenScores:
        logits_RxV = model.unembed(params, hidden_RxD)
        return token_scores(tempered(logits_RxV, temperature), token_R)

    rest = in_pieces(score, rest_BxGxTxD, token_BxGxT[..., 1:], num_logits, max_logits)
    return jax.tree.map(
        lambda one, many: jnp.concatenate([one[..., None], many], -1), first_BxG, rest
    )


def first_scores(
    first_BxV: Array, token_BxG: Array, temperature: Array | float
) -> TokenScores:
    """`TokenScores` of the first tokens, whose distribution is the prompt's, BxG."""
    log_probs_BxV = jax.nn.log_softmax(tempered(first_BxV, temperature))
    log_prob_BxG = jnp.take_along_axis(log_probs_BxV, token_BxG, -1)
    entropy_B = -(jnp.exp(log_probs_BxV) * log_probs_BxV).sum(-1)
    return TokenScores(
        log_prob_BxG, jnp.broadcast_to(entropy_B[:, None], log_prob_BxG.shape)
    )


def response_logits(
    model: Model, params: Params, prompt: Prompt, token_BxGxT: Array
) -> Array:
    """Teacher-forced logits of every response token, BxGxTxV."""
    begun = run_prompt(model, params, prompt)
    return forced_logits(model, params, begun, token_BxGxT)
