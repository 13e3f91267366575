"""Prompt-masked fine-tuning against TRL's SFTTrainer: tokens, loss and gradient.

python -m benchmarks.trl_sft GSM8K_DIR

A random Llama of two blocks with a tokenizer trained on the rows; the same questions
and whole solutions. TRL tokenizes, pads (on the right), masks the prompts and takes the
mean over tokens; ours is the mean over sequences of their sums, scaled to compare.
Needs the packages `trl` and `datasets`, which are in no lock.
"""

import sys
import tempfile
from pathlib import Path

import datasets
import jax
import numpy as np
import torch
from datasets.table import InMemoryTable
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from trl import SFTConfig, SFTTrainer

from parity_jax.gradient import response_gradient
from parity_jax.hypers import Hypers
from parity_jax.models.huggingface import HfFolder, to_state_dict
from parity_jax.objectives import Target, next_token_loss
from parity_jax.runs.checkpoint import to_arrays
from parity_jax.tasks import Text, TextConfig
from parity_jax.tasks.text import FileSource, TokenizerConfig
from parity_jax.tasks.text.table import prompts_at

NUM_ROWS = 8


def write_model(folder: Path, task: Text) -> None:
    """A random Llama and the task's tokenizer, as Hugging Face has them."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2)
    heads = dict(num_attention_heads=4, num_key_value_heads=2)
    ids = dict(pad_token_id=0, eos_token_id=1, bos_token_id=None)
    config = LlamaConfig(vocab_size=task.vocab_size, **sizes, **heads, **ids)
    model = LlamaForCausalLM(config)
    for tensor in model.parameters():
        torch.nn.init.normal_(tensor, std=0.2)
    model.save_pretrained(folder)
    for name, text in task.tokenizer.files().items():
        (folder / name).write_text(text)


def theirs(folder: Path, task: Text) -> tuple[list, float, dict[str, np.ndarray]]:
    """Tokens that carry loss, the mean loss of a token and its gradient, of TRL."""
    rows = task.splits.rows[:NUM_ROWS]
    template = task.config.template
    records = [
        {
            "prompt": template.prompt.format(**row._asdict()),
            "completion": template.long.format(**row._asdict()),
        }
        for row in rows
    ]
    with tempfile.TemporaryDirectory() as out:
        args = SFTConfig(
            output_dir=out,
            per_device_train_batch_size=NUM_ROWS,
            max_length=None,
            completion_only_loss=True,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
        )
        trainer = SFTTrainer(
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
            args=args,
            train_dataset=datasets.Dataset(
                InMemoryTable.from_pylist(records), fingerprint="rows"
            ),
            processing_class=PreTrainedTokenizerFast.from_pretrained(folder),
        )
        fed = [trainer.train_dataset[i] for i in range(NUM_ROWS)]
        batch = trainer.data_collator(fed)
        trainer.model.eval()  # no dropout is in it; nothing random is
        loss = trainer.compute_loss(trainer.model, dict(batch))
        loss.backward()
        gradient = {
            name: x.grad.numpy() for name, x in trainer.model.named_parameters()
        }
    labels = batch["labels"].numpy()
    return [row[row >= 0].tolist() for row in labels], float(loss), gradient


def ours(folder: Path, task: Text) -> tuple[list, float, dict[str, np.ndarray]]:
    """The same of the step of `pretrain`, per token."""
    cfg = HfFolder(folder).model(task)
    model = cfg.make(task)
    template = jax.eval_shape(model.init, jax.random.key(0))
    params = HfFolder(folder).load(cfg, template)
    prompt = prompts_at(np.arange(NUM_ROWS), task.data)
    hypers = Hypers(p_cot=1.0)
    batch = task.demonstrate(jax.random.key(0), prompt, hypers, task.data)
    num_tokens = int(batch.mask.sum())
    target = Target(batch.response[:, None], batch.mask[:, None])
    gradient, loss, _ = response_gradient(
        lambda scores, target: next_token_loss(scores, target, num_tokens),
        model,
        params,
        prompt,
        target,
        task.format.short_len,
    )
    tensors = dict(to_state_dict(cfg.resolved(), to_arrays(gradient)))
    tokens = [
        row[mask].tolist() for row, mask in zip(batch.response, batch.mask, strict=True)
    ]
    return tokens, float(loss), tensors


def main(data: str) -> None:
    """Print what differs."""
    source = FileSource(f"{data}/train.jsonl", f"{data}/test.jsonl", adapter="gsm8k")
    task = TextConfig(source, TokenizerConfig(vocab_size=1024)).make()
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), task)
        tokens, loss, gradient = theirs(Path(folder), task)
        own_tokens, own_loss, own_gradient = ours(Path(folder), task)
    missing = {*gradient} ^ {*own_gradient}
    assert not missing, missing
    largest = max(np.abs(x).max() for x in gradient.values())
    gap = max(np.abs(gradient[k] - own_gradient[k]).max() for k in gradient)
    print(f"tokens that carry loss: {sum(map(len, tokens))}, equal: ", end="")
    print(tokens == own_tokens)
    print(f"loss of a token: TRL {loss:.6f}, here {own_loss:.6f}")
    print(f"gradient: largest {largest:.4g}, largest difference {gap:.2g}")


if __name__ == "__main__":
    main(sys.argv[1])
