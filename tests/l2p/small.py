"""Small sources with random weights, as diffusers saves them."""

from pathlib import Path
from typing import Any

import pytest
import torch

diffusers: Any = pytest.importorskip("diffusers", reason="pixel generators need diffusers")
TEXT = 32


def z_image(**changed: Any) -> Any:
    config = {
        "dim": 64, "n_heads": 2, "n_kv_heads": 2, "n_layers": 4, "n_refiner_layers": 1, "cap_feat_dim": TEXT,
        "axes_dims": [8, 12, 12],
    }  # fmt: skip
    return diffusers.ZImageTransformer2DModel(**{**config, **changed})


def flux2() -> Any:
    return diffusers.Flux2Transformer2DModel(
        num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=TEXT,
        axes_dims_rope=(4, 4, 4, 4), in_channels=16, guidance_embeds=False,
    )  # fmt: skip


def qwen_image() -> Any:
    return diffusers.QwenImageTransformer2DModel(
        num_layers=4, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=TEXT,
        axes_dims_rope=(4, 6, 6), in_channels=16, out_channels=4,
    )  # fmt: skip


SOURCES = {"z-image": z_image, "flux2-klein": flux2, "qwen-image": qwen_image}


def saved(folder: Path, source: str = "z-image", **changed: Any) -> Path:
    """The folder of a source's transformer. Nothing in it is zero."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = SOURCES[source](**changed)
        for parameter in model.parameters():
            if not parameter.any():
                parameter.data.normal_(std=0.5)
    model.save_pretrained(folder)
    return folder
