"""Polynomials along a dimension of xarray objects, in place of their `polyfit`; extra: xarray."""

from __future__ import annotations

import warnings
from collections.abc import Hashable
from typing import Any, Literal

import numpy as np
import torch
from numpy.exceptions import RankWarning

from .backends.batched import Fits, Outcome
from .backends.batched_cpu import Cpu
from .backends.batched_reference import least_norm
from .batch_result import FitStatus

try:
    import xarray as xr
except ImportError as error:
    raise ImportError("polyfuse.xarray: needs xarray; pip install 'polyfuse[xarray]'") from error

_THIS = "polyfuse: the array itself"
_EPOCH = np.datetime64("1970-01-01")


def polyfit(
    obj: xr.DataArray | xr.Dataset,
    dim: Hashable,
    deg: int,
    skipna: bool | None = None,
    rcond: float | None = None,
    w: Any = None,
    full: bool = False,
    cov: bool | Literal["unscaled"] = False,
) -> xr.Dataset:
    """Least-squares polynomials along a dimension: `xarray.DataArray.polyfit`, in compiled kernels.

    Arguments, variable names, coordinates and values are those of xarray's method, with three
    differences: x is centred and scaled within, so that dates in nanoseconds give the right curve;
    weights may have any shape that broadcasts, next to gaps in the data; and the covariance of a
    fit with gaps or weights of its own is that of the samples it has.

    Args:
        obj: DataArray or Dataset, in memory or of dask's arrays, which are fitted chunk by chunk
            when they are computed.
        dim: coordinate along which to fit.
        deg: degree of the polynomials.
        skipna: leave out samples that are nan or inf. None: where there are any.
        rcond: must be None; rank is decided by orthogonal polynomials.
        w: weights of y, as numpy.polyfit has them (1 / sigma): an array along dim, the name of a
            coordinate, or a DataArray that broadcasts against the data. Weight 0 leaves out.
        full: with residuals, matrix rank and singular values.
        cov: with the covariance of the coefficients; ``"unscaled"``: for errors of 1 / w.

    Returns:
        Dataset of ``[name_]polyfit_coefficients`` (highest degree first), ``..._residuals``,
        ``..._covariance``, ``[dim_]matrix_rank``, ``[dim_]singular_values``; float64.

    Raises:
        TypeError, ValueError: naming the argument.

    Warns:
        RankWarning: where a fit has fewer distinct points than coefficients; its solution is that
        of minimum norm, as xarray's.

    Example:
        >>> import numpy as np, xarray as xr
        >>> from polyfuse.xarray import polyfit
        >>> time = xr.DataArray(np.arange(5.0), dims="time", coords={"time": np.arange(5.0)})
        >>> polyfit(2 * time + 1, "time", 1).polyfit_coefficients.values.round(6).tolist()
        [2.0, 1.0]
    """
    if not isinstance(obj, xr.DataArray | xr.Dataset):
        raise TypeError(f"obj: expected a DataArray or Dataset, got {type(obj).__name__}")
    if isinstance(deg, bool) or int(deg) != deg or deg < 0:
        raise ValueError(f"deg: expected an int >= 0, got {deg!r}")
    if rcond is not None:
        raise ValueError(f"rcond: expected None (rank needs no threshold of yours), got {rcond!r}")
    if dim not in obj.dims and dim not in obj.coords:
        raise ValueError(f"dim: expected one of {', '.join(map(str, obj.dims))}, got {dim!r}")
    data = obj.to_dataset(name=_THIS) if isinstance(obj, xr.DataArray) else obj
    (along,) = data[dim].dims
    x, order = _numbers(data[dim]), int(deg) + 1
    weight = _weight(data, w, along, len(x))
    if cov is True and len(x) <= order:
        raise ValueError(
            "cov: expected more data points than coefficients, or cov='unscaled', "
            f"got {len(x)} points for {order}"
        )
    degree: Hashable = "degree"
    while degree in data.dims:
        degree = f"_{degree}"
    shared = None if weight is None or weight.dims != (along,) else weight.values
    out: dict[Hashable, Any] = {}
    if full:
        powers = np.vander(x, order) * (1.0 if shared is None else shared[:, None])
        singular = np.linalg.svd(powers / np.sqrt((powers**2).sum(0)), compute_uv=False)
        rank = int((singular > singular[0] * max(powers.shape) * np.finfo(float).eps).sum())
        singular = np.append(np.full(order - len(singular), np.nan), singular)
        out[f"{dim}_matrix_rank"] = ((), rank)
        out[f"{dim}_singular_values"] = ((degree,), singular)
    own = weight is not None and shared is None  # weights of every fit
    present: set[Hashable] = set()
    for name, variable in data.data_vars.items():
        if along not in variable.dims:
            continue
        present.update(set(variable.dims) - {along})
        prefix = f"{name}_" if isinstance(name, str) and name != _THIS else ""
        each = cov if own or cov is True else False
        fitted = _fit(variable, weight, x, along, order, skipna is not False, each, full)
        coefficients, residuals, covariance = fitted
        out[f"{prefix}polyfit_coefficients"] = coefficients.rename(_degree=degree)
        if full or cov is True:
            out[f"{prefix}polyfit_residuals"] = residuals
        if cov is True or (cov and weight is not None and shared is None):
            out[f"{prefix}polyfit_covariance"] = covariance
        elif cov:
            nothing = np.zeros(len(x))
            *_, unscaled = _solve(nothing, shared, x=x, order=order, omit=False, cov="unscaled")
            out[f"{prefix}polyfit_covariance"] = (("cov_i", "cov_j"), unscaled)
    coords = {c: data[c] for c in present if c in data.coords}
    result = xr.Dataset(out, coords={degree: np.arange(order)[::-1], **coords})
    return result.assign_attrs(obj.attrs if isinstance(obj, xr.Dataset) else {})


def _numbers(coordinate: xr.DataArray) -> np.ndarray:
    """x as float64: dates in nanoseconds since 1970, durations in units of their own, as xarray
    has them."""
    values = coordinate.values
    if values.dtype.kind in "mM" and np.isnat(values).any():
        raise ValueError("dim: expected a coordinate without gaps, got NaT")
    if values.dtype.kind == "M":
        return (values.astype("datetime64[ns]") - _EPOCH).astype(np.int64).astype(np.float64)
    if values.dtype.kind == "m":
        return values.astype(np.int64).astype(np.float64)
    if values.dtype.kind not in "fiub":
        raise TypeError(f"dim: expected a coordinate of numbers or dates, got {values.dtype}")
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("dim: expected a finite coordinate, got nan or inf")
    return values


def _weight(data: xr.Dataset, w: Any, along: Hashable, n: int) -> xr.DataArray | None:
    if w is None:
        return None
    if not isinstance(w, xr.DataArray):
        if isinstance(w, str) and w not in data.coords:
            raise ValueError(f"w: expected the name of a coordinate, got {w!r}")
        named = isinstance(w, str) or (isinstance(w, Hashable) and w in data.coords)
        w = data[w] if named else xr.DataArray(np.asarray(w), dims=(along,))
    if along in w.dims and w.sizes[along] != n:
        raise ValueError(f"w: expected {n} weights along {along}, got {w.sizes[along]}")
    try:
        xr.align(data, w, join="exact", copy=False)
    except ValueError as error:
        raise ValueError(f"w: expected the labels of the data: {error}") from error
    return w.drop_vars(w.coords)


def _fit(
    variable: xr.DataArray,
    weight: xr.DataArray | None,
    x: np.ndarray,
    along: Hashable,
    order: int,
    omit: bool,
    cov: Any,
    full: bool,
) -> tuple[xr.DataArray, ...]:
    """Coefficients, residuals and covariance, lazily where the data is."""
    if variable.dtype.kind not in "fiub":
        raise TypeError(f"obj: expected real numbers, got {variable.dtype} of {variable.name!r}")
    variable = variable.drop_vars(variable.coords)
    chunks = variable.chunksizes.get(along, ())
    if len(chunks) > 1:  # all samples of a fit in one chunk, of a size that memory holds
        variable = variable.chunk({d: "auto" for d in variable.dims} | {along: -1})
    inputs = [variable]
    if weight is not None:
        weight = weight if along in weight.dims else weight.expand_dims({along: len(x)})
        if len(weight.chunksizes.get(along, ())) > 1:
            weight = weight.chunk({along: -1})
        if weight.dims != (along,):
            variable, weight = xr.broadcast(variable, weight)
        inputs = [variable, weight]
    arrays = xr.apply_ufunc(
        _solve, *inputs,
        kwargs={"x": x, "order": order, "omit": omit, "cov": cov, "quiet": full},
        input_core_dims=[[along]] * len(inputs),
        output_core_dims=[["_degree"], [], ["cov_i", "cov_j"]],
        keep_attrs=False, dask="parallelized",
        output_dtypes=[np.float64] * 3,
        dask_gufunc_kwargs={"output_sizes": {
            "_degree": order, "cov_i": order if cov else 0, "cov_j": order if cov else 0}},
    )  # fmt: skip
    coefficients, residuals, covariance = arrays
    return (
        coefficients.transpose("_degree", ...),
        residuals,
        covariance.transpose("cov_i", "cov_j", ...),
    )


def _solve(
    y: np.ndarray,
    w: np.ndarray | None = None,
    *,
    x: np.ndarray,
    order: int,
    omit: bool,
    cov: Any,
    quiet: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """y [..., N] -> coefficients [..., K], highest first, residuals [...], covariance [..., K, K]
    (or [..., 0, 0])."""
    shape = y.shape[:-1]
    points = torch.from_numpy(x)[:, None]
    values, weights = _rows(y), None
    if w is not None:
        square = np.square(w, dtype=np.float64)
        if not np.isfinite(square).all():
            raise ValueError("w: expected finite weights")
        square = square if square.ndim == 1 else np.broadcast_to(square, y.shape)
        weights = _rows(square)
    start = torch.zeros(order, values.shape[1], dtype=torch.float64)
    fits = Fits(start, points, values, weights, omit, 0.0, 1.0)
    out: Outcome = Cpu().solve(fits, bool(cov))
    coefficients = out.params.numpy()
    residuals = (out.loss * out.weight_sum).numpy()
    freedom = out.counted.numpy() - order
    residuals[freedom <= 0] = np.nan
    lost = np.flatnonzero((out.status == FitStatus.RANK_DEFICIENT).numpy() & (out.rank.numpy() > 0))
    if len(lost):
        if not quiet:
            warnings.warn("Polyfit may be poorly conditioned", RankWarning, stacklevel=2)
        residuals[lost] = np.nan
        coefficients[:, lost] = least_norm(fits, torch.from_numpy(lost)).numpy()
    covariance = np.zeros((0, 0, values.shape[1]))
    if out.covariance is not None:
        covariance = out.covariance.numpy()
        if cov is True:
            with np.errstate(divide="ignore", invalid="ignore"):
                covariance = covariance * (residuals / freedom)
    return (
        np.moveaxis(coefficients[::-1], 0, -1).reshape(*shape, order),
        residuals.reshape(shape),
        np.moveaxis(covariance[::-1, ::-1], -1, 0).reshape(*shape, *covariance.shape[:2]),
    )


def _rows(values: np.ndarray) -> torch.Tensor:
    """[..., N] -> [N, B], where it lies if it is float32 or float64."""
    if values.dtype not in (np.float32, np.float64) or not values.dtype.isnative:
        values = values.astype(np.float32 if values.dtype == np.float16 else np.float64)
    if min(values.strides, default=0) < 0:
        values = values.copy()
    return torch.from_numpy(_writable(values)).movedim(-1, 0).reshape(values.shape[-1], -1)


class _Memory:
    """Memory that torch may hold: it warns of arrays that are read-only, and only reads here."""

    def __init__(self, values: np.ndarray) -> None:
        told = values.__array_interface__
        self.__array_interface__ = {**told, "data": (told["data"][0], False)}
        self.values = values


def _writable(values: np.ndarray) -> np.ndarray:
    return values if values.flags.writeable else np.asarray(_Memory(values))
