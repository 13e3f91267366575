"""SIGKILL at 12 random moments in each stage: the result is that of no interruption.

`make soak` runs many more, in every layout.
"""

import pytest
from kills import STAGES, campaign, experiment


@pytest.mark.parametrize("stage", STAGES)
def test_killed_runs_end_bit_identical(stage, tmp_path):
    setting = experiment(STAGES[stage], "one by one")
    tally = campaign(setting, 12, tmp_path / "runs")
    assert tally.kills == 12 and tally.kills_in_training > 6, tally
    assert tally.finished_runs > 0 and tally.differing_runs == 0, tally
