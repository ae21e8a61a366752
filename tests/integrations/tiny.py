"""Small random components of real classes, built from settings once a session: VAEs, transformers, text encoders."""

from __future__ import annotations

import functools
from typing import Any

import diffusers
import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

HEIGHT, WIDTH = 64, 96  # the image's; 8×12 cells of 8 pixels, 4×6 tokens
TEXT = 32  # width of every caption embedding


def seeded(build: Any) -> Any:
    """Built once, from one seed, without gradients, ready to run."""

    @functools.cache
    def built(*args: Any) -> Any:
        torch.manual_seed(0)
        return build(*args).eval().requires_grad_(False)

    return built


@seeded
def vae_kl(channels: int, scale: float, shift: float | None) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=channels,
        norm_num_groups=4,
        scaling_factor=scale,
        shift_factor=shift,
        mid_block_add_attention=False,
    )


def vae_flux1() -> Any:
    return vae_kl(16, 0.3611, 0.1159)


def vae_sd3() -> Any:
    return vae_kl(16, 1.5305, 0.0609)


def vae_sdxl() -> Any:
    return vae_kl(4, 0.13025, None)


@seeded
def vae_flux2() -> Any:
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, mid_block_add_attention=False
    )
    vae.bn.running_mean.copy_(0.2 * torch.randn(128))
    vae.bn.running_var.copy_(3.2 * (0.5 + torch.rand(128)))
    return vae


@seeded
def vae_qwen() -> Any:
    return diffusers.AutoencoderKLQwenImage(base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1)


@seeded
def flux1(in_channels: int = 64, guidance: bool = True) -> Any:
    return diffusers.FluxTransformer2DModel(
        in_channels=in_channels,
        out_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        pooled_projection_dim=TEXT,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 4, 8),
    )


@seeded
def flux1_controlnet() -> Any:
    controlnet = diffusers.FluxControlNetModel(
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        pooled_projection_dim=TEXT,
        guidance_embeds=True,
        axes_dims_rope=[4, 4, 8],
    )
    for block in (*controlnet.controlnet_blocks, *controlnet.controlnet_single_blocks):
        torch.nn.init.normal_(block.weight, std=0.2)  # zero when training starts, which would hide it
    return controlnet


@seeded
def sd3_controlnet() -> Any:
    controlnet = diffusers.SD3ControlNetModel(**_SD3)
    for block in controlnet.controlnet_blocks:
        torch.nn.init.normal_(block.weight, std=0.2)
    return controlnet


@seeded
def qwen_controlnet() -> Any:
    controlnet = diffusers.QwenImageControlNetModel(**_QWEN)
    for block in (controlnet.controlnet_x_embedder, *controlnet.controlnet_blocks):
        torch.nn.init.normal_(block.weight, std=0.2)
    return controlnet


@seeded
def flux2(guidance: bool) -> Any:
    return diffusers.Flux2Transformer2DModel(
        in_channels=128,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT * 3,  # hidden states of three layers of the text encoder
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance,
    )


@seeded
def sd3() -> Any:
    return diffusers.SD3Transformer2DModel(**_SD3)


_SD3: dict[str, Any] = {
    "sample_size": 32,
    "num_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": TEXT,
    "caption_projection_dim": 32,
    "pooled_projection_dim": TEXT,
    "pos_embed_max_size": 32,
}


@seeded
def unet(in_channels: int = 4) -> Any:
    return diffusers.UNet2DConditionModel(sample_size=8, in_channels=in_channels, out_channels=4, **_SDXL)


@seeded
def sdxl_controlnet() -> Any:
    controlnet = diffusers.ControlNetModel(conditioning_embedding_out_channels=(4, 8, 8, 8), **_CONTROL)
    for block in controlnet.controlnet_down_blocks:
        torch.nn.init.normal_(block.weight, std=0.2)
    return controlnet


_CONTROL: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "transformer_layers_per_block": (1, 1),
    "projection_class_embeddings_input_dim": TEXT + 6 * 8,
    "cross_attention_dim": 2 * TEXT,
    "norm_num_groups": 4,
}
_SDXL: dict[str, Any] = {**_CONTROL, "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}


@seeded
def qwen_image() -> Any:
    return diffusers.QwenImageTransformer2DModel(**_QWEN)


_QWEN: dict[str, Any] = {
    "num_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": TEXT,
    "axes_dims_rope": (8, 4, 4),
}


@seeded
def z_image() -> Any:
    return diffusers.ZImageTransformer2DModel(
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=TEXT,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )


@seeded
def pixart() -> Any:
    return diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        cross_attention_dim=32,
        sample_size=16,
        caption_channels=TEXT,
        use_additional_conditions=False,
    )


@functools.cache
def tokenizer(length: int) -> Any:
    """Words of a few captions; a chat template as the Qwen models have one."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<pad>", "<s>", "</s>", "<unk>", "a", "red", "blue", "fox", "boat", "in", "the", "snow", "user", "think"]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    made.model_max_length = length
    made.chat_template = "{% for message in messages %}user {{ message['content'] }} {% endfor %}think"
    return made


_CLIP: dict[str, Any] = {
    "hidden_size": TEXT,
    "projection_dim": TEXT,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "max_position_embeddings": 77,
}


@seeded
def clip() -> Any:
    return CLIPTextModel(CLIPTextConfig(**_CLIP))


@seeded
def clip_projected() -> Any:
    return CLIPTextModelWithProjection(CLIPTextConfig(**_CLIP))


@seeded
def t5() -> Any:
    return T5EncoderModel(
        T5Config(d_model=TEXT, d_ff=32, d_kv=8, num_heads=2, num_layers=1, vocab_size=64, decoder_start_token_id=0)
    )


@seeded
def qwen3(causal: bool) -> Any:
    config = Qwen3Config(
        hidden_size=TEXT,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        vocab_size=64,
        max_position_embeddings=64,
    )
    return (Qwen3ForCausalLM if causal else Qwen3Model)(config)
