"""Allocations of a device beside those of the virtual GPU, in their order: what matches, and what only one of them has.

On a GPU machine, with few layers and tokens, as every step is compared, and without the threads that read ahead:

    HF_DEACTIVATE_ASYNC_LOAD=1 ullage profile MODEL --device cuda --twin-layers 2 --prompt-tokens 256 \\
        --output-tokens 4 --snapshot a.pickle -o a.json

Anywhere: ``python benchmarks/streams.py a.json a.pickle``. Exits with 1 where the streams differ.
"""

import argparse
import json
import sys
from collections import Counter
from dataclasses import replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import NamedTuple

from analytic.compare import model_of
from analytic.errors import UllageError
from analytic.measurement import Measurement, read_measurement
from profiler.case import Case
from profiler.run import shapes_of
from profiler.virtual.generate import load_model, serve, virtual_gpu
from profiler.virtual.snapshot import Snapshot, read_snapshot
from profiler.virtual.target import PREFIX, find_target


class Event(NamedTuple):
    """An allocation, or, below zero, its end; and whose it is."""

    bytes: int
    owner: str = ""


def on_device(snapshot: Snapshot) -> list[Event]:
    """The events of a recording."""
    sizes: dict[int, int] = {}
    events = []
    for kind, *told in snapshot.events:
        if kind == "a":
            sizes[told[0]] = told[1]
            events.append(Event(told[1]))
        elif kind == "f":
            events.append(Event(-sizes.pop(told[0])))
    return _until_last_birth(events)


def on_virtual_gpu(measurement: Measurement) -> list[Event]:
    """The events of the same request on a virtual GPU of the same kind, every step traced."""
    request, measured, software = measurement.request, measurement.model, measurement.software
    model = model_of(replace(measurement, model=replace(measured, twin_layers=None)))
    case = Case(model=measured.id, request=request, twin_layers=measured.twin_layers)
    source = shapes_of(case, model, request.dtype)
    torch = software.get("target_torch") or software.get("torch")
    target = find_target(f"{PREFIX}{measurement.device.name}", torch=torch)
    with virtual_gpu(target, request) as recorder:
        loaded = load_model(source.config or {}, request, recorder, stored=source.stored)
        trace = serve(loaded, request, traced_tokens=request.output_tokens).program.trace
    births = trace.births
    events = [
        Event(births[n].bytes, f"{births[n].op} in {births[n].module or 'generate'}")
        if n >= 0
        else Event(-births[~n].bytes, f"the end of {births[~n].op} in {births[~n].module or 'generate'}")
        for n in trace.events
    ]
    return _until_last_birth([event for event in events if event.bytes])  # nobody asks the allocator for nothing


def differences(device: list[Event], virtual: list[Event]) -> tuple[int, Counter[tuple[str, int, str]]]:
    """How many events match, and the others: where they are, their bytes, and what the virtual GPU does there."""
    here, there = [event.bytes for event in device], [event.bytes for event in virtual]
    matched, found = 0, Counter[tuple[str, int, str]]()
    for kind, begin, end, other, other_end in SequenceMatcher(None, here, there, autojunk=False).get_opcodes():
        if kind == "equal":
            matched += end - begin
            continue
        after = virtual[other - 1].owner if other else "the beginning"
        found.update(("device", event.bytes, f"after {after}") for event in device[begin:end])
        found.update(("virtual", event.bytes, event.owner) for event in virtual[other:other_end])
    return matched, found


def _until_last_birth(events: list[Event]) -> list[Event]:
    """Without the release of what was returned, which only the recording has."""
    last = max((at for at, event in enumerate(events) if event.bytes > 0), default=-1)
    return events[: last + 1]


def main() -> int:
    """Compare a recording with the virtual GPU."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("record", type=Path, help="of ullage profile --device cuda")
    parser.add_argument("snapshot", type=Path, help="of the same run's --snapshot")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    asked = parser.parse_args()
    try:
        device, virtual = on_device(read_snapshot(asked.snapshot)), on_virtual_gpu(read_measurement(asked.record))
    except UllageError as error:
        print(f"streams: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""), file=sys.stderr)
        return 2
    matched, found = differences(device, virtual)
    if asked.json:
        rows = [{"only": where, "bytes": size, "at": at, "count": count} for (where, size, at), count in found.items()]
        told = {"device": len(device), "virtual": len(virtual), "matched": matched, "differences": rows}
        print(json.dumps(told, indent=1))
    else:
        print(f"{len(device):,} events on the device, {len(virtual):,} on the virtual GPU, {matched:,} match")
        for (where, size, at), count in found.most_common(40):
            print(f"{count:6,} x only on the {where:7} {size:+15,} bytes  {at}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
