"""The evaluation from end to end with the bundled models on small pictures: figures, files, going on, sheets."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixdec.decoder import PixelDecoder
from pixdec.encoder import ImageEncoder
from pixdec.evaluate.methods import Lineup, open_lineup
from pixdec.evaluate.metrics.table import NEEDS, OWN, Metric, Metrics, Shown, measure
from pixdec.evaluate.photographs import Preparation, crop_middle, find_photographs, photograph_sources
from pixdec.evaluate.report.html import write_report
from pixdec.evaluate.report.sheets import GAP, LABEL, most_detailed
from pixdec.evaluate.report.summary import compare_runs, summarize
from pixdec.evaluate.report.tables import sets_table
from pixdec.evaluate.results import Broken, Row, append_result, read_results
from pixdec.evaluate.run import Place, evaluate, sets_of
from pixdec.evaluate.sets import Features
from pixdec.io.images import read_image, resize, to_pil, to_tensor
from pixdec.latents import Latent, get_space
from pixdec.models.tiny_vae import TinyVAE, unpack
from pixdec.train.data.degrade import degrade

METHODS = ("pixdec-nano:1", "tiny+lanczos", "bicubic")


def own(*names: str) -> Metrics:
    return Metrics(tuple(OWN[name] for name in names), {})


QUICK = own("psnr")
EVERY = own(*(name for name in OWN if name not in NEEDS or name in ("ssim", "ssim_same")))
SIDE = (192, 128)


def picture(path: Path, seed: int, size: tuple[int, int] = SIDE) -> Path:
    coarse = np.random.default_rng(seed).integers(60, 200, (8, 12, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    picture(folder / "a.png", 0)
    picture(folder / "sub" / "b.png", 1)
    return folder


@pytest.fixture(scope="module")
def lineup() -> Lineup:
    return open_lineup(METHODS, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def whole(photos: Path, lineup: Lineup, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    """The folder of a run with all of our metrics that was not interrupted, and its rows."""
    out = tmp_path_factory.mktemp("whole") / "out"
    return out, rows_of(photos, lineup, out, EVERY)


def rows_of(
    photos: Path,
    lineup: Lineup,
    out: Path,
    metrics: Metrics = QUICK,
    how: Preparation | None = None,
    features: Features | None = None,
) -> list[Row]:
    sources = photograph_sources(find_photographs(photos, out), lineup, how)
    outcomes = list(evaluate(sources, lineup, metrics, Place(out, features), (how or Preparation()).seed))
    assert all(isinstance(outcome, Row) for outcome in outcomes), outcomes
    return [outcome for outcome in outcomes if isinstance(outcome, Row)]


def without_time(rows: Sequence[Row]) -> list[dict[str, float]]:
    return [{name: value for name, value in row.figures.items() if name != "seconds"} for row in rows]


def test_figures_are_those_of_each_method_alone_on_the_same_latent(photos: Path, whole: tuple[Path, list[Row]]) -> None:
    rows = {(row.image, row.method): row for row in whole[1]}
    assert list(rows) == [(image, method) for image in ("a.png", "sub/b.png") for method in METHODS]
    assert not any(row.cropped or row.earlier for row in rows.values())
    for name in ("a.png", "sub/b.png"):
        original = read_image(photos / name)
        low = degrade(to_tensor(original), 4)
        latent = ImageEncoder.from_pretrained().encode(low)
        decoder = PixelDecoder.from_pretrained("pixdec-nano", device="cpu", dtype=torch.float32)
        tiny = ImageEncoder.from_pretrained().vae
        assert isinstance(tiny, TinyVAE)
        with torch.no_grad():
            small = tiny.decoder(unpack(latent.tensor)).clamp(-1, 1)
        *_, last = decoder.stream(Latent(small, get_space("rgb")), seed=0, steps=1)
        expected = {
            "pixdec-nano:1": last.x0,
            "tiny+lanczos": resize(small, SIDE[1], SIDE[0], how="lanczos"),
            "bicubic": resize(low, SIDE[1], SIDE[0]),
        }
        for method, image in expected.items():
            figures = dict(rows[name, method].figures)
            assert figures.pop("seconds") > 0
            assert list(figures) == [name for name in EVERY.names if name != "legibility"]
            assert figures == measure(Shown(to_pil(image)[0], original, to_pil(low)[0]), EVERY.chosen)[0]


def test_the_same_again_gives_the_same_figures(
    photos: Path, lineup: Lineup, whole: tuple[Path, list[Row]], tmp_path: Path
) -> None:
    again = rows_of(photos, lineup, tmp_path / "out", EVERY)
    assert without_time(again) == without_time(whole[1])


def test_noise_and_seed_change_the_figures_and_are_measured_anew(photos: Path, lineup: Lineup, tmp_path: Path) -> None:
    seen: list[list[dict[str, float]]] = []
    for settings in (Preparation(), Preparation(sigma=0.3), Preparation(sigma=0.3, seed=1)):
        rows = rows_of(photos, lineup, tmp_path, QUICK, settings)
        assert not any(row.earlier for row in rows)
        assert without_time(rows) not in seen
        seen.append(without_time(rows))
    back = rows_of(photos, lineup, tmp_path, QUICK, Preparation(sigma=0.3))
    assert all(row.earlier for row in back)
    assert without_time(back) == seen[1]


def test_an_interrupted_run_goes_on(
    photos: Path, lineup: Lineup, whole: tuple[Path, list[Row]], tmp_path: Path
) -> None:
    run = evaluate(photograph_sources(find_photographs(photos, tmp_path), lineup), lineup, EVERY, tmp_path)
    assert len(list(islice(run, 4))) == 4
    run.close()
    rows_file = tmp_path / "results.jsonl"
    assert len(rows_file.read_text().splitlines()) == 4
    with rows_file.open("a") as file:
        file.write('{"key": "0123", "figu')  # as if it was ended within a line
    rows = rows_of(photos, lineup, tmp_path, EVERY)
    assert [row.earlier for row in rows] == [True] * 4 + [False] * 2
    assert without_time(rows) == without_time(whole[1])
    assert len([json.loads(line) for line in rows_file.read_text().splitlines()]) == 6
    crops = [sorted(path.name for path in (out / "crops").iterdir()) for out in (tmp_path, whole[0])]
    assert crops[0] == crops[1]
    assert len(crops[0]) == 2 * (1 + len(METHODS))


def test_another_method_or_metric_is_added_to_what_is_there(photos: Path, lineup: Lineup, tmp_path: Path) -> None:
    first = Lineup(lineup.methods[1:2], lineup.encoder, lineup.scale, lineup.device)
    rows_of(photos, first, tmp_path)
    assert [row.earlier for row in rows_of(photos, lineup, tmp_path)] == [False, True, False] * 2
    more = rows_of(photos, first, tmp_path, own("psnr", "ssim"))
    assert not any(row.earlier for row in more)
    assert [row.figures["psnr"] for row in more] == [row.figures["psnr"] for row in rows_of(photos, first, tmp_path)]
    assert all(row.earlier for row in rows_of(photos, first, tmp_path))  # psnr is still there


def test_what_a_row_is_known_by(photos: Path, lineup: Lineup, tmp_path: Path) -> None:
    """A photograph that is changed is measured anew, one that is renamed is not."""
    copy = tmp_path / "photos"
    (copy).mkdir()
    (copy / "a.png").write_bytes((photos / "a.png").read_bytes())
    baseline = Lineup(lineup.methods[2:], lineup.encoder, lineup.scale, lineup.device)
    rows_of(copy, baseline, tmp_path / "out")
    (copy / "a.png").rename(copy / "c.png")
    (row,) = rows_of(copy, baseline, tmp_path / "out")
    assert (row.image, row.earlier) == ("c.png", True)
    picture(copy / "c.png", 5)
    (row,) = rows_of(copy, baseline, tmp_path / "out")
    assert not row.earlier


def test_rows_are_whole_lines_and_hold_infinity_and_nan(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert read_results(path) == {}
    append_result(path, Row("a", "m", {"psnr": math.inf, "niqe": math.nan}, {"ssim": "too small"}, "k"), {})
    append_result(path, Row("a", "m", {"ssim": 1.0}, {}, "k"), {})
    found = read_results(path)
    assert math.isnan(found["k"].pop("niqe"))
    assert found == {"k": {"psnr": math.inf, "ssim": 1.0}}
    path.write_text('{"key": "k"}\n')
    with pytest.raises(ValueError, match="line 1 is no row of figures; delete the file"):
        read_results(path)


def test_report_and_sheets(photos: Path, lineup: Lineup, whole: tuple[Path, list[Row]]) -> None:
    out, rows = whole
    summary = summarize("photos", rows, lineup, EVERY, {"command": "pixdec eval"})
    page = write_report(summary, out)
    document = json.loads((out / "summary.json").read_text())
    scores = [row.figures["psnr"] for row in rows if row.method == "bicubic"]
    found = document["methods"]["bicubic"]["means"]["psnr"]
    assert (found["mean"], found["n"], found["failed"]) == (pytest.approx(np.mean(scores)), 2, 0)
    assert document["methods"]["bicubic"]["figures"]["a.png"]["psnr"] == scores[0]
    text = (out / "table.md").read_text()
    assert "| method | n | PSNR dB ↑ | SSIM ↑ |" in text
    assert f"| bicubic | 2 | {np.mean(scores):.2f} ± " in text
    assert "## pixdec-nano:1 less the others, image by image" in text
    assert "![sub/b.png](<sheets/sub/b.webp>)" in text
    original = read_image(photos / "a.png")
    sheet = read_image(out / "sheets" / "a.webp")
    assert sheet.size == (4 * SIDE[0] + 3 * GAP, LABEL + SIDE[1])
    shown = sheet.crop((0, LABEL, SIDE[0], LABEL + SIDE[1]))
    assert np.array_equal(np.asarray(shown), np.asarray(original))  # at 100 %
    last = sheet.crop((3 * (SIDE[0] + GAP), LABEL, sheet.width, sheet.height))
    bicubic = to_pil(resize(degrade(to_tensor(original), 4), SIDE[1], SIDE[0]))[0]
    assert np.array_equal(np.asarray(last), np.asarray(bicubic))
    labels = np.asarray(sheet.crop((0, 0, sheet.width, LABEL)))
    assert labels.min() < 100 < labels.mean()
    before = page.read_bytes()
    assert write_report(summary, out).read_bytes() == before


def test_a_crop_that_is_missing_is_made_again(photos: Path, lineup: Lineup, tmp_path: Path) -> None:
    rows = rows_of(photos, lineup, tmp_path)
    crop = tmp_path / "crops" / f"{rows[1].key}.webp"
    before = crop.read_bytes()
    crop.unlink()
    assert [row.earlier for row in rows_of(photos, lineup, tmp_path)] == [True, False, *[True] * 4]
    assert crop.read_bytes() == before


def test_two_runs_differ_image_by_image(photos: Path, lineup: Lineup, tmp_path: Path) -> None:
    figures = list[list[float]]()
    for name, sigma in (("a", 0.0), ("b", 0.2)):
        rows = rows_of(photos, lineup, tmp_path / name, QUICK, Preparation(sigma))
        write_report(summarize(name, rows, lineup, QUICK), tmp_path / name)
        figures.append([row.figures["psnr"] for row in rows if row.method == METHODS[0]])
    lines, document = compare_runs(tmp_path / "a", tmp_path / "b")
    assert list(document) == list(METHODS)
    found = document[METHODS[0]]["psnr"]
    assert (found["n"], found["mean"]) == (2, pytest.approx(np.mean(np.subtract(*figures))))
    assert document["bicubic"]["psnr"]["mean"] == 0  # which sees no latent
    assert len(lines) == 5
    (tmp_path / "b" / "summary.json").write_text("{}")
    with pytest.raises(ValueError, match="expected the folder of a run"):
        compare_runs(tmp_path / "a", tmp_path / "b")


def test_the_original_is_measured_by_what_compares_with_nothing(photos: Path, tmp_path: Path) -> None:
    lineup = open_lineup(["original"], device="cpu")
    rows = rows_of(photos, lineup, tmp_path, own("psnr", "pattern", "consistency"))
    assert all(set(row.figures) == {"pattern", "seconds"} for row in rows)
    assert all(row.earlier for row in rows_of(photos, lineup, tmp_path, own("psnr", "pattern", "consistency")))


def test_sets_of_images(photos: Path, lineup: Lineup, tmp_path: Path) -> None:
    """The mean of each color, as a network whose features are few."""
    colors = Features("colors", "Colors", "public", 64, lambda images: images.float().mean((2, 3)))
    rows = rows_of(photos, lineup, tmp_path, features=colors)
    found = sets_of(rows, tmp_path, colors)
    assert found["bicubic"]["images"] == 2
    assert found["bicubic"]["patches"] == 12
    assert 0 <= found["bicubic"]["frechet (Colors)"] < 1  # these colors are right
    head, _, row = sets_table({"original": {"frechet (Colors)": -2e-14, "patch_kid (Colors)": 0.25}}).markdown()
    assert head == "| method | Fréchet distance (Colors) ↓ | KID of patches (Colors) ↓ |"
    assert row == "| original | 0 | 0.25 |"
    assert all(row.earlier for row in rows_of(photos, lineup, tmp_path, features=colors))


def test_the_most_detailed_piece() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    faint = Image.fromarray(128 + noise // 8)
    for place, elsewhere in (((64, 32), (352, 240)), ((352, 240), (64, 32))):
        image = Image.new("RGB", (640, 512), "grey")
        image.paste(faint, elsewhere)
        image.paste(Image.fromarray(noise), place)
        assert most_detailed(image) == (*place, place[0] + 256, place[1] + 256)
    assert most_detailed(Image.new("RGB", (100, 300))) == (0, 0, 100, 256)


def test_broken_images_are_told_and_the_others_measured(lineup: Lineup, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    picture(photos / "a.png", 0, (150, 200))
    picture(photos / "b.png", 1, (40, 200))
    (photos / "c.png").write_bytes(picture(photos / "c.png", 2).read_bytes()[:-300])
    (photos / "d.png").write_text("no image")
    picture(photos / "e.png", 3)
    metrics = own("psnr", "pattern")
    sources = photograph_sources(find_photographs(photos, tmp_path), lineup)
    outcomes = list(evaluate(sources, lineup, metrics, tmp_path / "out"))
    broken = {outcome.image: outcome for outcome in outcomes if isinstance(outcome, Broken) and outcome.method is None}
    assert list(broken) == ["b.png", "c.png", "d.png"]
    assert "40x200 pixels; expected sides of at least 64" in broken["b.png"].reason
    assert "truncated" in broken["c.png"].reason
    assert all("\n" not in each.reason for each in broken.values())
    # a.png is cropped to 128x192
    rows = [outcome for outcome in outcomes if isinstance(outcome, Row)]
    assert [(row.image, row.cropped) for row in rows] == [("a.png", True)] * 3 + [("e.png", False)] * 3
    summary = summarize("t", outcomes, lineup, metrics)
    assert summary.images == ["a.png", "e.png"]
    assert summary.facts["cropped"].startswith("1 of 2 images, in the middle, to sides that are multiples of 64")
    mean = summary.means["bicubic"]["psnr"]
    assert (mean.n, mean.failed, mean.withheld) == (2, 3, True)
    assert "| bicubic | 2, 3 failed | no mean |" in "\n".join(summary.table().markdown())
    assert ("bicubic", "psnr: 3 of 5 images have no figure") in summary.withheld
    told = replace(summarize("t", outcomes, lineup, metrics), tolerated=0.6)
    assert not told.withheld
    assert "| bicubic | 2, 3 failed |" in "\n".join(told.table().markdown())
    failures = json.loads(summary.to_json())["failures"]
    assert [(each["image"], each["method"]) for each in failures[:2]] == [("b.png", name) for name in METHODS[:2]]


def test_the_failure_of_a_metric_is_no_other_ones(photos: Path, lineup: Lineup, tmp_path: Path) -> None:
    """It is counted, and tried again; NaN is counted too, and kept."""
    faults = ["out of order", ""]

    def score(shown: Shown) -> float:
        if faults[0]:
            raise ValueError(faults[0])
        return 1.0

    metrics = Metrics(
        (OWN["psnr"], Metric("odd", "odd", "↑", 1, score), Metric("nan", "nan", "↑", 1, lambda shown: math.nan)), {}
    )
    rows = rows_of(photos, lineup, tmp_path, metrics)
    assert all(row.failed == {"odd": "out of order"} for row in rows)
    means = summarize("t", rows, lineup, metrics).means["bicubic"]
    assert [(means[name].n, means[name].failed, means[name].nan) for name in metrics.names] == [
        (2, 0, 0),
        (0, 2, 0),
        (0, 0, 2),
    ]
    write_report(summarize("t", rows, lineup, metrics), tmp_path)
    assert "out of order" in (tmp_path / "report.html").read_text()
    faults.pop(0)
    again = rows_of(photos, lineup, tmp_path, metrics)
    assert all(row.figures["odd"] == 1 and not row.earlier and not row.failed for row in again)
    assert [row.figures["psnr"] for row in again] == [row.figures["psnr"] for row in rows]
    assert all(row.earlier for row in rows_of(photos, lineup, tmp_path, metrics))


def test_nothing_to_measure(lineup: Lineup, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image")
    sources = photograph_sources(find_photographs(tmp_path, tmp_path / "out"), lineup)
    outcomes = list(evaluate(sources, lineup, QUICK, tmp_path / "out"))
    with pytest.raises(ValueError, match="none of 1 images has figures"):
        summarize("t", outcomes, lineup, QUICK)


def test_find_photographs(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", ".hidden/c.png", "sub/d.png", "out/sheets/e.png"):
        picture(tmp_path / name, 0, (8, 8))
    found = [photograph.name for photograph in find_photographs(tmp_path, tmp_path / "out")]
    assert found == ["a.jpg", "b.png", "sub/d.png"]
    assert [each.name for each in find_photographs(tmp_path / "sub", tmp_path)] == ["d.png"]
    assert [each.name for each in find_photographs(tmp_path / "b.png", tmp_path)] == ["b.png"]
    for data, message in ((tmp_path / "none", "no such file or folder"), (tmp_path, "would lie among the photographs")):
        with pytest.raises(ValueError, match=message):
            find_photographs(data, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no photographs in this folder"):
        find_photographs(tmp_path / "empty", tmp_path / "out")


def test_sheets_of_one_name_are_distinct(lineup: Lineup, tmp_path: Path) -> None:
    for name in ("a.png", "x/a.png", "a.bmp"):
        picture(tmp_path / "photos" / name, 0, (64, 64))
    few = Lineup(lineup.methods[2:], lineup.encoder, lineup.scale, lineup.device)
    write_report(summarize("t", rows_of(tmp_path / "photos", few, tmp_path), few, QUICK), tmp_path)
    sheets = sorted(path.relative_to(tmp_path / "sheets").as_posix() for path in (tmp_path / "sheets").rglob("*.webp"))
    assert sheets == ["a.bmp.webp", "a.png.webp", "x/a.webp"]


def test_crop_in_the_middle() -> None:
    pixels = np.arange(70 * 131 * 3, dtype=np.uint32).astype(np.uint8).reshape(70, 131, 3)
    cropped = crop_middle(Image.fromarray(pixels), 64)
    assert np.array_equal(np.asarray(cropped), pixels[3:67, 1:129])
    assert crop_middle(cropped, 64) is cropped
    assert np.array_equal(np.asarray(crop_middle(Image.fromarray(pixels), 32, 40)), pixels[19:51, 49:81])
