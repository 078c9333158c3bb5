"""Trace coefficients of each rule, in numbers and at the edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax import losses

POLICY, BEHAVIOUR = jnp.array([0.1, 0.2, 0.9, 0.0]), jnp.array([0.5, 0.5, 0.3, 0.25])
RULES = {
    "one_step_traces": [0, 0, 0, 0],
    "q_lambda_traces": [0.8, 0.8, 0.8, 0.8],
    "td_lambda_traces": [0.8, 0.8, 0.8, 0.8],
    # .8 min(1, .2), .8 min(1, .4), .8 min(1, 3), 0.
    "retrace_traces": [0.16, 0.32, 0.8, 0],
    "tree_backup_traces": [0.08, 0.16, 0.72, 0],
    "importance_traces": [0.16, 0.32, 2.4, 0],
}
every_rule = pytest.mark.parametrize("name", RULES)


@every_rule
def test_values(name):
    found = getattr(losses, name)(POLICY, BEHAVIOUR, trace_decay=0.8)
    np.testing.assert_allclose(found, RULES[name], atol=1e-6)


@every_rule
def test_decay_may_be_traced_and_one_a_step(name):
    rule = getattr(losses, name)
    decays = jnp.array([0.0, 0.3, 0.8, 1.0])
    found = jax.jit(lambda decay: rule(POLICY, BEHAVIOUR, trace_decay=decay))(decays)
    np.testing.assert_allclose(found, np.array(RULES[name]) / 0.8 * decays, atol=1e-6)


def test_classic_forms_have_decay_one():
    np.testing.assert_allclose(losses.tree_backup_traces(POLICY, BEHAVIOUR), POLICY)
    ratios = losses.importance_traces(POLICY, BEHAVIOUR)
    np.testing.assert_allclose(ratios, POLICY / BEHAVIOUR, rtol=1e-6)
    np.testing.assert_array_equal(losses.one_step_traces(POLICY, BEHAVIOUR), np.zeros(4))


@pytest.mark.parametrize("name", ["retrace_traces", "importance_traces"])
def test_on_policy_it_is_td_lambda_and_the_product_of_ratios_is_unbiased(name):
    rule = getattr(losses, name)
    np.testing.assert_allclose(rule(POLICY[:3], POLICY[:3], trace_decay=0.8), 0.8, rtol=1e-6)
    # E over mu of pi / mu is 1 whatever the laws; clipping can only lower it.
    law, behaviour = jnp.array([0.2, 0.5, 0.3]), jnp.array([0.6, 0.1, 0.3])
    mean = jnp.sum(behaviour * rule(law, behaviour, trace_decay=1.0))
    # Clipped: .2 + .1 + .3, the mass that both laws share.
    np.testing.assert_allclose(mean, 0.6 if name == "retrace_traces" else 1.0, rtol=1e-6)


@every_rule
def test_no_behaviour_probability_gives_no_nan(name):
    found = getattr(losses, name)(POLICY, jnp.zeros(4), trace_decay=0.8)
    assert np.isfinite(found).all()
    if name in ("retrace_traces", "importance_traces"):
        np.testing.assert_array_equal(found, np.zeros(4))


@every_rule
@pytest.mark.parametrize("decay", [-0.1, 1.1, float("nan")])
def test_decay_out_of_range_is_refused(name, decay):
    with pytest.raises(ValueError, match="trace_decay"):
        getattr(losses, name)(POLICY, BEHAVIOUR, trace_decay=decay)
