"""The benchmark's ratios, and that both sides do the work they are timed for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_worlds import within_4_sigma

torch = pytest.importorskip("torch")

from benchmarks import baseline, programs, run  # noqa: E402
from parity_jax.decode import sample  # noqa: E402
from parity_jax.models import gpt2  # noqa: E402
from parity_jax.tasks import ParityConfig  # noqa: E402
from parity_jax.tasks.parity import EOS, PAD  # noqa: E402
from parity_jax.types import Prompt  # noqa: E402

NUM_BITS = 4


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(programs, "WIDTH", 32)
    monkeypatch.setattr(run, "WINDOW_SECONDS", 0)


def test_ratios_are_to_the_fastest_baseline():
    num_units = {"1 member": 12, "torch": 2, "torch compiled": 4}
    rows = run.rows_of("steps", "sequences", num_units, dict.fromkeys(num_units, 0.5))
    ours, *torches = rows
    assert ours["per_second"] == 24 and ours["ratio"] == 3
    assert [row["per_second"] for row in torches] == [4, 8]
    assert "| steps | 1 member | 24 sequences | 3.00 |" in run.markdown(rows)


def test_windows_of_the_cases_take_turns():
    calls = []
    cases = {name: lambda name=name: calls.append(name) for name in "ab"}
    assert run.seconds(cases, num_windows=3).keys() == cases.keys()
    assert calls == [*"aabb", *"ababab"]  # each compiles and is timed once, then turns


def test_baseline_samples_with_its_cache_what_the_whole_pass_predicts(monkeypatch):
    monkeypatch.setattr(baseline, "MODEL_WEIGHT", 1.0)
    model, _ = programs.torch_model(NUM_BITS, depth=1)
    prompt = baseline.prompts(8, NUM_BITS)
    table = 0.1 * torch.tensor(programs.length_table(NUM_BITS, 0.5))
    token, log_prob = baseline.sample(model, prompt, 3, table)
    whole = torch.cat([prompt.repeat_interleave(3, 0), token[:, :-1]], 1)
    logits, _ = model(whole, 0, prompt.shape[1] - 1)
    expected = baseline.steered(logits, table).log_softmax(-1)
    expected = expected.gather(2, token[..., None])[..., 0].detach()
    mask = token != PAD
    np.testing.assert_allclose(log_prob[mask], expected[mask], rtol=1e-4, atol=1e-4)
    lengths = mask.sum(1)
    assert (token[torch.arange(24), lengths - 1] == EOS).any()
    assert len(set(lengths.tolist())) > 1


def test_baseline_demonstrations_are_those_of_the_task():
    prompt = baseline.prompts(64, NUM_BITS)
    response = baseline.demonstrations(prompt, 0.5).numpy()
    task = ParityConfig(NUM_BITS).make()
    assert task.rewards["cot"](Prompt(prompt.numpy()), response[:, None]).all()
    assert set((response != PAD).sum(1)) == {2, NUM_BITS + 1}


def test_both_sides_draw_the_lengths_of_the_table():
    table, group, p_long = programs.length_table(NUM_BITS, 0.25), 200, 0.25
    torch_model, _ = programs.torch_model(NUM_BITS, depth=1)
    prompt = baseline.prompts(4, NUM_BITS)
    theirs, _ = baseline.sample(torch_model, prompt, group, torch.tensor(table))
    task = ParityConfig(NUM_BITS).make()
    model = programs.steered(gpt2(1, programs.WIDTH).make(task), table)

    @jax.jit
    def draw(key):
        params, temperature_G = model.init(key), jnp.ones(group)
        given = Prompt(jnp.array(prompt.numpy()))
        return sample(key, model, params, given, temperature_G, task.format)

    ours = draw(jax.random.key(0))
    for token in (theirs.numpy(), np.asarray(ours.token).reshape(-1, NUM_BITS + 1)):
        length = (token != PAD).sum(1)
        assert set(length.tolist()) == {2, NUM_BITS + 1}
        assert within_4_sigma(length > 2, p_long)
    long = np.asarray(ours.mask).all(-1)
    expected = np.log(0.5) * NUM_BITS + np.log(p_long)
    np.testing.assert_allclose(ours.log_prob.sum(-1)[long], expected, rtol=1e-4)
