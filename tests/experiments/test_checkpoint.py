import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bellmax.experiments import checkpoint, errors


def state(width=3, scale=1.0):
    return {
        "params": {"w": scale * jnp.arange(float(width)), "half": jnp.ones(2, jnp.bfloat16)},
        "opt": (jnp.zeros(width), ()),
        "step": jnp.int32(5),
    }


def test_round_trip_keeps_values_dtypes_and_the_last_few(tmp_path):
    saver = checkpoint.Checkpointer(tmp_path / "stage", keep=2)
    assert saver.latest_step() is None
    assert saver.last_on_disk() is None
    for step in (1, 2, 3):
        saver.save(step, state(scale=step / 3), {"next": step, "window": [{"loss": 0.1 + step}]})
    saver.wait()
    assert saver.latest_step() == saver.last_on_disk() == 3
    assert sorted(p.name for p in (tmp_path / "stage").iterdir()) == ["2", "3"]

    restored, position = saver.restore(3, state(scale=9.0))
    jax.tree.map(np.testing.assert_array_equal, restored, state(scale=1.0))
    assert restored["params"]["half"].dtype == jnp.bfloat16
    assert position == {"next": 3, "window": [{"loss": 3.1}]}
    saver.close()

    other = checkpoint.Checkpointer(tmp_path / "stage", keep=2)
    assert other.latest_step() == 3
    np.testing.assert_array_equal(
        other.restore(2, state())[0]["params"]["w"], jnp.arange(3.0) * (2 / 3)
    )
    other.close()


def test_saving_a_step_again_changes_nothing(tmp_path):
    saver = checkpoint.Checkpointer(tmp_path, keep=1)
    saver.save(4, state(scale=1.0), {})
    saver.wait()
    saver.save(4, state(scale=2.0), {})
    restored, _ = saver.restore(4, state())
    np.testing.assert_array_equal(restored["params"]["w"], jnp.arange(3.0))
    saver.close()


@pytest.mark.parametrize(
    ("like", "words"),
    [
        (state(width=4), ["opt/0", "(3,)", "(4,)"]),
        ({**state(), "extra": jnp.zeros(1)}, ["extra", "missing there"]),
        ({k: v for k, v in state().items() if k != "step"}, ["step", "missing in this run"]),
    ],
)
def test_another_state_is_refused_by_name(tmp_path, like, words):
    saver = checkpoint.Checkpointer(tmp_path, keep=1)
    saver.save(7, state(), {})
    saver.wait()
    with pytest.raises(errors.UserError) as raised:
        saver.restore(7, like)
    for word in ("step 7", str(tmp_path), *words):
        assert word in str(raised.value)
    saver.close()


def test_what_a_killed_save_left_is_passed_over_and_removed(tmp_path):
    saver = checkpoint.Checkpointer(tmp_path, keep=1)
    saver.save(4, state(), {"next": 4})
    saver.close()
    # As Orbax names a folder until it is whole.
    half = tmp_path / "6.orbax-checkpoint-tmp"
    (half / "state").mkdir(parents=True)
    again = checkpoint.Checkpointer(tmp_path, keep=1)
    assert again.latest_step() == again.last_on_disk() == 4
    assert again.restore(4, state())[1] == {"next": 4}
    again.close()
    assert [path.name for path in tmp_path.iterdir()] == ["4"]
