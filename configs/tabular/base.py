"""The keys of a `tabular` run, each with its unit; the other configs of this folder start here."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Returns every key that may be overridden; no game and no tree is solved yet."""
    return ml_collections.ConfigDict(
        {
            "seed": 0,  # Of the games and trees that are drawn.
            "games": {  # One turn.
                # dice, rock_paper_scissors, asymmetric_cycle, four_actions, rater_types:E,
                # random:A, soccer, rrps, atari_agent57, atari_muesli, atari_rainbow.
                "names": (),
                # nash_md, nash_md_constant, mirror_descent, mirror_descent_constant, inpo, dno,
                # sppo, online_ipo, ipo_md.
                "methods": (),
                "reference": (),  # Probabilities of the reference, for every game; (): uniform.
                "tau": 0.1,  # Weight of the KL to the reference, nats.
                "constant_step": 1.0,  # eta of *_constant, at most 1 / tau.
                "self_play_step": 0.1,  # Step of dno and sppo, which have no schedule.
                "gradient_step": 0.02,  # Learning rate of online_ipo and ipo_md.
                "mixture": 0.125,  # Weight of the reference in ipo_md's sampling law.
                "meta_games": "",  # Folder of the measured games, if one is named.
            },
            "trees": {  # Many turns.
                # deterministic, stochastic (two turns, two actions), random:H (H turns).
                "names": (),
                "methods": (),  # mtpo, mtpo_mixture.
                "alpha": 0.1,  # Weight of the KL to the reference, 1/nats.
                "num_actions": 2,  # Of the trees that are drawn.
            },
            "train": {
                "num_steps": 10_000,  # Of each method.
                "num_points": 60,  # Steps at which policies are evaluated, evenly in log(step).
            },
        }
    )
