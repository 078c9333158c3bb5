"""The reproduce binary writes rows, pictures and the README's table, failures included."""

import dataclasses
import json
import pathlib

import pytest

from bellmax.experiments import errors, reproduce
from bellmax.experiments.claims import records, registry

# A claim that is not slow says that it takes at most two minutes; busy machines are allowed three.
QUICK_SECONDS = 180

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_writes_row_and_picture(tmp_path, capsys):
    held = reproduce.reproduce("adan_trajectory", seeds=None, workdir=tmp_path, record=False)
    assert held
    row = json.loads((tmp_path / "adan_trajectory.json").read_text())
    assert row["passed"] is True
    assert row["command"] == "python -m bellmax.experiments.reproduce adan_trajectory"
    assert (tmp_path / "adan_trajectory.png").exists()
    shown = capsys.readouterr().out
    assert "paper" in shown
    assert "ours" in shown
    assert "holds" in shown


def test_a_failure_is_recorded_and_shown(tmp_path, capsys, monkeypatch):
    claim = registry.load("adan_trajectory")

    def failing(seeds, directory):
        return dataclasses.replace(claim.run(seeds, directory), passed=False)

    monkeypatch.setattr(registry, "load", lambda name: dataclasses.replace(claim, run=failing))
    assert not reproduce.reproduce("adan_trajectory", seeds=2, workdir=tmp_path, record=False)
    (row,) = records.load(tmp_path)
    assert row["passed"] is False
    assert row["command"].endswith("--seeds=2")
    assert "FAILS" in capsys.readouterr().out
    assert "**fails**" in records.table([row])


def test_readme_holds_what_the_records_generate():
    readme = (ROOT / "README.md").read_text()
    rows = records.load(records.RECORDED)
    assert {row["name"] for row in rows} == set(registry.names())
    assert records.with_table(readme, rows) == readme


def test_table_replaces_only_what_is_between_the_markers():
    text = f"before\n{records.BEGIN}\nold\n{records.END}\nafter"
    new = records.with_table(text, [])
    assert new.startswith("before\n")
    assert new.endswith("\nafter")
    assert "old" not in new
    assert records.with_table(new, []) == new


def test_readme_without_markers_is_refused():
    with pytest.raises(errors.UserError, match="markers"):
        records.with_table("no markers", [])


def test_list_names_every_claim(capsys):
    reproduce.list_claims()
    shown = capsys.readouterr().out
    for name in registry.names():
        assert name in shown
    assert "slow" in shown


def test_quick_leaves_out_the_slow_claims():
    quick = reproduce.expand(["quick"])
    assert reproduce.expand(["all"]) == registry.names()
    assert set(quick) == {name for name in registry.names() if not registry.load(name).slow}
    assert "adan_trajectory" in quick
    assert "nash_md_beats_rlhf" not in quick
    assert reproduce.expand(["gpo_trade_off", "mtpo_dialogue"]) == [
        "gpo_trade_off",
        "mtpo_dialogue",
    ]


@pytest.mark.parametrize(("names", "words"), [([], "Name a claim"), (["quik"], "claim")])
def test_wrong_names_are_refused(names, words):
    with pytest.raises(errors.UserError, match=words):
        reproduce.expand(names)


def test_claims_that_are_not_slow_were_not_slow():
    seconds = {row["name"]: row["wall_time_s"] for row in records.load(records.RECORDED)}
    quick = {name for name in registry.names() if not registry.load(name).slow}
    assert {name for name in quick if seconds[name] > QUICK_SECONDS} == set()
