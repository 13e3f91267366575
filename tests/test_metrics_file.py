"""Files of a run: metrics, claims, atomic JSON; and the means that fill them."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from parity_jax.masked import Mean, has_ended, masked_mean, num_tokens
from parity_jax.results import (
    Claim,
    MetricsFile,
    RunError,
    by_member,
    load_metrics,
    read_json,
    read_records,
    write_claims,
    write_json,
)


def mean(*values):
    """One mean per member; None was not counted."""
    count = jnp.array([float(v is not None) for v in values])
    return Mean(jnp.array([v or 0.0 for v in values]), count)


def test_mean_merges_by_weight():
    left, right = Mean.over(jnp.array([1.0, 2.0, 3.0])), Mean.over(jnp.array([10.0]))
    assert float(left.merge(right).value()) == 4.0
    empty = Mean.over(jnp.ones(3), jnp.zeros(3, bool))
    assert np.isnan(empty.value()) and float(empty.value(empty=7.0)) == 7.0
    assert float(left.merge(empty).value()) == 2.0


def test_mean_leaves_out_what_is_masked():
    x = jnp.array([[1.0, jnp.nan], [3.0, jnp.inf]])
    mask = jnp.array([[True, False], [True, False]])
    assert float(Mean.over(x, mask).value()) == 2.0
    assert float(masked_mean(x, mask)) == 2.0
    assert float(masked_mean(x, jnp.zeros_like(mask))) == 0.0
    row = Mean.over(x, jnp.array([[True], [False]]) & jnp.array([[True, False]]))
    assert (float(row.total), float(row.count)) == (1.0, 1.0)


def test_mean_of_integers_and_booleans_is_float32():
    for x in (jnp.array([1, 2]), jnp.array([True, False])):
        assert Mean.over(x).value().dtype == jnp.float32
    assert float(Mean.over(jnp.array([True, False])).value()) == 0.5


def test_length_counts_tokens_before_eos():
    response = jnp.array([[1, 0, 0], [3, 1, 0], [3, 4, 3], [3, 1, 3]])
    assert num_tokens(response).tolist() == [0, 1, 3, 1]
    assert has_ended(response).tolist() == [True, True, False, True]


@pytest.fixture
def run(tmp_path):
    """A directory with 2 x 2 members, training records at 1, 3 and evaluation at 3."""
    axes = {"p_cot": [0.1, 0.2], "seed": [0, 1]}
    write_json(tmp_path / "config.json", {"axes": axes})
    file = MetricsFile(tmp_path)
    first = {"loss": mean(1.0, 2.0, 3.0, 4.0), "tokens": mean(5, 6, 7, 8)}
    second = {"loss": mean(0.5, None, 0.25, 0.1), "tokens": mean(1, None, 1, 1)}
    file.append("train", 1, 0.12345, first)
    file.append("train", 3, 0.1, second | {"kl": mean(1, 1, 1, 1)})
    file.append("eval", 3, 0.1, {"greedy/accuracy": mean(0.5, 1, 1, 1)})
    return tmp_path


def test_metrics_have_the_dimensions_of_the_axes(run):
    data = load_metrics(run, "train")
    assert data["loss"].dims == ("p_cot", "seed", "step")
    assert data["step"].values.tolist() == [1, 3]
    assert float(data["loss"].sel(p_cot=0.2, seed=1, step=1)) == 4.0
    assert float(data["loss"].sel(p_cot=0.1, seed=1, step=1)) == 2.0
    evaluation = load_metrics(run, "eval")
    assert list(evaluation) == ["greedy/accuracy"]
    assert float(evaluation["greedy/accuracy"].sel(p_cot=0.1, seed=0, step=3)) == 0.5


def test_what_was_not_computed_is_null_and_nan(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[1])["values"]["loss"] == [
        0.5,
        None,
        0.25,
        pytest.approx(0.1),
    ]
    data = load_metrics(run, "train")
    assert np.isnan(data["loss"].sel(p_cot=0.1, seed=1, step=3))
    assert np.isnan(data["kl"].sel(step=1)).all()
    assert (data["kl"].sel(step=3) == 1).all()


def test_counters_come_with_running_totals(run):
    """`tokens` is a mean per step: 1 step in the first record, 2 in the second."""
    total = load_metrics(run, "train")["num_tokens"]
    assert total.sel(p_cot=0.1, seed=0).values.tolist() == [5.0, 5 + 2 * 1.0]
    assert total.sel(p_cot=0.1, seed=1).values.tolist() == [6.0, 6.0]


def test_rewind_drops_later_records_and_a_cut_off_line(run):
    path = run / "metrics.jsonl"
    whole = path.read_text()
    with path.open("a") as file:
        file.write('{"split": "train", "st')
    assert len(read_records(path)) == 3
    file = MetricsFile(run)
    file.rewind(3)
    assert path.read_text() == whole
    file.rewind(1)
    assert [r["step"] for r in read_records(path)] == [1]
    file.append("train", 2, 0.0, {"loss": mean(1, 1, 1, 1)})
    assert [r["step"] for r in read_records(path)] == [1, 2]
    with pytest.raises(RunError, match="trained to step 2, but all checkpoints are"):
        file.rewind(-1)
    with pytest.raises(RunError, match="the records up to step 5 are gone"):
        file.rewind(5)
    assert [r["step"] for r in read_records(path)] == [1, 2]


def test_rewind_of_a_new_run(tmp_path):
    MetricsFile(tmp_path).rewind(-1)
    assert read_records(tmp_path / "metrics.jsonl") == []


def test_write_json_is_atomic(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
    write_json(path, [1, 2])
    assert read_json(path) == [1, 2]
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_claims(tmp_path):
    claim = Claim("C1", "P(long) is p_cot", "0.25", {"seed=0": 0.24}, "0.1", True)
    write_claims(tmp_path, [claim])
    assert read_json(tmp_path / "claims.json") == [
        {
            "id": "C1",
            "claim": "P(long) is p_cot",
            "expected": "0.25",
            "measured": {"seed=0": 0.24},
            "tolerance": "0.1",
            "holds": True,
        }
    ]


def test_values_by_member():
    values = xr.DataArray(
        [[0.5, 0.25], [1.0, 0.0]],
        coords={"p_cot": [0.1, 0.2], "seed": [0, 1]},
        dims=("p_cot", "seed"),
    )
    assert by_member(values) == {
        "p_cot=0.1,seed=0": 0.5,
        "p_cot=0.1,seed=1": 0.25,
        "p_cot=0.2,seed=0": 1.0,
        "p_cot=0.2,seed=1": 0.0,
    }
    assert by_member(values.isel(p_cot=0)) == {"seed=0": 0.5, "seed=1": 0.25}
    assert by_member(values.isel(p_cot=0, seed=1)) == {"all": 0.25}
    assert by_member(values.isel(p_cot=0, seed=1) * np.nan) == {"all": None}
