import numpy as np
import pytest

from bellmax.experiments import plots


def png_size(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def panel(title="t", **kwargs):
    x = np.arange(1.0, 6.0)
    series = [
        plots.Series("a", x, x**2, low=x**2 - 0.5, high=x**2 + 0.5),
        plots.Series("gap", x, [1.0, np.nan, 2.0, np.nan, 3.0], marker=True),
        plots.Series("bound", x, x, style="--", reference=True),
        plots.Series("points", x, x, style="", marker=True),
    ]
    return plots.Panel(title, "x", "y", series, **kwargs)


def test_a_grid_of_panels_becomes_a_png(tmp_path):
    one, three = tmp_path / "new" / "one.png", tmp_path / "three.png"
    plots.save_figure(one, [panel()])
    logarithmic = panel("log", x_scale="log", y_scale="log", horizontal_lines=[("chance", 0.5)])
    plots.save_figure(three, [panel(), logarithmic, panel()])
    (width, height), (width_of_three, height_of_three) = png_size(one), png_size(three)
    assert width_of_three == pytest.approx(2 * width, abs=4)
    assert height_of_three == pytest.approx(2 * height, abs=4)


def test_more_curves_than_colours_and_no_curve(tmp_path):
    many = [plots.Series(str(i), [0, 1], [0, i]) for i in range(12)]
    plots.save_figure(tmp_path / "many.png", [plots.Panel("many", "x", "y", many)])
    plots.save_figure(tmp_path / "none.png", [plots.Panel("none", "x", "y", [])])
    assert png_size(tmp_path / "many.png") == png_size(tmp_path / "none.png")


def test_no_panel_is_refused(tmp_path):
    with pytest.raises(ValueError, match="panels"):
        plots.save_figure(tmp_path / "x.png", [])


def test_no_global_state(tmp_path):
    import matplotlib

    def settings():
        # The backend is resolved by being read.
        return {key: value for key, value in matplotlib.rcParams.items() if key != "backend"}

    before = settings()
    plots.save_figure(tmp_path / "x.png", [panel()])
    assert settings() == before


def test_a_matrix_is_drawn_and_must_be_square(tmp_path):
    wins = np.array([[0.5, 0.9], [0.1, 0.5]])
    path = tmp_path / "figures" / "wins.png"
    plots.save_matrix(path, "wins", ["one", "two"], wins, np.full((2, 2), 0.01))
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"must be \[3, 3\], got \(2, 2\)"):
        plots.save_matrix(path, "wins", ["one", "two", "three"], wins)
