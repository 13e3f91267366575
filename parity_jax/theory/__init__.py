"""Closed forms for the parity mixture D(p): what experiments should measure.

D(p) shows a long demonstration (running parities) with probability p and a short one
(the parity alone) otherwise; x is uniform on {-1,+1}^d, d >= 3. After arXiv 2510.11495,
"the paper", and beyond it where a module says so. Float64 numpy, no JAX.
"""

from parity_jax.theory.bounds import bound_chain, bound_first, bound_gate
from parity_jax.theory.extensions import (
    greedy_threshold,
    mixture_leap,
    skill_thresholds,
)
from parity_jax.theory.policy_gradient import (
    alpha_critical,
    grpo_gain,
    pg_crossing_state,
    pg_expected_update,
    pg_flow_time,
    pg_grad,
    pg_num_updates,
    pg_reward,
)
from parity_jax.theory.recursion import (
    State,
    fit_logits,
    noisy_accuracy,
    pretrain_state,
    star_state_step,
    state_accuracy,
)
from parity_jax.theory.ridge import (
    finite_sample_sd,
    linear_weights,
    ridge_chain,
    ridge_first,
    ridge_gate,
    ridge_stats,
    ridge_threshold,
)
from parity_jax.theory.sampling import (
    accuracy,
    class_success,
    expected_length,
    greedy,
    longest_of_k,
    majority_at_k,
    odds,
    p_long,
    pass_at_k,
    probs,
    tau_best,
    tau_majority,
)
from parity_jax.theory.star import (
    star_critical_p,
    star_fixed_point,
    star_p,
    star_rounds,
    star_step,
    star_trajectory,
)

__all__ = [
    "State",
    "accuracy",
    "alpha_critical",
    "bound_chain",
    "bound_first",
    "bound_gate",
    "class_success",
    "expected_length",
    "finite_sample_sd",
    "fit_logits",
    "greedy",
    "greedy_threshold",
    "grpo_gain",
    "linear_weights",
    "longest_of_k",
    "majority_at_k",
    "mixture_leap",
    "noisy_accuracy",
    "odds",
    "p_long",
    "pass_at_k",
    "pg_crossing_state",
    "pg_expected_update",
    "pg_flow_time",
    "pg_grad",
    "pg_num_updates",
    "pg_reward",
    "pretrain_state",
    "probs",
    "ridge_chain",
    "ridge_first",
    "ridge_gate",
    "ridge_stats",
    "ridge_threshold",
    "skill_thresholds",
    "star_critical_p",
    "star_fixed_point",
    "star_p",
    "star_rounds",
    "star_state_step",
    "star_step",
    "star_trajectory",
    "state_accuracy",
    "tau_best",
    "tau_majority",
]
