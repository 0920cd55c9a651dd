"""Evaluate, project, count what is not finite, and the two small launches of a step taken apart."""

import triton.language as tl

from .basis import horner
from .coefficients import coefficients, pull_back
from .data import here, inside_of, kernel, read, weigh
from .optimizer import is_owned, load_rule, update
from .passes import add_nonfinite, add_products, tile_pass, zero_sums
from .reduce import collect, is_last, publish
from .state import load_row, load_state, load_tables, store_tables
from .vectors import pick, totals, unpack


@kernel
def evaluate_kernel(
    x_ptr, out_ptr, n_points: tl.int64, x_stride, shift: tl.float64, scale: tl.float64,
    factor_ptr, span_ptr, slots_ptr, n_products: tl.int32, params_ptr,
    P: tl.constexpr, K: tl.constexpr, PW: tl.constexpr, KW: tl.constexpr,
    ROWS: tl.constexpr, VEC: tl.constexpr, IDENTITY: tl.constexpr,
):  # fmt: skip
    """out [N] = V c, contiguous."""
    data = (x_ptr, x_ptr, n_points, x_stride, x_stride, shift, scale, x_ptr, x_stride)
    model = (factor_ptr, span_ptr, slots_ptr, n_products)
    p_lane, k_lane = tl.arange(0, PW), tl.arange(0, KW)
    params = tl.load(params_ptr + p_lane, p_lane < P, other=0.0)
    coef = unpack(coefficients(params, model, p_lane, k_lane, IDENTITY), k_lane, K)
    tile = tl.program_id(0)
    first = tl.cast(tile, tl.int64) * (ROWS * VEC)
    if tile < n_points // (ROWS * VEC):
        x, y, w = read(data, tile, ROWS, VEC, False, False)
        u, _, _ = weigh(x, y, w, data, tile, False, False, False)
        value = horner(coef, u, K).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + first + inside_of(ROWS, VEC), value)
    else:
        x, y, w = read(data, tile, ROWS, VEC, True, False)
        u, _, _ = weigh(x, y, w, data, tile, True, False, False)
        value = horner(coef, u, K).to(out_ptr.dtype.element_ty)
        keep = here(n_points, tile, ROWS, VEC)
        tl.store(out_ptr + first + inside_of(ROWS, VEC), value, keep)


@kernel
def project_kernel(
    x_ptr, g_ptr, n_points: tl.int64, x_stride, g_stride,
    shift: tl.float64, scale: tl.float64,
    factor_ptr, span_ptr, slots_ptr, n_products: tl.int32, params_ptr, out_ptr,
    work_ptr, counters_ptr,
    P: tl.constexpr, K: tl.constexpr, PW: tl.constexpr, KW: tl.constexpr,
    ROWS: tl.constexpr, VEC: tl.constexpr, CHUNK: tl.constexpr, IDENTITY: tl.constexpr,
):  # fmt: skip
    """out [P] = V^T g, pulled back by the map."""
    data = (x_ptr, g_ptr, n_points, x_stride, g_stride, shift, scale, x_ptr, x_stride)
    model = (factor_ptr, span_ptr, slots_ptr, n_products)
    p_lane, k_lane = tl.arange(0, PW), tl.arange(0, KW)
    sums = tile_pass(
        zero_sums(K, ROWS), data, tl.program_id(0), tl.num_programs(0), (), add_products, K,
        ROWS, VEC, False, False,
    )  # fmt: skip
    publish(work_ptr, 0, totals(sums, k_lane, K), k_lane, K)
    if is_last(counters_ptr):
        total = collect(work_ptr, 0, k_lane, K, CHUNK)
        params = tl.load(params_ptr + p_lane, p_lane < P, other=0.0)
        grad = pull_back(params, total, model, p_lane, k_lane, IDENTITY)
        tl.store(out_ptr + p_lane, grad, p_lane < P)


@kernel
def nonfinite_kernel(
    x_ptr, y_ptr, n_points: tl.int64, x_stride, y_stride, out_ptr,
    work_ptr, counters_ptr, w_ptr, w_stride,
    ROWS: tl.constexpr, VEC: tl.constexpr, CHUNK: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """out [1] int64: samples that count with a nan or inf in x or y."""
    data = (x_ptr, y_ptr, n_points, x_stride, y_stride, 0.0, 1.0, w_ptr, w_stride)
    lane = tl.arange(0, 1)
    sums = tile_pass(
        zero_sums(1, ROWS), data, tl.program_id(0), tl.num_programs(0), (), add_nonfinite, 1,
        ROWS, VEC, False, WEIGHTED,
    )  # fmt: skip
    publish(work_ptr, 0, totals(sums, lane, 1), lane, 1)
    if is_last(counters_ptr):
        tl.store(out_ptr, pick(collect(work_ptr, 0, lane, 1, CHUNK), 0, lane).to(tl.int64))


@kernel
def update_kernel(
    tables_ptr, rule_ptr, P: tl.constexpr, PW: tl.constexpr, T: tl.constexpr,
    METHOD: tl.constexpr, SINGLE: tl.constexpr,
):  # fmt: skip
    """One update from gradients as they are now, in the precision of the parameters."""
    lane = tl.arange(0, PW)
    rule = load_rule(rule_ptr, lane, P)
    params, o, q, r, s = load_tables(tables_ptr, lane, P, T, METHOD, SINGLE)
    grad, has_grad = load_row(tables_ptr, 1, lane, P, T)
    new = update(rule, params, grad, (o, q, r, s), METHOD, T)
    tl.debug_barrier()  # a number of a whole tensor is read by all its elements before it changes
    store_tables(tables_ptr, lane, new, is_owned(rule) & has_grad, P, T, SINGLE)


@kernel
def store_kernel(
    state_ptr, tables_ptr, rule_ptr, P: tl.constexpr, PW: tl.constexpr, T: tl.constexpr,
    SINGLE: tl.constexpr,
):  # fmt: skip
    """Installs the parameters, and what is kept of them, that a step computed before."""
    lane = tl.arange(0, PW)
    owned = is_owned(load_rule(rule_ptr, lane, P))
    store_tables(tables_ptr, lane, load_state(state_ptr, lane, P), owned, P, T, SINGLE)
