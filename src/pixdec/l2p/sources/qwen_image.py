"""Qwen-Image (Alibaba, 20 B): blocks with two streams; positions count from the middle of the image."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from pixdec.l2p.sources import ExactTime, Last, diffusers_class, exact_time, grid_of, on_meta, tokens_of


class QwenImage:
    """diffusers' `QwenImageTransformer2DModel`, which masks what pads a text."""

    transformer = "QwenImageTransformer2DModel"
    pipeline = "QwenImagePipeline"
    repository = "Qwen/Qwen-Image-2512"
    embedder = "img_in."
    final = ("norm_out.", "proj_out.")
    block_lists = ("transformer_blocks",)
    shift = 3.0

    def build(self, config: Mapping[str, Any], patch: int) -> nn.Module:
        own = {"in_channels": 3 * patch**2, "out_channels": 1, "patch_size": 1, "guidance_embeds": False}
        model = on_meta(diffusers_class(self.transformer), config, own)
        table = model.pos_embed  # tables of its own, which are no buffers
        model.pos_embed = type(table)(table.theta, table.axes_dim, table.scale_rope)
        model.norm_out, model.proj_out = Last(), Last()
        model.time_text_embed.time_proj = ExactTime(model.time_text_embed.time_proj)
        return model

    def width(self, config: Mapping[str, Any]) -> int:
        return config.get("num_attention_heads", 24) * config.get("attention_head_dim", 128)

    def text_width(self, config: Mapping[str, Any]) -> int:
        return config.get("joint_attention_dim", 3584)

    def blocks(self, transformer: Any) -> list[nn.Module]:
        return list(transformer.transformer_blocks)

    def features(self, transformer: Any, x: Tensor, t: Tensor, text: Sequence[Tensor], patch: int) -> Tensor:
        lengths = torch.tensor([len(each) for each in text], device=x.device)
        mask = torch.arange(int(lengths.max()), device=x.device) < lengths[:, None]
        with exact_time(t):
            made = transformer(
                hidden_states=tokens_of(x, patch),
                encoder_hidden_states=pad_sequence(list(text), batch_first=True),
                encoder_hidden_states_mask=None if bool(mask.all()) else mask,
                timestep=t,
                img_shapes=[[(1, x.shape[2] // patch, x.shape[3] // patch)]] * len(text),
                return_dict=False,
            )[0]
        return grid_of(made, x, patch)

    def embed(self, pipe: Any, prompts: Sequence[str], device: torch.device) -> list[Tensor]:
        embeds, mask = pipe.encode_prompt(list(prompts), device)
        return list(embeds) if mask is None else [each[kept.bool()] for each, kept in zip(embeds, mask, strict=True)]
