"""The step on GPUs: Triton kernels, generated from programs, with the bits of the reference.

Tensors that are stored alike (same formats, rounding, dtypes, branch of the rule) share one launch, however many they
are. One table has their sizes and addresses, another their random keys and scalars, and only changes are uploaded. A
block of threads finds its tensor in the table by bisection and processes a few of its tiles
(:func:`halfulp.kernels.binding.step_tile`). Nothing is autotuned, since the number of elements per block depends only
on the block sizes. The first step costs one compilation for each kind of launch, later steps none. Nothing waits for
the device: skipped elements are counted there, and read on request.

For tests, tensors on the CPU run in Triton's interpreter (``backend="triton"`` with ``TRITON_INTERPRET=1``). See
``docs/kernels-gpu.md`` for what was verified and how.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from halfulp.kernels.binding import Binding, SlotKey, Step, Stored, plain
from halfulp.kernels.triton_launch import Batch, Kind, Member
from halfulp.kernels.triton_plan import Line, Plan, Tiling, float_as, state_as, tiling
from halfulp.kernels.triton_stages import LOAD, STORE, StagedKind, StagedMember
from halfulp.kernels.triton_sums import SumBatch, SumMember
from halfulp.numbers.log import log_once
from halfulp.rules.base import Rule
from halfulp.rules.program import Branches, Program, extent_of
from halfulp.rules.stages import Staged, as_staged
from halfulp.rules.tracing import ProgramError, traced

__all__ = ["measure", "prepare", "record", "refresh", "status", "step", "supports"]

OLDEST = (3, 6)
"""The oldest supported version. Triton 3.5 compiles ``div_rn`` and ``sqrt_rn`` into instructions that flush subnormal
numbers to zero."""
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
AnyMember = Member | StagedMember


def supports(rule: Rule, step: Step) -> str | None:
    """Return the reason why a step cannot be done here, or ``None`` if it can."""
    found = _notes(step).update.look(rule, step)
    return found if isinstance(found, str) else None


def step(rule: Rule, steps: list[Step]) -> None:
    """Do the step of every binding, with one launch for each set of tensors that are stored alike."""
    steps = [one for one in steps if one.binding.shape.numel()]
    if steps:
        prepare(rule, steps).launch()


def prepare(rule: Rule, steps: list[Step]) -> Batch:
    """Do the host's part of a step: update the tables on the device for launches over the bindings."""
    members = [_member(_notes(one).update.look(rule, one)) for one in steps]
    notes = _notes(steps[0])
    if notes.batch is None or not notes.batch.serves(steps, members):
        notes.batch = Batch(steps, members)
    notes.batch.fill(steps)
    return notes.batch


def measure(rule: Rule, steps: list[Step]) -> list[dict[str, float] | None]:
    """Return what a rule measures of each binding (``None`` where no kernel can), waiting for the device once."""
    looks = [_notes(one).measure.look(rule, one) if one.binding.shape.numel() else "" for one in steps]
    members = [found for found in looks if not isinstance(found, str)]
    able = [one for one, found in zip(steps, looks, strict=True) if not isinstance(found, str)]
    for reason in {found for found in looks if isinstance(found, str) and found}:
        log_once(f"sums by 'triton' not used: {reason}")
    if not members:
        return [None] * len(steps)
    notes = _notes(able[0])
    if notes.sums is None or not notes.sums.serves(able, members):
        notes.sums = SumBatch(able, members)
    sums = iter(notes.sums.read(able))
    return [None if isinstance(found, str) else next(sums) for found in looks]


def record(rule: Rule, steps: list[Step]) -> Batch:
    """Launch the kernels of steps while a CUDA graph is being recorded. :func:`refresh` fills their tables later.

    Raises
    ------
    RuntimeError
        If these steps were not done before in the same way, since a graph must not allocate tables or load kernels.
    """
    steps = [one for one in steps if one.binding.shape.numel()]
    members = [_member(_notes(one).update.look(rule, one)) for one in steps]
    batch = _notes(steps[0]).batch if steps else Batch([], [])
    if batch is None or not batch.serves(steps, members) or any(plain(x) is not x for s in steps for x in s.inputs):
        raise RuntimeError(
            "a step can be recorded after ordinary steps of the same parameters, with contiguous gradients of the same "
            "dtypes and alignment: make one or two before"
        )
    batch.launch()
    return batch


def refresh(rule: Rule, steps: list[Step], recorded: Batch) -> None:
    """Update the tables of recorded kernels for these steps.

    Raises
    ------
    RuntimeError
        If they were recorded for other tensors or for another branch of the rule.
    """
    steps = [one for one in steps if one.binding.shape.numel()]
    members = [_member(_notes(one).update.look(rule, one)) for one in steps]
    if not recorded.serves(steps, members):
        raise RuntimeError(
            f"the recorded step of {rule.name!r} is not the next step: a state or parameter is another tensor, or a "
            "hyper-parameter chooses another branch of the rule; make an ordinary step and record again"
        )
    recorded.fill(steps)


def _member(found: AnyMember | str) -> AnyMember:
    if isinstance(found, str):
        raise RuntimeError(f"the Triton backend cannot do this step: {found}")
    return found


class _Look:
    """A binding as a member of a launch for one of its rule's functions, cached with the properties it depends on."""

    def __init__(self, *, measuring: bool) -> None:
        self.measuring = measuring
        self.seen: tuple[Any, ...] = ()
        self.found: AnyMember | str = ""
        self.branches: Branches | str | None = None

    def look(self, rule: Rule, step: Step) -> AnyMember | str:
        """Return the member, found again if something has changed, or the reason why it cannot be one."""
        if self.branches is None:
            self.branches = _branches_or_why_not(rule, step, measuring=self.measuring)
        if isinstance(self.branches, str):
            return self.branches
        branch = self.branches.number(step.scalars)
        wide = all(x.data_ptr() % 16 == 0 or plain(x) is not x for x in step.inputs)  # a copy is aligned
        seen = (
            branch, step.param_rounding, step.maximize, wide, step.skipped.data_ptr(), *(x.dtype for x in step.inputs),
        )  # fmt: skip
        if seen != self.seen:
            self.seen = seen
            self.found = _not_here(step) or found_member(self.branches.programs[branch], step, wide)
        return self.found


class _Notes:
    """The cached data of a binding."""

    def __init__(self) -> None:
        self.update, self.measure = _Look(measuring=False), _Look(measuring=True)
        self.batch: Batch | None = None
        """The batch of the step in which this binding is the first."""
        self.sums: SumBatch | None = None
        """The same for measurements."""


def found_member(program: Program | Staged, step: Step, wide: bool) -> AnyMember | str:
    """Return a binding as a member of a launch or of a course of launches, or why it cannot be one."""
    if isinstance(program, Program) and program.sums and program.numbers:
        return "sums of terms that depend on a state of one number"
    if isinstance(program, Program) and not program.numbers:
        return member_of(program, step, wide)
    return staged_member(as_staged(program) if isinstance(program, Program) else program.decided, step, wide)


def staged_member(staged: Staged, step: Step, wide: bool) -> StagedMember | str:
    """Return a binding as a member of a course of launches, or why it cannot be one."""
    stored = {s.slot.name: (s, key) for s, key in zip(step.binding.states, step.keys, strict=False)}
    small = [stored[name] for name in (*staged.numbers, *dict(staged.vectors))]
    found: list[list[Member]] = []
    for made in (
        [member_of(program, step, wide, whole=True) for program in staged.programs],
        [_of_state(LOAD, state, step, key) for state, key in small],
        [_of_state(STORE, state, step, key) for state, key in small],
    ):
        for one in made:
            if isinstance(one, str):
                return one
        found.append([one for one in made if not isinstance(one, str)])
    passes, loads, stores = map(tuple, found)
    kind = _interned(StagedKind(step.binding.device, staged, tuple(one.kind for one in passes)))
    return StagedMember(kind, passes, step.binding.shape, loads, stores)


def _of_state(program: Program, state: Stored, step: Step, key: SlotKey) -> Member | str:
    """Return a state that is a number or a vector as a member of a launch that loads or stores it."""
    state = replace(state, slot=replace(state.slot, name=program.states[0]))
    binding = Binding(step.binding.rule, None, (state,), step.binding.first_element)
    inputs, skipped = _scratch(binding.device)
    return member_of(program, Step(binding, (inputs,), {}, [key], skipped=skipped), wide=False, whole=program is STORE)


@cache
def _scratch(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return an fp32 tensor that nothing reads, and a counter of elements that were counted elsewhere."""
    return (
        torch.zeros((), dtype=torch.float32, device=device), torch.zeros((), dtype=torch.int64, device=device),
    )  # fmt: skip


def member_of(program: Program, step: Step, wide: bool, *, whole: bool = False) -> Member | str:
    """Return a binding as a member of a launch, or why it cannot be one.

    `wide` means inputs aligned to 16 bytes, and `whole` that a flag decides whether the tensor is updated.
    """
    binding = step.binding
    named = {s.slot.name: s.quantizer for s in binding.states}
    quantizers = tuple(named[name] for name in program.states)
    cut = tiling(
        binding.shape, quantizers, stretches=bool(program.sums), by_row=bool(program.rows or program.columns),
        down=any(s.kind == "columns" for s in program.sums), row_stride=binding.row_stride,
    )  # fmt: skip
    if isinstance(cut, str):
        return cut
    quantized = [state_as(q, cut.tile, cut.padded, block) for q, block in zip(quantizers, cut.blocks, strict=True)]
    param = float_as((step.inputs[-1] if binding.param is None else binding.param).dtype, step.param_rounding)
    grad = float_as(step.inputs[0].dtype, "nearest")
    wide = wide and all(address % 16 == 0 for address in binding.seen[0])
    plan = Plan(
        maximize=step.maximize,
        stochastic=param.stochastic or any(s.stochastic for s in quantized),
        tile=cut.tile,
        padded=cut.padded,
        tiles=cut.tiles_a_program,
        aligned=wide and cut.cols % 32 == 0 and cut.tile % 32 == 0,
        flat=cut.flat,
        far=binding.first_element + cut.rows * max(cut.cols, binding.row_stride or 0) > 1 << 32,
        down=cut.down,
        whole=whole and not program.sums,
        master=0 if binding.master is None else 8 * binding.master.element_size(),
    )
    formats = tuple(q.format for q in quantizers)
    kind = _interned(Kind(binding.device, program, plan, (*quantized, grad, param), formats))
    return (SumMember if program.sums else Member)(kind, cut, _line(step, program, cut))


def _branches_or_why_not(rule: Rule, step: Step, *, measuring: bool) -> Branches | str:
    """Return the programs of a binding, or the reason why this backend has none."""
    reason = _no_device(step.binding.device.type)
    if reason is not None:
        return reason
    try:
        return branches_of(rule, step.binding, measuring=measuring)
    except ProgramError as error:
        return f"rule {rule.name!r} has no program: {error}"


def _not_here(step: Step) -> str | None:
    """Return the reason why this backend cannot do a step, before looking at its tiles."""
    binding = step.binding
    dtypes = [x.dtype for x in (*step.inputs, *([] if binding.param is None else [binding.param]))]
    if any(dtype not in _DTYPES for dtype in dtypes):
        return f"parameter or gradient in {', '.join(map(str, dtypes))}; kernels read {', '.join(map(str, _DTYPES))}"
    if not all(plain(x) is x for x in binding.tensors):
        return "parameter or state that is not contiguous"
    if any(x.device != binding.device for x in (*binding.tensors, *step.inputs, step.skipped)):
        return "parameter, gradient and states on different devices"
    return None


def branches_of(rule: Rule, binding: Binding, *, measuring: bool) -> Branches:
    """Return the programs of a binding's update or of its measurement.

    Raises
    ------
    ProgramError
        If it is not a program.
    """
    function = rule.measure if measuring else rule.update
    assert function is not None
    for state in binding.states:
        if extent_of(state.slot, len(binding.shape)) == "tensor" and state.shape != binding.shape:
            raise ProgramError(f"{state.slot.name!r} has another shape than its parameter")
    return traced(rule, function, tuple(s.slot for s in binding.states), len(binding.shape))


def _line(step: Step, program: Program, cut: Tiling) -> list[int]:
    """Return a tensor's line of the table: sizes, addresses and lanes. The launch and the step add the rest."""
    binding = step.binding
    place = Line(len(program.states))
    stored = {s.slot.name: (s, key[2]) for s, key in zip(binding.states, step.keys, strict=False)}
    line = [0] * place.length
    line[place.ROWS], line[place.COLS], line[place.TILES_A_ROW] = cut.rows, cut.cols, cut.tiles_a_row
    line[place.FIRST_ELEMENT] = binding.first_element
    line[place.ROW_STRIDE] = cut.cols if binding.row_stride is None else binding.row_stride
    line[place.SKIPPED] = step.skipped.data_ptr()
    line[place.PARAM] = 0 if binding.param is None else binding.seen[0][0]
    line[place.PARAM_LANE] = step.keys[-1][2]
    line[place.MASTER] = 0 if binding.master is None else binding.master.data_ptr()
    for k, (state, lane) in enumerate(stored[name] for name in program.states):
        scale = 0 if state.scale is None else state.scale.data_ptr()
        line[place.state(k) : place.state(k) + 3] = (state.codes.data_ptr(), scale, lane)
    return line


@cache
def _interned(kind: Any) -> Any:
    """Return one object for equal kinds, so that they can be compared by identity."""
    return kind


def status() -> str:
    """Return whether this backend can run here, or the reason why not."""
    return _no_device("cuda" if torch.cuda.is_available() else "cpu") or "available"


@cache
def _no_device(kind: str) -> str | None:
    """Return the reason why tensors on a device type cannot be used."""
    if kind not in ("cuda", "cpu"):
        return f"tensor on {kind!r}; Triton kernels run on 'cuda'"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install 'halfulp[triton]'"
    if kind == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "tensor on 'cpu': only Triton's interpreter runs there, set TRITON_INTERPRET=1 before the first import"
    if kind == "cuda" and torch.version.hip is not None:
        return "ROCm: the code for gfx942 was examined, and a launch there was never tried"
    import triton

    if tuple(int(n) for n in triton.__version__.split(".")[:2]) < OLDEST:
        return f"triton {triton.__version__} flushes subnormal numbers in divisions; version 3.6 or newer does not"
    return None


def _notes(step: Step) -> _Notes:
    notes = step.binding.plan
    if type(notes) is not _Notes:
        notes = step.binding.plan = _Notes()
    return notes
