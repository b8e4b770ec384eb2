"""How far long work is: what a line says, where it is drawn, and what workers tell."""

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from terminal import Terminal, screen
from tiny import tiny_config

from analytic.progress import Task, span
from analytic.request import Request
from profiler import telling
from profiler.meters import CpuMeter
from profiler.serve import Job, measure
from profiler.sparse import sparse_checkpoint
from profiler.virtual.search import largest, most_tries_after

ROOT = Path(__file__).parents[1]
HERE = {"PYTHONPATH": str(ROOT), "COLUMNS": ""}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_line_says_how_much_how_fast_and_how_long(clock: Clock) -> None:
    task = Task(what="load", total=290, unit="tensors", clock=clock)
    assert task.figures() == "0/290 tensors · 0:00"
    clock.now += 10
    task.done = 40
    # 40 in 10 s are 4 a second; the other 250 take 250 / 4 = 62.5 s
    assert task.figures() == "40/290 tensors · 4.0/s · 1:02 left"


def test_without_a_total_it_says_how_long_it_has_taken(clock: Clock) -> None:
    task = Task(what="build", clock=clock)
    clock.now += 3723
    assert task.figures() == "1:02:03"


@pytest.mark.parametrize(
    ("done", "seconds", "pace"),
    [(12, 3600, "12.0/h"), (1, 20, "3.0/min"), (3, 2, "1.5/s"), (99, 1, "99.0/s"), (7000, 2, "3,500/s")],
)
def test_a_pace_has_a_unit_of_time_in_which_something_happens(
    done: int, seconds: float, pace: str, clock: Clock
) -> None:
    task = Task(what="", total=10**4, clock=clock)
    clock.now += seconds
    task.done = done
    assert task.figures().split(" · ")[1] == pace


def test_what_was_done_before_tells_nothing_of_the_pace(clock: Clock) -> None:
    task = Task(what="sweep", total=62, done=60, clock=clock)
    clock.now += 30
    task.done = 61
    # one in 30 s, and one is left
    assert task.figures() == "61/62 · 2.0/min · 0:30 left"


def test_another_unit_begins_anew(clock: Clock) -> None:
    task = Task(what="trace", clock=clock)
    clock.now += 50
    task.at(400, 1400, "events")
    clock.now += 1
    task.at(900, 1400, "events")
    assert task.figures() == "900/1,400 events · 500/s · 0:01 left"


def test_time_that_is_known_better_and_notes_are_said(clock: Clock) -> None:
    task = Task(what="sweep", total=4, clock=clock, left_s=lambda: 95.0, note=lambda: "budget 5:00")
    assert task.figures() == "0/4 · 1:35 left · budget 5:00"


def test_items_are_counted_when_they_are_done(clock: Clock) -> None:
    task = Task(what="compare", clock=clock)
    seen = [(item, task.done, task.total) for item in task.over("abc")]
    assert seen == [("a", 0, 3), ("b", 1, 3), ("c", 2, 3)]
    assert task.done == 3


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3600, "1:00:00"), (-1, "0:00")])
def test_a_span_reads_as_a_clock(seconds: float, text: str) -> None:
    assert span(seconds) == text


# Where it is drawn

WORK = """
import sys, time
from analytic.progress import showing
with showing("outer", of="model", total=4, unit="things", after_s=0) as outer:
    outer.done = 1
    with showing("inner" + 90 * "x", after_s=0):
        time.sleep(0.5)
        print("a line that stays", file=sys.stderr)
        time.sleep(0.5)
print("rich" in sys.modules)
"""


def test_a_terminal_shows_lines_below_what_is_printed_and_keeps_none() -> None:
    terminal = Terminal(sys.executable, "-c", WORK, environment=HERE)
    terminal.until(r"outer · model .*1/4 things")
    terminal.until(r"innerxxx.*…")
    assert terminal.end() == 0
    assert max(len(line) for part in re.split("[\r\n]", terminal.text) for line in screen(part)) == 80
    assert terminal.visible == ["a line that stays", "True"]
    assert len({*re.findall("[⠀-⣿]", terminal.text)}) > 1  # it turns
    assert terminal.text.count("\x1b[?25h") == terminal.text.count("\x1b[?25l") == 1


@pytest.mark.parametrize(("variables", "is_coloured"), [({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True)])
def test_no_color_leaves_colours_out(variables: dict[str, str], is_coloured: bool) -> None:
    terminal = Terminal(sys.executable, "-c", WORK, environment={**HERE, **variables})
    assert terminal.end() == 0
    assert (re.search(r"\x1b\[[1-9][0-9;]*m", terminal.text) is not None) is is_coloured


@pytest.mark.parametrize("name", ["dumb", "unknown"])
def test_a_terminal_that_cannot_move_its_cursor_sees_no_line(name: str) -> None:
    terminal = Terminal(sys.executable, "-c", WORK, environment={**HERE, "TERM": name})
    assert terminal.end() == 0
    assert terminal.text == "a line that stays\r\nFalse\r\n"


def test_elsewhere_nothing_is_drawn_whatever_forces_colours() -> None:
    environment = {**HERE, "FORCE_COLOR": "1", "TERM": "xterm"}
    done = subprocess.run([sys.executable, "-c", WORK], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("False\n", "a line that stays\n")


def test_work_that_ends_soon_shows_nothing_and_loads_nothing() -> None:
    quick = (
        "import sys\nfrom analytic.progress import showing\nwith showing('quick'): pass\nprint('rich' in sys.modules)"
    )
    terminal = Terminal(sys.executable, "-c", quick, environment=HERE)
    assert terminal.end() == 0
    assert terminal.text == "False\r\n"


def test_what_a_model_is_called_moves_no_cursor() -> None:
    code = (
        "import time\nfrom analytic.progress import showing\n"
        "with showing('load', of='a\\x1b[2Jb\\nc', after_s=0): time.sleep(0.5)"
    )
    terminal = Terminal(sys.executable, "-c", code, environment=HERE)
    terminal.until(r"load · a\?\[2Jb\?c")
    assert terminal.end() == 0
    assert "\x1b[2J" not in terminal.text


def test_the_command_line_starts_without_what_draws() -> None:
    code = "import analytic.cli, sys; print({'rich', 'analytic.progress'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], env=HERE, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# What workers tell


def test_steps_are_told_ten_times_a_second_at_most(clock: Clock) -> None:
    told: list[Any] = []
    with telling.telling(lambda event, **fields: told.append((clock.now, event, fields)), clock=clock):
        for number in range(1000):
            clock.now += 0.01
            telling.reached(number, 1000, "events")
        telling.doing("allocator")
    telling.reached(0, 1, "heard by nobody")
    steps = [row for row in told if row[1] == "step"]
    assert 90 <= len(steps) <= 100  # 10 s
    assert min(b[0] - a[0] for a, b in pairwise(steps)) >= 0.1
    assert told[-1][1:] == ("doing", {"what": "allocator"})


def test_loading_tells_each_tensor_and_decoding_each_token(tmp_path: Path, one_thread: None) -> None:
    clock, told = Clock(), []

    def hurried() -> float:
        clock.now += 1
        return clock.now

    def hear(event: str, /, **fields: Any) -> None:
        if event == "step":
            told.append(tuple(fields.values()))

    with sparse_checkpoint(tiny_config("llama"), dtype="bfloat16", folder=tmp_path) as checkpoint:
        request = Request(dtype="bfloat16", prompt_tokens=8, output_tokens=5)
        with telling.telling(hear, clock=hurried):
            measure(Job(folder=str(checkpoint.path), request=request, device="cpu"), CpuMeter("cpu"), hear)
        stored = transformers.AutoModelForCausalLM.from_pretrained(checkpoint.path, dtype=torch.bfloat16).state_dict()
    assert [row for row in told if row[2] == "tensors"] == [(n, len(stored), "tensors") for n in range(len(stored))]
    # the prefill gives the first of five tokens, each step of decoding another
    assert [row for row in told if row[2] == "tokens"] == [(n, 5, "tokens") for n in (1, 2, 3, 4)]


def test_a_bar_of_transformers_is_left_as_it_was() -> None:
    before = transformers.utils.logging.set_tqdm_hook(None)
    try:
        from profiler.serve import counting_tensors

        with counting_tensors():
            assert transformers.utils.logging.set_tqdm_hook(None) is not None
        assert transformers.utils.logging.set_tqdm_hook(None) is None
    finally:
        transformers.utils.logging.set_tqdm_hook(before)


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 64, 100])
def test_a_search_says_how_many_tries_may_follow(limit: int) -> None:
    """The most that follows in any search that has come to the same place."""
    follow: dict[tuple[int, int, int | None], int] = {}
    for truth in range(limit + 1):
        places: list[tuple[int, int, int | None]] = []

        def survives(value: int, truth: int = truth, places: list[Any] = places) -> bool:
            good = max((place[0] for place in places if place[0] <= truth), default=0)
            bad = min((place[0] for place in places if place[0] > truth), default=None)
            places.append((value, good, bad))
            return value <= truth

        assert largest(survives, limit=limit) == truth
        for following, place in enumerate(reversed(places)):
            follow[place] = max(follow.get(place, 0), following)
    for (value, good, bad), most in follow.items():
        assert most_tries_after(value, good=good, bad=bad, limit=limit) == most
