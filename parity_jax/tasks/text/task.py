"""Text: a question, and its worked solution (long) or its answer alone (short).

    long   the whole solution, then the answer     with probability p_cot
    short  the answer                              otherwise

Rows come from a source, tokens from a tokenizer, both kinds from a template; what is
right is said by a verifier.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from parity_jax.config import (
    ConfigError,
    expanded,
    import_object,
    in_code_of,
    kind_of,
    require,
    require_default,
    require_finite,
    under,
)
from parity_jax.hypers import Hypers
from parity_jax.responses import has_ended, num_tokens, response_mask
from parity_jax.tasks.task import Diagnostics, Reward, Solution, TaskConfig
from parity_jax.tasks.text.host import HostReward
from parity_jax.tasks.text.paid import check_paid
from parity_jax.tasks.text.pool import Job, ProcessPool, RewardError
from parity_jax.tasks.text.rows import (
    Row,
    Splits,
    digest_of,
    num_overlapping,
    optional,
)
from parity_jax.tasks.text.sources import SourceConfig, WordedSource
from parity_jax.tasks.text.table import (
    BadRows,
    Lengths,
    Table,
    Tokens,
    epoch_rows,
    fitting,
    prompts_at,
    table_of,
)
from parity_jax.tasks.text.templates import (
    TemplateConfig,
    demonstrations,
    prompt_text,
)
from parity_jax.tasks.text.tokenizer import (
    Tokenizer,
    TokenizerConfig,
    from_folder,
    trained,
)
from parity_jax.tasks.text.verify import Verifier
from parity_jax.types import Batch, Key, Prompt, ResponseFormat

MAX_TOKENS = 2**20  # of a prompt or a response
UNUSED = ("p_leap", "emit_noise", "step_noise", "short_noise")


@dataclass(frozen=True)
class Content:
    """What rows and tokens turned out to be; filled in when a config is resolved."""

    sha256: str  # of all texts and of the tokenizer
    num_train: int
    num_test: int
    num_dropped: int  # too long, or with an answer that the verifier cannot read
    num_overlapping: int  # test rows whose question is among those of training


@dataclass(frozen=True)
class TextConfig(TaskConfig):
    """Questions in words."""

    kind: ClassVar[str] = "text"
    source: SourceConfig = field(default_factory=WordedSource)
    tokenizer: TokenizerConfig = field(
        default_factory=lambda: TokenizerConfig(vocab_size=512)
    )
    template: TemplateConfig = field(default_factory=TemplateConfig)
    # tokens   ends with the tokens of the short demonstration (on the device)
    # exact    the text after the last ####, letter by letter
    # gsm8k    the number after the last ####
    # math     what math-verify takes for the same
    verifier: Verifier = "tokens"
    # Rewards of your own, `package.module:function`, of texts: (prompt, response,
    # answer) -> number; they run in processes of their own, without JAX.
    text_rewards: tuple[str, ...] = ()
    max_prompt: int = 0  # tokens of a row that is not bad; 0: of the longest
    max_response: int = 0  # tokens with the end; 0: those of the longest demonstration
    # Those too long, or whose answer the verifier cannot read.
    bad_rows: BadRows = "refuse"
    num_processes: int = 2  # that verify
    timeout_seconds: float = 5.0  # of one answer; then it is wrong, and counted
    content: Content | None = None  # filled in; another one is refused

    def __post_init__(self) -> None:
        for name in ("max_prompt", "max_response"):
            value, allowed = getattr(self, name), "must be 0 (the longest) or positive"
            require(value >= 0, name, value, allowed)
            require(value <= MAX_TOKENS, name, value, f"must be at most {MAX_TOKENS}")
        inside = 1 <= self.num_processes <= 1024
        require(inside, "num_processes", self.num_processes, "must be in [1, 1024]")
        require_finite(self, "timeout_seconds", low=0.05)
        is_in_processes = self.verifier == "math" or bool(self.text_rewards)
        otherwise = f"with verifier={self.verifier!r} and no text_rewards"
        of_processes = ("num_processes", "timeout_seconds")
        require_default(self, is_in_processes, otherwise, *of_processes)
        for name in self.text_rewards:
            named = ":" in name and all(name.split(":", 1))
            allowed = "must be package.module:function"
            require(named, "text_rewards", name, allowed)

    def resolved(self) -> "TextConfig":
        if self.verifier == "math":
            optional("math_verify", "verifier=math")
        with under("task"):
            made = corpus(dataclasses.replace(self, content=None))
            found = made.content
            self.check_content(found)
            for name in self.text_rewards:
                check_reward(self, name, made.splits.train[0])
        return dataclasses.replace(self, content=found)

    def make(self) -> "Text":
        with under("task"):
            made = corpus(dataclasses.replace(self, content=None))
            self.check_content(made.content)
        return Text(self, made)

    def check_content(self, found: Content) -> None:
        """ConfigError if rows or tokens are others than those that were resolved."""
        is_same = self.content in (None, found)
        was = self.content.sha256 if self.content else ""
        allowed = f"the rows or the tokenizer are others now: {found.sha256}"
        require(is_same, "content.sha256", was, allowed)

    def check(self, hypers: Hypers) -> None:
        for name in UNUSED:
            value, allowed = getattr(hypers, name), "must be 0: text has none"
            require(value == 0, name, value, allowed)


@lru_cache(maxsize=64)
def check_reward(cfg: TextConfig, name: str, row: Row) -> None:
    """ConfigError for a reward of a user's own that fails on a right answer."""
    import_object(name, "text_rewards")  # its file is hashed like other own code
    job = Job(name, row.prompt, demonstrations(cfg.template, row)[1], row.answer)
    pool = ProcessPool.shared(cfg.num_processes, cfg.timeout_seconds)
    try:
        (verdict,) = pool.judge([job])
    except RewardError as error:
        raise ConfigError("text_rewards", name, f"fails: {error}") from None
    allowed = f"must judge a right answer; the first one of the rows: {verdict.state}"
    require(verdict.state == "judged", "text_rewards", name, allowed)


class Corpus(NamedTuple):
    """Rows and their tokens."""

    splits: Splits
    tokenizer: Tokenizer
    table: Table  # of NumPy arrays
    mark: tuple[int, ...]  # tokens that every short demonstration begins with
    content: Content


def corpus(cfg: TextConfig) -> Corpus:
    """What a config means; read and encoded once, and again if its files change."""
    return read_corpus(cfg, digests((*cfg.source.files(), *cfg.tokenizer.files())))


def digests(files: Sequence[str]) -> tuple[str | None, ...]:
    """sha256 of files; None for one that cannot be read, which its reader tells."""

    def digest(name: str) -> str | None:
        try:
            with expanded("file", name).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except (ConfigError, OSError):
            return None

    return tuple(map(digest, files))


def splits_of(source: SourceConfig) -> Splits:
    """The rows of a source; ConfigError or UserCodeError for one of the user's own."""
    where = f"{kind_of(type(source))}.splits"
    if ":" not in where:
        return source.splits()
    with in_code_of(where):
        found = source.splits()
    require(isinstance(found, Splits), where, found, "must return parity_jax's Splits")
    for row in (row for part in found for row in part):
        is_row = isinstance(row, Row) and all(isinstance(text, str) for text in row)
        require(is_row, where, row, "must be a Row of three texts")
        is_said = bool(row.prompt.strip() and row.answer.strip())
        require(is_said, where, row, "must have a prompt and an answer")
    return Splits(*map(list, found))


@lru_cache(maxsize=4)
def read_corpus(cfg: TextConfig, digests: tuple[str | None, ...]) -> Corpus:
    """The rows of files of these digests, and their tokens."""
    with under("source"):
        splits = splits_of(cfg.source)
    for name, split in splits._asdict().items():
        require(bool(split), f"source {name} rows", 0, "must be at least one")
    rows = splits.rows
    tokenizer = made_tokenizer(cfg, splits)
    prompts = [prompt_text(cfg.template, tokenizer, row.prompt) for row in rows]
    pairs = [demonstrations(cfg.template, row) for row in rows]
    end = [tokenizer.end_ids[0]]
    encoded = zip(
        map(tokenizer.begun, tokenizer.encode(prompts)),
        tokenizer.encode([long for long, _ in pairs]),
        tokenizer.encode([short for _, short in pairs]),
        strict=True,
    )
    tokens = [Tokens(p, long + end, short + end) for p, long, short in encoded]
    kept = fitting(
        splits,
        tokens,
        Lengths(cfg.max_prompt, cfg.max_response),
        cfg.bad_rows == "drop",
        cfg.verifier,
    )
    mark = common_prefix([t.short[:-1] for t in kept.tokens], cfg.template)
    check_demonstrations(cfg, kept.tokens, tokenizer, mark)
    shorts = [demonstrations(cfg.template, row)[1] for row in kept.splits.rows]
    check_told_apart(cfg.tokenizer, "answers", shorts, [t.short for t in kept.tokens])
    questions = [row.prompt.lower() for row in kept.splits.rows]
    check_told_apart(
        cfg.tokenizer, "questions", questions, [t.prompt for t in kept.tokens]
    )
    pool = ProcessPool.shared(cfg.num_processes, cfg.timeout_seconds)
    judged = (kept.splits.rows, kept.tokens, has_ended_with(tokenizer))
    check_paid(cfg.verifier, cfg.template, *judged, pool)
    table = table_of(kept.tokens, tokenizer.pad_id)
    room = max(cfg.max_response, table.short.shape[1]) - table.long.shape[1]
    if room > 0:
        pad = ((0, 0), (0, room))
        long = np.pad(table.long, pad, constant_values=tokenizer.pad_id)
        table = table._replace(long=long)
    content = Content(
        sha256=digest_of(kept.splits.rows, tokenizer.json, *prompts[:1]),
        num_train=len(kept.splits.train),
        num_test=len(kept.splits.test),
        num_dropped=kept.num_dropped,
        num_overlapping=num_overlapping(kept.splits),
    )
    return Corpus(kept.splits, tokenizer, table, mark, content)


def made_tokenizer(cfg: TextConfig, splits: Splits) -> Tokenizer:
    """That of the folder, or one trained on the rows of training."""
    if cfg.tokenizer.folder:
        return from_folder(cfg.tokenizer.folder)
    allowed = "must be plain without tokenizer.folder"
    form = cfg.template.form
    require(form == "plain", "template.form", form, allowed)
    texts = [
        text
        for row in splits.train
        for text in (
            cfg.template.prompt.format(prompt=row.prompt),
            *demonstrations(cfg.template, row),
        )
    ]
    return trained(texts, cfg.tokenizer.vocab_size)


def common_prefix(shorts: list[list[int]], template: TemplateConfig) -> tuple[int, ...]:
    """The tokens that all short demonstrations begin with, if they are marked."""
    if not template.is_marked:
        return ()
    prefix = shorts[0]
    for ids in shorts:
        same = [a == b for a, b in zip(prefix, ids, strict=False)]
        prefix = prefix[: [*same, False].index(False)]
    allowed = "must begin with the same token in every row, or with its {answer}"
    require(bool(prefix), "template.short", template.short, allowed)
    return tuple(prefix[:1])


def check_demonstrations(
    cfg: TextConfig, tokens: list[Tokens], tokenizer: Tokenizer, mark: tuple[int, ...]
) -> None:
    """ConfigError for kinds that is_long could not tell apart, or ends within."""
    longest = max(len(t.short) for t in tokens)
    for t in tokens:
        allowed = (
            f"gives a long demonstration of {len(t.long)} tokens, a short one has "
        )
        allowed += f"{longest}: without a mark, the long ones must be longer than all"
        is_told = bool(mark) or len(t.long) > longest
        require(is_told, "template.long", cfg.template.long, allowed)
        for ids in (t.long, t.short):
            within = [i for i in ids[:-1] if i in tokenizer.end_ids]
            text = tokenizer.decode(within)
            allowed = "must not be in a demonstration: it ends it"
            require(not within, "source", text, allowed)
        begins = bool(mark) and t.long[0] == mark[0]
        allowed = "a long demonstration begins as the short ones do"
        require(not begins, "template.long", cfg.template.long, allowed)
        if cfg.verifier == "tokens":
            n = len(t.short)
            allowed = (
                "must be another one: the tokens of a long demonstration "
                f"({tokenizer.decode(t.long[-n:])!r}) do not end with those of the "
                f"short one ({tokenizer.decode(t.short)!r})"
            )
            require(t.long[-n:] == t.short, "verifier", "tokens", allowed)


def check_told_apart(
    cfg: TokenizerConfig,
    what: str,
    texts: Sequence[str],
    tokens: Sequence[list[int]],
) -> None:
    """ConfigError for texts that differ in more than spaces, but not as tokens."""
    first: dict[tuple[int, ...], str] = {}
    for text, ids in zip(texts, tokens, strict=True):
        other = first.setdefault(tuple(ids), text)
        allowed = f"gives the {what} {other!r} and {text!r} the same tokens"
        is_told = other.split() == text.split()
        require(is_told, "tokenizer.folder", cfg.folder, allowed)


class Text:
    """Questions with their long and short demonstrations."""

    def __init__(self, cfg: TextConfig, corpus: Corpus):
        self.config, self.splits = cfg, corpus.splits
        self.tokenizer, table = corpus.tokenizer, corpus.table
        self.data: Any = table
        self.vocab_size = self.tokenizer.vocab_size
        self.num_train, self._mark = len(self.splits.train), corpus.mark
        self.prompt_len = table.prompt.shape[1]
        self.format = ResponseFormat(
            self.tokenizer.pad_id,
            self.tokenizer.end_ids,
            max_len=table.long.shape[1],
            short_len=table.short.shape[1],
        )
        test_B = np.arange(self.num_train, len(self.splits.rows), dtype=np.int32)
        self.eval_prompts = prompts_at(test_B, table)
        pool = ProcessPool.shared(cfg.num_processes, cfg.timeout_seconds)
        answers = [row.answer for row in self.splits.rows]
        questions = [row.prompt for row in self.splits.rows]

        def scored(name: str) -> HostReward:
            end = has_ended_with(self.tokenizer)
            return HostReward(name, pool, end, questions, answers)

        e2e: Reward = self.reward_tokens
        self._verdicts: HostReward | None = None
        if cfg.verifier != "tokens":
            self._verdicts = scored(cfg.verifier)
            e2e = self._verdicts.reward
        self.rewards: dict[str, Reward] = {"e2e": e2e, "cot": self.reward_cot}
        self._own = {name: scored(name) for name in cfg.text_rewards}
        self.rewards |= {name: own.reward for name, own in self._own.items()}
        self.may_fail = bool(self._own)
        self.is_judged_on_host = bool(self._own) or self._verdicts is not None

    def sample_prompts(self, key: Key, num_prompts: int, data: Any) -> Prompt:
        """Independent prompts of training."""
        row_B = jax.random.randint(key, (num_prompts,), 0, self.num_train, jnp.int32)
        return prompts_at(row_B, data)

    def epoch_prompts(
        self, key: Key, step: Array, num_prompts: int, data: Any
    ) -> Prompt:
        """The prompts of a step, see `epoch_rows`."""
        return prompts_at(epoch_rows(key, step, num_prompts, self.num_train), data)

    def demonstrate(self, key: Key, prompt: Prompt, hypers: Hypers, data: Any) -> Batch:
        """Long with probability p_cot, else short."""
        short, worked = self.solution(prompt, data)
        is_long_B = jax.random.uniform(key, short.shape[:1]) < hypers.p_cot
        response_BxT = jnp.where(is_long_B[:, None], worked[:, 0], short)
        return Batch(prompt, response_BxT, response_mask(response_BxT, self.format))

    def solution(self, prompt: Prompt, data: Any) -> Solution:
        """The demonstrations of the rows."""
        short_BxS = data.short[prompt.row]
        pad = ((0, 0), (0, self.format.max_len - short_BxS.shape[1]))
        short_BxT = jnp.pad(short_BxS, pad, constant_values=self.format.pad_id)
        return Solution(short_BxT, data.long[prompt.row][:, None])

    def reward_tokens(self, prompt: Prompt, response_BxGxT: Array, data: Any) -> Array:
        """1 where a response has ended with the tokens of the short one, BxG."""
        short_BxS = data.short[prompt.row]
        length_BxG = num_tokens(response_BxGxT, self.format)
        length_Bx1 = num_tokens(short_BxS, self.format)[:, None]
        place_1x1xS = jnp.arange(short_BxS.shape[1])[None, None]
        place_BxGxS = (length_BxG - length_Bx1)[..., None] + place_1x1xS
        last = response_BxGxT.shape[-1] - 1
        tail_BxGxS = jnp.take_along_axis(
            response_BxGxT, jnp.clip(place_BxGxS, 0, last), -1
        )
        counts_Bx1xS = place_1x1xS < length_Bx1[..., None]
        same_BxG = (~counts_Bx1xS | (tail_BxGxS == short_BxS[:, None])).all(-1)
        right_BxG = same_BxG & (length_BxG >= length_Bx1)
        ended_BxG = has_ended(response_BxGxT, self.format)
        return (right_BxG & ended_BxG).astype(jnp.float32)

    def reward_cot(self, prompt: Prompt, response_BxGxT: Array, data: Any) -> Array:
        """1 where a response is one of the demonstrations, token by token, BxG."""
        short, worked = self.solution(prompt, data)
        equals_long = (response_BxGxT == worked).all(-1)
        equals_short = (response_BxGxT == short[:, None]).all(-1)
        return (equals_long | equals_short).astype(jnp.float32)

    def is_long(self, response_BxGxT: Array) -> Array:
        """Whether a response does not begin with the mark of short ones, BxG.

        Without a mark: whether it has more tokens than the longest short one.
        """
        if self._mark:
            return response_BxGxT[..., 0] != self._mark[0]
        length_BxG = num_tokens(response_BxGxT, self.format)
        return length_BxG >= self.format.short_len

    def diagnostics(
        self, prompt: Prompt, response_BxGxT: Array, data: Any
    ) -> Diagnostics:
        """Lengths by correct and wrong; answers that were not judged, and why.

        Without a mark: the share of short ones among those that begin with as many
        tokens of the worked solution.
        """
        correct_BxG = self.rewards["e2e"](prompt, response_BxGxT, data) > 0
        length_BxG = num_tokens(response_BxGxT, self.format).astype(jnp.float32)
        found = {
            "length_correct": (length_BxG, correct_BxG),
            "length_wrong": (length_BxG, ~correct_BxG),
        }
        if not self._mark:
            num = self.format.short_len - 1
            worked_Bx1xS = data.long[prompt.row][:, None, :num]
            begun_BxG = (response_BxGxT[..., :num] == worked_Bx1xS).all(-1)
            short_BxG = ~self.is_long(response_BxGxT)
            found["short_begun"] = (short_BxG.astype(jnp.float32), begun_BxG)
        if self._verdicts is not None:
            ended_BxG = has_ended(response_BxGxT, self.format)
            flags = self._verdicts.flags(prompt, response_BxGxT)
            found |= {name: (flag, ended_BxG) for name, flag in flags.items()}
        return found

    def flags(self, prompt: Prompt, response_BxGxT: Array) -> dict[str, Array]:
        """Whether any judge on the host could not read a response, or was too late."""
        total: dict[str, Array] = {}
        for judge in (self._verdicts, *self._own.values()):
            if judge is not None:
                for name, flag_BxG in judge.flags(prompt, response_BxGxT).items():
                    total[name] = jnp.maximum(total.get(name, flag_BxG), flag_BxG)
        return total

    def to_text(self, token_T: Array | np.ndarray) -> str:
        return self.tokenizer.decode(np.asarray(token_T).tolist())

    def from_text(self, text: str) -> np.ndarray:
        if not text:
            raise ValueError("must be some text")
        return np.array(self.tokenizer.encode([text])[0], np.int32)

    def read_prompt(self, line: str) -> np.ndarray:
        """The prompt of a question."""
        text = prompt_text(self.config.template, self.tokenizer, line)
        token = self.tokenizer.begun(self.tokenizer.encode([text])[0])
        if len(token) > self.prompt_len:
            most = self.prompt_len
            raise ValueError(f"has {len(token)} tokens; at most {most} are allowed")
        return np.array(token, np.int32)


def has_ended_with(tokenizer: Tokenizer) -> Any:
    """answer_text(tokens): a response up to its end; None if it has none."""
    ends = set(tokenizer.end_ids)

    def answer_text(tokens: list[int]) -> str | None:
        for i, token in enumerate(tokens):
            if token in ends:
                return tokenizer.decode(tokens[:i])
        return None

    return answer_text
