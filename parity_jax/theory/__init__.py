"""Closed forms for the parity mixture D(p): what experiments should measure.

D(p) shows a long demonstration (running parities) with probability p and a short one
(the parity alone) otherwise; x is uniform on {-1,+1}^d, d >= 3. After arXiv 2510.11495,
"the paper", and beyond it where a module says so. Float64 numpy, no JAX.
"""

from parity_jax.theory.amplification import (
    first_token_flow_time,
    majority_at_k_of,
    pass_at_k_of,
    star_rounds_to,
    star_share,
)
from parity_jax.theory.bounds import bound_chain, bound_first, bound_gate
from parity_jax.theory.extensions import (
    critical_step_noise,
    greedy_threshold,
    mixture_leap,
    pool_coverage,
    seen_rate,
    shuffled_long,
    skill_thresholds,
)
from parity_jax.theory.policy_gradient import (
    alpha_critical,
    grpo_gain,
    pg_crossing_state,
    pg_expected_update,
    pg_flow_time,
    pg_num_updates,
    updates_in_log_odds,
)
from parity_jax.theory.recursion import (
    State,
    fit_logits,
    noisy_accuracy,
    pretrain_state,
    star_state_step,
    state_accuracy,
)
from parity_jax.theory.ridge import ridge_stats
from parity_jax.theory.sampling import (
    accuracy,
    greedy,
    majority_at_k,
    p_long,
    pass_at_k,
)
from parity_jax.theory.star import (
    star_critical_p,
    star_fixed_point,
    star_p,
    star_rounds,
    star_trajectory,
)

__all__ = [
    "State",
    "accuracy",
    "alpha_critical",
    "bound_chain",
    "bound_first",
    "bound_gate",
    "critical_step_noise",
    "first_token_flow_time",
    "fit_logits",
    "greedy",
    "greedy_threshold",
    "grpo_gain",
    "majority_at_k",
    "majority_at_k_of",
    "mixture_leap",
    "noisy_accuracy",
    "p_long",
    "pass_at_k",
    "pass_at_k_of",
    "pg_crossing_state",
    "pg_expected_update",
    "pg_flow_time",
    "pg_num_updates",
    "pool_coverage",
    "pretrain_state",
    "ridge_stats",
    "seen_rate",
    "shuffled_long",
    "skill_thresholds",
    "star_critical_p",
    "star_fixed_point",
    "star_p",
    "star_rounds",
    "star_rounds_to",
    "star_share",
    "star_state_step",
    "star_trajectory",
    "state_accuracy",
    "updates_in_log_odds",
]
