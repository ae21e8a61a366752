"""The evaluation from end to end with the bundled models on small pictures: figures, files, going on, sheets."""

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixdec.decoder import PixelDecoder
from pixdec.encoder import ImageEncoder
from pixdec.evaluate.methods import Lineup, open_lineup
from pixdec.evaluate.niqe import load_niqe
from pixdec.evaluate.photographs import Photograph, crop_middle, find_photographs, sheet_names
from pixdec.evaluate.report import COLUMNS, measure
from pixdec.evaluate.rows import append_row, read_rows
from pixdec.evaluate.run import Broken, EvalSettings, Row, evaluate, sheets_of, tabulate, write_report
from pixdec.evaluate.scores import NEEDS, Metrics
from pixdec.evaluate.sheets import GAP, LABEL, most_detailed
from pixdec.io.images import read_image, resize, to_pil, to_tensor
from pixdec.latents import Latent, get_space
from pixdec.models.tiny_vae import TinyVAE, unpack
from pixdec.train.data.degrade import degrade

METHODS = ("pixdec-nano:1", "tiny+lanczos", "bicubic")
QUICK = Metrics(("psnr",))
OWN = Metrics(tuple(metric for metric in COLUMNS if metric not in NEEDS))
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
    return out, rows_of(photos, lineup, out, OWN)


def rows_of(
    photos: Path, lineup: Lineup, out: Path, metrics: Metrics = QUICK, settings: EvalSettings | None = None
) -> list[Row]:
    outcomes = list(evaluate(find_photographs(photos, out), lineup, metrics, out, settings))
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
            assert list(figures) == list(OWN.own)
            assert figures == measure(to_pil(image)[0], original, low=to_pil(low)[0], scale=4, only=OWN.own)


def test_the_same_again_gives_the_same_figures(
    photos: Path, lineup: Lineup, whole: tuple[Path, list[Row]], tmp_path: Path
) -> None:
    again = rows_of(photos, lineup, tmp_path / "out", OWN, EvalSettings(sheets=0))
    assert without_time(again) == without_time(whole[1])
    assert not (tmp_path / "out" / "sheets").exists()


def test_noise_and_seed_change_the_figures_and_are_measured_anew(photos: Path, lineup: Lineup, tmp_path: Path) -> None:
    seen: list[list[dict[str, float]]] = []
    for settings in (EvalSettings(), EvalSettings(sigma=0.3), EvalSettings(sigma=0.3, seed=1)):
        rows = rows_of(photos, lineup, tmp_path, QUICK, settings)
        assert not any(row.earlier for row in rows)
        assert without_time(rows) not in seen
        seen.append(without_time(rows))
    back = rows_of(photos, lineup, tmp_path, QUICK, EvalSettings(sigma=0.3))
    assert all(row.earlier for row in back)
    assert without_time(back) == seen[1]


def test_an_interrupted_run_goes_on(
    photos: Path, lineup: Lineup, whole: tuple[Path, list[Row]], tmp_path: Path
) -> None:
    run = evaluate(find_photographs(photos, tmp_path), lineup, OWN, tmp_path)
    assert len(list(islice(run, 4))) == 4
    run.close()
    rows_file = tmp_path / "rows.jsonl"
    assert len(rows_file.read_text().splitlines()) == 4
    with rows_file.open("a") as file:
        file.write('{"key": "0123", "figu')  # as if it was ended within a line
    rows = rows_of(photos, lineup, tmp_path, OWN)
    assert [row.earlier for row in rows] == [True] * 4 + [False] * 2
    assert without_time(rows) == without_time(whole[1])
    assert len([json.loads(line) for line in rows_file.read_text().splitlines()]) == 6
    assert (tmp_path / "sheets" / "sub" / "b.webp").read_bytes() == (
        whole[0] / "sheets" / "sub" / "b.webp"
    ).read_bytes()


def test_another_method_or_metric_is_added_to_what_is_there(photos: Path, lineup: Lineup, tmp_path: Path) -> None:
    first = Lineup(lineup.methods[1:2], lineup.encoder, lineup.scale, lineup.device)
    rows_of(photos, first, tmp_path)
    assert [row.earlier for row in rows_of(photos, lineup, tmp_path)] == [False, True, False] * 2
    more = rows_of(photos, first, tmp_path, Metrics(("psnr", "ssim")))
    assert not any(row.earlier for row in more)
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


def test_rows_are_whole_lines_and_hold_infinity(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert read_rows(path) == {}
    append_row(path, "k", {"psnr": float("inf")}, {"image": "a"})
    append_row(path, "k", {"ssim": 1.0}, {"image": "a"})
    assert read_rows(path) == {"k": {"psnr": float("inf"), "ssim": 1.0}}
    path.write_text('{"key": "k"}\n')
    with pytest.raises(ValueError, match="line 1 is no row of figures; delete the file"):
        read_rows(path)


def test_report_and_sheets(photos: Path, lineup: Lineup, whole: tuple[Path, list[Row]]) -> None:
    out, rows = whole
    photographs = find_photographs(photos, out)
    report = tabulate("photos", rows, lineup, OWN, EvalSettings(), {"command": "`pixdec eval`"})
    table, figures = write_report(report, out, sheets_of(photographs, EvalSettings()))
    document = json.loads(figures.read_text())
    mean = np.mean([row.figures["psnr"] for row in rows if row.method == "bicubic"])
    assert document["means"]["bicubic"]["psnr"] == pytest.approx(mean)
    text = table.read_text()
    assert "| method | PSNR dB ↑ | SSIM ↑ | spectrum error" in text
    assert "spectrum error above 1/scale of Nyquist" in text
    assert "| consistency dB ↑ | seconds ↓ |" in text
    assert f"| bicubic | {mean:.2f} |" in text
    assert "- cropped: 0 of 2 images" in text
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


def test_a_sheet_is_made_again_when_it_shows_other_methods(photos: Path, lineup: Lineup, tmp_path: Path) -> None:
    rows_of(photos, lineup, tmp_path)
    sheet = tmp_path / "sheets" / "a.webp"
    before, stamp = sheet.read_bytes(), sheet.stat().st_mtime_ns
    rows_of(photos, lineup, tmp_path)
    assert sheet.stat().st_mtime_ns == stamp
    sheet.unlink()
    assert all(row.earlier for row in rows_of(photos, lineup, tmp_path))
    assert sheet.read_bytes() == before
    fewer = Lineup(lineup.methods[1:], lineup.encoder, lineup.scale, lineup.device)
    assert all(row.earlier for row in rows_of(photos, fewer, tmp_path))
    assert read_image(sheet).width == 3 * SIDE[0] + 2 * GAP


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
    metrics = Metrics(("psnr", "pattern"))
    outcomes = list(evaluate(find_photographs(photos, tmp_path), lineup, metrics, tmp_path / "out"))
    broken = {outcome.image: outcome for outcome in outcomes if isinstance(outcome, Broken) and outcome.method is None}
    assert list(broken) == ["b.png", "c.png", "d.png"]
    assert "40x200 pixels; expected sides of at least 64" in broken["b.png"].reason
    assert "truncated" in broken["c.png"].reason
    assert all("\n" not in each.reason for each in broken.values())
    # a.png is cropped to 128x192
    rows = [outcome for outcome in outcomes if isinstance(outcome, Row)]
    assert [(row.image, row.cropped) for row in rows] == [("a.png", True)] * 3 + [("e.png", False)] * 3
    report = tabulate("t", outcomes, lineup, metrics)
    assert report.images == ["a.png", "e.png"]
    assert report.facts["cropped"].startswith("1 of 2 images, in the middle, to sides that are multiples of 64")
    assert "3 images that failed: b.png, c.png, d.png" in report.facts["left out"]


def test_an_image_that_a_metric_refuses(lineup: Lineup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "model.npz", mu_pris_param=np.zeros(36), cov_pris_param=np.eye(36))
    monkeypatch.setattr("pixdec.evaluate.niqe.published", lambda: load_niqe(tmp_path / "model.npz"))
    picture(tmp_path / "photos" / "a.png", 0, (64, 64))
    (tmp_path / "photos" / "a.txt").write_text("a caption is no photograph")
    photographs = find_photographs(tmp_path / "photos", tmp_path)
    outcomes = list(evaluate(photographs, lineup, Metrics(("niqe",)), tmp_path / "out"))
    assert [(outcome.method, isinstance(outcome, Broken)) for outcome in outcomes] == [(name, True) for name in METHODS]
    assert isinstance(outcomes[0], Broken)
    assert "NIQE needs sides of at least 96" in outcomes[0].reason
    assert read_image(tmp_path / "out" / "sheets" / "a.webp").width == 4 * 64 + 3 * GAP  # to be looked at all the same
    with pytest.raises(ValueError, match="none of 1 images has figures of all methods"):
        tabulate("t", outcomes, lineup, QUICK)


def test_find_photographs(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", ".hidden/c.png", "sub/d.png", "out/sheets/e.png"):
        picture(tmp_path / name, 0, (8, 8))
    found = [photograph.name for photograph in find_photographs(tmp_path, tmp_path / "out")]
    assert found == ["a.jpg", "b.png", "sub/d.png"]
    assert [each.name for each in find_photographs(tmp_path / "sub", tmp_path)] == ["d.png"]
    assert [each.name for each in find_photographs(tmp_path / "b.png", tmp_path)] == ["b.png"]
    for data, message in ((tmp_path / "none", "no such folder"), (tmp_path, "would lie among the photographs")):
        with pytest.raises(ValueError, match=message):
            find_photographs(data, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no photographs in this folder"):
        find_photographs(tmp_path / "empty", tmp_path / "out")


def test_sheet_names_are_distinct() -> None:
    photographs = [Photograph(Path(name), name) for name in ("a.png", "x/a.png", "b.png", "B.jpg")]
    assert list(sheet_names(photographs).values()) == ["a.webp", "x/a.webp", "b.png.webp", "B.jpg.webp"]


def test_crop_in_the_middle() -> None:
    pixels = np.arange(70 * 131 * 3, dtype=np.uint32).astype(np.uint8).reshape(70, 131, 3)
    cropped = crop_middle(Image.fromarray(pixels), 64)
    assert np.array_equal(np.asarray(cropped), pixels[3:67, 1:129])
    assert crop_middle(cropped, 64) is cropped


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"sigma": 1.5}, "sigma 1.5: expected"), ({"sheets": -1}, "sheets -1"), ({"seed": 2**64}, "64 bits")],
)
def test_settings_are_checked(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvalSettings(**settings)
