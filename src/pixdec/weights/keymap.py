"""The original PiD's names for tensors and settings, and ours: both ways, with nothing lost.

Checkpoints in either naming hold the same tensors in the same shapes; only keys differ.
"""

import re
from collections.abc import Mapping

from pixdec.models.adapter import AdapterSettings
from pixdec.models.pid import PiDSettings
from pixdec.models.pixdit import PixDiTSettings

# (original, ours), whole dotted components. "*" is a block number, the same on both sides.
_PAIRS = (
    ("s_embedder.proj", "backbone.patch_embed"),
    ("t_embedder.mlp.0", "backbone.time_in"),
    ("t_embedder.mlp.2", "backbone.time_out"),
    ("y_pos_embedding", "backbone.text_embed.positions"),
    ("y_embedder", "backbone.text_embed"),
    ("pixel_embedder.proj", "backbone.pixel_embed"),
    ("final_layer.norm", "backbone.final_norm"),
    ("final_layer.linear", "backbone.final_linear"),
    *(
        (f"patch_blocks.*.{original}", f"backbone.patch_blocks.*.{stream}.{ours}")
        for stream, letter, word in (("image", "x", "img"), ("text", "y", "txt"))
        for original, ours in (
            (f"adaLN_modulation_{word}.0", "modulation"),
            (f"norm_{letter}1", "norm1"),
            (f"norm_{letter}2", "norm2"),
            (f"attn.qkv_{letter}", "qkv"),
            (f"attn.q_norm_{letter}", "q_norm"),
            (f"attn.k_norm_{letter}", "k_norm"),
            (f"attn.proj_{letter}", "proj"),
            (f"mlp_{letter}.w1", "mlp.gate"),
            (f"mlp_{letter}.w2", "mlp.down"),
            (f"mlp_{letter}.w3", "mlp.up"),
        )
    ),
    *(
        (f"pixel_blocks.*.{original}", f"backbone.pixel_blocks.*.{ours}")
        for original, ours in (
            ("adaLN_modulation.0", "modulation"),
            ("norm1", "norm1"),
            ("norm2", "norm2"),
            ("compress_to_attn", "compress"),
            ("expand_from_attn", "expand"),
            ("attn.qkv", "qkv"),
            ("attn.q_norm", "q_norm"),
            ("attn.k_norm", "k_norm"),
            ("attn.proj", "proj"),
            ("mlp.fc1", "mlp.up"),
            ("mlp.fc2", "mlp.down"),
        )
    ),
    ("lq_proj.latent_proj.0", "adapter.conv_in"),
    ("lq_proj.latent_proj.2", "adapter.conv_mid"),
    *(
        (f"lq_proj.latent_proj.*.block.{index}", f"adapter.blocks.*.{ours}")
        for index, ours in ((0, "norm1"), (2, "conv1"), (3, "norm2"), (5, "conv2"))
    ),
    ("lq_proj.output_heads.*", "adapter.heads.*"),
    ("lq_proj.pit_head", "adapter.pixel_head"),
    ("lq_proj.lq_aux_rgb_head", "adapter.aux_rgb"),
    ("lq_proj.gate_modules.*.content_proj", "gates.*.content"),
    ("lq_proj.gate_modules.*.log_alpha", "gates.*.log_alpha"),
    ("pit_lq_gate.content_proj", "pixel_gate.content"),
    ("pit_lq_gate.log_alpha", "pixel_gate.log_alpha"),
)
OUR_ROOTS = frozenset(ours.split(".")[0] for _, ours in _PAIRS)
ROOTS = OUR_ROOTS | {original.split(".")[0] for original, _ in _PAIRS}
"""What keys of a network begin with, in our naming, and in either."""
_FIRST_ADAPTER_BLOCK = 3  # the original counts its residual blocks after conv, SiLU and conv


def _rules(source: int) -> list[tuple[re.Pattern[str], str]]:
    rules: list[tuple[re.Pattern[str], str]] = []
    for pair in _PAIRS:
        pattern = re.escape(pair[source]).replace(r"\*", r"(\d+)")
        rules.append((re.compile(rf"{pattern}(?P<rest>\..+|)$"), pair[1 - source]))
    return rules


_TO_OURS, _TO_ORIGINAL = _rules(0), _rules(1)


def _translate(key: str, rules: list[tuple[re.Pattern[str], str]], block_offset: int) -> str:
    for pattern, target in rules:
        if match := pattern.fullmatch(key):
            number = match.group(1) if pattern.groups > 1 else ""
            if "latent_proj.*" in target or "adapter.blocks.*" in target:
                number = str(int(number) + block_offset)
                if number.startswith("-"):
                    break
            return target.replace("*", number) + match.group("rest")
    raise ValueError(
        f"{key}: not a tensor of a PiD network; expected an original or a pixdec checkpoint of PiD or PixelDiT"
    )


def to_ours(key: str) -> str:
    """Our key for an original one. Raises ValueError for a key that no PiD network has."""
    return _translate(key, _TO_OURS, -_FIRST_ADAPTER_BLOCK)


def to_original(key: str) -> str:
    """The original key for one of ours: the inverse of `to_ours`."""
    return _translate(key, _TO_ORIGINAL, _FIRST_ADAPTER_BLOCK)


def settings_from_original(config: Mapping[str, object]) -> PiDSettings:
    """Our settings for the original's constructor arguments.

    Raises ValueError on an argument whose value this implementation does not have.
    """
    fixed: dict[str, object] = {
        "in_channels": 3,
        "use_text_rope": True,
        "text_rope_theta": 10000.0,
        "repa_encoder_index": -1,
        "lq_in_channels": 0,
    }
    for name, expected in fixed.items():
        if name in config and config[name] != expected:
            raise ValueError(f"{name}={config[name]!r}: only {expected!r} is supported")

    def whole(name: str, default: int = 0) -> int:
        value = config.get(name, default)
        if not isinstance(value, int):
            raise ValueError(f"{name}={value!r}: expected a whole number")
        return value

    rope_mode = config.get("rope_mode", "original")
    if rope_mode not in ("original", "ntk_aware"):
        raise ValueError(f"rope_mode={rope_mode!r}: expected original or ntk_aware")

    backbone = PixDiTSettings(
        patch=whole("patch_size"),
        hidden=whole("hidden_size"),
        heads=whole("num_groups"),
        depth=whole("patch_depth"),
        pixel_width=whole("pixel_hidden_size"),
        pixel_hidden=whole("pixel_attn_hidden_size"),
        pixel_heads=whole("pixel_num_groups"),
        pixel_depth=whole("pixel_depth"),
        text_width=whole("txt_embed_dim"),
        text_length=whole("txt_max_length"),
        reference=(whole("rope_ref_h"), whole("rope_ref_w")) if rope_mode == "ntk_aware" else None,
    )
    if "lq_latent_channels" not in config:
        return PiDSettings(backbone, adapter=None)
    gates = {"sigma_aware_per_token_per_dim": "channel", "sigma_aware_per_token": "token"}
    gate, padding = str(config["lq_gate_type"]), str(config.get("lq_conv_padding_mode", "zeros"))
    if gate not in gates or padding not in ("zeros", "replicate"):
        raise ValueError(
            f"lq_gate_type={gate!r}, lq_conv_padding_mode={padding!r}: "
            f"expected one of {list(gates)}, zeros or replicate"
        )
    return PiDSettings(
        backbone,
        AdapterSettings(
            latent_channels=whole("lq_latent_channels"),
            latent_factor=whole("latent_spatial_down_factor"),
            scale=whole("sr_scale"),
            width=whole("lq_hidden_dim"),
            blocks=whole("lq_num_res_blocks"),
            interval=whole("lq_interval"),
            unpack=whole("lq_latent_unpatchify_factor", 1),
            padding="zeros" if padding == "zeros" else "replicate",
            gate="channel" if gates[gate] == "channel" else "token",
            pixel_head=bool(config.get("pit_lq_inject", False)),
            aux_rgb=bool(config.get("lq_aux_rgb_head", False)),
        ),
    )
