"""What --dry_run says: every run, its members and a total; nothing is written."""

from tiny import tiny_experiment

from parity_jax.runs.forecast import forecast


def test_says_what_each_run_costs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = []
    forecast(tiny_experiment(), [], lines.append)
    pretrain, grpo, total = lines
    assert pretrain.startswith("pretrain: 2 members on 1 devices, 1 to a vmap; ")
    assert " MiB of state per member, " in pretrain and " on a device; " in pretrain
    assert " s per step x 4, " in pretrain and " s per evaluation x 3: " in pretrain
    assert grpo.startswith("grpo: 2 members") and " s per evaluation x 2: " in grpo
    assert total.startswith("in all ") and not list(tmp_path.iterdir())
    lines.clear()
    forecast(tiny_experiment(), ["grpo"], lines.append)
    assert [line.partition(":")[0] for line in lines[:-1]] == ["grpo"]
