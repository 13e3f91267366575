"""How a row becomes a prompt and its two demonstrations.

marked     solution, then `#### answer`; short ones begin with `####`. The kind shows in
           the first token: greedy decoding goes long above p_cot = 1/2.
unmarked   the solution ends with the answer, which alone is the short one. Where either
           may begin with the same token, as in worded parity, the kind shows only at
           the second: the threshold is 1/3 (one of two answers agrees by chance).
"""

import string
from dataclasses import dataclass
from typing import Any, Literal

from parity_jax.config import ConfigError, require
from parity_jax.tasks.text.rows import Row
from parity_jax.tasks.text.tokenizer import Tokenizer

MARK = "####"
Form = Literal["plain", "chat"]  # chat: by the template of the model


@dataclass(frozen=True)
class TemplateConfig:
    """Texts with {prompt}, {solution} and {answer} in braces."""

    form: Form = "plain"
    prompt: str = "{prompt}\n"
    long: str = "{solution}\n#### {answer}"
    short: str = "#### {answer}"

    def __post_init__(self) -> None:
        check_template("prompt", self.prompt, "prompt")
        check_template("long", self.long, "solution", "prompt", "answer")
        check_template("short", self.short, "answer", "prompt")

    @property
    def is_marked(self) -> bool:
        """Whether a short demonstration begins with something that is no answer."""
        return bool(self.around_answer[0])

    @property
    def around_answer(self) -> tuple[str, str]:
        """What a short demonstration begins and ends with, without blanks around it."""
        literal = [""]  # between fields
        for text, field, _, _ in string.Formatter().parse(self.short):
            literal[-1] += text
            literal += [""] * (field is not None)
        return literal[0].strip(), literal[-1].strip()

    @property
    def greedy_threshold(self) -> float:
        """The p_cot at which greedy decoding of a calibrated model goes long."""
        return 1 / 2 if self.is_marked else 1 / 3


def marked(**fields: Any) -> TemplateConfig:
    """The kind of a demonstration shows in its first token."""
    return TemplateConfig(**fields)


def unmarked(**fields: Any) -> TemplateConfig:
    """The kind does not show in the first token; solutions end with their answers."""
    texts = {"prompt": "{prompt}", "long": " {solution}", "short": " {answer}"}
    return TemplateConfig(**texts | fields)


def check_template(name: str, text: str, needed: str, *others: str) -> None:
    """ConfigError for braces that name anything else, or do not name what they must."""
    braces = " or ".join(["it", *(f"{{{other}}}" for other in others)])
    allowed = f"must be a text with {{{needed}}}, and no braces but {braces}; "
    allowed += "{{ and }} are braces themselves"
    try:
        found = [*string.Formatter().parse(text)]
    except ValueError:
        raise ConfigError(name, text, allowed) from None
    fields = [each[1:] for each in found if each[1] is not None]
    names = {field for field, _, _ in fields}
    is_plain = all(not spec and conversion is None for _, spec, conversion in fields)
    is_right = needed in names <= {needed, *others} and is_plain
    require(is_right, name, text, allowed)


def prompt_text(cfg: TemplateConfig, tokenizer: Tokenizer, question: str) -> str:
    """What the model reads."""
    text = cfg.prompt.format(prompt=question)
    return tokenizer.chat(text.strip()) if cfg.form == "chat" else text


def demonstrations(cfg: TemplateConfig, row: Row) -> tuple[str, str]:
    """The long one and the short one."""
    fields = row._asdict()
    return cfg.long.format(**fields), cfg.short.format(**fields)
