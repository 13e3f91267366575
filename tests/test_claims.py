"""Claims: a verdict computed from numbers, as JSON has them."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from parity_jax.analysis import Check, Claim
from parity_jax.analysis.claims import plain_claims, read_claims, write_claims
from parity_jax.analysis.legend import LEGEND
from parity_jax.analysis.plots import pictures_of
from parity_jax.analysis.scores import by_member
from parity_jax.runs import RunError
from parity_jax.runs.files import read_json, write_json

COMMITTED = [*Path(__file__).parents[1].glob("results/*/claims.json")]

SCORES = xr.DataArray(
    [[0.5, 0.25], [1.0, 0.0]],
    coords={"p_cot": [0.1, 0.2], "seed": [0, 1]},
    dims=("p_cot", "seed"),
)


def test_values_by_member():
    assert by_member(SCORES) == {
        "p_cot=0.1,seed=0": 0.5,
        "p_cot=0.1,seed=1": 0.25,
        "p_cot=0.2,seed=0": 1.0,
        "p_cot=0.2,seed=1": 0.0,
    }
    dates = SCORES.assign_coords(seed=[20251125, 20251126]).isel(p_cot=0)
    assert by_member(dates) == {"seed=20251125": 0.5, "seed=20251126": 0.25}
    assert by_member(SCORES.isel(p_cot=0)) == {"seed=0": 0.5, "seed=1": 0.25}
    assert by_member(SCORES.isel(p_cot=0, seed=1)) == {"all": 0.25}
    assert by_member(SCORES.isel(p_cot=0, seed=1) * np.nan) == {"all": None}


@pytest.mark.parametrize(
    ("relation", "holds"),
    [
        ("at_least", {0.0: True, 0.25: False}),
        ("above", {-0.1: True, 0.0: False}),
        ("at_most", {1.0: True, 0.5: False}),
        ("below", {1.1: True, 1.0: False}),
    ],
)
def test_every_number_must_be_on_its_side_of_the_bound(relation, holds):
    check = getattr(Check, relation)
    assert {bound: check(SCORES, bound).holds for bound in holds} == holds
    assert not check(SCORES * np.nan, 0.5).holds  # what is not there fulfils nothing
    assert check(SCORES, 0.5).relation == relation.replace("_", " ")


def test_within_and_equal_compare_member_by_member():
    assert Check.within(SCORES, SCORES + 0.125, 0.125).holds
    assert not Check.within(SCORES, SCORES + 0.125, 0.12).holds
    assert not Check.within(SCORES * np.nan, SCORES, 1.0).holds
    assert Check.equal(SCORES, SCORES).holds and not Check.equal(SCORES, 0.5).holds
    expected = SCORES["p_cot"]
    assert Check.within(SCORES, expected, 0.8).expected == {"p_cot=0.1": 0.1} | {
        "p_cot=0.2": 0.2
    }


def test_claims_are_written_as_they_are_read(tmp_path):
    path, score = tmp_path / "claims.json", SCORES.isel(p_cot=0)
    checks = {"low": Check.at_least(0.1, 0), "high": Check.at_most(float("nan"), 1)}
    claims = [
        Claim.within("C1", score, 0.25, 0.1),
        Claim.at_least("C2", 0.9, 0.8),
        Claim.at_most("C4", 0.9, 0.8),
        Claim.of("C9", "of ours", **checks),
        Claim.of("C10", "of ours", seen={"n": np.int64(3)}, low=Check.equal(1, 1)),
    ]
    write_claims(path, claims)
    first, above, below, both, seen = read_claims(path)
    assert first == {
        "id": "C1",
        "claim": LEGEND["C1"],
        "measured": {"seed=0": 0.5, "seed=1": 0.25},
        "relation": "within",
        "expected": 0.25,
        "tolerance": 0.1,
        "holds": False,
    }
    assert above["holds"] and not below["holds"]
    assert both["claim"] == "of ours" and not both["holds"]
    assert both["measured"] == {"low": 0.1, "high": None}
    assert both["relation"] == {"low": "at least", "high": "at most"}
    assert seen["measured"] == {"low": 1, "n": 3} and seen["holds"]


EDITS = [
    ("expected", 0.99),
    ("relation", "smells like"),
    ("relation", "below"),
    ("measured", {"x": "abc"}),
    ("measured", None),
    ("measured", {}),
    ("measured", {"seed=0": 0.5, "seed=1": None, "seed=2": 0.1}),
    ("measured", True),
    ("measured", 10**400),
    ("tolerance", None),
    ("tolerance", -1),
    ("holds", False),
]


@pytest.mark.parametrize(("field", "value"), EDITS)
def test_an_edited_claim_is_damaged(tmp_path, field, value):
    path, score = tmp_path / "claims.json", SCORES.isel(p_cot=0)
    write_claims(path, [Claim.at_least("C2", score, 0.2)])
    (claim,) = read_claims(path)
    write_json(path, [claim | {field: value}])
    with pytest.raises(RunError, match=r"claims\.json: damaged: ") as info:
        read_claims(path)
    assert "\n" not in str(info.value)


def test_a_bound_of_0_that_is_met_is_no_question_of_digits(tmp_path):
    path = tmp_path / "claims.json"
    write_claims(path, [Claim.at_least("C2", [0.1875, 0.0], 0.0)])
    (claim,) = read_claims(path)
    write_json(path, [claim | {"holds": False}])
    with pytest.raises(RunError, match="holds=False of 'C2' does not follow"):
        read_claims(path)


def test_a_verdict_is_told_up_to_the_digits_that_are_stored(tmp_path):
    """Whatever the axes, bounds and digits, what is written is read."""
    path, rng = tmp_path / "claims.json", np.random.default_rng(0)
    kinds = (Check.at_least, Check.at_most, Check.below, Check.above, Check.equal)
    pairs = [(SCORES, SCORES), (SCORES, SCORES["p_cot"]), (SCORES["p_cot"], SCORES)]
    pairs += [(SCORES.astype(np.float32), x + d) for x in pairs[0] for d in (0, 4e-7)]
    pairs += [
        (rng.normal(size=3), 0.1),
        (np.ones(2), np.ones(2)),
        (3, 3),
        (1 / 3, 1 / 3),
    ]
    pairs += [(np.inf, 3), (SCORES, np.inf), (SCORES * np.nan, 0), ([], 0)]
    checks = [kind(a, b) for a, b in pairs for kind in kinds]
    checks += [Check.within(a, b, 0.1) for a, b in pairs]
    claims = [Claim.of(f"a{i}", "b", x=check) for i, check in enumerate(checks)]
    seen = {"n": 1, "text": "b"}
    claims.append(Claim.of("all", "b", **{f"c{i}": c for i, c in enumerate(checks)}))
    claims.append(Claim.of("seen", "b", seen=seen, x=Check.equal(SCORES, SCORES)))
    write_claims(path, claims)
    assert [c["holds"] for c in read_claims(path)] == [c.holds for c in claims]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.parent.name)
def test_claims_that_were_committed_are_read(path):
    assert read_claims(path)


@pytest.mark.parametrize(
    "text", ["[", "[NaN]", '[{"id": "a", "id": "b"}]', "[1e999]", "[" * 100_000, "\xff"]
)
def test_what_is_no_json_is_one_line(tmp_path, text):
    path = tmp_path / "claims.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(RunError, match=r"claims\.json: damaged: ") as info:
        read_json(path)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("text", ["{}", "[3]", '[{"id": "C1"}]', "null", "[]"])
def test_a_file_that_holds_no_claims_is_an_error(tmp_path, text):
    path = tmp_path / "claims.json"
    path.write_text(text)
    with pytest.raises(RunError, match=r"claims\.json: damaged"):
        read_claims(path)


def test_of_nothing_nothing_is_true():
    nobody = SCORES.isel(seed=[])
    for check in (
        Check.at_least(nobody, 0),
        Check.below(nobody, 0),
        Check.within(nobody, 0, 1.0),
        Check.equal(nobody, 0),
        Check.at_least(np.ma.array([1.0, 2.0], mask=[True, False]), 0),
    ):
        assert not check.holds
    with pytest.raises(ValueError, match="claim 'mine' needs a text"):
        Claim.of("mine", x=Check.equal(1, 1))
    with pytest.raises(ValueError, match="claim 'C1' needs a check"):
        Claim.of("C1")


def test_a_series_has_labels_as_well():
    """Of pandas, which `.to_pandas()` gives; a plain index only counts."""
    ours = SCORES.sel(p_cot=0.1, drop=True)
    series = ours.to_pandas()
    assert Check.equal(ours, series).holds and Check.equal(series, ours).holds
    assert Check.equal(ours, pd.Series(series.to_numpy())).holds
    swapped, renamed = series.iloc[::-1], series.rename_axis("p_cot")
    for other in (swapped, series.set_axis([7, 8]).rename_axis("seed")):
        with pytest.raises(ValueError, match="exact"):
            Check.equal(ours, other)
        with pytest.raises(ValueError, match="exact"):
            Check.equal(series, other)
    for other in (renamed, series.set_axis([7, 8]).rename_axis(None)):
        with pytest.raises(ValueError, match="must have the axes"):
            Check.equal(ours, other)
    with pytest.raises(TypeError, match="must be a Series, not a DataFrame"):
        Check.at_least(SCORES.to_pandas(), 0)


def test_numbers_along_other_axes_are_not_held_against_each_other():
    """All would be against all: members against others that were not measured."""
    seeds, shares = SCORES.isel(p_cot=0), SCORES["p_cot"]
    for check in (Check.within, Check.at_least):
        extra = (1.0,) if check == Check.within else ()
        with pytest.raises(ValueError, match=r"axes.* not \[\['seed'\], \['p_cot'\]\]"):
            check(seeds, shares, *extra)
        assert check(SCORES, shares - 10, *(20 * e for e in extra)).holds


def test_members_that_only_one_side_has_are_not_left_out():
    few = SCORES.isel(seed=[0])
    for check in (Check.equal, Check.at_least, lambda a, b: Check.within(a, b, 9.0)):
        for pair in ((SCORES, few), (few, SCORES)):
            with pytest.raises(ValueError, match="cannot align"):
                check(*pair)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint32, np.float16])
def test_small_types_are_compared_as_the_numbers_that_they_are(dtype):
    """In their own arithmetic they wrap, or are infinite."""
    small, large = dtype(3), dtype(100)
    assert Check.within(small, large, 97).holds and Check.within(large, small, 97).holds
    assert not Check.within(small, large, 96).holds
    if dtype is np.int8:
        assert not Check.within(large, dtype(-100), 60).holds
    if dtype is np.float16:
        assert not Check.within(dtype(60000), dtype(-60000), 1e5).holds


def test_small_numbers_keep_their_digits():
    """And those that float64 does not tell apart are refused."""
    check = Check.at_most(xr.DataArray([1.25e-9], {"seed": [0]}), 0)
    assert check.measured == {"seed=0": 1.25e-9} and not check.holds
    assert Check.equal(np.float32(0.1), np.float32(0.1)).measured == 0.1
    assert Check.equal(2**53 - 1, 2**53 - 1).holds
    with pytest.raises(ValueError, match=r"below 2\*\*53"):
        Check.equal(2**53 + 1, 2**53)


def test_numbers_stand_on_both_sides():
    assert Check.at_least([1, 2], [1, 2]).holds and Check.within([1], [1.05], 0.1).holds
    with pytest.raises(ValueError, match="must have the coordinate 'seed'"):
        Check.at_least(xr.DataArray([1.0, 2.0], dims="seed"), 0)
    with pytest.raises(TypeError, match="must be real numbers, not 'x'"):
        Check.at_least("x", 0)
    with pytest.raises(TypeError, match="claim 'X': a must be a Check, not bool"):
        Claim.of("X", "t", a=True)


def made_by_hand(**fields):
    whole = dict(
        id="a", claim="b", measured=1, relation="at least", expected=0, tolerance=0
    )
    return Claim(**whole | {"holds": True} | fields)


@pytest.mark.parametrize(
    ("claims", "part"),
    [
        (None, "a list of Claims, not NoneType"),
        ({}, "a list of Claims, not dict"),
        (["a"], "must return Claims, not str"),
        ([made_by_hand(measured=float("nan"))], "not JSON compliant"),
        ([made_by_hand(measured=np.ones(2))], "not JSON serializable"),
        ([made_by_hand(holds=1)], "claim 'a': must be as Claim.of makes it"),
        ([made_by_hand(relation="likes")], "claim 'a': must be as Claim.of makes it"),
        ([made_by_hand(expected=2)], "holds=True of 'a' does not follow"),
        ([made_by_hand(), made_by_hand()], "has 'a' twice"),
    ],
)
def test_what_is_no_list_of_claims_is_an_error(claims, part):
    with pytest.raises((TypeError, ValueError), match=part):
        plain_claims(claims)
    assert plain_claims(c for c in [made_by_hand()])[0]["id"] == "a"


def test_a_figure_is_one_of_matplotlib():
    for other in (None, "figure"):
        with pytest.raises(TypeError, match="must return a Figure, not"):
            pictures_of(other)


def test_plain_numbers_are_of_the_members_in_their_order():
    seeds = xr.DataArray([1.0, 2.0], {"seed": [0, 1]}, ("seed",))
    for expected in ([1.0, 2.0], np.array([1, 2]), (1, 2)):
        check = Check.equal(seeds, expected)
        assert check.holds and check.expected == {"seed=0": 1.0, "seed=1": 2.0}
        assert Check.at_least(expected, seeds).holds
    assert not Check.equal(seeds, [2.0, 1.0]).holds
    assert not Check.above(seeds, [0.5, 2.0]).holds
    for other in ([1.0], [1.0, 2.0, 3.0], [[1.0, 2.0]]):
        with pytest.raises(ValueError, match="as many as there are members"):
            Check.equal(seeds, other)


def test_a_member_that_is_there_twice_is_refused():
    twice = xr.DataArray([1.0, 2.0], {"seed": [0, 0]}, ("seed",))
    with pytest.raises(ValueError, match="has the member seed=0 twice"):
        Check.at_least(twice, 0)


def test_plain_numbers_are_held_against_as_many():
    """xarray would align those of a matrix and of a row by their first axis."""
    matrix = np.arange(6.0).reshape(2, 3)
    for pair in ((matrix, [0.0, 1.0]), (matrix, [0.0, 1.0, 2.0]), ([1, 2, 3], [1])):
        for a, b in (pair, pair[::-1]):
            with pytest.raises(ValueError, match="as many as there are members"):
                Check.within(a, b, 9)
    assert Check.within(matrix, matrix + 1, 1).holds
    assert Check.within(matrix, 2, 3).holds and Check.within(2, matrix, 3).holds


@pytest.mark.parametrize("array", [jnp.array, pd.Series, np.array, tuple])
def test_arrays_of_other_libraries_are_numbers(array):
    check = Check.at_least(array([0.5, 0.75]), 0.25)
    assert check.holds and check.measured == [0.5, 0.75]
    assert not Check.at_most(0.25, array([0.5, 0.125])).holds


@pytest.mark.parametrize("dtype", [bool, np.bool_, np.array, np.float32, np.int8])
def test_numbers_of_any_type_are_written_as_they_were_compared(dtype):
    for check in (Check.equal(dtype(1), dtype(1)), Check.at_least([dtype(1)], 0.5)):
        assert plain_claims([Claim.of("C1", measured=check)])[0]["holds"]
    labelled = xr.DataArray([True, False], {"seed": [0, 1]})
    check = Check.equal(labelled, [True, False])
    assert check.measured == check.expected == {"seed=0": 1.0, "seed=1": 0.0}


@pytest.mark.parametrize("measured", [None, {"seed=0": 1.0, "seed=1": None}, [None]])
def test_no_claim_holds_of_a_number_that_is_none(tmp_path, measured):
    claim = {"id": "C1", "claim": "", "holds": True, "relation": "at least"}
    claim |= {"expected": 0.99, "tolerance": 0.0}
    shown = {"accuracy": measured, "sequences": 7}
    for value in (measured, shown):
        write_json(tmp_path / "claims.json", [claim | {"measured": value}])
        with pytest.raises(RunError, match="holds=True of 'C1' does not follow"):
            read_claims(tmp_path / "claims.json")


def test_what_is_seen_hides_no_check():
    """A name is of one thing."""
    checks = {"acc": Check.at_least(1, 0), "low": Check.at_most(0.5, 1)}
    seen = Claim.of("X", "t", seen={"more": 2}, **checks)
    assert seen.measured == {"acc": 1, "low": 0.5, "more": 2}
    assert Claim.of("X", "t", seen={"acc": 1.0}, **checks).measured == {
        "acc": 1,
        "low": 0.5,
    }
    for shown, held in (({"acc": 5}, checks), ({"low": 7}, {"low": checks["low"]})):
        with pytest.raises(ValueError, match=r"claim 'X': seen has '.*' of a check, "):
            Claim.of("X", "t", seen=shown, **held)


def test_a_claim_has_an_id_and_text():
    one = Check.equal(1, 1)
    for id, text, part in (
        ("", "of ours", "claim 'of ours': its id must not be empty"),
        (3, "of ours", "claim 3: its id must be text, not 3"),
        ("X", 3, "claim 'X': its text must be text, not 3"),
    ):
        with pytest.raises((TypeError, ValueError), match=part):
            Claim.of(id, text, one=one)
    by_hand = dataclasses.replace(Claim.of("X", "t", one=one), tolerance=None)
    with pytest.raises(ValueError, match="claim 'X': must be as"):
        plain_claims([by_hand])


def test_text_of_claims_can_be_written():
    claim = Claim.of("X", "half a pair: \ud800", one=Check.equal(1, 1))
    with pytest.raises(ValueError, match=r"claim 'X': .*surrogates"):
        plain_claims([claim])


def test_an_infinite_bound_holds_nothing():
    for check in (Check.at_most([1, 2], np.inf), Check.above(SCORES, -np.inf)):
        assert not check.holds
    assert not Check.below([1.0, 2.0], [3.0, np.inf]).holds
