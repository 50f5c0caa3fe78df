"""Figures on disk."""

import re

from benchmarks import results


def test_rows_come_back_under_one_header(tmp_path):
    path = tmp_path / "new" / "figures.csv"
    results.write(path, [{"method": "a", "ms": 1.5}, {"method": "b, c", "share": "0.1"}])
    assert path.read_text().splitlines()[0] == "method,ms,share"
    assert results.read(path) == [{"method": "a", "ms": "1.5", "share": ""}, {"method": "b, c", "ms": "", "share": "0.1"}]
    results.write(path, [{"method": "a"}])
    assert results.read(path) == [{"method": "a"}] and [file.name for file in path.parent.iterdir()] == ["figures.csv"]


def test_provenance_names_hardware_versions_commit_and_day():
    origin = results.provenance("cpu")
    assert list(origin) == ["hardware", "torch", "triton", "commit", "date"]
    assert origin["hardware"].startswith("CPU") and re.fullmatch(r"\d{4}-\d\d-\d\d", origin["date"])
    assert results.provenance("cpu", commit="abc1234")["commit"] == "abc1234"
    assert re.fullmatch(r"speed_cpu-\d+-threads\.csv", results.file_name("speed", "cpu"))
