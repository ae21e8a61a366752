"""FLUX.2 klein (Black Forest Labs, 4 B and 9 B): blocks with two streams, then with one; no text is padded."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pixdec.l2p.sources import (
    ExactTime,
    Last,
    by_length,
    diffusers_class,
    exact_time,
    grid_of,
    on_meta,
    tokens_of,
)


class Flux2Klein:
    """diffusers' `Flux2Transformer2DModel`. It has no mask, so that texts of one length are computed together."""

    transformer = "Flux2Transformer2DModel"
    pipeline = "Flux2KleinPipeline"
    repository = "black-forest-labs/FLUX.2-klein-4B"
    embedder = "x_embedder."
    final = ("norm_out.", "proj_out.")
    block_lists = ("transformer_blocks", "single_transformer_blocks")
    shift = 3.0

    def build(self, config: Mapping[str, Any], patch: int) -> nn.Module:
        if config.get("guidance_embeds", True):
            raise ValueError("guidance_embeds=True: a model distilled with guidance (FLUX.2 dev); expected a klein")
        own = {"in_channels": 3 * patch**2, "out_channels": 1, "patch_size": 1}
        model = on_meta(diffusers_class(self.transformer), config, own)
        model.norm_out, model.proj_out = Last(), Last()
        model.time_guidance_embed.time_proj = ExactTime(model.time_guidance_embed.time_proj)
        return model

    def width(self, config: Mapping[str, Any]) -> int:
        return config.get("num_attention_heads", 48) * config.get("attention_head_dim", 128)

    def text_width(self, config: Mapping[str, Any]) -> int:
        return config.get("joint_attention_dim", 15360)

    def blocks(self, transformer: Any) -> list[nn.Module]:
        return [*transformer.transformer_blocks, *transformer.single_transformer_blocks]

    def features(self, transformer: Any, x: Tensor, t: Tensor, text: Sequence[Tensor], patch: int) -> Tensor:
        tokens = tokens_of(x, patch)
        rows, columns, one = (torch.arange(n, device=x.device) for n in (x.shape[2] // patch, x.shape[3] // patch, 1))
        places = torch.cartesian_prod(one, rows, columns, one)
        found = torch.empty(0)
        for length, batch in by_length(text).items():
            levels, line = t[batch], torch.arange(length, device=x.device)
            with exact_time(1000 * levels):
                made = transformer(
                    hidden_states=tokens[batch],
                    encoder_hidden_states=torch.stack([text[i] for i in batch]),
                    timestep=levels,
                    img_ids=places,
                    txt_ids=torch.cartesian_prod(one, one, one, line),
                    return_dict=False,
                )[0]
            if len(batch) == len(text):
                return grid_of(made, x, patch)
            found = found if len(found) else made.new_empty(len(text), *made.shape[1:])
            found = found.index_copy(0, torch.tensor(batch, device=x.device), made)
        return grid_of(found, x, patch)

    def embed(self, pipe: Any, prompts: Sequence[str], device: torch.device) -> list[Tensor]:
        return list(pipe.encode_prompt(list(prompts), device)[0])
