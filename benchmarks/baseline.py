"""What a user would write in plain PyTorch, done well: the baseline of `make bench`.

A nanoGPT-like model with fused attention, logits only where a loss or a draw reads
them, fused AdamW, a key-value cache that is filled once for the G responses of a prompt
and loses the rows that have ended, and batches trimmed to their longest row.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from parity_jax.tasks.parity import EOS, MINUS, PAD, PLUS, SEP

MODEL_WEIGHT = 1e-20  # of a model's logits where a table's steer: all work, no say


class Attention(nn.Module):
    """Causal self-attention, with an optional cache of earlier keys and values."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, cache: Tensor | None) -> tuple[Tensor, Tensor]:
        batch, length, width = x.shape
        split = self.qkv(x).view(batch, length, 3, self.num_heads, -1)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        own = torch.stack([key, value])
        if cache is not None:
            own = torch.cat([cache, own], 3)
        out = functional.scaled_dot_product_attention(
            query, own[0], own[1], is_causal=cache is None
        )
        return self.out(out.transpose(1, 2).reshape(batch, length, width)), own


class Block(nn.Module):
    """Pre-norm block."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, num_heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(approximate="tanh"),
            nn.Linear(4 * width, width),
        )

    def forward(self, x: Tensor, cache: Tensor | None) -> tuple[Tensor, Tensor]:
        out, own = self.attention(self.norm1(x), cache)
        x = x + out
        return x + self.mlp(self.norm2(x)), own


class Gpt(nn.Module):
    """GPT-2 with a tied embedding."""

    def __init__(self, depth: int, width: int, vocab_size: int, max_len: int):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, width)
        self.position = nn.Embedding(max_len, width)
        self.blocks = nn.ModuleList(Block(width, width // 32) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=width**-0.5)

    def forward(
        self, token: Tensor, start: int, first: int, caches: list | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits from place `first` on; tokens stand at positions start, .."""
        place = torch.arange(start, start + token.shape[1])
        x, owns = self.embed(token) + self.position(place), []
        for i, block in enumerate(self.blocks):
            x, own = block(x, caches[i] if caches else None)
            owns.append(own)
        return self.norm(x[:, first:]) @ self.embed.weight.T, owns


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW in one kernel."""
    return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0, fused=True)


def prompts(batch: int, num_bits: int) -> Tensor:
    """Uniform bits and the separator."""
    bit = torch.randint(PLUS, MINUS + 1, (batch, num_bits))
    return torch.cat([bit, torch.full((batch, 1), SEP)], 1)


def demonstrations(prompt: Tensor, p_cot: float) -> Tensor:
    """One response to each prompt from the mixture, PAD after EOS, trimmed."""
    chain = torch.cumprod(1 - 2 * (prompt[:, :-1] == MINUS).long(), 1)
    chain = torch.where(chain > 0, PLUS, MINUS)
    end = torch.full((len(prompt), 1), EOS)
    long = torch.cat([chain, end], 1)
    short = torch.full_like(long, PAD)
    short[:, 0], short[:, 1] = chain[:, -1], EOS
    is_long = torch.rand(len(prompt), 1) < p_cot
    response = torch.where(is_long, long, short)
    return response[:, : int((response != PAD).sum(1).max())]


def next_token_step(model, optimizer, prompt: Tensor, response: Tensor) -> None:
    """One update on demonstrations; logits at response positions only."""
    token = torch.cat([prompt, response[:, :-1]], 1)
    logits, _ = model(token, 0, prompt.shape[1] - 1)
    loss = functional.cross_entropy(
        logits.flatten(0, 1), response.flatten(), ignore_index=PAD, reduction="sum"
    )
    optimizer.zero_grad(set_to_none=True)
    (loss / len(prompt)).backward()
    optimizer.step()


@torch.no_grad()
def sample(model, prompt: Tensor, group: int, table: Tensor) -> tuple[Tensor, Tensor]:
    """Responses and log-probabilities, N x T; table_TxV steers their lengths."""
    size, length = len(prompt) * group, len(table)
    token = torch.full((size, length), PAD)
    log_prob = torch.zeros(size, length)
    logits, caches = model(prompt, 0, prompt.shape[1] - 1)
    logits = logits.repeat_interleave(group, 0)
    caches = [c.repeat_interleave(group, 1) for c in caches]
    row = torch.arange(size)
    for t in range(length):
        log_probs = steered(logits[:, -1], table[t]).log_softmax(-1)
        new = torch.multinomial(log_probs.exp(), 1)
        token[row, t] = new[:, 0]
        log_prob[row, t] = log_probs.gather(1, new)[:, 0]
        alive = new[:, 0] != EOS
        if not alive.any() or t + 1 == length:
            break
        if alive.float().mean() < 1:
            row, new = row[alive], new[alive]
            caches = [c[:, alive] for c in caches]
        logits, caches = model(new, prompt.shape[1] + t, 0, caches)
    return token, log_prob


def steered(logits: Tensor, table: Tensor) -> Tensor:
    """Logits whose distribution is the table's; the model's work is all done."""
    return MODEL_WEIGHT * logits + table


def grpo_step(model, optimizer, prompt: Tensor, group: int, table: Tensor) -> None:
    """Sample, score, and one clipped update with token-level denominator."""
    token, old = sample(model, prompt, group, table)
    mask = token != PAD
    longest = int(mask.sum(1).max())
    token, old, mask = token[:, :longest], old[:, :longest], mask[:, :longest]
    last = token.gather(1, (mask.sum(1, keepdim=True) - 2).clamp(min=0))[:, 0]
    parity = (prompt[:, :-1] == MINUS).sum(1) % 2
    answer = torch.where(parity == 0, PLUS, MINUS).repeat_interleave(group)
    reward = (last == answer).float().view(-1, group)
    spread = reward.std(1, keepdim=True, correction=0) + 1e-4
    advantage = ((reward - reward.mean(1, keepdim=True)) / spread).view(-1, 1)
    whole = torch.cat([prompt.repeat_interleave(group, 0), token[:, :-1]], 1)
    logits, _ = model(whole, 0, prompt.shape[1] - 1)
    log_probs = steered(logits, table[:longest]).log_softmax(-1)
    log_prob = log_probs.gather(2, token[..., None])[..., 0]
    ratio = (log_prob - old).exp()
    gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    optimizer.zero_grad(set_to_none=True)
    (-(gain * mask).sum() / mask.sum()).backward()
    optimizer.step()
