"""Measured games from files: small ones written here, and the published ones where at hand."""

import os
import pathlib

import jax
import numpy as np
import pytest

from bellmax.agents import tabular
from bellmax.experiments import errors
from bellmax.experiments.data import meta_games


def published():
    sibling = pathlib.Path(__file__).resolve().parents[4] / "shared" / "data"
    path = pathlib.Path(os.environ.get("BELLMAX_DATA") or sibling) / "meta_games"
    if not path.is_dir():
        pytest.skip("no meta_games: set BELLMAX_DATA to the folder that holds it")
    return path


@pytest.fixture
def folder(tmp_path):
    np.savetxt(tmp_path / "soccer_winrates.txt", [[0.5, 0.75], [0.25, 0.5]])
    payoff = np.array([[0.0, 200.0, -1000.0], [-210.0, 1.0, 0.0], [1000.0, 0.0, 0.0]])
    np.savez(tmp_path / "rrps_bots.npz", payoff=payoff, names=np.array(["a", "b", "c"]))
    (tmp_path / "atari_muesli_table11.txt").write_text(
        "# a table\n# game random human x\nalien 1,228 7128 7.5±2\npong -20.7 14.6 14.6\n",
        encoding="utf-8",
    )
    return tmp_path


def test_reads_win_rates(folder):
    found = meta_games.load("soccer", folder)
    np.testing.assert_allclose(found.game.preference, [[0.5, 0.75], [0.25, 0.5]])
    np.testing.assert_allclose(found.game.reference, [0.5, 0.5])
    assert found.names == ("team 1", "team 2")


def test_reads_payoffs(folder):
    found = meta_games.load("rrps", folder)
    # 200 and -210 of 1,000 throws, measured apart: 1/2 + 205 / 2000.
    expected = [[0.5, 0.6025, 0.0], [0.3975, 0.5, 0.5], [1.0, 0.5, 0.5]]
    np.testing.assert_allclose(found.game.preference, expected, rtol=1e-6)
    assert found.names == ("a", "b", "c")


def test_scores_become_votes(folder):
    found = meta_games.load("atari_muesli", folder)
    assert found.names == ("random", "human", "x")
    # alien: human > random > x; pong: human = x > random.
    expected = [[0.5, 0.0, 0.5], [1.0, 0.5, 0.75], [0.5, 0.25, 0.5]]
    np.testing.assert_allclose(found.game.preference, expected)


def test_unknown_and_missing_games_are_the_users_to_mend(folder):
    with pytest.raises(errors.UserError, match="Did you mean 'soccer'"):
        meta_games.load("socer", folder)
    with pytest.raises(errors.UserError, match=r"atari_rainbow_table5\.txt"):
        meta_games.load("atari_rainbow", folder)


@pytest.mark.parametrize(
    ("name", "filename", "text"),
    [
        ("soccer", "soccer_winrates.txt", "0.5 0.9\n0.9 0.5\n"),
        ("soccer", "soccer_winrates.txt", "0.5 word\n"),
        ("rrps", "rrps_bots.npz", "no archive"),
        ("atari_muesli", "atari_muesli_table11.txt", "# game a b\nalien 1\n"),
        ("atari_muesli", "atari_muesli_table11.txt", "alien 1\n"),
        ("atari_muesli", "atari_muesli_table11.txt", "# game a b\nalien 1 nan\n"),
    ],
)
def test_a_file_that_holds_no_game_is_refused(folder, name, filename, text):
    (folder / filename).write_text(text)
    with pytest.raises(errors.UserError, match=f"holds no '{name}' game"):
        meta_games.load(name, folder)


SIZES = {"soccer": 10, "rrps": 43, "atari_agent57": 8, "atari_muesli": 4, "atari_rainbow": 8}


@pytest.mark.parametrize("name", meta_games.NAMES)
def test_published_games_are_solved_at_every_temperature(name):
    with jax.enable_x64(True):
        game, names = meta_games.load(name, published())
        assert game.num_actions == len(names) == SIZES[name]
        assert len(set(names)) == len(names)
        preference, reference = (np.asarray(array) for array in game)
        np.testing.assert_allclose(preference + preference.T, 1, atol=1e-15)
        for tau in (0.01, 0.1, 1.0):
            policy = np.asarray(tabular.regularised_nash(*game, tau=tau))
            # Half the spread of log(pi / mu) - P pi / tau bounds the error: test_equilibria.py.
            residual = np.log(policy / reference) - preference @ policy / tau
            assert (residual.max() - residual.min()) / 2 < 1e-10


def test_published_tournaments_are_cyclic_and_the_known_leaders_lead():
    folder = published()
    rrps = meta_games.load("rrps", folder)
    assert "iocainebot" in rrps.names
    wins = np.asarray(rrps.game.preference) > 0.5
    # Triples that beat each other in a ring: the trace of the cube counts each three times.
    assert np.trace(np.linalg.matrix_power(wins.astype(int), 3)) > 0
    agent57 = meta_games.load("atari_agent57", folder)
    beats_random = agent57.game.preference[:, agent57.names.index("random")]
    assert agent57.names[int(np.argmin(beats_random))] == "random"
