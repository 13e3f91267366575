"""What --dry_run says: every run, its members and a total; nothing is written."""

import jax
import pytest
from flax.core import FrozenDict
from small_runs import train, walk, walks

from parity_jax.config import ConfigError
from parity_jax.runs import ExperimentDirectory, targets
from parity_jax.runs.forecast import forecast, forecast_for


def test_says_what_each_run_costs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment, lines = walks(first=walk(), child=walk("first", num_steps=2)), []
    forecast(experiment, [], lines.append)
    first, child, total = lines
    assert first.startswith("first: 2 members on 1 device, 1 to a vmap; ")
    assert " MiB of state per member, " in first and " on a device; " in first
    assert " s per step x 4, " in first and " s per evaluation x 3: " in first
    assert child.startswith("child: 2 members") and " s per evaluation x 2: " in child
    assert total.startswith("in all ") and not list(tmp_path.iterdir())
    lines.clear()
    forecast(experiment, ["child"], lines.append)
    assert [line.partition(":")[0] for line in lines[:-1]] == ["child"]


def test_what_files_refuse_is_refused(tmp_path):
    """As by the same command without --dry_run; of parents elsewhere always."""
    home = ExperimentDirectory(tmp_path / "home")
    experiment = walks(first=walk(), child=walk("first"))
    with pytest.raises(ConfigError, match=r"child.parent='first': has not been run"):
        forecast(experiment, ["child"], no_line, home)
    train(walks(first=walk()), home.path)
    forecast(experiment, ["child"], lambda _: None, home)
    others = walks(first=walk(num_steps=3))
    with pytest.raises(ConfigError, match="is at step 4 already"):
        forecast(others, [], no_line, home)
    elsewhere = str(home.run("first").path)
    forecast(walks(child=walk(elsewhere)), [], lambda _: None)
    with pytest.raises(ConfigError, match=r"seed"):
        forecast(walks(seeds=(7,), child=walk(elsewhere)), [], no_line)
    with pytest.raises(ConfigError, match="must be a run of the experiment or a run d"):
        forecast(walks(child=walk(str(tmp_path / "none"))), [], no_line)


def no_line(text):
    raise AssertionError(text)


def test_says_what_a_device_that_is_not_here_would_hold(tmp_path, monkeypatch):
    """With this machine's devices in place of the described ones."""
    monkeypatch.chdir(tmp_path)
    peak = ((("float32", 1e9),), 1e9)
    here = targets.Target("cpu", "", 2**20, *peak)
    monkeypatch.setitem(targets.TARGETS, "here", here)
    monkeypatch.setattr(targets.Target, "devices", lambda _: jax.devices()[:1])
    experiment, lines = walks(first=walk(), child=walk("first")), []
    forecast_for(experiment, ["first"], "here", lines.append)
    (line,) = lines
    assert line.startswith("first: 2 members on 1 of 1 devices of here: fits, ")
    assert " of 1.0 MiB on a device (" in line and line.endswith(" s, not run")
    monkeypatch.setitem(targets.TARGETS, "here", targets.Target("cpu", "", 1, *peak))
    forecast_for(experiment, ["first"], "here", lines.append)
    assert " of here: does not fit, " in lines[1] and "about 0 members" in lines[1]
    unread = walks(first=walk(axes=FrozenDict({"ridge": (0.1, 0.2)})))
    with pytest.raises(ConfigError, match=r"ridge=.*is read by no run"):
        forecast_for(unread, [], "here", lines.append)
    assert not list(tmp_path.iterdir())
