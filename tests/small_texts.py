"""Made-up rows of text, and tasks of them that train in no time."""

import json
import os
from pathlib import Path

import pytest
from flax.core import FrozenDict

from parity_jax.evaluate import EvaluateConfig
from parity_jax.experiment import Experiment, RunConfig
from parity_jax.hypers import Hypers
from parity_jax.models import llama
from parity_jax.population import PopulationConfig
from parity_jax.stages import PolicyGradientConfig, PretrainConfig, RolloutConfig
from parity_jax.tasks import TextConfig
from parity_jax.tasks.text import FileSource, TokenizerConfig

LLAMA = llama(depth=1, width=16, num_heads=2, num_kv_heads=1, mlp_width=16)
NUM_TRAIN, NUM_TEST = 5, 3


def gsm8k_like(num=NUM_TRAIN + NUM_TEST):
    """Rows as GSM8K has them, calculator marks and a comma included."""
    return [
        {
            "question": f"Ida has {n} figs" + " and more" * (n % 3) + ". Twice that?",
            "answer": f"It is 2*{n}=<<2*{n}={2 * n}>>{2 * n}.\n#### {2 * n:,}",
        }
        for n in range(3, 3 + num)
    ]


def write_rows(path: Path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def small_text(folder: Path, **fields) -> TextConfig:
    """Five rows of training, three of test."""
    file = write_rows(folder / "rows.jsonl", gsm8k_like())
    source = FileSource(file, num_test=NUM_TEST, adapter="gsm8k")
    return TextConfig(source, TokenizerConfig(vocab_size=280), **fields)


def text_experiment(task: TextConfig, **fields) -> Experiment:
    """Two seeds: fine-tuning over several epochs, then GRPO."""
    sft = RunConfig(
        stage=PretrainConfig(batch_size=4),
        hypers=Hypers(p_cot=0.5),
        num_steps=4,
        log_every=1,
        eval_every=2,
        checkpoint_every=2,
    )
    rollout = RolloutConfig(num_prompts=2, num_generations=2)
    grpo = RunConfig(
        stage=PolicyGradientConfig(rollout),
        num_steps=2,
        log_every=1,
        eval_every=2,
        parent="sft",
    )
    parts = dict(
        task=task,
        model=LLAMA,
        axes=FrozenDict({"seed": (0, 1)}),
        runs=FrozenDict({"sft": sft, "grpo": grpo}),
        evaluate=EvaluateConfig(3, (1.0,), batch_size=2),
        population=PopulationConfig(num_devices=1, vmap_width=1),
    )
    return Experiment(**parts | fields)


def path_of(variable: str, what: str) -> Path:
    """A path that the environment names; the test is skipped without it."""
    path = os.environ.get(variable)
    if not path or not Path(path).exists():
        pytest.skip(f"{variable} names no {what}")
    return Path(path)


CHAT = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tiny_folder(path: Path, texts=(), vocab_size: int = 300, **config) -> Path:
    """A random Llama with a tokenizer that begins prompts; its pad is its end.

    As `tokenizers` and `transformers` write it.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    special = ["<|begin|>", "<|end|>", "<|turn|>"]
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    texts = texts or [row["question"] for row in gsm8k_like()]
    inner.train_from_iterator(texts, trainer)
    inner.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
    )
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2)
    heads = dict(num_attention_heads=2, num_key_value_heads=1)
    ids = dict(bos_token_id=0, eos_token_id=1, pad_token_id=1)
    model = LlamaConfig(
        **{"vocab_size": vocab_size, "tie_word_embeddings": True}
        | sizes
        | heads
        | ids
        | config
    )
    LlamaForCausalLM(model).save_pretrained(path)
    inner.save(str(path / "tokenizer.json"))
    options = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "pad_token": "<|end|>"}
    options |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    (path / "tokenizer_config.json").write_text(json.dumps(options))
    (path / "chat_template.jinja").write_text(CHAT)
    generation = {"bos_token_id": 0, "eos_token_id": [1, 2]}
    (path / "generation_config.json").write_text(json.dumps(generation))
    return path
