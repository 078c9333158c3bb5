"""Transitions: files and caches give back what was put in, and say what is wrong with a file."""

import re
import subprocess
import sys

import numpy as np
import pytest

from bellmax.experiments import errors
from bellmax.experiments.data import transitions
from bellmax.experiments.data.transitions import TransitionTable

# One episode of ExoRL, by hand: from (0, 0) the action (1) leads to (1, 10) and earns 5, from there
# (2) leads to (2, 20), earns 6 and terminates. The first row's action, reward and discount are
# dummies, as its replay buffer takes them (idx from 1: observation[idx - 1], the rest at idx).
EPISODE = {
    "observation": np.array([[0, 0], [1, 10], [2, 20]], np.float32),
    "action": np.array([[np.nan], [1], [2]], np.float32),
    "reward": np.array([[np.nan], [5], [6]], np.float32),
    "discount": np.array([[np.nan], [1], [0]], np.float32),
    "physics": np.array([["not", "looked", "at"]]),
}
# Two episodes of D4RL in one file: states 0, 1, 2 and, after a termination there, 10, 11, cut off.
# A last row 20 begins a third one.
ROWS = {
    "observations": np.array([[0.0], [1], [2], [10], [11], [20]]),
    "actions": np.array([[0.5], [1.5], [2.5], [3.5], [4.5], [5.5]]),
    "rewards": np.arange(6.0),
    "terminals": np.array([0, 0, 1, 0, 0, 0], bool),
    "timeouts": np.array([0, 0, 0, 0, 1, 0], bool),
}


def make_table(num_rows=10, num_actions=2, with_rewards=True):
    draws = np.random.default_rng(num_rows).normal(size=(num_rows, 6 + num_actions))
    draws = draws.astype(np.float32)
    rewards, terminated = (draws[:, 0] * 2, draws[:, 1] > 0) if with_rewards else (None, None)
    return TransitionTable(draws[:, :3], draws[:, 6:], draws[:, 3:6], rewards, terminated)


def assert_same(found, expected):
    for name, one, two in zip(TransitionTable._fields, found, expected, strict=True):
        assert (one is None) == (two is None), name
        if one is not None:
            np.testing.assert_array_equal(one, two, err_msg=name, strict=True)


def write(path, arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return path


def never():
    raise AssertionError("made again")


def test_check_converts_to_float32_and_to_one_axis():
    table = TransitionTable(
        np.array([[1, 2]], np.int64),
        np.zeros((1, 0)),
        np.asfortranarray([[3.5, 4.5]]),
        np.array([[7.0]]),
        np.array([[1.0]]),
    )
    found = transitions.check(table)
    assert_same(
        found,
        TransitionTable(
            np.array([[1, 2]], np.float32),
            np.zeros((1, 0), np.float32),
            np.array([[3.5, 4.5]], np.float32),
            np.array([7], np.float32),
            np.array([True]),
        ),
    )
    assert all(array.flags.c_contiguous for array in found if array is not None)
    assert transitions.check(found).observations is found.observations


WRONG_FIELDS = [
    ("observations", np.zeros((0, 3)), "observations must have at least one row and one column"),
    ("observations", np.zeros((4, 0)), r"at least one row and one column, got shape \(4, 0\)"),
    ("observations", np.zeros(4), r"observations must have the shape \[rows, columns\], got \[4\]"),
    ("actions", np.zeros((5, 2)), "actions must have as many rows as observations, 4, got 5"),
    ("next_observations", np.zeros((4, 2)), r"shape of observations, \(4, 3\), got \(4, 2\)"),
    ("rewards", np.zeros((4, 2)), r"rewards must have the shape \[rows\], got \[4, 2\]"),
    ("rewards", np.zeros(3), "rewards must have as many rows as observations, 4, got 3"),
    ("rewards", np.array(["a"] * 4), "rewards must hold numbers, got the dtype <U1"),
    ("rewards", np.array([0, 1e39, 0, 0]), r"rewards must be finite in float32, got 1e\+39 in row"),
    ("terminated", np.array([0, 1, 0, 0.5]), "terminated must be 0 or 1, got 0.5 in row 3"),
    ("terminated", np.full(4, np.nan), "terminated must be finite in float32, got nan in row 0"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG_FIELDS)
def test_check_names_the_field_and_the_row(name, value, message):
    table = make_table(4)._replace(**{name: value})
    with pytest.raises(errors.UserError, match=f"^Somewhere: .*{message}"):
        transitions.check(table, "Somewhere")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["observations", "actions", "next_observations"])
def test_check_finds_the_first_number_that_is_not_finite(name, value):
    table = make_table(4)
    array = getattr(table, name).copy()
    array[2, 1] = array[3, 0] = value
    with pytest.raises(errors.UserError, match=rf"{name} must be .*got {value} in row 2 column 1"):
        transitions.check(table._replace(**{name: array}))


@pytest.mark.parametrize("num_actions", [0, 2])
@pytest.mark.parametrize("with_rewards", [True, False])
def test_npz_gives_back_what_was_written(tmp_path, num_actions, with_rewards):
    table = make_table(num_actions=num_actions, with_rewards=with_rewards)
    transitions.write_npz(tmp_path / "rows.npz", table)
    assert_same(transitions.read(tmp_path / "rows.npz"), table)
    # Equal tables are equal files: the cache knows them again. Nothing else is left behind.
    transitions.write_npz(tmp_path / "again.npz", table)
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "rows.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.npz", "rows.npz"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "rows.npz"
    transitions.write_npz(path, make_table(5))

    def disk_full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", disk_full)
    with pytest.raises(errors.UserError, match=r"rows\.npz cannot be written: No space left"):
        transitions.write_npz(path, make_table(6))
    assert_same(transitions.read(path), make_table(5))
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(
        errors.UserError, match=r"rows\.csv must end in \.npz, got the ending '.csv"
    ):
        transitions.write_npz(tmp_path / "rows.csv", make_table())
    for folder, reason in {"none": "No such file", "rows.npz": "Not a directory"}.items():
        with pytest.raises(errors.UserError, match=rf"{folder}/new\.npz cannot be .*: {reason}"):
            transitions.write_npz(tmp_path / folder / "new.npz", make_table())


def test_d4rl_with_next_observations_keeps_every_row(tmp_path):
    following = np.array([[1.0], [2], [3], [11], [12], [21]])
    path = write(tmp_path / "rows.npz", ROWS | {"next_observations": following})
    found = transitions.read(path)
    assert found.next_observations[:, 0].tolist() == [1, 2, 3, 11, 12, 21]
    assert found.observations[:, 0].tolist() == [0, 1, 2, 10, 11, 20]
    assert found.terminated is not None
    assert found.terminated.tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize(
    ("left_out", "kept"),
    [
        ((), [0, 1, 3]),  # Not 2 -> 10, which terminated, nor 11 -> 20, which was cut off.
        (("timeouts",), [0, 1, 3, 4]),
        (("terminals",), [0, 1, 2, 3]),
    ],
)
def test_d4rl_without_next_observations_joins_rows_of_an_episode(tmp_path, left_out, kept):
    arrays = {name: array for name, array in ROWS.items() if name not in left_out}
    found = transitions.read(write(tmp_path / "rows.npz", arrays))
    states = ROWS["observations"][:, 0].tolist()
    assert found.observations[:, 0].tolist() == [states[i] for i in kept]
    assert found.next_observations[:, 0].tolist() == [states[i + 1] for i in kept]
    assert found.actions[:, 0].tolist() == [i + 0.5 for i in kept]
    assert found.rewards is not None
    assert found.rewards.tolist() == kept
    assert (found.terminated is None) == ("terminals" in left_out)
    assert found.terminated is None or not found.terminated.any()


WRONG_D4RL = [
    ({"observations": None}, "the key 'observations' is missing; the keys are: actions, rewards"),
    ({"actions": None}, r"the key 'actions' is missing.*Where there is nothing to choose"),
    ({"terminals": None, "timeouts": None}, "neither terminals nor timeouts to tell where"),
    ({"timeouts": np.ones(6)}, "no transition is left: .* all 6 of them"),
    ({"terminals": np.full(6, 2)}, "terminals must be 0 or 1, got 2.0 in row 0"),
    ({"timeouts": np.zeros(7)}, "timeouts must have as many rows as observations, 6, got 7"),
    ({"observations": np.full((6, 1), np.nan)}, "observations must be finite.*row 0 column 0"),
    ({"rewards": np.array([None] * 6)}, "cannot be read as .npz: Object arrays cannot be loaded"),
    ({"next_observations": np.zeros((6, 2))}, r"shape of observations, \(6, 1\), got \(6, 2\)"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG_D4RL)
def test_a_malformed_file_is_named(tmp_path, changes, message):
    arrays = {name: value for name, value in (ROWS | changes).items() if value is not None}
    path = write(tmp_path / "rows.npz", arrays)
    with pytest.raises(errors.UserError, match=f"^{re.escape(str(path))}.*{message}"):
        transitions.read(path)


def test_what_is_no_file_of_transitions_is_named(tmp_path):
    write(tmp_path / "whole.npz", ROWS)
    whole = (tmp_path / "whole.npz").read_bytes()
    damaged = whole[:200] + bytes(byte ^ 255 for byte in whole[200:300]) + whole[300:]
    contents = {"text": b"hello", "empty": b"", "cut": whole[: len(whole) // 2], "bad": damaged}
    for name, content in contents.items():
        path = tmp_path / f"{name}.npz"
        path.write_bytes(content)
        with pytest.raises(errors.UserError, match=rf"{name}\.npz cannot be read as \.npz: "):
            transitions.read(path)
    with (tmp_path / "one.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(errors.UserError, match=r"one\.npz cannot be .*it is a single array"):
        transitions.read(tmp_path / "one.npz")
    (tmp_path / "rows.csv").touch()
    with pytest.raises(
        errors.UserError, match=r"ends in \.npz, \.hdf5, \.h5, or a folder.*'\.csv'"
    ):
        transitions.read(tmp_path / "rows.csv")
    (tmp_path / "folder").mkdir()
    for path, message in {"none": "There is no file or folder", "folder": "has no .npz"}.items():
        for reader in (transitions.read, transitions.content_key):
            with pytest.raises(errors.UserError, match=message):
                reader(tmp_path / path)


@pytest.mark.parametrize("ending", ["hdf5", "h5"])
def test_hdf5_has_the_keys_of_npz(tmp_path, ending):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / f"rows.{ending}"
    with h5py.File(path, "w") as file:
        for name, value in ROWS.items():
            file[name] = value
        file["metadata/algorithm"] = "not looked at"
    assert_same(transitions.read(path), transitions.read(write(tmp_path / "rows.npz", ROWS)))
    with h5py.File(path, "a") as file:
        del file["rewards"]
        file["rewards/by_hand"] = 1.0
    with pytest.raises(errors.UserError, match=rf"rows\.{ending}: rewards must hold numbers"):
        transitions.read(path)
    with h5py.File(path, "a") as file:
        del file["actions"]
    with pytest.raises(errors.UserError, match="the key 'actions' is missing; the keys are: meta"):
        transitions.read(path)
    path.write_bytes(b"hello")
    with pytest.raises(errors.UserError, match=rf"rows\.{ending} cannot be read as HDF5"):
        transitions.read(path)


def test_hdf5_without_h5py_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "rows.hdf5").touch()
    expected = r"rows\.hdf5 needs h5py: pip install 'bellmax\[horizon\]'"
    with pytest.raises(errors.UserError, match=expected):
        transitions.read(tmp_path / "rows.hdf5")


def test_exorl_episodes_are_read_in_the_order_of_their_names(tmp_path):
    later = {name: value + 100 for name, value in EPISODE.items() if name != "physics"}
    later["discount"] = np.array([[0], [1], [0.5]])
    write(tmp_path / "episode_000010_2.npz", later)
    write(tmp_path / "episode_000009_2.npz", EPISODE)
    write(tmp_path / "._episode_000001_2.npz", {"of": np.zeros(1)})
    (tmp_path / "notes.txt").write_text("not an episode")
    expected = TransitionTable(
        np.array([[0, 0], [1, 10], [100, 100], [101, 110]], np.float32),
        np.array([[1], [2], [101], [102]], np.float32),
        np.array([[1, 10], [2, 20], [101, 110], [102, 120]], np.float32),
        np.array([5, 6, 105, 106], np.float32),
        np.array([False, True, False, False]),
    )
    assert_same(transitions.read(tmp_path), expected)


def test_exorl_episodes_may_have_no_actions_rewards_and_discounts(tmp_path):
    episode = {"observation": EPISODE["observation"], "action": np.zeros((3, 0))}
    write(tmp_path / "episode_0.npz", episode)
    found = transitions.read(tmp_path)
    assert found.actions.shape == (2, 0)
    assert found.rewards is None
    assert found.terminated is None


WRONG_EPISODES = [
    ({"observation": None}, "the key 'observation' is missing; the keys are: action, discount"),
    ({"reward": None}, r"has action, discount, observation, but first\.npz has action, discount, "),
    ({"observation": np.zeros((3, 4))}, r"as many columns as in first\.npz, 2, got 4"),
    ({"action": np.zeros((3, 2))}, r"action must have as many columns as in first\.npz, 1, got 2"),
    ({"action": np.zeros((2, 1))}, "action must have as many rows as observation, 3, got 2"),
    ({"action": np.array(1.0)}, r"action must have the shape \[rows, columns\], got \[\]"),
    ({"reward": np.array([0, 0, np.inf])}, "reward must be finite in float32, got inf in row 2"),
    ({"discount": np.array([1, 1.5, 1])}, "discount must be from 0 to 1, got 1.5 in row 1"),
    ({"observation": np.zeros((3, 1, 8, 8))}, r"\[rows, columns\], got \[3, 1, 8, 8\]"),
    ({name: EPISODE[name][:1] for name in EPISODE}, "must have at least 2 rows, got 1"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG_EPISODES)
def test_a_malformed_episode_is_named(tmp_path, changes, message):
    write(tmp_path / "first.npz", EPISODE)
    arrays = {name: value for name, value in (EPISODE | changes).items() if value is not None}
    path = write(tmp_path / "second.npz", arrays)
    with pytest.raises(errors.UserError, match=f"^{re.escape(str(path))}.*{message}"):
        transitions.read(tmp_path)


@pytest.mark.parametrize(("num_actions", "with_rewards"), [(2, True), (0, False)])
def test_a_table_is_made_once_and_comes_back_bit_for_bit(
    tmp_path, monkeypatch, capfd, num_actions, with_rewards
):
    # Records of 4, 4 and 2 rows; then a record a row, since a row is longer than a byte.
    for name, limit in {"_CHUNK_ROWS": 4, "_CHUNK_BYTES": 1}.items():
        monkeypatch.setattr(transitions, name, limit)
        table = make_table(10, num_actions, with_rewards)
        assert_same(transitions.load(name, lambda table=table: table, tmp_path), table)
        again = transitions.load(name, never, tmp_path)
        assert_same(again, table)
        assert again.observations.flags.writeable
    assert capfd.readouterr() == ("", "")


def test_another_key_is_another_table(tmp_path):
    for num_rows in (3, 5):
        table = make_table(num_rows)
        assert_same(transitions.load(f"rows={num_rows}", lambda t=table: t, tmp_path), table)


def test_changed_files_are_prepared_anew(tmp_path, monkeypatch):
    folder, cache = tmp_path / "buffer", tmp_path / "cache"
    write(folder / "episode_0.npz", EPISODE)
    assert len(transitions.load_files(folder, cache).observations) == 2
    with monkeypatch.context() as patched:
        patched.setattr(transitions, "read", never)
        assert len(transitions.load_files(folder, cache).observations) == 2
    write(folder / "episode_1.npz", EPISODE)
    assert len(transitions.load_files(folder, cache).observations) == 4
    path = folder / "episode_1.npz"
    write(path, EPISODE | {"reward": np.full(3, 9.0)})
    found = transitions.load_files(folder, cache)
    assert found.rewards is not None
    assert found.rewards.tolist() == [5, 6, 9, 9]
    # A folder of one episode is not that file, which has not D4RL's keys.
    path.unlink()
    assert len(transitions.load_files(folder, cache).observations) == 2
    with pytest.raises(
        errors.UserError, match=r"episode_0\.npz: the key 'observations' is missing"
    ):
        transitions.load_files(folder / "episode_0.npz", cache)


def test_what_is_refused_leaves_no_cache(tmp_path):
    bad = make_table()._replace(rewards=np.full(10, np.nan))
    with pytest.raises(errors.UserError, match="rewards must be finite"):
        transitions.load("key", lambda: bad, tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(errors.UserError, match=r"cannot be prepared in .*file"):
        transitions.load("key", make_table, tmp_path / "file")


def test_a_damaged_cache_is_named(tmp_path):
    transitions.load("key", make_table, tmp_path)
    (record,) = tmp_path.rglob("*.array_record*")
    record.write_bytes(record.read_bytes()[:100])
    with pytest.raises(errors.UserError, match=r"transition_chunks.*delete it and it is prepared"):
        transitions.load("key", make_table, tmp_path)


def test_an_interrupted_preparation_is_not_read_and_no_tensorflow_is(tmp_path):
    transitions.write_npz(tmp_path / "rows.npz", make_table(10))
    code = """if True:
        import os, sys
        from bellmax.experiments.data import transitions
        transitions._CHUNK_ROWS = 2
        generate = transitions.TransitionChunks._generate_examples
        def die_half_way(self):
            for number, example in generate(self):
                if number == 3:
                    os._exit(9)  # Which leaves no chance to clean up.
                yield number, example
        if sys.argv[3] == "die":
            transitions.TransitionChunks._generate_examples = die_half_way
        assert len(transitions.load_files(sys.argv[1], sys.argv[2]).observations) == 10
        heavy = {"tensorflow", "torch", "apache_beam", "h5py"} & set(sys.modules)
        assert not heavy, heavy
    """
    paths = [str(tmp_path / name) for name in ("rows.npz", "cache")]
    command = [sys.executable, "-P", "-c", code, *paths]
    assert subprocess.run([*command, "die"], check=False).returncode == 9
    assert list((tmp_path / "cache").rglob("*incomplete*")), "it died before it wrote anything"
    done = subprocess.run([*command, "live"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert_same(transitions.load_files(*paths), make_table(10))


def test_two_processes_may_prepare_at_once(tmp_path, monkeypatch):
    generate = transitions.TransitionChunks._generate_examples

    def overtaken(self):
        # While this one prepares, another one begins and finishes.
        monkeypatch.setattr(transitions.TransitionChunks, "_generate_examples", generate)
        assert_same(transitions.load("key", make_table, tmp_path), make_table())
        return generate(self)

    monkeypatch.setattr(transitions.TransitionChunks, "_generate_examples", overtaken)
    assert_same(transitions.load("key", make_table, tmp_path), make_table())


def test_standardisation_pools_both_ends_of_the_transitions(monkeypatch):
    # The first feature takes 0, 2, 2, 4: mean 2, variance (4 + 0 + 0 + 4) / 4 = 2. The second is
    # 0.1 throughout, whose float64 mean is not exactly it; the third moves by less than float32's
    # grain at 1e6, 0.0625.
    observations = np.array([[0, 0.1, 1e6], [2, 0.1, 1e6]], np.float32)
    following = np.array([[2, 0.1, 1e6], [4, 0.1, 1e6 + 0.0625]], np.float32)
    table = TransitionTable(observations, np.zeros((2, 0), np.float32), following)
    for rows_at_a_time in (1, 2**16):
        monkeypatch.setattr(transitions, "_STATISTICS_ROWS", rows_at_a_time)
        mean, scale = transitions.standardisation(table)
        assert (mean.dtype, scale.dtype) == (np.float32, np.float32)
        np.testing.assert_allclose(mean, [2, 0.1, 1e6], rtol=1e-6)
        np.testing.assert_allclose(scale, [2**0.5, 1, 1], rtol=1e-6)


def test_standardisation_far_from_zero_keeps_its_digits():
    # A uniform grid of n points of width w has variance w^2 (n^2 - 1) / (12 (n - 1)^2); the offset
    # of 1000 would cost a one-pass variance in float32 all of its digits.
    n, width = 1025, 0.5
    grid = (1000 + width * np.arange(n) / (n - 1)).astype(np.float32)[:, None]
    table = TransitionTable(grid, np.zeros((n, 0), np.float32), grid[::-1])
    mean, scale = transitions.standardisation(table)
    np.testing.assert_allclose(mean, 1000.25, rtol=1e-6)
    np.testing.assert_allclose(scale, width * ((n**2 - 1) / 12) ** 0.5 / (n - 1), rtol=1e-3)
