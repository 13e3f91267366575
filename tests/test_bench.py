"""The benchmark's ratios, and that its baseline does the work it is timed for."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks import baseline, run  # noqa: E402
from parity_jax.types import EOS, PAD  # noqa: E402

NUM_BITS = 4


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(run, "BATCH", {NUM_BITS: (4, 2)})
    monkeypatch.setattr(run, "DEPTH", 1)
    monkeypatch.setattr(run, "WIDTH", 32)
    monkeypatch.setattr(run, "WINDOW_SECONDS", 0)


def test_ratios_are_to_the_fastest_baseline(monkeypatch):
    clock = iter(np.arange(1000.0))
    monkeypatch.setattr(run.time, "perf_counter", lambda: next(clock))  # a tick each
    bench, cases = run.Bench(num_windows=3), {"1 member": (12, lambda: None)}
    cases |= {"torch": (2, lambda: None), "torch compiled": (4, lambda: None)}
    bench.measure("steps", "sequences", cases)
    ours, *torches = bench.rows
    assert ours["per_second"] == 12 and ours["ratio"] == 3
    assert [row["per_second"] for row in torches] == [2, 4]
    assert "| steps | 1 member | 12 sequences | 3.00 |" in run.markdown(bench.rows)


def test_baseline_samples_with_its_cache_what_the_whole_pass_predicts(tiny):
    torch.manual_seed(0)
    model, _ = run.torch_model(NUM_BITS)
    prompt = baseline.prompts(8, NUM_BITS)
    table = torch.tensor(run.length_table(NUM_BITS, 0.5))
    plain = baseline.steered
    baseline.steered = lambda logits, table: logits + 0.1 * table
    token, log_prob = baseline.sample(model, prompt, 3, table)
    whole = torch.cat([prompt.repeat_interleave(3, 0), token[:, :-1]], 1)
    logits, _ = model(whole, 0, prompt.shape[1] - 1)
    expected = baseline.steered(logits, table).log_softmax(-1)
    baseline.steered = plain
    expected = expected.gather(2, token[..., None])[..., 0].detach()
    mask = token != PAD
    np.testing.assert_allclose(log_prob[mask], expected[mask], rtol=1e-4, atol=1e-4)
    lengths = mask.sum(1)
    assert (token[torch.arange(24), lengths - 1] == EOS).any() and len(
        set(lengths.tolist())
    ) > 1


def test_baseline_demonstrations_are_those_of_the_task():
    torch.manual_seed(0)
    prompt = baseline.prompts(64, NUM_BITS)
    response = baseline.demonstrations(prompt, 0.5).numpy()
    task = run.make_task(run.ParityConfig(NUM_BITS))
    assert task.rewards["cot"](np.asarray(prompt), response[:, None]).all()
    assert set((response != PAD).sum(1)) == {2, NUM_BITS + 1}
