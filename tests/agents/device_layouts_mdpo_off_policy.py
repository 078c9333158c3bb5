"""Steps of off-policy MDPO for device_layouts.py: pi_k is renewed at the second of the three.

The critics and the batch are TD3's (`device_layouts_td3.py`). The samples of the policy depend on
the row, not on the device.
"""

import pathlib
import runpy

import jax
import optax

from bellmax.agents import action_laws, mdpo_off_policy, td3
from bellmax.agents.networks import mlp

TD3 = runpy.run_path(str(pathlib.Path(__file__).with_name("device_layouts_td3.py")))
ACTOR = mlp.MLPConfig(TD3["STATE"], 2 * TD3["ACTION"], (5,))


def actor(params, observations):
    outputs = mlp.apply(ACTOR, params, observations)
    return action_laws.Gaussian(outputs[..., : TD3["ACTION"]], outputs[..., TD3["ACTION"] :] - 1)


def make_agent(axis_name, accumulate_steps=1):
    return mdpo_off_policy.make(
        actor,
        TD3["critic"],
        optax.chain(optax.clip_by_global_norm(0.01), optax.adam(0.01)),
        law=action_laws.gaussian(TD3["ACTION"], squash=True),
        init_params=lambda key: td3.Networks(
            mlp.init(ACTOR, key), mlp.init_ensemble(TD3["CRITIC"], key, TD3["HEADS"])
        ),
        num_inner_steps=2,
        output_penalty=1e-3,
        accumulate_steps=accumulate_steps,
        axis_name=axis_name,
    )


def make_case(axis_name, accumulate_steps=2):
    one, spread = make_agent(None), make_agent(axis_name, accumulate_steps)
    return one.update, spread.update, one.init(jax.random.key(0)), TD3["make_batch"](), 2e-6
