"""The methods of the dialogue game: MTPO, its mixture, multi-turn RLHF, the single-turn baseline.

They differ in who judges what, and in what is sampled from; network, agent and game are the same.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from bellmax.agents import Agent, Metrics, Params, mtpo, networks
from bellmax.envs import dialogue
from bellmax.envs.dialogue import DialogueGame
from bellmax.experiments import config as config_lib
from bellmax.experiments import (
    dialogue_config,
    dialogue_policies,
    language_config,
    optimizers,
    resharding,
)
from bellmax.experiments.dialogue_config import DialogueConfig
from bellmax.experiments.dialogue_policies import Conversations
from bellmax.experiments.numbered import Rows

Judge = Callable[[DialogueGame, Conversations, int], Array]


def _by_preference(game: DialogueGame, conversations: Conversations, num_rivals: int) -> Array:
    """Mean preference over rivals: first the row half a batch away, so that one rival makes pairs.

    Two rows that are each other's only rival get p and 1 - p.
    """
    states = conversations.states
    rows = states.turn.shape[0]
    judge = jax.vmap(dialogue.preference, in_axes=(0, 0, None))

    def against(offset):
        rivals = jax.tree.map(lambda leaf: jnp.roll(leaf, offset, axis=0), states)
        return judge(states, rivals, game)

    offsets = np.roll(np.arange(1, rows), -(rows // 2 - 1))[:num_rivals]
    return jnp.mean(jax.vmap(against)(jnp.asarray(offsets)), axis=0)


def _by_score(game: DialogueGame, conversations: Conversations, num_rivals: int) -> Array:
    del num_rivals
    states = conversations.states
    # A unit of log odds is worth a quarter of a preference where the odds are even, so that one
    # alpha suits all methods.
    return 0.25 * game.scores[states.student_type, states.level]


def _by_turn(game: DialogueGame, conversations: Conversations, num_rivals: int) -> Array:
    del game, num_rivals
    return conversations.turn_preferences


class Method(NamedTuple):
    """What sets one method apart.

    Attributes:
      judge: preferences of a batch of conversations.
      mixes: whether conversations are sampled from the mixture with the reference.
      second_opinions: whether single turns are judged.
    """

    judge: Judge
    mixes: bool = False
    second_opinions: bool = False


METHODS: dict[str, Method] = {
    "mtpo": Method(_by_preference),
    "mtpo_mixture": Method(_by_preference, mixes=True),
    "rlhf": Method(_by_score),
    "single_turn": Method(_by_turn, second_opinions=True),
}


class Trainer(NamedTuple):
    """One method on one game.

    Attributes:
      agent: the agent.
      train_step: `(state, Rows, key) -> (state, metrics)`: samples, judges and updates.
      table: `(params) -> [H, X, U]`, the policy's law over utterances at every prefix.
    """

    agent: Agent
    train_step: Callable[[mtpo.State, Rows, PRNGKeyArray], tuple[mtpo.State, Metrics]]
    table: Callable[[Params], Float[Array, "H X U"]]


def make_trainer(config: DialogueConfig, method: str, mesh: Mesh | None = None) -> Trainer:
    """Binds a method to a game and a network.

    Args:
      config: the run.
      method: a key of `METHODS`.
      mesh: the devices, whose generation layout conversations are sampled in; None for one.

    Returns:
      Its functions.

    Raises:
      UserError: a key is wrong.
    """
    if method not in METHODS:
        raise config_lib.unknown("config.loss.methods", method, METHODS)
    kind, loss, game = METHODS[method], config.loss, dialogue_config.make_game(config.data)
    network = language_config.make_network(config.model, game.vocab_size)
    model = language_config.make_model(network)
    decoder = dialogue_policies.make_decoder(
        model, game, mixture=loss.mixture if kind.mixes else None
    )
    with config_lib.user_errors("config.loss"):
        agent = mtpo.make(
            model,
            optimizers.make_optimizer(config.optimizer, config.train.num_steps),
            init_params=jax.jit(functools.partial(networks.init, network)),
            alpha=loss.alpha,
            trace_decay=loss.trace_decay,
            value_coefficient=loss.value_coefficient,
            value_gradient=loss.value_gradient,
            policy_delay=loss.policy_delay,
            normalise_advantages=loss.normalise_advantages,
            legal_tokens=dialogue_policies.legal_tokens(game),
            max_new_tokens=game.utterance_length,
            accumulate_steps=config.train.accumulate_steps,
        )

    def train_step(state: mtpo.State, batch: Rows, key: PRNGKeyArray):
        speakers = (state.params["policy"], *((state.reference_params,) if kind.mixes else ()))
        conversations = dialogue_policies.converse(
            decoder,
            speakers if mesh is None else resharding.to_generation(mesh, speakers),
            game,
            key,
            batch.index,
            second_opinions=kind.second_opinions,
        )
        preferences = kind.judge(game, conversations, loss.num_rivals)
        return agent.update(state, conversations.batch._replace(preferences=preferences), key)

    table = functools.partial(dialogue_policies.policy_table, model, game=game)
    return Trainer(agent, train_step, table)
