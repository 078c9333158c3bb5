import json
import math

import jax.numpy as jnp

from bellmax.experiments import metrics


def lines(workdir):
    def refuse(text):
        raise AssertionError(f"{text} is no JSON")

    text = (workdir / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_rows_are_strict_json_and_lose_nothing(tmp_path):
    writer = metrics.MetricsWriter(tmp_path, "warm")
    writer.write(0, {"loss": math.nan, "low": -math.inf, "high": jnp.inf})
    writer.write(jnp.int32(1), {"loss": jnp.float32(0.5), "note": "text", "count": 3})
    writer.close()
    first, second = lines(tmp_path)
    assert (first["loss"], first["low"], first["high"]) == ("nan", "-inf", "inf")
    assert (second["step"], second["stage"], second["loss"]) == (1, "warm", 0.5)
    assert (second["note"], second["count"]) == ("text", 3)

    read = metrics.read_metrics(tmp_path)
    assert math.isnan(read[0]["loss"])
    assert (read[0]["low"], read[0]["high"]) == (-math.inf, math.inf)
    assert list((tmp_path / "tensorboard" / "warm").iterdir())


def test_resuming_drops_what_will_be_run_again(tmp_path):
    for stage in ("warm", "main"):
        writer = metrics.MetricsWriter(tmp_path, stage)
        for step in (0, 2, 4):
            writer.write(step, {"loss": 1.0})
        writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "stage": "ma')  # Killed while writing.
    assert len(metrics.read_metrics(tmp_path)) == 6
    before = metrics.read_metrics(tmp_path)[-1]["wall_time_s"]

    writer = metrics.MetricsWriter(tmp_path, "main", resume_step=2)
    writer.write(4, {"loss": 2.0})
    writer.close()
    kept = [(row["stage"], row["step"]) for row in lines(tmp_path)]
    assert kept == [("warm", 0), ("warm", 2), ("warm", 4), ("main", 0), ("main", 2), ("main", 4)]
    last = lines(tmp_path)[-1]
    assert last["loss"] == 2.0
    assert last["wall_time_s"] >= before - 0.5  # The clock goes on, it does not start over.

    metrics.MetricsWriter(tmp_path, "main").close()
    assert {row["stage"] for row in lines(tmp_path)} == {"warm"}


def test_write_json_is_strict_and_whole(tmp_path):
    value = {"rows": [{"a": math.nan, "b": jnp.float32(2.0), 3: (1, None, True)}]}
    metrics.write_json(tmp_path / "result.json", value)
    text = (tmp_path / "result.json").read_text()
    assert json.loads(text) == {"rows": [{"a": "nan", "b": 2.0, "3": [1, None, True]}]}
    assert "NaN" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_print_table_shows_columns_and_significant_digits(capsys):
    metrics.print_table(
        "Results", [{"loss": "hinge", "gain": 0.123456}, {"loss": "dpo", "gain": 2}]
    )
    printed = capsys.readouterr().out
    for text in ("Results", "loss", "gain", "hinge", "0.1235", "dpo"):
        assert text in printed
    metrics.print_table("Nothing", [])
    assert capsys.readouterr().out == ""
