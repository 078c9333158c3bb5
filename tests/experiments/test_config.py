import dataclasses
import json

import ml_collections
import pytest

from bellmax.experiments import config, errors


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float
    sizes: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str
    steps: int
    fast: bool
    inner: Inner


def keys(**changes):
    return {"name": "a", "steps": 3, "fast": True, "inner": {"rate": 1, "sizes": [4, 5]}, **changes}


def test_nearest_finds_a_misspelt_name_and_nothing_where_nothing_is_near():
    assert config.nearest("logistik", ["hinge", "logistic", "savage"]) == "logistic"
    assert config.nearest("zzz", ["hinge", "logistic"]) is None
    assert config.did_you_mean("hing", ["hinge"]) == " Did you mean 'hinge'?"
    assert config.did_you_mean("zzz", ["hinge"]) == ""


@pytest.mark.parametrize("wrap", [dict, ml_collections.ConfigDict])
def test_to_dataclass_converts_groups_lists_and_integers(wrap):
    built = config.to_dataclass(Outer, wrap(keys()))
    assert built == Outer("a", 3, True, Inner(1.0, (4, 5)))
    assert isinstance(built.inner.rate, float)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stepz": 4}, ["config.stepz", "'steps'"]),
        ({"inner": {"rate": 1.0, "sizes": (1,), "rat": 2}}, ["config.inner.rat", "'rate'"]),
        ({"inner": {"rate": 1.0}}, ["config.inner.sizes", "missing"]),
        ({"steps": 2.5}, ["config.steps", "int", "2.5"]),
        ({"steps": True}, ["config.steps", "int", "True"]),
        ({"fast": 1}, ["config.fast", "bool"]),
        ({"inner": {"rate": True, "sizes": ()}}, ["config.inner.rate", "float"]),
        ({"inner": {"rate": "fast", "sizes": ()}}, ["config.inner.rate", "float"]),
        ({"inner": {"rate": 1.0, "sizes": 3}}, ["config.inner.sizes", "tuple"]),
        ({"inner": {"rate": 1.0, "sizes": (1, "b")}}, ["config.inner.sizes", "int", "'b'"]),
        ({"inner": 3}, ["config.inner", "group"]),
    ],
)
def test_to_dataclass_names_the_wrong_key(changes, words):
    with pytest.raises(errors.UserError) as raised:
        config.to_dataclass(Outer, keys(**changes))
    for word in words:
        assert word in str(raised.value)


def test_user_errors_names_the_group_and_lets_other_errors_through():
    expected = pytest.raises(errors.UserError, match=r"config\.model: width must be even")
    with expected, config.user_errors("config.model"):
        raise ValueError("width must be even")
    with pytest.raises(OSError, match="disk"), config.user_errors("config.model"):
        raise OSError("disk")


def test_load_takes_names_and_paths_with_variants(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import ml_collections\n"
        "def get_config(variant=None):\n"
        "    return ml_collections.ConfigDict({'variant': variant or 'none'})\n"
    )
    assert config.load("align", str(path)).variant == "none"
    assert config.load("align", f"{path}:other").variant == "other"
    assert config.load("align", "gpo:hinge").to_dict()["loss"]["names"] == ("hinge",)

    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(errors.UserError, match="get_config"):
        config.load("align", str(tmp_path / "empty.py"))


def test_a_workdir_belongs_to_one_config_once_training_began(tmp_path):
    workdir = tmp_path / "deep" / "run"
    mine = ml_collections.ConfigDict({"seed": 0, "train": {"names": ("a",), "rate": 0.1}})
    config.save_run_config(workdir, mine)
    stored = {"seed": 0, "train": {"names": ["a"], "rate": 0.1}}
    assert json.loads((workdir / "config.json").read_text()) == stored
    assert [path.name for path in workdir.iterdir()] == ["config.json"]

    # A run that failed before it trained anything may be mended in the same folder.
    other = ml_collections.ConfigDict({"seed": 1, "train": {"names": ("a",), "rate": 0.2}})
    config.save_run_config(workdir, other)
    (workdir / "checkpoints").mkdir()
    config.save_run_config(workdir, other)
    with pytest.raises(errors.UserError) as raised:
        config.save_run_config(workdir, mine)
    for words in ("seed (1 there, 0 now)", "train.rate (0.2 there, 0.1 now)", str(workdir)):
        assert words in str(raised.value)

    (workdir / "config.json").write_text('{"seed"')
    with pytest.raises(errors.UserError, match=r"config\.json is no config"):
        config.save_run_config(workdir, mine)


def test_a_workdir_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.UserError, match="cannot be made"):
        config.save_run_config(tmp_path / "file", ml_collections.ConfigDict({}))
