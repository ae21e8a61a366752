"""Cards: complete, consistent with the latent spaces, found by any of their names, fetched once."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from pixdec.io.hub import Access
from pixdec.latents import SPACES, get_space
from pixdec.sampling import flow
from pixdec.weights import catalog
from pixdec.weights.catalog import CARDS, Card, accepted_spaces, fetch, get_card, located


def test_the_catalog_is_read_without_torch() -> None:
    code = "import sys, pixdec.weights.catalog; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


def test_cards_are_distinct_and_complete(released: dict[str, Any]) -> None:
    assert len({card.name for card in CARDS}) == len({card.folder for card in CARDS}) == len(CARDS)
    hub = [card for card in CARDS if card.repository is not None]
    assert {card.folder for card in hub if card.kind in ("student", "prior")} == set(released)
    assert {card.space for card in hub if card.kind == "teacher"} == {"flux1", "flux2", "qwen-image"}
    for card in hub:
        assert card.repository == "nvidia/PiD"
        assert card.file == f"{card.folder}/model_ema_bf16.pth"
        assert not card.licence.commercial
        assert card.needs_text
    assert {card.name for card in CARDS if card.licence.commercial} == {"pixdec-nano", "pixdec-tiny"}


def test_times_are_the_students() -> None:
    assert catalog.STUDENT_TIMES == flow.STUDENT_TIMES
    for card in CARDS:
        assert (card.times == flow.STUDENT_TIMES) == (card.kind == "student" and card.repository is not None)


def test_accepted_spaces_hold_the_same_latents() -> None:
    for name, space in SPACES.items():
        same = {other.name for other in SPACES.values() if space.holds_latents_of(other)}
        assert set(accepted_spaces(name)) == same
    assert get_card("pid-flux1-2k").spaces == ("flux1", "z-image")
    assert get_card("pixeldit-4k").spaces == ()
    for card in CARDS:
        assert all(get_space(name) for name in card.spaces)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_a_card_is_found_by_each_of_its_names(card: Card) -> None:
    assert get_card(card.name) is card
    assert get_card(card.folder) is card
    if card.repository is not None:
        assert get_card(f"nvidia/PiD/{card.folder}/") is card


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        ValueError,
        match=r"pid-flux-2k: neither a file, .* of the hub; did you mean .*pid-flux1-2k",
    ):
        get_card("pid-flux-2k")
    with pytest.raises(ValueError, match="did you mean pid-sdxl-4k"):
        get_card("PiD_res2kto4k_sr4x_official_sdxl_distill")
    with pytest.raises(ValueError, match="known: pixdec-nano, "):
        get_card("zzzz")


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("pid-flux1-2k", [(2048, 2048), (2304, 1728), (1536, 2688)], [(1024, 1024), (4096, 4096), (1024, 4096)]),
        ("pid-sdxl-4k", [(2048, 2048), (4096, 4096), (1728, 2304)], [(1024, 1024), (8192, 4096)]),
        ("pid-siglip-8x", [(2048, 2048)], [(2048, 2032), (1728, 2304)]),
        ("pixdec-nano", [(64, 64), (9000, 100)], []),
    ],
)
def test_sizes_outside_the_trained_range_are_told_in_one_line(
    name: str, inside: list[tuple[int, int]], outside: list[tuple[int, int]]
) -> None:
    card = get_card(name)
    assert [card.size_warning(*size) for size in inside] == [None] * len(inside)
    for height, width in outside:
        warning = card.size_warning(height, width)
        assert warning is not None
        assert warning.startswith(f"{width}x{height} ")
        assert name in warning
        assert "\n" not in warning


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot folder of an empty cache of huggingface_hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--nvidia--PiD"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0" * 40)
    return repository / "snapshots" / ("0" * 40)


def test_the_licence_is_shown_once_when_a_model_is_fetched(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    card = get_card("pid-sdxl-4k")
    shown: list[str] = []

    def download(repository: str, file: str, **_: object) -> str:
        assert repository == "nvidia/PiD"
        shown.extend(caplog.messages)  # before the download begins
        path = cache / file
        path.parent.mkdir(parents=True)
        path.write_bytes(b"weights")
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert located(card) is None
    path = fetch(card)
    assert path == cache / card.file == located(card)
    assert len(shown) == 1
    assert shown[0].startswith("pid-sdxl-4k: fetched under NSCLv1: ")
    assert "\n" not in shown[0]
    assert fetch(card) == path
    assert len(caplog.messages) == 1


def test_a_model_is_fetched_as_pinned_or_as_asked(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    asked: list[object] = []

    def download(*_: object, revision: str | None, **__: object) -> str:
        asked.append(revision)
        (cache / "file").parent.mkdir(parents=True, exist_ok=True)
        (cache / "file").write_bytes(b"weights")
        return str(cache / "file")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    card = replace(get_card("pid-sdxl-4k"), revision="c0ffee")
    fetch(card)
    fetch(card, Access("v2"))
    assert asked == ["c0ffee", "v2"]
    with pytest.raises(OSError, match=r"pid-sdxl-4k: .*has the SHA-256 .* instead of 00000"):
        fetch(replace(card, sha256="0" * 64))
    assert fetch(replace(card, sha256="0" * 64), Access("v2")).is_file()  # which is another file


@pytest.mark.usefixtures("cache")
def test_a_failed_download_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(OSError, match=r"pid-sd3-2k: cannot fetch .*: no route to host; .*elsewhere") as caught:
        fetch(get_card("pid-sd3-2k"))
    assert "\n" not in str(caught.value)


def test_bundled_models_are_found_in_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "BUNDLED", tmp_path)
    card = get_card("pixdec-nano")
    assert located(card) is None
    with pytest.raises(OSError, match="install pixdec again"):
        fetch(card)
    (tmp_path / "pixdec-nano.safetensors").touch()
    assert located(card) == fetch(card) == tmp_path / "pixdec-nano.safetensors"
