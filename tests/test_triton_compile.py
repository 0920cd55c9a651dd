"""Every Triton kernel compiles for GPUs that are not here, and the small ones do not spill."""

import importlib
import inspect
import pkgutil
import re
import shutil
import subprocess
from pathlib import Path

import polyfuse.kernels
import pytest
from polyfuse.backends import geometry, surface_triton
from polyfuse.backends.batched_triton import BLOCK, WARPS
from polyfuse.criteria import BCE, CROSS_ENTROPY, ELEMENTARY, HUBER, KINDS
from polyfuse.rules import (
    METHODS,
    AdamOptions,
    NAdamOptions,
    RAdamOptions,
    RmsPropOptions,
    SgdOptions,
)

triton = pytest.importorskip("triton")

from polyfuse.kernels.stream import stream_kernel  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from .each_sample import each_sample  # noqa: E402

N_SAMPLES = 10**8
CLASSES = 10
SGD = METHODS[SgdOptions].number
WIDEST = {
    "P": surface_triton.MAX_TERMS, "K": surface_triton.MAX_TERMS, "C": surface_triton.MAX_TERMS,
    "PW": 64, "W": 64, "JUMP": 128, "BAND": geometry.band(128),
}  # fmt: skip
FOUR = {"OUTPUTS": 4}
WIDE = {"OUTPUTS": 32, "K": 2, "C": 2}
CLASS_OF_FOUR = {**FOUR, "KIND": CROSS_ENTROPY.tag, "INDEX": True, "MEAN": True}
EPOCHS = [
    *((options, True) for options in (SgdOptions, AdamOptions, RmsPropOptions, NAdamOptions)),
    (RAdamOptions, True), (SgdOptions, False), (AdamOptions, False),
]  # fmt: skip


def kept_bits(options):
    """The rows that the rule keeps of every parameter."""
    return sum(1 << r for r, kept in enumerate(METHODS[options].kept) if not kept.scalar)


FLAGS = {
    "step_kernel": [
        {},
        {"LOAD": True, "STORE": True, "ROUND": True, "SINGLE": 15},
        {"KIND": HUBER.tag},
        {"WEIGHTED": True, "OMIT": True},
    ],
    "stream_kernel": [
        {"ALONE": True},
        {"ALONE": False},
        {"ALONE": False, "KIND": BCE.tag},
        {"ALONE": False, "METHOD": METHODS[AdamOptions].number},
        {"ALONE": False, "METHOD": METHODS[RAdamOptions].number},
        {"ALONE": False, "WEIGHTED": True},
        {"ALONE": False, "WEIGHTED": True, "KIND": BCE.tag},
        {"ALONE": False, "CHANGES": True},
        {"ALONE": False, "BOUNDED": True},
        {"ALONE": True, "LOAD": True, "STORE": True, "SINGLE": 1},
        {"ALONE": False, "LOAD": True, "STORE": True, "SINGLE": 1},
    ],
    "update_kernel": [{"METHOD": method.number} for method in METHODS.values()],
    "evaluate_kernel": [{}, {"IDENTITY": False}],
    "project_kernel": [{}, {"IDENTITY": False}],
    "moments_kernel": [
        {"RUN": False},
        {"RUN": False, "WEIGHTED": True},
        {"RUN": True},
        {"RUN": True, "CLOSED": True, "IDENTITY": False, "OMIT": True},
        {"RUN": True, "GIVEN": True, "STEP": True, "LOAD": True, "STORE": True},
        {"RUN": True, "GIVEN": True, "CHANGES": True},
        {"RUN": True, "GIVEN": True, "BOUNDED": True},
        {"RUN": True, "CLOSED": True, "LOAD": True, "STORE": True, "SINGLE": 1},
        *({"RUN": True, "GIVEN": True, "METHOD": m.number} for m in METHODS.values()),
    ],
    "surface_step_kernel": [
        {"LOAD": True, "STORE": True, "ROUND": True},
        {"OMIT": True, "WEIGHTED": True, "KIND": BCE.tag, "IDENTITY": False, **WIDEST},
        {"LOAD": True, "STORE": True, "ROUND": True, "WEIGHTED": True, **FOUR},
        {"LOAD": True, "STORE": True, "ROUND": True, **CLASS_OF_FOUR},
        {"KIND": BCE.tag, **WIDE},
    ],
    "surface_stream_kernel": [
        {},
        {"METHOD": METHODS[RAdamOptions].number},
        {"METHOD": METHODS[AdamOptions].number, "KIND": BCE.tag},
        {"CHANGES": True, "LOAD": True, "STORE": True},
        {"OMIT": True, "WEIGHTED": True, **WIDEST},
        FOUR,
        {"METHOD": METHODS[RAdamOptions].number, "WEIGHTED": True, "BOUNDED": True, **FOUR},
        {"METHOD": METHODS[AdamOptions].number, "KIND": BCE.tag, **FOUR},
        {"METHOD": METHODS[AdamOptions].number, **CLASS_OF_FOUR},
        {**CLASS_OF_FOUR, "INDEX": False, "SMOOTH": True, "WEIGHTED": True, "CHANGES": True},
        {"METHOD": METHODS[AdamOptions].number, **WIDE},
    ],
    "surface_moments_kernel": [
        {"RUN": False},
        {"RUN": False, "OMIT": True, "WEIGHTED": True, "W": 32},
        {"RUN": True, "CLOSED": True},
        {"RUN": True, "METHOD": METHODS[AdamOptions].number, "W": 32},
        {"RUN": True, **WIDEST},
        {"RUN": True, "GIVEN": True, "STEP": True, "LOAD": True, "STORE": True, "ROUND": True},
        {"RUN": True, "CLOSED": True, "OMIT": True, "WEIGHTED": True, **FOUR},
        {"RUN": True, "METHOD": METHODS[AdamOptions].number, "BOUNDED": True, **FOUR},
        {"RUN": True, "GIVEN": True, "STEP": True, "LOAD": True, "STORE": True, **FOUR},
        {"RUN": True, "CLOSED": True, "OUTPUTS": 4, "K": 6, "C": 7},
    ],
    "classes_step_kernel": [
        {"INDEX": True, "MEAN": True},
        {"LOAD": True, "STORE": True, "ROUND": True, "SINGLE": 15, "SMOOTH": True},
    ],
    "classes_stream_kernel": [
        {"ALONE": True, "INDEX": True},
        {"INDEX": True, "WEIGHTED": True, "SMOOTH": True},
        {"METHOD": METHODS[AdamOptions].number, "INDEX": True, "WEIGHTED": True},
        {"METHOD": METHODS[RAdamOptions].number},
        {"INDEX": True, "CHANGES": True, "LOAD": True, "STORE": True, "BOUNDED": True},
    ],
    "solve_fits_kernel": [
        {},
        {"OMIT": True, "WEIGHTED": True},
        {"DEGREE": 1, "ROOT": True},
        {"DEGREE": 2},
    ],
    "descend_fits_kernel": [
        *({"METHOD": METHODS[o].number, "KEPT": kept_bits(o), "MOMENTS": m} for o, m in EPOCHS),
        {
            "OMIT": True,
            "WEIGHTED": True,
            "TOL": True,
            "PREVIOUS": True,
            "RECORD": True,
            "KIND": HUBER.tag,
            "KEPT": 1,
        },
        {"METHOD": METHODS[AdamOptions].number, "KEPT": 14, "BOUNDED": True, "CHANGES": True},
        {
            "METHOD": METHODS[NAdamOptions].number,
            "KEPT": 12,
            "MOMENTS": True,
            "TOL": True,
            "PREVIOUS": True,
            "RECORD": True,
            "BOUNDED": True,
            "CHANGES": True,
            "MEAN": True,
        },
    ],
    "step_fits_kernel": [
        {"METHOD": 0, "KIND": HUBER.tag},
        {"KEPT": 1, "BEFORE": True},
        {"METHOD": METHODS[AdamOptions].number, "KEPT": 14, "BEFORE": True, "WEIGHTED": True},
    ],
    "leap_fits_kernel": [
        {},
        {"RECORD": True, "BUFFER": True, "DECAY": True, "WEIGHTED": True},
    ],
}
POINTERS = {
    "counted_ptr": "*i32",
    "status_ptr": "*i32",
    "rank_ptr": "*i32",
    "degree_ptr": "*i32",
    "done_ptr": "*i64",
    "slots_ptr": "*i32",
    "span_ptr": "*i32",
    "tables_ptr": "*i64",
    "counters_ptr": "*i64",
    "changes_ptr": "*i64",
    "variable_ptr": "*i32",
}
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


EVERYWHERE = [*((target, "fp32") for target in TARGETS), ("sm_90", "fp64")]
READS_WIDE = {"step_kernel", "moments_kernel", "project_kernel", "evaluate_kernel"}


def kernels():
    """Every kernel for every target, and its other flags for the newest of each kind."""
    for module in pkgutil.iter_modules(polyfuse.kernels.__path__):
        members = vars(importlib.import_module(f"polyfuse.kernels.{module.name}"))
        for name, member in members.items():
            if name.endswith("_kernel") and member.__module__.endswith(f".{module.name}"):
                for i, flags in enumerate(FLAGS.get(name, [{}])):
                    there = EVERYWHERE if i == 0 else [("sm_90", "fp32"), ("gfx942", "fp32")]
                    yield from ((name, member, flags, *on) for on in there)


def cut_of(name, flags, terms, itemsize, target, share):
    machine = geometry.Machine(100, target.warp_size)
    if "classes" in name:
        return geometry.classes(
            30 if flags.get("ALONE") else N_SAMPLES, terms, CLASSES, machine, 100
        )
    if name == "stream_kernel":
        n = 1000 if flags["ALONE"] else N_SAMPLES
        others = flags.get("KIND") in [kind.tag for kind in ELEMENTARY]
        others += flags.get("WEIGHTED", False) + (flags.get("METHOD", 0) > SGD)
        return geometry.stream(n, itemsize, terms, machine, others, share)
    return geometry.reduction(N_SAMPLES, itemsize, terms, machine)


def surface_cut(name, constants):
    """A launch; completes what its kernel is told."""
    least, moments = surface_triton.LEAST_COLUMNS, "moments" in name
    outputs = constants.setdefault("OUTPUTS", 0)
    params = constants["K"] * (outputs or 1)
    width = max(least, geometry.width(constants["C"] + outputs if moments else constants["K"]))
    width = constants.setdefault("W", width)
    across = constants["CW"] = max(least, geometry.width(outputs)) if outputs else 1
    constants["PW"] = geometry.width(params) if outputs else width
    if outputs:
        jump = 2 * params + 1
        constants |= {"P": params, "BAND": geometry.band(jump), "JUMP": geometry.width(jump)}
    widest = max(width, constants["PW"] if moments else across)
    warps = surface_triton.warps_of(widest)
    constants["ROWS"] = surface_triton.rows_of(width if moments else widest, warps)
    constants["CHUNK"] = geometry.chunk(width**2 if moments else constants["PW"])
    return geometry.Pass(200, constants["ROWS"], 1, warps)


def compiled(name, kernel, flags, degree, dtype, target, share=geometry.SHARES[0]):
    terms, itemsize = degree + 1, 4 if dtype == "fp32" else 8
    sums = terms + 2 if name in ("step_kernel", "stream_kernel") else 3 * terms
    cut = cut_of(name, flags, terms, itemsize, target, share)
    jump = 2 * terms + 1
    constants = {
        "P": terms, "K": terms, "PW": geometry.width(terms), "KW": geometry.width(terms),
        "SW": geometry.width(sums), "ROWS": cut.rows, "VEC": cut.vec,
        "CHUNK": geometry.chunk(sums), "BAND": geometry.band(jump), "JUMP": geometry.width(jump),
        "RESIDENT": cut.resident, "T": getattr(triton.language, dtype.replace("fp", "float")),
        "IDENTITY": True, "MEAN": True, "x_stride": 1, "y_stride": 1, "g_stride": 1,
        "w_stride": 1, "BLOCK": BLOCK, "C": terms, "ONE": 0, "METHOD": SGD,
    } | flags  # fmt: skip
    if name.startswith("surface"):
        cut = surface_cut(name, constants)
        constants["x_column"] = constants.pop("x_stride")
    if "classes" in name:
        padded = geometry.width(CLASSES)
        chunk = geometry.class_chunk(geometry.width(terms) * padded)
        constants |= {"C": CLASSES, "CW": padded, "CHUNK": chunk}
    signature, attrs = {}, {}
    for i, (argument, p) in enumerate(inspect.signature(kernel.fn).parameters.items()):
        if argument in constants or p.annotation is triton.language.constexpr:
            signature[argument] = "constexpr"
            constants.setdefault(argument, False)
        elif argument.endswith("_ptr"):
            of_data = argument in ("x_ptr", "y_ptr", "g_ptr", "w_ptr") or name == "evaluate_kernel"
            other = "*i64" if (name, argument) == ("nonfinite_kernel", "out_ptr") else "*fp64"
            if (argument, flags.get("INDEX")) == ("y_ptr", True):
                other, of_data = "*i64", False
            signature[argument] = POINTERS.get(argument, other)
            if of_data and argument in ("x_ptr", "y_ptr", "g_ptr", "w_ptr", "out_ptr"):
                signature[argument] = f"*{dtype}"
            attrs[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[argument] = kernel.params[i].annotation_type or "i32"
    used = {a: constants[a] for a in signature if a in constants}
    source = ASTSource(kernel, signature, used, attrs)
    warps = WARPS if "fits" in name else cut.warps
    options = {"num_warps": warps, "enable_fp_fusion": True}
    if target.backend == "cuda":
        options["maxnreg"] = cut.registers
    return triton.compile(source, target=target, options=options), cut


def resources(cubin, tmp_path):
    """Registers and bytes of stack a thread, as the assembler allotted them."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    found = str(tool) if tool.exists() else shutil.which("cuobjdump")
    if found is None:
        pytest.skip("cuobjdump is not there")
    path = tmp_path / "kernel.cubin"
    path.write_bytes(cubin)
    out = subprocess.run([found, "-res-usage", path], capture_output=True, text=True, check=True)
    usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", out.stdout))
    return int(usage["REG"]), int(usage["STACK"]) + int(usage["LOCAL"])


@pytest.mark.parametrize(("name", "kernel", "flags", "target", "dtype"), list(kernels()), ids=str)
def test_compiles_and_keeps_everything_in_registers(name, kernel, flags, target, dtype, tmp_path):
    binary, cut = compiled(name, kernel, flags, 4, dtype, TARGETS[target])
    if target == "gfx942":
        assert re.search(r"\.vgpr_spill_count:\s*0\b", binary.asm["amdgcn"])
        return
    registers, stack = resources(binary.asm["cubin"], tmp_path)
    print(f"{name} {flags} {target} {dtype}: {registers} registers, stack {stack}")
    assert stack == 0
    if name in READS_WIDE and not flags.get("GIVEN"):
        assert re.search(r"ld\.global\.(v4\.b32|v2\.b64)", binary.asm["ptx"])  # 16 bytes
    if name in ("stream_kernel", "classes_stream_kernel") and not flags.get("ALONE"):
        assert_all_there_at_once(registers, cut)


def assert_all_there_at_once(registers, cut):
    assert registers * (cut.programs // 100) * cut.warps * 32 <= 65536


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
@pytest.mark.parametrize("degree", [1, 2, 4])
@pytest.mark.parametrize("share", geometry.SHARES[1:], ids=str)
def test_every_share_of_a_stream_run_keeps_everything_in_registers(
    share, degree, dtype, target, tmp_path
):
    flags = {"ALONE": False}
    binary, cut = compiled(
        "stream_kernel", stream_kernel, flags, degree, dtype, TARGETS[target], share
    )
    registers, stack = resources(binary.asm["cubin"], tmp_path)
    print(share, degree, dtype, target, registers, stack)
    assert stack == 0 and cut.programs == 100 * share.programs
    assert_all_there_at_once(registers, cut)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_criterion_compiles_in_float64(kind, log, target, tmp_path):
    constants = {"N": 256, "KIND": kind.tag, "LOG": log, "FULL": True}
    numbers = {"weight": "fp64", "number": "fp64"}
    signature = {
        a: "constexpr" if a in constants else numbers.get(a, "*fp64") for a in each_sample.arg_names
    }
    source = ASTSource(each_sample, signature, constants)
    options = {"num_warps": 4, "enable_fp_fusion": True}
    binary = triton.compile(source, target=TARGETS[target], options=options)
    if target == "gfx942":
        assert "v_cvt_f32_f64" not in binary.asm["amdgcn"]
        return
    assert "cvt.rn.f32.f64" not in binary.asm["ptx"]
    assert resources(binary.asm["cubin"], tmp_path)[1] == 0
