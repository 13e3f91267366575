"""SIGKILL at 20 random moments in each stage: the result is that of no interruption.

`make soak` runs many more, in every layout.
"""

import pytest
from kills import STAGES, campaign


@pytest.mark.parametrize("stage", STAGES)
def test_killed_runs_end_bit_identical(stage, tmp_path):
    tally = campaign(stage, "one by one", 20, tmp_path / "runs", seed=0)
    assert tally.kills == 20 and tally.kills_in_training > 10, tally
    assert tally.finished_runs > 0 and tally.differing_runs == 0, tally
