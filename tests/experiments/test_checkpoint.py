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
    for step in (1, 2, 3):
        saver.save(step, state(scale=step / 3), {"next": step, "window": [{"loss": 0.1 + step}]})
    saver.wait()
    assert saver.latest_step() == 3
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
