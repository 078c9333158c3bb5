"""Training in the dialogue game: resumed bit for bit, judged as documented, refusing nonsense."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.envs import dialogue, dialogue_exact
from bellmax.experiments import (
    dialogue_config,
    dialogue_methods,
    dialogue_policies,
    dialogue_solutions,
    dialogue_training,
    errors,
    metrics,
)
from bellmax.experiments.claims import mtpo_dialogue


def tiny(**groups):
    """The claim's run with one turn, one word and a network of width 8; groups change keys."""
    config = mtpo_dialogue.make_config(0, num_steps=4)
    tiny_groups = {
        "model": {"num_layers": 1, "head_dim": 4, "embed_dim": 8, "mlp_dim": 8},
        "data": {"num_turns": 2, "utterance_length": 1, "num_parts": 1},
        "loss": {"methods": ("mtpo",), "num_rivals": 1},
        "train": {"batch_size": 8, "log_every": 2, "evaluate_every": 2, "checkpoint_every": 2},
    }
    for name, keys in tiny_groups.items():
        keys = keys | groups.get(name, {})
        group = dataclasses.replace(getattr(config, name), **keys)
        config = dataclasses.replace(config, **{name: group})
    # What a shorter run does first must not depend on how long it is.
    keys = dataclasses.replace(config.optimizer, schedule="constant", warmup_steps=0)
    return dataclasses.replace(config, optimizer=keys)


@pytest.mark.slow
def test_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    (expected,) = dialogue_training.train(tiny(), whole)
    dialogue_training.train(tiny(train={"num_steps": 2}), parts)
    assert dialogue_training.train(tiny(), parts) == [expected]
    assert expected["method"] == "mtpo"
    assert expected["win_rate/mtpo"] == pytest.approx(0.5, abs=1e-5)
    assert 0 < expected["win_rate/equilibrium"] < 0.5
    assert expected["kl/reference"] > 0
    assert json.loads((parts / "result.json").read_text())["rows"] == [expected]
    assert (parts / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    exact = [
        {name: value for name, value in row.items() if name != "wall_time_s"}
        for run in (whole, parts)
        for row in metrics.read_metrics(run)
        if "exact/asks_first" in row
    ]
    assert exact[:3] == exact[3:]
    assert [row["step"] for row in exact[:3]] == [0, 2, 4]


@pytest.mark.parametrize("method", dialogue_methods.METHODS)
def test_every_method_can_be_traced(method):
    trainer = dialogue_methods.make_trainer(tiny(), method)
    state = jax.eval_shape(trainer.agent.init, jax.random.key(0))
    rows = dialogue_methods.Rows(jnp.arange(8))
    after, values = jax.eval_shape(trainer.train_step, state, rows, jax.random.key(0))
    assert jax.tree.map(lambda leaf: leaf.shape, after) == jax.tree.map(lambda x: x.shape, state)
    assert values["rewards/preference"].shape == ()


def conversations(config):
    game = dialogue_config.make_game(config.data)
    size = config.train.batch_size
    rng = np.random.default_rng(0)
    states = dialogue.DialogueState(
        tokens=jnp.zeros((size, game.conversation_length), jnp.int32),
        turn=jnp.full(size, 2),
        student_type=jnp.asarray(rng.integers(0, 2, size)),
        level=jnp.asarray(rng.integers(0, 2, size)),
        gained=jnp.zeros(size, bool),
        manner=jnp.asarray(rng.integers(0, 3, size)),
    )
    batch = dialogue_policies.as_batch(states.tokens, game)
    return game, dialogue_policies.Conversations(states, batch, jnp.full((size, 2), 0.7))


def test_one_rival_makes_pairs_and_all_rivals_the_mean():
    game, played = conversations(tiny())
    table = np.asarray(dialogue.outcome_preference(game))
    outcomes = np.asarray(jax.vmap(dialogue.outcome, in_axes=(0, None))(played.states, game))
    wins = table[outcomes[:, None], outcomes[None, :]]
    judge = dialogue_methods.METHODS["mtpo"].judge
    pairs = judge(game, played, 1)
    np.testing.assert_allclose(pairs, wins[np.arange(8), (np.arange(8) + 4) % 8], rtol=1e-5)
    np.testing.assert_allclose(pairs[:4] + pairs[4:], 1.0, atol=1e-6)
    everybody = judge(game, played, 7)
    np.testing.assert_allclose(everybody, (wins.sum(axis=1) - 0.5) / 7, rtol=1e-5)


def test_other_judges_read_what_is_theirs():
    game, played = conversations(tiny())
    score = dialogue_methods.METHODS["rlhf"].judge(game, played, 1)
    np.testing.assert_allclose(score, 0.25 * 3.0 * played.states.level, rtol=1e-6)
    turns = dialogue_methods.METHODS["single_turn"].judge(game, played, 1)
    np.testing.assert_array_equal(turns, played.turn_preferences)


@pytest.mark.slow
def test_solutions_are_optima():
    game = dialogue.make(num_turns=2, utterance_length=1, num_parts=1)
    reference = dialogue_exact.uniform_policy(game)
    solutions = dialogue_solutions.solve(game, reference, alpha=0.05)
    assert solutions.equilibrium is not None
    score = jax.jit(dialogue_solutions.score)
    best, baseline = (
        score(solutions, solutions.equilibrium),
        score(solutions, solutions.single_turn),
    )
    assert float(best["win_rate/equilibrium"]) == pytest.approx(0.5, abs=1e-5)
    assert float(baseline["win_rate/single_turn_optimum"]) == pytest.approx(0.5, abs=1e-5)
    # In the regularised game nobody does better against the equilibrium than it does itself.
    gain = baseline["win_rate/equilibrium"] - 0.05 * baseline["kl/reference"]
    assert float(gain) < 0.5 - 0.05 * float(best["kl/reference"])
    # At every prefix the single-turn optimum is proportional to mu exp(wins / alpha).
    for turn in range(2):
        judged = dialogue_exact.turn_preferences(game, turn)
        law = solutions.single_turn[turn, : judged.shape[0]]
        target = jax.nn.softmax(jnp.einsum("nuv,nv->nu", judged, law) / 0.05)
        np.testing.assert_allclose(law, target, atol=1e-4)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"loss": {"methods": ("mtpoo",)}}, "Did you mean 'mtpo'"),
        ({"loss": {"methods": ()}}, "config.loss.methods"),
        ({"loss": {"alpha": 0.0}}, "config.loss.alpha must be positive"),
        ({"loss": {"mixture": 1.5}}, "config.loss.mixture"),
        ({"loss": {"num_rivals": 8}}, "config.loss.num_rivals"),
        ({"loss": {"trace_decay": 2.0}}, "trace_decay"),
        ({"data": {"num_types": 1}}, "num_types"),
        ({"train": {"batch_size": 7}}, "config.train.batch_size"),
        ({"train": {"accumulate_steps": 3}}, "config.train.accumulate_steps must divide"),
        ({"train": {"log_every": 0}}, "config.train.log_every"),
    ],
)
def test_refuses_configs_that_make_no_sense(groups, message, tmp_path):
    with pytest.raises(errors.UserError, match=message):
        dialogue_training.train(tiny(**groups), tmp_path)


@pytest.mark.slow
def test_claim_holds_on_its_seeds(tmp_path):
    claim = mtpo_dialogue.CLAIM
    outcome = claim.run(claim.default_seeds, tmp_path)
    assert outcome.passed, outcome.figure
