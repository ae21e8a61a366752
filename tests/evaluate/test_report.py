"""Reports: the tables and the page that people read, the JSON that machines read."""

import json
import math
import re
from pathlib import Path

from PIL import Image

from pixdec.evaluate.report import plots
from pixdec.evaluate.report.html import PAPER_COLUMNS, write_report
from pixdec.evaluate.report.summary import Summary
from pixdec.evaluate.report.tables import Column
from pixdec.evaluate.results import Broken, Row
from pixdec.io.images import save_image

COLUMNS = {"psnr": Column("PSNR dB ↑", 2), "niqe": Column("NIQE (published model) ↓", 2, "of others")}


def summary(images: int = 3) -> Summary:
    rows = [
        Row(f"{index}.png", method, {"psnr": 24.0 + index + shift, **extra}, {}, f"{method}{index}", f"original{index}")
        for index in range(images)
        for method, shift, extra in (("ours", 1.0, {"niqe": 3.0 + index}), ("base | line", 0.0, {}))
    ]
    return Summary(
        "Kodak",
        rows,
        COLUMNS,
        {"ours": "Apache-2.0", "base | line": "MIT"},
        [Broken("9.png", "ours", "out of memory")],
        {"vae+lua": "not published"},
        {"ssim": "not installed"},
        {"command": "pixdec eval <x>"},
    )


def test_markdown() -> None:
    lines = summary().markdown().splitlines()
    assert lines[0] == "# Kodak"
    assert "- command: `pixdec eval <x>`" in lines
    head = lines.index("| method | n | PSNR dB ↑ | NIQE (published model) ↓ |")
    assert lines[head + 2 : head + 5] == [
        "| ours | 3, 1 failed | 26.00 ± 2.48 | 4.00 ± 2.48 |",
        "| base \\| line | 3 | 25.00 ± 2.48 | – |",
        "| vae+lua | 0 | – | not run: not published |",
    ]
    assert "| base \\| line | 3 | 1.00 ± 0.00 |" in lines  # of the differences
    assert "| 2.png | ours | 27.00 | 5.00 |" in lines


def test_json_is_strict_and_unrounded() -> None:
    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    few = Summary("t", [Row("a", "m", {"psnr": math.inf, "niqe": math.nan}, {}, "k")], COLUMNS, {"m": ""})
    document = json.loads(few.to_json(), parse_constant=refuse)
    assert document["methods"]["m"]["figures"] == {"a": {"psnr": "inf", "niqe": None}}
    assert document["methods"]["m"]["means"]["niqe"] == {
        "mean": None,
        "std": None,
        "n": 0,
        "failed": 0,
        "nan": 1,
        "interval": [None, None],
    }
    document = json.loads(summary().to_json())
    assert document["missing"] == {"vae+lua": "not published"}
    assert document["failures"] == [{"image": "9.png", "method": "ours", "metric": None, "reason": "out of memory"}]


def folder(path: Path) -> Path:
    (path / "crops").mkdir(parents=True)
    for row in summary().rows:
        for key in (row.key, row.original):
            save_image(Image.new("RGB", (24, 16), "teal"), path / "crops" / f"{key}.webp", settings={})
    return path


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    page = write_report(summary(), folder(tmp_path), sheets=2)
    text = page.read_text()
    assert not re.search(r"(src|href)=|https?://|@import", text)
    assert text.count("data:image/webp") == 8  # each crop once, also where several figures show it
    assert text.count('<figure class="d">') == 2
    assert "pixdec eval &lt;x&gt;" in text
    for word in ("not run: not published", "ssim", "out of memory", "of others", "3, 1 failed", "MIT"):
        assert word in text
    assert (tmp_path / "sheets" / "0.webp").is_file()


def test_the_papers_rows_stand_beside_ours(tmp_path: Path) -> None:
    text = write_report(summary(), folder(tmp_path)).read_text()
    grey = re.findall(r'<tr class="p"><td class="l">(.*?)</td><td class="l">(.*?)</tr>', text)
    assert len(grey) == 48 + 6 + 3
    cells = dict(zip(PAPER_COLUMNS, re.findall("<td>(.*?)</td>", dict(grey)["PiD (24/28)"]), strict=True))
    assert (cells["musiq_paq2piq"], cells["niqe"], cells["psnr"], cells["ms_compile"]) == (
        "74.00",
        "3.11",
        "–",
        "214.0",
    )


def test_times_of_the_folder_are_shown(tmp_path: Path) -> None:
    folder(tmp_path)
    rows = [{"method": "eager", "side": 1024, "status": "ok", "seconds": [1.0, 3.0, 2.0], "peak": 5e9}]
    (tmp_path / "bench.json").write_text(json.dumps({"facts": {}, "rows": rows}))
    text = write_report(summary(), tmp_path).read_text()
    assert '<td class="l">eager</td><td>1024²</td><td>2.000</td><td>5.00</td>' in text
    assert "PiD on GB200 (the paper)" in text
    assert "Judges" not in text


def test_rounds_of_judges_in_the_folder_are_shown(tmp_path: Path) -> None:
    (folder(tmp_path) / "judge.jsonl").write_text("no rounds")
    assert "<h2>Judges</h2><p>" in write_report(summary(), tmp_path).read_text()  # why not, in its place


def test_the_worst_come_first(tmp_path: Path) -> None:
    text = write_report(summary(), folder(tmp_path)).read_text()
    worst = {
        title: re.findall(r"<figcaption>(.*?)</figcaption>", figures)
        for title, figures in re.findall(r"<details><summary>(.*?)</summary>(.*?)</details>", text)
    }
    assert worst == {
        "PSNR dB ↑": ["0.png: 25.00", "1.png: 26.00", "2.png: 27.00"],
        "NIQE (published model) ↓": ["2.png: 5.00", "1.png: 4.00", "0.png: 3.00"],
    }


def test_quality_over_the_stop(tmp_path: Path) -> None:
    rows = [
        Row("a", f"{method} @{stop}", {"niqe": float(stop)}, {}, f"{method}{stop}")
        for method in ("x", "y")
        for stop in (3, 4)
    ]
    few = Summary("t", rows, COLUMNS, dict.fromkeys((row.method for row in rows), ""))
    text = write_report(few, tmp_path).read_text()
    assert "NIQE (published model) ↓ over the step of the stop" in text
    assert text.count("<polyline") == 2


def test_nothing_is_less_than_nothing() -> None:
    assert [Column("t", 2).text(value) for value in (-0.001, -0.01, math.nan, None)] == ["0.00", "-0.01", "NaN", "–"]


def test_plots_hold_their_points() -> None:
    svg = plots.intervals("t", [("a<b", 2.0, 1.0, 3.0), ("c", 5.0, math.nan, math.nan)], mark=2.5)
    assert "a&lt;b" in svg
    assert svg.count("<circle") == 2
    assert svg.count('class="i"') == 1
    xs = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', svg)]
    assert 16 + 3 * plots.LETTER < xs[0] < xs[1] < plots.WIDTH
    assert plots.intervals("t", [("a", math.nan, math.nan, math.nan)]) == ""
    assert plots.lines("t", {"a": [(1, 10), (4, 100)]}, "x", log=True).count("<circle") == 2
