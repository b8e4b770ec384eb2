"""Allocator traces by PyTorch's own caching allocator on the null device.

    python allocator_traces.py check TRACE...    replay traces and compare with what they expect
    python allocator_traces.py record FOLDER     record the traces of KINDS

A trace is gzipped JSON lines: a header, then events ["a", id, bytes], ["f", id] and ["e"] (empty_cache). A header's
expected.oom, where there is one, is the allocation that failed: the last event, which got no memory.
"""

import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
KIB, MIB = 2**10, 2**20

# ---------------------------------------------------------------- in the process on the null device


def play(trace: dict[str, Any]) -> dict[str, Any]:
    """Drive the allocator with events, as far as memory lasts; what its statistics say then."""
    import torch

    torch.cuda.init()
    if trace.get("memory_fraction"):
        torch.cuda.set_per_process_memory_fraction(trace["memory_fraction"], 0)
    allocate, free = torch._C._cuda_cudaCachingAllocator_raw_alloc, torch._C._cuda_cudaCachingAllocator_raw_delete
    asked: list[tuple[int, int]] = []
    torch._C._cuda_attach_out_of_memory_observer(lambda device, wanted, used, left: asked.append((wanted, left)))
    addresses: dict[int, int] = {}
    oom = None
    for index, event in enumerate(trace["events"]):
        if event[0] == "a":
            try:
                addresses[event[1]] = allocate(event[2], 0)
            except torch.OutOfMemoryError:
                oom = {
                    "event": index,
                    "asked_bytes": event[2],
                    "rounded_bytes": asked[-1][0],
                    "free_bytes": asked[-1][1],
                }
                break
        elif event[0] == "f":
            free(addresses.pop(event[1]))
        else:
            torch.cuda.empty_cache()
    stats = torch.cuda.memory_stats()
    told = {
        "max_allocated_bytes": stats["allocated_bytes.all.peak"],
        "max_reserved_bytes": stats["reserved_bytes.all.peak"],
        "allocated_bytes": stats["allocated_bytes.all.current"],
        "reserved_bytes": stats["reserved_bytes.all.current"],
        "num_segments": stats["segment.all.current"],
        "num_alloc_retries": stats["num_alloc_retries"],
        "requested_bytes": stats["requested_bytes.all.current"],
        "max_requested_bytes": stats["requested_bytes.all.peak"],
        "active_bytes": stats["active_bytes.all.current"],
        "max_active_bytes": stats["active_bytes.all.peak"],
        "inactive_split_bytes": stats["inactive_split_bytes.all.current"],
        "max_inactive_split_bytes": stats["inactive_split_bytes.all.peak"],
        "max_num_segments": stats["segment.all.peak"],
        "num_segments_made": stats["segment.all.allocated"],
        "num_device_alloc": stats["num_device_alloc"],
        "num_device_free": stats["num_device_free"],
        "num_ooms": stats["num_ooms"],
    }
    return told | ({"oom": oom} if oom else {}) | {"torch": torch.__version__}


# ---------------------------------------------------------------- outside it


def on_device(trace: dict[str, Any], sm: int = 90) -> dict[str, Any]:
    """`play` in a process of its own, with the trace's capacity and settings."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTORCH_")}
    env |= {"NULLCUDA_CAPACITY_BYTES": str(trace["capacity_bytes"]), "NULLCUDA_SM": str(sm)}
    if trace["alloc_conf"]:
        env["PYTORCH_ALLOC_CONF"] = trace["alloc_conf"]
    command = [str(HERE / "run.sh"), sys.executable, __file__, "play"]
    done = subprocess.run(command, input=json.dumps(trace), text=True, capture_output=True, env=env)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout)


def read(path: Path) -> dict[str, Any]:
    with gzip.open(path, "rt") as lines:
        return json.loads(next(lines)) | {"events": [json.loads(line) for line in lines]}


def write(path: Path, header: dict[str, Any], events: list[Any]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in [header, *events])
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def check(paths: list[Path]) -> int:
    wrong = 0
    for path in paths:
        trace = read(path)
        told = on_device(trace)
        expected = trace["expected"]
        differing = {k: (v, told.get(k)) for k, v in expected.items() if told.get(k) != v}
        wrong += bool(differing)
        print(path.name, "differs: expected, got " + str(differing) if differing else "equal", flush=True)
    return wrong


# ---------------------------------------------------------------- events


def some_bytes(rng: random.Random, largest: int) -> int:
    """A size of a random class."""
    classes = [
        (0.10, 1, 511),
        (0.20, 512, 64 * KIB),
        (0.14, 64 * KIB, MIB),
        (0.22, MIB + 1, 10 * MIB - 1),
        (0.20, 10 * MIB, 40 * MIB),
        (0.10, 40 * MIB, 128 * MIB),
        (0.04, 128 * MIB, 300 * MIB),
    ]
    edges = [512, KIB, MIB, MIB + 1, MIB - 512, 2 * MIB, 10 * MIB, 10 * MIB - 1, 20 * MIB, 20 * MIB + 512]
    if rng.random() < 0.06:
        return min(largest, rng.choice(edges))
    _, low, high = rng.choices(classes, [c[0] for c in classes])[0]
    high = min(high, largest)
    return rng.randint(min(low, high), high)


def make_events(
    seed: int, *, live_bytes: int, count: int = 3000, largest: int = 300 * MIB, empty: int = 0
) -> list[Any]:
    """Allocations and frees around ``live_bytes``: some die young, some last, caches grow, whole waves go."""
    rng = random.Random(seed)
    events: list[Any] = []
    live: dict[int, int] = {}
    held = 0
    next_id = 0
    usual = [some_bytes(rng, largest) for _ in range(12)]  # sizes that come again and again, as layers' do

    def allocate(size: int) -> int:
        nonlocal held, next_id
        next_id += 1
        live[next_id] = size
        held += size
        events.append(["a", next_id, size])
        return next_id

    def free(which: int) -> None:
        nonlocal held
        held -= live.pop(which)
        events.append(["f", which])

    while len(events) < count:
        draw = rng.random()
        size = rng.choice(usual) if rng.random() < 0.4 else some_bytes(rng, largest)
        if empty and rng.random() < empty / count:
            events.append(["e"])
        elif held + size > live_bytes or (draw < 0.33 and live):
            if rng.random() < 0.02:  # a wave ends
                for which in list(live):
                    if len(events) < count and rng.random() < 0.8:
                        free(which)
            else:
                order = list(live)
                young = order[-min(len(order), 6) :]
                if order:
                    free(rng.choice(young if rng.random() < 0.5 else order))
                else:
                    live_bytes = max(live_bytes, size)
        elif draw > 0.985 and len(events) + 20 < count:  # a cache grows by concatenation: the new one beside the old
            length, step = rng.randint(200, 2000), rng.choice([1 * KIB, 4 * KIB, 16 * KIB])
            old = allocate(length * step)
            for _ in range(6):
                length += 1
                new = allocate(length * step)
                free(old)
                old = new
        else:
            allocate(size)
    return events[:count]


GIB = 2**30
PLENTY, SCARCE = 141 * GIB, 3 * GIB

KINDS: dict[str, dict[str, Any]] = {
    "expandable-00": {"conf": "expandable_segments:True", "capacity": PLENTY, "live": 4 * GIB},
    "expandable-01": {"conf": "expandable_segments:True", "capacity": PLENTY, "live": 1 * GIB},
    "expandable_retry-00": {"conf": "expandable_segments:True", "capacity": SCARCE, "live": int(2.8 * GIB)},
    "expandable_retry-01": {"conf": "expandable_segments:True", "capacity": SCARCE, "live": int(2.7 * GIB)},
    "gc-00": {"conf": "garbage_collection_threshold:0.6", "capacity": SCARCE, "live": int(2.1 * GIB), "fraction": 1.0},
    "gc-01": {
        "conf": "garbage_collection_threshold:0.6",
        "capacity": 4 * GIB,
        "live": int(1.6 * GIB),
        "fraction": 0.75,
    },
    "gc_nofraction-00": {"conf": "garbage_collection_threshold:0.6", "capacity": SCARCE, "live": int(1.9 * GIB)},
    "roundup_list-00": {
        "conf": "roundup_power2_divisions:[256:1,512:2,1024:4,>:8]",
        "capacity": PLENTY,
        "live": 3 * GIB,
    },
    "roundup_list-01": {"conf": "roundup_power2_divisions:[1:16,4:8,32:4,>:2]", "capacity": PLENTY, "live": 3 * GIB},
    "large_segment-00": {"conf": "large_segment_size_mb:64", "capacity": PLENTY, "live": 3 * GIB},
    "max_rounding-00": {
        "conf": "max_split_size_mb:64,max_non_split_rounding_mb:40",
        "capacity": PLENTY,
        "live": 3 * GIB,
    },
    "max_rounding_retry-00": {
        "conf": "max_split_size_mb:64,max_non_split_rounding_mb:40",
        "capacity": SCARCE,
        "live": int(2.1 * GIB),
    },
    "expandable_split-00": {
        "conf": "expandable_segments:True,max_split_size_mb:64",
        "capacity": SCARCE,
        "live": int(2.2 * GIB),
    },
    "gc_split-00": {
        "conf": "garbage_collection_threshold:0.7,max_split_size_mb:128",
        "capacity": SCARCE,
        "live": int(2.0 * GIB),
        "fraction": 1.0,
    },
    "gc_expandable-00": {
        "conf": "expandable_segments:True,garbage_collection_threshold:0.6",
        "capacity": SCARCE,
        "live": int(1.9 * GIB),
        "fraction": 1.0,
    },
    "roundup_expandable-00": {
        "conf": "expandable_segments:True,roundup_power2_divisions:4",
        "capacity": SCARCE,
        "live": int(2.0 * GIB),
    },
    "empty_cache-00": {"conf": None, "capacity": PLENTY, "live": 3 * GIB, "empty": 12},
    "empty_cache-01": {"conf": None, "capacity": SCARCE, "live": int(2.1 * GIB), "empty": 12},
    "empty_cache_expandable-00": {
        "conf": "expandable_segments:True",
        "capacity": SCARCE,
        "live": int(2.2 * GIB),
        "empty": 12,
    },
    "oom-00": {"conf": None, "capacity": 2 * GIB, "live": int(1.93 * GIB)},
    "oom-01": {"conf": "expandable_segments:True", "capacity": 2 * GIB, "live": int(2.2 * GIB)},
    "oom-02": {"conf": "max_split_size_mb:64", "capacity": 2 * GIB, "live": int(1.9 * GIB)},
    "fraction_oom-00": {"conf": None, "capacity": 4 * GIB, "live": int(1.93 * GIB), "fraction": 0.5},
}


def record(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, kind) in enumerate(KINDS.items()):
        if names and not any(name.startswith(n) for n in names):
            continue
        wants_oom = "oom" in name
        for attempt in range(40):  # the first seed that does what the name says
            events = make_events(1000 * (number + 1) + attempt, live_bytes=kind["live"], empty=kind.get("empty", 0))
            trace = {"capacity_bytes": kind["capacity"], "alloc_conf": kind["conf"], "events": events}
            if "fraction" in kind:
                trace["memory_fraction"] = kind["fraction"]
            told = on_device(trace)
            retried = "retry" not in name or told["num_alloc_retries"] > 1
            collects = name.startswith("gc-") or name.startswith("gc_split")
            collected = not collects or (told["num_device_free"] > 0 and told["num_alloc_retries"] == 0)
            died = wants_oom == ("oom" in told) and (not wants_oom or told["oom"]["event"] > 300)
            if died and retried and collected:
                break
        else:
            print(name, "no seed does it", told, flush=True)
            continue
        if wants_oom:
            events = events[: told["oom"]["event"] + 1]
        version = told.pop("torch")
        header = {"torch": version, **{k: v for k, v in trace.items() if k != "events"}, "expected": told}
        write(folder / f"{name}.jsonl.gz", header, events)
        print(name, len(events), "events, attempt", attempt, told, flush=True)


if __name__ == "__main__":
    match sys.argv[1]:
        case "play":
            print(json.dumps(play(json.load(sys.stdin))))
        case "check":
            sys.exit(check([Path(p) for p in sys.argv[2:]]))
        case "record":
            record(Path(sys.argv[2]), sys.argv[3:])
