import re

import pytest

from bellmax.experiments import progress


@pytest.mark.parametrize("wait", [0.0, 1e6])
def test_items_are_yielded_in_order_and_counted_now_and_then(capfd, monkeypatch, wait):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_PLAIN_LINES", wait)
    assert list(progress.track("reading", ["a", "b"], unit="files")) == ["a", "b"]
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == (0 if wait else 2)
    for number, line in enumerate(lines, 1):
        assert re.fullmatch(rf"reading: file {number}/2, \d+\.\d files/s, \d+ s left", line), line


def test_a_note_is_shown_and_none_is_silent(capfd, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_PLAIN_LINES", 0.0)
    with progress.Progress("stage", 9, unit="steps") as shown:
        shown.at(5, None)
        shown.at(6, None)
        shown.at(8, "loss 0.5000")
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("stage: step 8/9, loss 0.5000, ")


def test_a_terminal_gets_a_bar_and_no_lines(capfd, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_PLAIN_LINES", 0.0)
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
