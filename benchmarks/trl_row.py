"""TRL's GRPOTrainer on the work of a GRPO step: an optional row of `make bench`.

A GPT-2 of the same size with random weights, the prompts of the parity task as text,
the same number of prompts and generations. Its responses are those of the untrained
model (some 5 tokens on average, 17 at most); nothing steers their lengths.
"""

import tempfile
import time

import datasets
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer

SYMBOLS = "_.=+-"  # PAD, EOS, SEP, PLUS, MINUS, as in the task


class Clock(TrainerCallback):
    """Seconds of every step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *args, **kwargs) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, *args, **kwargs) -> None:
        self.seconds.append(time.perf_counter() - self.started)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each symbol."""
    vocabulary = {symbol: i for i, symbol in enumerate(SYMBOLS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="_"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="_", eos_token=".", padding_side="left"
    )


def parity_reward(prompts, completions, **kwargs) -> list[float]:
    """1 where the last symbol is the parity."""
    right = ["-" if p.count("-") % 2 else "+" for p in prompts]
    return [float(c[-1:] == r) for c, r in zip(completions, right, strict=True)]


def seconds_per_step(
    num_bits: int, num_prompts: int, group: int, depth: int, width: int, num_steps: int
) -> list[float]:
    """Seconds of each step, sampling and update, after the first."""
    torch.manual_seed(0)
    bits = torch.randint(0, 2, (num_prompts * num_steps, num_bits)).tolist()
    rows = [{"prompt": "".join("+-"[b] for b in row) + "="} for row in bits]
    config = GPT2Config(
        vocab_size=len(SYMBOLS),
        n_positions=2 * num_bits + 2,
        n_embd=width,
        n_layer=depth,
        n_head=width // 32,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    clock = Clock()
    with tempfile.TemporaryDirectory() as directory:
        arguments = GRPOConfig(
            output_dir=directory,
            per_device_train_batch_size=num_prompts * group,
            num_generations=group,
            max_completion_length=num_bits + 1,
            max_steps=num_steps,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = GRPOTrainer(
            model=GPT2LMHeadModel(config),
            reward_funcs=parity_reward,
            args=arguments,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer(),
            callbacks=[clock],
        )
        trainer.train()
    return clock.seconds[1:]


if __name__ == "__main__":
    print(seconds_per_step(16, 64, 8, 2, 128, 4))
