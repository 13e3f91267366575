"""What --dry_run says: every run, its members and a total; nothing is written."""

from small_runs import walk, walks

from parity_jax.runs.forecast import forecast


def test_says_what_each_run_costs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment, lines = walks(first=walk(), child=walk("first", num_steps=2)), []
    forecast(experiment, [], lines.append)
    first, child, total = lines
    assert first.startswith("first: 2 members on 1 devices, 1 to a vmap; ")
    assert " MiB of state per member, " in first and " on a device; " in first
    assert " s per step x 4, " in first and " s per evaluation x 3: " in first
    assert child.startswith("child: 2 members") and " s per evaluation x 2: " in child
    assert total.startswith("in all ") and not list(tmp_path.iterdir())
    lines.clear()
    forecast(experiment, ["child"], lines.append)
    assert [line.partition(":")[0] for line in lines[:-1]] == ["child"]
