"""Z-Image (Alibaba, 6.15 B): tokens of image and text in one sequence; time runs from 0, noise, to 1."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from pixdec.l2p.sources import Last, diffusers_class, on_meta

NANO: Mapping[str, Any] = {  # 1.6 million parameters, for captions of a few words, on one processor core
    "dim": 96, "n_heads": 4, "n_kv_heads": 4, "n_layers": 6, "n_refiner_layers": 1, "cap_feat_dim": 64,
    "axes_dims": [8, 8, 8], "axes_lens": [128, 32, 32],
}  # fmt: skip


class ZImage:
    """diffusers' `ZImageTransformer2DModel`, which pads each sequence to a multiple of 32 tokens, and masks what pads a
    batch."""

    transformer = "ZImageTransformer2DModel"
    pipeline = "ZImagePipeline"
    repository = "Tongyi-MAI/Z-Image-Turbo"
    embedder = "all_x_embedder."
    final = ("all_final_layer.",)
    block_lists = ("noise_refiner", "context_refiner", "layers")
    shift = 3.0

    def build(self, config: Mapping[str, Any], patch: int) -> nn.Module:
        own = {"in_channels": 3, "all_patch_size": (patch,), "all_f_patch_size": (1,)}
        model = on_meta(_pixel_class(), config, own)
        model.all_final_layer = nn.ModuleDict({f"{patch}-1": Last()})
        return model

    def width(self, config: Mapping[str, Any]) -> int:
        return config.get("dim", 3840)

    def text_width(self, config: Mapping[str, Any]) -> int:
        return config.get("cap_feat_dim", 2560)

    def blocks(self, transformer: Any) -> list[nn.Module]:
        return list(transformer.layers)

    def features(self, transformer: Any, x: Tensor, t: Tensor, text: Sequence[Tensor], patch: int) -> Tensor:
        found = transformer(list(x[:, :, None]), 1 - t, list(text), patch_size=patch, return_dict=False)[0]
        return torch.stack(found)

    def embed(self, pipe: Any, prompts: Sequence[str], device: torch.device) -> list[Tensor]:
        return pipe.encode_prompt(list(prompts), device, do_classifier_free_guidance=False)[0]


@cache
def _pixel_class() -> Any:
    class PixelZImage(diffusers_class(ZImage.transformer)):
        """Its last tokens are not unfolded, for they are no pixels."""

        def unpatchify(self, x: list[Tensor], size: Any, patch_size: int, *_: object) -> list[Tensor]:
            """Sequences (L,D), image first -> (D,h,w) each."""
            grids = [(rows // patch_size, columns // patch_size) for _, rows, columns in size]
            return [each[: h * w].T.unflatten(1, (h, w)) for each, (h, w) in zip(x, grids, strict=True)]

    return PixelZImage
