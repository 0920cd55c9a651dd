"""The compiled module. Addresses are ints; arrays are float64 and C-contiguous."""

from collections.abc import Callable
from typing import Any

import numpy as np

def isa() -> str: ...
def noop() -> None: ...
def launches() -> int: ...
def use_shim(use: bool) -> bool: ...

class Data:
    def __init__(
        self, x: int, y: int, w: int, n: int, x_stride: int, y_stride: int, w_stride: int,
        float64: bool, omit: bool, shift: float, scale: float, x_column: int,
    ) -> None: ...  # fmt: skip

def show_to_compilers(call: Any, get: Any) -> None: ...

class Criterion:
    per_row: bool
    address: int
    def __init__(
        self, kind: int, *, weight: float = ..., beta: float = ..., delta: float = ...,
        pos_weight: float = ..., eps: float = ..., variance: float = ..., log_input: bool = ...,
        full: bool = ..., log_target: bool = ..., per_row: bool = ..., class_weight: int = ...,
        ignore: int = ..., smoothing: float = ...,
    ) -> None: ...  # fmt: skip

class Batch:
    """Many fits: see csrc/cpu/batch.h; addresses and strides are written, not read."""

    x: Any
    y: Any
    w: Any
    n: int
    fits: int
    n_terms: int
    float64: Any
    omit: bool
    shift: float
    scale: float
    mean: bool
    criterion: Criterion
    basis: Any
    solve: bool
    engine: Any
    schedule: Any
    rule: Any
    params: Any
    grad: Any
    loss: Any
    recorded: Any
    determination: Any
    covariance: Any
    counted: Any
    weight_sum: Any
    epochs: Any
    degree_by: Any
    degree: Any
    rank: Any
    status: Any
    low: Any
    high: Any
    def keep(self, row: int, address: int) -> None: ...
    previous: Any
    def change(self, epoch: int, row: Any) -> None: ...
    def keep_once(self, row: int, value: float) -> None: ...
    def kept_after(self, epochs: int) -> list[float]: ...
    def rates(self, epochs: int) -> np.ndarray: ...
    def leaps(self) -> tuple[Any, ...]: ...
    def run(self, first: int, seconds: float, threads: int) -> int: ...

class SurfaceMoments:
    square: float
    weight: float

class StackedMoments:
    square: float
    def __init__(
        self, reference: np.ndarray, cross: np.ndarray, power: np.ndarray, square: float,
        weight: float,
    ) -> None: ...  # fmt: skip

class Stacked:
    def __init__(
        self, n_terms: int, n_outputs: int, shift: float, scale: float, basis: tuple
    ) -> None: ...
    def read(self, x: Any, y: Any, w: Any, index: int, index_stride: int, n: int) -> None: ...

class Plan:
    def set_changes(self, changes: list) -> None: ...
    criterion: Criterion
    mean: bool
    identity: bool
    def __init__(
        self, n_params: int, n_coefficients: int, terms: list, shift: float, scale: float,
        surface: tuple[list, list, list, list, list] | None,
    ) -> None: ...  # fmt: skip
    def set_rule(self, options: list) -> None: ...
    def set_stacked(self, many: Stacked) -> None: ...

class Moments:
    n_terms: int
    shift: float
    scale: float
    square: float
    reference: np.ndarray
    power: np.ndarray
    cross: np.ndarray

def descend(
    plan: Plan, data: Data, engine: int, moments: Moments | None, first_epoch: int, epochs: int,
    record_every: int, tol: float, seconds: float, previous: float, threads: int,
    params: np.ndarray, kept: np.ndarray, grad: np.ndarray,
    bounds: tuple[np.ndarray, np.ndarray] | None,
) -> tuple[int, bool, float, np.ndarray, Moments | None, float]: ...  # fmt: skip
def descend_surface(
    plan: Plan, data: Data, engine: int, moments: SurfaceMoments | None, first_epoch: int,
    epochs: int, record_every: int, tol: float, seconds: float, previous: float, threads: int,
    params: np.ndarray, kept: np.ndarray, grad: np.ndarray,
) -> tuple[int, bool, float, np.ndarray, SurfaceMoments | None, float]: ...  # fmt: skip
def descend_stacked(
    plan: Plan, data: Data, engine: int, moments: StackedMoments | None, first_epoch: int,
    epochs: int, record_every: int, tol: float, seconds: float, previous: float, threads: int,
    params: np.ndarray, kept: np.ndarray, grad: np.ndarray,
    bounds: tuple[np.ndarray, np.ndarray] | None,
) -> tuple[int, bool, float, np.ndarray, StackedMoments | None, float]: ...  # fmt: skip
def loss_and_gradient(
    plan: Plan, data: Data, params: np.ndarray, threads: int
) -> tuple[float, np.ndarray]: ...
def accumulate(data: Data, n_terms: int, threads: int) -> Moments: ...
def accumulate_surface(plan: Plan, data: Data, threads: int) -> SurfaceMoments: ...
def accumulate_stacked(plan: Plan, data: Data, threads: int) -> StackedMoments: ...
def count_nonfinite(data: Data, threads: int) -> int: ...
def evaluate(data: Data, coef: np.ndarray, threads: int, y: int) -> None: ...
def project(data: Data, n_terms: int, threads: int) -> np.ndarray: ...
def advance(options: tuple[float, ...] | None, kept: list[float]) -> list[float]: ...

class Variable:
    def __init__(self, shift: float, scale: float, offset: float) -> None: ...

class Solution:
    rank: int
    degrees: float
    sum_of_squares: float
    total: float
    total_centred: float
    params: np.ndarray
    coefficients: np.ndarray
    estimator: np.ndarray
    influence: np.ndarray
    covariance: np.ndarray
    coefficient_covariance: np.ndarray
    gram: np.ndarray

class NormalEquations:
    shift: float
    scale: float
    weight: float
    @staticmethod
    def of_data(
        data: Data, n_terms: int, precise: bool, variable: Variable,
        known: NormalEquations | None, threads: int,
    ) -> NormalEquations: ...  # fmt: skip
    @staticmethod
    def of_power_sums(
        shift: float, scale: float, reference: np.ndarray, power: np.ndarray, cross: np.ndarray,
        square: float, variable: Variable,
    ) -> NormalEquations: ...  # fmt: skip
    @staticmethod
    def of_columns(
        x: np.ndarray, y: np.ndarray, w: np.ndarray | None, shift: np.ndarray,
        with_constant: bool, known: NormalEquations | None, threads: int,
    ) -> NormalEquations: ...  # fmt: skip
    @staticmethod
    def of_sums(
        gram: np.ndarray, right: np.ndarray, reference: np.ndarray, shift: np.ndarray,
        with_constant: bool,
    ) -> NormalEquations: ...  # fmt: skip
    def add(self, other: NormalEquations) -> None: ...
    def leading(self, n_terms: int) -> NormalEquations: ...
    def solve(
        self, jacobian: np.ndarray | None, offset: np.ndarray | None, ridge: list[float],
        with_covariance: bool,
    ) -> Solution: ...  # fmt: skip

def polyfit(
    x: np.ndarray, y: np.ndarray, w: np.ndarray | None, n_terms: int, jacobian: np.ndarray | None,
    scale: float, offset: float, falling: bool, with_covariance: bool, threads: int,
) -> tuple[np.ndarray, int, np.ndarray, np.ndarray]: ...  # fmt: skip
def generation() -> int: ...
def next_generation() -> None: ...
def promise(tensor: Any) -> None: ...
def end_promise(tensor: int) -> None: ...
def clear_grads(param_groups: Any) -> bool: ...
def fast(name: str) -> Callable[[Callable], Any]: ...
def unpool(wrapper: Any) -> None: ...
def declare_module(module: type) -> None: ...
def declare_optimizer(optimizer: type) -> None: ...

class Watch:
    def __init__(self, things: list) -> None: ...
    def unchanged(self) -> bool: ...

class Forward:
    params: np.ndarray
    x: Any
    x_version: int
    plain: Any
    real: Any
    freed: bool
    def __init__(self, n_params: int) -> None: ...
    def start(self, x: Any) -> None: ...
    def untouched(self) -> bool: ...
    def show(self, values: Any, hashed: bool) -> None: ...
    def plain_changed(self) -> bool: ...

class Objective:
    forward: Any
    y: Any
    y_version: int
    weight_version: int
    criterion: Any
    mean: bool
    weight: Any
    weighted_mean: bool
    number: float | None
    real: Any
    freed: bool
    def __init__(
        self, forward: Forward, y: Any, y_version: int, criterion: Criterion, mean: bool,
        weight: Any = None,
    ) -> None: ...  # fmt: skip

class Loop:
    covers_owner: bool
    trained: list
    def __init__(
        self, plan: Plan, tensors: tuple, stretches: list, float64: bool, watched: list,
        of_y: tuple[int, ...] | None,
    ) -> None: ...  # fmt: skip
    def unchanged(self) -> bool: ...
    def as_trainable(self) -> bool: ...
    def snapshot(self, n_params: int) -> np.ndarray: ...
    def unchanged_since(self, forward: Forward) -> bool: ...
    def store(self, params: np.ndarray) -> None: ...
    def see(self, x: Any, y: Any) -> None: ...
    def sees(self, x: Any) -> bool: ...
    def sees_target(self, y: Any) -> bool: ...
    def settle(self, moments: Any, x_version: int, y_version: int) -> None: ...
    def bind(
        self, owner: Any, *, found: bool, watched: list = [], held: list = [], kept: list = [],
        updates: bool = False, covers_owner: bool = False,
    ) -> None: ...  # fmt: skip
    def bound_to(self, owner: Any) -> bool: ...
    def launch(self, objective: Objective, threads: int) -> bool: ...
    def holds(self, objective: Objective) -> bool: ...
    def grads(self) -> np.ndarray: ...
    def set_grads(self, grads: tuple, storage: int, uses: int) -> None: ...
    def give_grads(self, objective: Objective) -> int: ...
    def exchange(self, spares: list, kept_spares: list) -> bool: ...
    def replace_grads(self, values: np.ndarray) -> bool: ...
    def install(self, owner: Any) -> bool: ...
    def begin(self, forward: Any, x: Any) -> None: ...
    def pool_prediction(self, wrapper: Any, record: Forward) -> None: ...
    def pool_loss(self, wrapper: Any, record: Objective) -> None: ...
    def sees_criterion(self, module: Any) -> bool: ...
    def see_criterion(
        self, module: Any, watched: list, criterion: Criterion, mean: bool
    ) -> None: ...
    def offer(self) -> None: ...
