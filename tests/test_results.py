"""The committed records: raw, readable, and the scoreboard is what they give."""

from pathlib import Path

from analytic.compare import compare
from analytic.measurement import read_measurements
from analytic.report.compare import scoreboard

RESULTS = Path(__file__).parents[1] / "results"


def test_the_scoreboard_is_what_the_committed_records_give() -> None:
    assert (RESULTS / "SCOREBOARD.md").read_text("utf-8") == scoreboard(compare(read_measurements([RESULTS])))


def test_every_record_lies_in_the_folder_of_its_device_under_its_own_id() -> None:
    for file in RESULTS.rglob("*.json"):
        (found,) = read_measurements([file])
        assert file.stem == found.id
        assert found.device.kind != "virtual"
        assert (file.parent.name == "cpu") == (found.device.kind == "cpu")


def test_weights_and_cache_that_were_measured_are_estimated_to_the_byte() -> None:
    rows = compare(read_measurements([RESULTS])).rows
    exact = [row for row in rows if row.figure in ("weights", "sequence_state")]
    assert len({row.measurement.model.architecture for row in exact}) >= 12
    assert [row.error_bytes for row in exact] == [0] * len(exact)
