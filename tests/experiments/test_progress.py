import types

import pytest

from bellmax.experiments import progress


@pytest.fixture(autouse=True)
def lines_at_once(monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_PLAIN_LINES", 0.0)


def test_a_note_is_shown_and_none_is_silent(capfd):
    with progress.Progress("stage", 9, unit="steps") as shown:
        shown.at(5, None)
        shown.at(6, None)
        shown.at(8, "loss 0.5000")
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("stage: step 8/9, loss 0.5000, ")


@pytest.mark.parametrize(
    ("seconds", "speed", "left"), [(100.0, "0.02", 300), (0.25, "8.0", 1), (2.0, "1.0", 6)]
)
def test_speed_and_time_left_are_of_what_was_done_here(capfd, monkeypatch, seconds, speed, left):
    times = iter([0.0, 10.0, 10.0 + seconds])
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: next(times)))
    shown = progress.Progress("stage", 12, unit="rows")
    # What an earlier run has done took no time of this one.
    shown.at(4, None)
    shown.at(6, "")
    expected = f"stage: row 6/12, {speed} rows/s, {left} s left\n"
    assert capfd.readouterr().err == expected


def test_lines_come_now_and_then(capfd, monkeypatch):
    times = iter([0.0, 0.0, 1.0, 11.0, 12.0, 22.0])
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: next(times)))
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_PLAIN_LINES", 10.0)
    with progress.Progress("reading", 9, unit="files") as shown:
        for done in range(5):
            shown.at(done, "")
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["reading: file 2/9", "reading: file 4/9"]


def test_a_terminal_gets_a_bar_and_no_lines(capfd, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress.Progress("stage", 4, unit="steps") as shown:
        shown.at(0, None)
        shown.at(4, "loss 0.2500")
        shown.at(4, None)
    printed = capfd.readouterr().err
    assert "4/4" in printed
    # Kept where a later call has no news.
    assert "loss 0.2500" in printed
    assert "step 4/4" not in printed
