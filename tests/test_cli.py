"""The command line, run as a user runs it."""

import json

import numpy as np
import pytest
from polyfuse.cli import main


@pytest.fixture
def csv_file(tmp_path):
    x = np.linspace(-1, 1, 40)
    path = tmp_path / "data.csv"
    rows = [f"{a},{1 + 2 * a - 3 * a * a},label" for a in x]
    path.write_text("time, value ,name\n" + "\n".join(rows) + "\n")
    return path


def run(capsys, *arguments):
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_fit(csv_file, capsys, tmp_path):
    options = ["--x", "time", "--y", "value", "--degree", 2, "--epochs", 20000, "--lr", 0.1]
    code, out, _ = run(capsys, "fit", csv_file, *options, "--json")
    assert code == 0
    report = json.loads(out)
    np.testing.assert_allclose(report["coefficients"], [1, 2, -3], atol=1e-8)
    assert report["samples"] == 40 and report["stop_reason"] == "epochs"
    plot = tmp_path / "fit.png"
    code, out, _ = run(capsys, "fit", csv_file, *options, "--plot", plot)
    assert code == 0 and "c2 = -3" in out and plot.read_bytes().startswith(b"\x89PNG")


def test_the_optimum(csv_file, capsys, tmp_path):
    options = ["--x", "time", "--y", "value", "--degree", 2]
    code, out, _ = run(capsys, "fit", csv_file, *options, "--plot", tmp_path / "fit.png")
    assert code == 0 and "c2 = -3\n" in out and "std error" in out and "fit.png" in out
    assert (tmp_path / "fit.png").read_bytes().startswith(b"\x89PNG")
    x, y, w = np.random.default_rng(1).random((3, 30)) + 5
    np.savetxt(csv_file, np.stack([x, y, w], 1), delimiter=",", header="time,value,w", comments="")
    code, out, _ = run(capsys, "fit", csv_file, *options, "--weight", "w", "--json")
    report = json.loads(out)
    truth = np.polynomial.polynomial.polyfit(x, y, 2, w=w**0.5)
    np.testing.assert_allclose(report["coefficients"], truth, rtol=1e-7)
    covariance = np.polyfit(x, y, 2, w=w**0.5, cov=True)[1][::-1, ::-1]
    np.testing.assert_allclose(report["standard_errors"], np.sqrt(covariance.diagonal()), rtol=1e-7)


@pytest.mark.filterwarnings("default:the fit diverged")
def test_a_run_that_diverges(csv_file, capsys):
    code, out, err = run(capsys, "fit", csv_file, "--x", "time", "--y", "value", "--lr", 9)
    assert code == 1 and "diverged" in out
    assert err.startswith("polyfuse: warning: the fit diverged") and ".py" not in err


@pytest.mark.parametrize("option", ["--weight", "--sigma"])
def test_fit_with_weights(option, tmp_path, capsys):
    generator = np.random.default_rng(0)
    x, y, third = generator.random((3, 30)) + 0.5
    path = tmp_path / "data.csv"
    np.savetxt(path, np.stack([x, y, third], 1), delimiter=",", header="x,y,w", comments="")
    options = ["--x", "x", "--y", "y", option, "w", "--epochs", 200_000, "--lr", 0.1, "--json"]
    code, out, _ = run(capsys, "fit", path, *options)
    assert code == 0
    weights = np.sqrt(third) if option == "--weight" else 1 / third
    expected = np.polynomial.polynomial.polyfit(x, y, 1, w=weights)
    np.testing.assert_allclose(json.loads(out)["coefficients"], expected, rtol=1e-8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("", "no column 'time'"),
        ("time,other\n1,2\n", "no column 'value'; the header has time, other"),
        ("time,value\n", "no rows"),
        ("time,value\n1,2\n3,abc\n", "line 3: expected numbers, got '3, abc'"),
        ("time,value\n1\n", "line 2: expected numbers"),
        ("time,value\n1,2\n3,\n", "1 sample holds nan or inf"),
        (b"\xff\xfe\x00\x01\x02", "not a CSV file"),
    ],
)
def test_files_that_cannot_be_fitted(content, message, tmp_path, capsys):
    path = tmp_path / "data.csv"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.write_text(content)
    code, out, err = run(capsys, "fit", path, "--x", "time", "--y", "value")
    assert code == 2 and message in err and not out


def test_a_bad_option(csv_file, capsys):
    columns = ["--x", "time", "--y", "value"]
    assert "learning rate: -1.0" in run(capsys, "fit", csv_file, *columns, "--lr", -1)[2]
    assert "epochs: expected" in run(capsys, "fit", csv_file, *columns, "--epochs", -5)[2]
    assert "degree: expected" in run(capsys, "fit", csv_file, *columns, "--degree", -1)[2]


def test_demo(tmp_path, capsys):
    plot = tmp_path / "demo.png"
    code, out, _ = run(capsys, "demo", "--plot", plot, "--eager-steps", 50)
    assert code == 0 and plot.exists()
    assert "Loss after 0 steps: 2434.306" in out and "a = 0.7733442" in out
    assert "50 steps, scaled" in out and "engine closed_form" in out


def test_info(capsys):
    code, out, _ = run(capsys, "info")
    assert code == 0
    assert "backend   cpu: available" in out and "backend   cuda: " in out and "torch" in out
