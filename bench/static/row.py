"""A row of the static report: one kernel compiled for one GPU, its properties and its faults."""

from dataclasses import dataclass

from .budget import BUDGETS

# Per multiprocessor: warps, blocks, 32-bit registers, bytes of shared memory; per block: bytes reserved.
# Sources: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
MULTIPROCESSOR = {
    "sm_80": (64, 32, 65536, 164 << 10, 1024),
    "sm_86": (48, 16, 65536, 100 << 10, 1024),
    "sm_89": (48, 24, 65536, 100 << 10, 1024),
    "sm_90": (64, 32, 65536, 228 << 10, 1024),
    "sm_100": (64, 32, 65536, 228 << 10, 1024),
    "sm_120": (48, 24, 65536, 100 << 10, 1024),
}


@dataclass(frozen=True)
class Row:
    """One kernel compiled for one target."""

    kernel: str
    made_by: str  # "triton" or "cuda"
    target: str
    config: str
    dtypes: str
    warps: int
    registers: int  # per thread
    spills: int  # bytes per thread
    local: int  # instructions that access local memory
    shared: int  # bytes per block
    tensor_core: dict[str, int]  # instructions, e.g. {"HGMMA": 16}
    loads: dict[str, int]  # widths of the loads from global memory in bytes, "TMA" for bulk copies
    wants_tensor_core: str | None = None  # the planned instruction, if any
    specialized: int | None = None  # number of setmaxnreg instructions; None if warp specialisation is not planned
    wants_wide_loads: bool = True  # whether the kernel reads tensors with 16-byte aligned rows and is bound by this
    step: int | None = None  # instructions of a warp in one iteration of the main loop
    elements: int | None = None  # of the long operand, that a block reads in one iteration

    @property
    def budget(self) -> int | None:
        """The maximum of `step`; None for a kernel without a budget."""
        return BUDGETS.get((self.kernel, self.dtypes, self.config), {}).get(self.target)

    @property
    def an_element(self) -> float | None:
        """Instructions of a thread for each element of the long operand."""
        return None if self.step is None or self.elements is None else self.step * 32 * self.warps / self.elements

    @property
    def occupancy(self) -> float | None:
        """Resident warps / the multiprocessor's maximum, from registers, shared memory and blocks; None for AMD."""
        if self.target not in MULTIPROCESSOR:
            return None
        warps, blocks, registers, shared, reserved = MULTIPROCESSOR[self.target]
        a_warp = -(-self.registers * 32 // 256) * 256
        fit = min(blocks, warps // self.warps, registers // (a_warp * self.warps), shared // (self.shared + reserved))
        return fit * self.warps / warps

    def faults(self) -> list[str]:
        """The faults of the kernel, one sentence each."""
        found = []
        if self.spills or self.local:
            found.append(f"spills {self.spills} bytes, {self.local} accesses to local memory")
        if self.wants_tensor_core and not self.tensor_core.get(self.wants_tensor_core):
            found.append(f"no {self.wants_tensor_core}, but {self.tensor_core or 'no tensor-core instruction'}")
        if self.specialized == 0:
            found.append("no setmaxnreg: the warps are not specialised")
        if self.wants_wide_loads and not (self.loads.get("16") or self.loads.get("TMA")):
            found.append(f"no load of 16 bytes, but {self.loads}")
        if self.budget is not None and (self.step is None or self.step > self.budget):
            found.append(f"{self.step} instructions a step, and its budget is {self.budget}")
        if self.occupancy == 0:
            found.append(f"{self.shared} bytes of shared memory and {self.registers} registers: no block fits")
        where = f"{self.kernel} ({self.made_by}, {self.target}, {self.config}, {self.dtypes})"
        return [f"{where}: {fault}" for fault in found]


def table(rows: list[Row]) -> str:
    head = ["kernel", "by", "target", "config", "dtypes", "warps", "registers", "spills", "shared", "occupancy",
            "tensor cores", "loads (bytes: count)", "instructions a step", "an element", "budget"]  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for r in rows:
        counts = (" ".join(f"{k}:{n}" for k, n in d.items()) or "none" for d in (r.tensor_core, r.loads))
        occupancy = "" if r.occupancy is None else f"{r.occupancy:.0%}"
        cells = (r.kernel, r.made_by, r.target, r.config, r.dtypes, r.warps, r.registers, r.spills, r.shared, occupancy)
        steps = (
            "" if r.step is None else r.step,
            "" if r.an_element is None else f"{r.an_element:.1f}",
            r.budget or "",
        )
        lines.append(f"| {' | '.join(map(str, (*cells, *counts, *steps)))} |")
    return "\n".join(lines) + "\n"
