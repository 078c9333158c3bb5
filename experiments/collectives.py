"""What a compiled program sends between devices, as its HLO text says: kinds, groups and bytes.

    found = collectives(jax.jit(step).lower(state, batch).compile())
    sum(one.moved_bytes * one.executions for one in found)

Bytes are those that one device receives, as rings move them: a lower limit of any algorithm, except
for an all-reduce, which is counted as a reduce-scatter and an all-gather.
"""

import math
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax

# Bytes that a device receives, from the bytes of its result and the devices of its group.
_RING: dict[str, Callable[[int, int], float]] = {
    "all-gather": lambda size, group: size * (group - 1) / group,
    "all-reduce": lambda size, group: 2 * size * (group - 1) / group,
    "reduce-scatter": lambda size, group: size * (group - 1),
    "collective-permute": lambda size, group: size,
    "all-to-all": lambda size, group: size * (group - 1) / group,
}
_UNKNOWN = ("collective-broadcast", "ragged-all-to-all")

_HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.-]+ = (?P<type>.*?) (?P<operation>[a-z][\w-]*)\(")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(calls|to_apply|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_LOOP = re.compile(r"condition=%?([\w.-]+), body=%?([\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_LISTED = re.compile(r"replica_groups=\{(\{[\d,]*\}|\})")
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}")
_MESH_AXIS = re.compile(r"'?([\w.-]+)'?=(\d+)")
_MESH_PART = re.compile(r"'?([\w.-]+)'?(?::\((\d+)\)(\d+))?")
_PAIRS = re.compile(r"source_target_pairs=\{(.*?)\}\}")


class Collective(NamedTuple):
    """One instruction of a program that sends arrays between devices.

    Attributes:
      kind: "all-gather", "all-reduce", "reduce-scatter", "collective-permute" or "all-to-all".
      group_size: devices that exchange with each other; of a permute its pairs.
      result_bytes: bytes of the result on one device.
      moved_bytes: bytes that one device receives in a ring, each time.
      executions: how often a run of the program comes to it; None inside a loop whose length the
        compiler does not know. A branch counts as taken.
    """

    kind: str
    group_size: int
    result_bytes: int
    moved_bytes: float
    executions: int | None


def collectives(compiled: jax.stages.Compiled) -> list[Collective]:
    """Returns what a compiled program sends between devices.

    Args:
      compiled: from `jax.jit(f).lower(...).compile()`.

    Returns:
      The collectives that a run comes to, from the entry on; those of a computation that is called
      twice stand there twice.

    Raises:
      ValueError: the program holds a collective that this module does not know.
    """
    text = compiled.as_text()
    if text is None:
        raise ValueError("compiled must have an HLO text, and this backend gives none.")
    return in_text(text)


def in_text(text: str) -> list[Collective]:
    """Returns what a program sends between devices, from its HLO text.

    Args:
      text: a whole module.

    Returns:
      As `collectives`.

    Raises:
      ValueError: as `collectives`, or the text has no entry.
    """
    computations: dict[str, list[str]] = {}
    entry, lines = None, []
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            lines = computations.setdefault(header.group(2), [])
            entry = header.group(2) if header.group(1) else entry
        elif _INSTRUCTION.match(line):
            lines.append(line)
    if entry is None:
        raise ValueError("text must be an HLO module with an ENTRY computation.")
    devices = math.prod(
        int(count) for count in re.findall(r"(?:replica_count|num_partitions)=(\d+)", text)
    )
    return list(_walk(computations, entry, 1, devices))


def _walk(
    computations: dict[str, list[str]], name: str, executions: int | None, devices: int
) -> Iterator[Collective]:
    for line in computations.get(name, ()):
        matched = _INSTRUCTION.match(line)
        assert matched is not None
        operation = matched["operation"]
        kind = operation.removesuffix("-start")
        if kind in _UNKNOWN:
            raise ValueError(f"The program holds a collective of unknown cost: {line.strip()}")
        if kind in _RING:
            group = _group_size(line, devices)
            size = _result_bytes(kind, matched["type"], started=operation != kind)
            moved = float(_RING[kind](size, group))
            yield Collective(kind, group, size, moved, executions)
        elif operation == "while":
            loop, trips = _LOOP.search(line), _TRIPS.search(line)
            assert loop is not None
            count = None
            if executions is not None and trips is not None:
                count = int(trips.group(1))
            for called, times in ((loop.group(1), 1), (loop.group(2), 0)):
                # The condition is asked once more than the body runs.
                runs = None if count is None or executions is None else executions * (count + times)
                yield from _walk(computations, called, runs, devices)
        else:
            for called in _called(line):
                yield from _walk(computations, called, executions, devices)


def _called(line: str) -> list[str]:
    branches = _BRANCHES.search(line)
    names = [name for _, name in _CALLED.findall(line)]
    if branches:
        names += [name.strip().removeprefix("%") for name in branches.group(1).split(",")]
    return names


def _elements(shape: str) -> list[str]:
    """The members of a tuple's type; of any other type itself."""
    if not shape.startswith("("):
        return [shape]
    parts, depth, start = [], 0, 1
    for place, letter in enumerate(shape):
        depth += letter in "([{"
        depth -= letter in ")]}"
        if (letter == "," and depth == 1) or depth == 0:
            parts.append(shape[start:place].strip())
            start = place + 1
        if depth == 0:
            break
    return parts


def _result_bytes(kind: str, shape: str, *, started: bool) -> int:
    # Two kinds carry their operands in the type of the start, before the result.
    if started and kind in ("all-gather", "collective-permute"):
        shape = _elements(shape)[1]
    return math.ceil(
        sum(_item_bytes(name) * _product(sizes) for name, sizes in _ARRAY.findall(shape))
    )


def _product(sizes: str) -> int:
    return math.prod(int(size) for size in sizes.split(",") if size)


def _item_bytes(name: str) -> float:
    if name in ("pred", "token"):
        return float(name == "pred")
    bits = re.search(r"[a-z](\d+)", name)
    if bits is None:
        raise ValueError(f"Unknown type of array elements in HLO: {name}.")
    return int(bits.group(1)) / 8


def _group_size(line: str, devices: int) -> int:
    pairs = _PAIRS.search(line)
    if pairs:
        return pairs.group(1).count("{")
    listed = _LISTED.search(line)
    if listed:
        # No groups at all: everyone is in one.
        return 1 + listed.group(1).count(",") if listed.group(1) != "}" else devices
    iota = _IOTA.search(line)
    if iota:
        return int(iota.group(2))
    named = _MESH.search(line)
    if named is None:
        raise ValueError(f"Unknown notation of device groups in HLO: {line.strip()}")
    sizes = {name: int(size) for name, size in _MESH_AXIS.findall(named.group(1))}
    return math.prod(
        # A part of an axis: the size before it, then its own.
        int(own) if own else sizes[name]
        for name, _, own in _MESH_PART.findall(named.group(2))
    )
