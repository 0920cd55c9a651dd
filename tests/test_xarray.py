"""polyfuse.xarray.polyfit against xarray's own method."""

import warnings

import numpy as np
import pytest

xr = pytest.importorskip("xarray")
from numpy.exceptions import RankWarning  # noqa: E402
from polyfuse.xarray import polyfit  # noqa: E402

TIMES = np.arange(20.0)


def cube(seed=0):
    rng = np.random.default_rng(seed)
    return xr.DataArray(
        rng.random((20, 3, 4)),
        dims=("time", "y", "x"),
        coords={
            "time": TIMES,
            "x": np.arange(4) * 1.0,
            "label": ("y", ["a", "b", "c"]),
            "quality": ("time", 0.5 + rng.random(20)),
        },
        attrs={"units": "K"},
        name="temperature",
    )


def with_gaps():
    data = cube()
    data = data.where(np.random.default_rng(1).random(data.shape) > 0.2)
    data[:, 0, 0] = np.nan
    return data


def assert_same(found, wanted, rtol=1e-8):
    assert set(found.variables) == set(wanted.variables)
    assert (found.sizes, found.attrs) == (wanted.sizes, wanted.attrs)
    for name, variable in wanted.variables.items():
        ours = found.variables[name]
        assert (ours.dims, ours.dtype, ours.attrs) == (
            variable.dims, variable.dtype, variable.attrs,
        ), name  # fmt: skip
        np.testing.assert_allclose(ours.values, variable.values, rtol=rtol, atol=1e-9, err_msg=name)


OBJECTS = {
    "array": cube,
    "gaps": with_gaps,
    "float32": lambda: cube().astype("f4"),
    "big-endian": lambda: cube().astype(">f4"),
    "integers": lambda: (100 * cube()).astype(int),
    "one": lambda: cube().isel(y=0, x=0),
    "dataset": lambda: with_gaps().to_dataset().assign(
        z=cube(2).isel(x=0), constant=xr.DataArray(3.0)
    ).assign_attrs(source="s"),
    "last": lambda: cube().transpose("x", "y", "time"),
    "reversed": lambda: cube().isel(time=slice(None, None, -1)),
    "a dimension named degree": lambda: cube().rename(y="degree"),
}  # fmt: skip
OPTIONS = {
    "plain": {},
    "full": {"full": True},
    "cov": {"cov": True},
    "unscaled": {"cov": "unscaled"},
    "weights": {"w": np.linspace(1, 2, 20)},
    "a coordinate's weights": {"w": "quality", "full": True, "cov": True},
    "skipna": {"skipna": True},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", OBJECTS)
def test_it_is_xarrays(name, options):
    data = OBJECTS[name]()
    if name in ("gaps", "dataset") and OPTIONS[options].get("cov") is True:
        pytest.skip("of the samples that a fit has; tested below")
    for degree in (0, 1, 2, 4):
        found = polyfit(data, "time", degree, **OPTIONS[options])
        assert_same(found, data.polyfit("time", degree, **OPTIONS[options]))


def test_the_covariance_of_a_fit_with_gaps_is_numpys():
    data = with_gaps()
    found = polyfit(data, "time", 2, cov=True, w="quality")
    y = data.values[:, 1, 2]
    keep = np.isfinite(y)
    w = data.quality.values[keep]
    wanted, spread = np.polyfit(TIMES[keep], y[keep], 2, w=w, cov=True)
    np.testing.assert_allclose(found.polyfit_coefficients[:, 1, 2], wanted, rtol=1e-8)
    np.testing.assert_allclose(found.polyfit_covariance[:, :, 1, 2], spread, rtol=1e-8)
    assert found.polyfit_coefficients[:, 0, 0].isnull().all()


def test_weights_of_any_shape_next_to_gaps():
    data, rng = with_gaps(), np.random.default_rng(3)
    for dims in (("time", "y", "x"), ("x", "time"), ("y",)):
        w = xr.DataArray(0.5 + rng.random([data.sizes[d] for d in dims]), dims=dims)
        found = polyfit(data, "time", 1, w=w).polyfit_coefficients
        full = w.broadcast_like(data.drop_vars(data.coords)).transpose("time", "y", "x").values
        for at in ((1, 2), (2, 0)):
            y = data.values[:, at[0], at[1]]
            keep = np.isfinite(y)
            wanted = np.polyfit(TIMES[keep], y[keep], 1, w=full[:, at[0], at[1]][keep])
            np.testing.assert_allclose(found.values[:, at[0], at[1]], wanted, rtol=1e-8)


def test_dates():
    data = cube().assign_coords(
        time=np.datetime64("2000-01-01", "ns") + np.arange(20) * np.timedelta64(1, "D")
    )
    assert_same(polyfit(data, "time", 1), data.polyfit("time", 1), rtol=1e-6)
    # A parabola in days: numpy's powers of nanoseconds since 1970 are collinear by now.
    days = np.arange(20.0)
    data[:] = (days**2 - 3 * days)[:, None, None]
    found = polyfit(data, "time", 2)
    curve = xr.polyval(data.time, found.polyfit_coefficients)
    np.testing.assert_allclose(curve.values, data.values, atol=0.1)  # as raw coefficients allow
    day = 86400e9
    np.testing.assert_allclose(found.polyfit_coefficients[0], day**-2, rtol=1e-6)
    lags = data.assign_coords(time=np.arange(20) * np.timedelta64(1, "h"))
    assert_same(polyfit(lags, "time", 2), lags.polyfit("time", 2), rtol=1e-6)


def test_dask_arrays_are_fitted_chunk_by_chunk():
    pytest.importorskip("dask")
    data = with_gaps()
    lazy = data.chunk({"time": 7, "x": 2})
    found = polyfit(lazy, "time", 2, full=True)
    assert found.polyfit_coefficients.chunks is not None
    assert_same(found.compute(), data.polyfit("time", 2, full=True))
    once = data.chunk({"x": 2})
    assert polyfit(once, "time", 2).polyfit_coefficients.chunksizes["x"] == (2, 2)


def test_unscaled_covariance_of_weights_of_their_own():
    data = cube()
    w = xr.DataArray(0.5 + np.random.default_rng(3).random(data.shape), dims=data.dims)
    found = polyfit(data, "time", 1, w=w, cov="unscaled").polyfit_covariance
    _, wanted = np.polyfit(TIMES, data[:, 1, 2], 1, w=w[:, 1, 2], cov="unscaled")
    np.testing.assert_allclose(found[:, :, 1, 2], wanted, rtol=1e-8)
    wide = polyfit(data, "time", 1, w=xr.DataArray(np.ones((20, 2)), dims=("time", "z")))
    assert wide.polyfit_coefficients.sizes["z"] == 2


def test_deficient_fits_have_the_least_norm_and_warn():
    short = cube().isel(time=slice(0, 2))
    with pytest.warns(RankWarning, match="poorly conditioned"):
        found = polyfit(short, "time", 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RankWarning)
        assert_same(found, short.polyfit("time", 3))
    assert_same(polyfit(short, "time", 3, full=True), short.polyfit("time", 3, full=True))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"obj": np.zeros(3)}, TypeError, "obj: expected a DataArray or Dataset, got ndarray"),
        ({"obj": cube() * 1j}, TypeError, "obj: expected real numbers, got complex128"),
        ({"dim": "t"}, ValueError, "dim: expected one of time, y, x, got 't'"),
        ({"dim": "label"}, TypeError, "dim: expected a coordinate of numbers or dates"),
        ({"deg": -1}, ValueError, "deg: expected an int >= 0, got -1"),
        ({"rcond": 1e-3}, ValueError, "rcond: expected None"),
        ({"w": "weights"}, ValueError, "w: expected the name of a coordinate, got 'weights'"),
        ({"w": np.ones(5)}, ValueError, "w: expected 20 weights along time, got 5"),
        (
            {"obj": cube().assign_coords(time=np.array(["NaT"] * 20, dtype="M8[ns]"))},
            ValueError,
            "dim: expected a coordinate without gaps, got NaT",
        ),
        ({"w": cube().time[::-1]}, ValueError, "w: expected the labels of the data"),
        ({"w": np.full(20, np.nan)}, ValueError, "w: expected finite weights"),
        ({"deg": 19, "cov": True}, ValueError, "cov: expected more data points than coeff"),
    ],
)
def test_bad_input(change, error, message):
    arguments = {"obj": cube(), "dim": "time", "deg": 1} | change
    with pytest.raises(error, match=message):
        polyfit(**arguments)
