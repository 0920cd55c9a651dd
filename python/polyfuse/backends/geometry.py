"""How a launch is cut up: tiles, programs, what stays on chip, the size of workspaces.

The numbers are estimates from the registers that compiled kernels take; no GPU has measured them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

MAX_PARAMS = 255  # the closed form takes two rows for each, and one
MAX_WARPS = 8
REGISTERS = 255  # a thread's; left to itself the assembler spills some to make room
ALONE_TILES = 8  # one program takes so many tiles faster than many programs meet
LAUNCH_SECONDS = 0.2


class Share(NamedTuple):
    """What a program of the stream run has of a processor, all of which are there at once."""

    warps: int
    programs: int  # of one processor
    resident: int  # tiles, at most
    registers: int = REGISTERS  # of a thread


# Which is fastest is measured: much of the data in registers, or many threads that wait for it.
SHARES = (Share(MAX_WARPS, 1, 3), Share(MAX_WARPS // 2, 2, 3), Share(MAX_WARPS // 2, 3, 1, 168))


@dataclass(frozen=True)
class Machine:
    processors: int
    warp: int = 32  # threads
    interpreted: bool = False  # programs run one after another


class Pass(NamedTuple):
    """A pass over the samples, in tiles [rows, vec] that programs take in turn."""

    programs: int
    rows: int
    vec: int
    warps: int
    resident: int = 0  # tiles of every program that stay in its registers
    registers: int = REGISTERS

    @property
    def tile(self) -> int:
        return self.rows * self.vec


def width(count: int) -> int:
    """The power of two that holds a vector."""
    return 1 << max(count - 1, 0).bit_length()


def chunk(sums: int) -> int:
    """Programs whose partial sums are added side by side."""
    return max(1, 512 // width(sums))


def class_chunk(sums: int) -> int:
    """The same where a run's registers have no room for more than one of them a thread."""
    return max(1, 128 // sums)


def band(size: int) -> int:
    """Rows of a matrix of the closed form in registers at a time."""
    return max(1, min(width(size), 4096 // width(size)))


def tiles(n: int, tile: int) -> int:
    return -(-n // tile)


def shape(n: int, itemsize: int, machine: Machine, most: int = MAX_WARPS) -> tuple[int, int, int]:
    """Rows, elements a thread reads at once (16 bytes), warps: one tile where n is small."""
    vec = 16 // itemsize
    if machine.interpreted:
        return min(width(tiles(n, vec)), 4096), vec, 1
    warps = min(most, width(tiles(n, machine.warp * vec)))
    return machine.warp * warps, vec, warps


def reduction(
    n: int, itemsize: int, sums: int, machine: Machine, occupancy: int | None = None
) -> Pass:
    """A pass whose last program adds the partial sums; occupancy: programs of one processor."""
    rows, vec, warps = shape(n, itemsize, machine)
    occupancy = occupancy or (4 if sums <= 8 else 2 if sums <= 16 else 1)
    programs = min(tiles(n, rows * vec), occupancy * machine.processors)
    return Pass(programs, rows, vec, warps)


def shares(machine: Machine) -> tuple[Share, ...]:
    """Those of which all programs are sure to be there at once; AMD's compiler has no limit to the
    registers of a thread but that of a program of its own."""
    return SHARES if machine.warp == 32 else SHARES[:1]


def stream(
    n: int, itemsize: int, terms: int, machine: Machine, others: int = 0, share: Share = SHARES[0]
) -> Pass:
    """All epochs in one launch, whose programs must all be on the device at once.

    others: what else takes the registers of a resident tile: exp and log, weights, an optimizer
    that keeps much.
    """
    rows, vec, warps = shape(n, itemsize, machine, share.warps)
    count = tiles(n, rows * vec)
    most = 3 if terms <= 5 else 2 if terms <= 8 else 1
    most = min(share.resident, max(1, most - others))
    if machine.interpreted or n <= ALONE_TILES * MAX_WARPS * machine.warp * vec:
        return Pass(1, rows, vec, warps, min(count, most))
    programs = min(tiles(count, 2), share.programs * machine.processors)
    resident = min(tiles(count, programs), most)
    return Pass(programs, rows, vec, warps, resident, share.registers)


def classes(n: int, terms: int, outputs: int, machine: Machine, most: int) -> Pass:
    """A pass over samples by classes, of at most so many programs: tiles [rows, outputs], padded,
    of which a thread holds few elements, as it sums `terms` products of each."""
    many = width(outputs)
    if machine.interpreted:
        return Pass(1, min(width(n), max(1, 4096 // many)), 1, 1)
    warps = 4 if n * many <= ALONE_TILES * 512 and width(terms) * many <= 256 else MAX_WARPS
    rows = max(1, machine.warp * warps * (2 if terms <= 5 else 1) // many)
    count = tiles(n, rows)
    programs = 1 if count <= ALONE_TILES else min(tiles(count, 2), most)
    return Pass(programs, rows, 1, warps)


def elementwise(n: int, itemsize: int, machine: Machine) -> Pass:
    """One tile a program."""
    rows, vec, warps = shape(n, itemsize, machine)
    return Pass(tiles(n, rows * vec), rows, vec, warps)


def vector_warps(terms: int, params: int) -> int:
    """Warps of a program that holds a matrix [K, K] and no samples."""
    return 1 if max(terms, params) <= 8 else 4 if max(terms, params) <= 16 else MAX_WARPS


def partial_sums(launch: Pass, sums: int) -> int:
    """float64 numbers of workspace: two halves, so that one barrier an epoch is enough."""
    return 2 * launch.programs * sums


def matrices(params: int) -> int:
    """float64 numbers of workspace for the closed form."""
    return 5 * (2 * params + 1) ** 2


def epochs_at_once(
    engine: str, n: int, itemsize: int, terms: int, epochs: int, elementary: bool, machine: Machine
) -> int:
    """So many that a launch takes about LAUNCH_SECONDS: 5 us for an epoch's barrier, 1 TB/s, 2 ns
    for a term of a sample in each of 64 lanes of a processor; exp and log cost as 60 terms."""
    if engine == "closed_form":
        return epochs
    if engine == "stream":
        work = n * (terms + 60 * elementary) / (64 * machine.processors)
        each = 5e-6 + 2 * n * itemsize / 1e12 + 2e-9 * work
    else:
        each = 1e-6 + 1e-8 * terms**2
    return min(epochs, max(1, int(LAUNCH_SECONDS / each)))
