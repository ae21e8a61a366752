import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
if find_spec("diffusers") is None:
    names = ("capture", "generate", "loop", "pages", "schedulers", "spaces", "stops")
    collect_ignore = [f"test_{name}.py" for name in names]


@pytest.fixture(scope="session", autouse=True)
def quiet_and_small() -> Iterator[None]:
    """No progress on the screen; Qwen's editing pipelines blow their input up to a megapixel, which proves nothing."""
    if find_spec("diffusers") is None:
        yield
        return
    import diffusers
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus

    dimensions = pipeline_qwenimage_edit.calculate_dimensions
    verbosity = diffusers.utils.logging.get_verbosity()
    diffusers.utils.logging.set_verbosity_error()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", lambda _area, ratio: dimensions(6144, ratio))
        patch.setattr(pipeline_qwenimage_edit_plus, "CONDITION_IMAGE_SIZE", 6144)
        patch.setattr(pipeline_qwenimage_edit_plus, "VAE_IMAGE_SIZE", 6144)
        yield
    diffusers.utils.logging.set_verbosity(verbosity)


class Captions:
    """Embeddings that tell captions apart, and remember what they were asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, captions: Any, device: Any, dtype: Any) -> Any:
        import torch

        self.asked.append(list(captions))
        seeds = [sum(map(ord, caption)) for caption in captions]
        each = [torch.randn(6, 12, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(each).to(device, dtype)


@pytest.fixture(scope="session")
def decoder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """A decoder of a space: the bundled one for FLUX.2, otherwise a small random network, saved and loaded."""
    import functools

    from battery import randomised
    from pixdec.decoder import PixelDecoder
    from pixdec.latents import get_space
    from pixdec.models.adapter import AdapterSettings
    from pixdec.models.pid import PiD, PiDSettings
    from pixdec.models.pixdit import PixDiTSettings
    from pixdec.weights.load import save_decoder

    backbone = PixDiTSettings(
        hidden=24, heads=2, depth=2, pixel_width=4, pixel_hidden=16, pixel_heads=2, text_width=12, text_length=6
    )

    @functools.cache
    def made(name: str) -> PixelDecoder:
        space = get_space(name)
        adapter = AdapterSettings(space.channels, latent_factor=space.factor, width=8, blocks=1)
        settings = PiDSettings(backbone, adapter)
        path = tmp_path_factory.mktemp("decoders") / f"{name}.safetensors"
        network = randomised(PiD(settings).initialize())
        save_decoder(network, path, name=f"small-{name}", space=name, version="v1", licence="Apache-2.0")
        return PixelDecoder.from_pretrained(path, device="cpu")

    def fresh(name: str) -> PixelDecoder:
        decoder = made("flux1" if name == "z-image" else name)
        decoder.captions = Captions() if decoder.model.needs_text else None
        return decoder

    return fresh
