"""Every source against its own diffusers class: the transplanted middle gives the same hidden states for the same
tokens, at noise levels that stay exact, and a ragged batch what one by one gives."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from l2p_reference import unit
from small import SOURCES, TEXT
from torch import Tensor

from pixdec.l2p import PixelModel, PixelSettings
from pixdec.l2p.model import shallow_only
from pixdec.l2p.sources import get_source, source_of
from pixdec.l2p.transfer import compare

ROWS, COLUMNS = 4, 6
EMBEDDERS = {"z-image": "all_x_embedder.2-1", "flux2-klein": "x_embedder", "qwen-image": "img_in"}
LEVEL = 0.7373  # no multiple of 1/256


def original(source: str) -> Any:
    """A source with nothing after its last block, whose output are the tokens."""
    torch.manual_seed(5)
    model = SOURCES[source]().eval()
    for parameter in model.parameters():
        if not parameter.any():
            parameter.data.normal_(std=0.5)
    return model


def transplanted(source: str, model: Any) -> tuple[PixelModel, Any]:
    """A pixel model with the middle of a latent one, and what its patch embedder is."""
    made = PixelModel(PixelSettings(source, dict(model.config), 16))
    kind = made.source
    report = compare(made, {key: tuple(t.shape) for key, t in model.state_dict().items()})
    assert all(key.startswith((kind.embedder, "local_decoder.")) for key in (*report.new, *report.reshaped))
    made.to_empty(device="cpu")
    if hasattr(made.transformer, "pos_embed") and hasattr(made.transformer.pos_embed, "pos_freqs"):
        assert made.transformer.pos_embed.pos_freqs.device.type == "cpu"
    torch.manual_seed(0)
    for parameter in made.parameters():
        parameter.data.normal_(std=0.02)
    state = model.state_dict()
    made.transformer.load_state_dict({key: state[key] for key in report.copied}, strict=False)
    embedder = made.transformer.get_submodule(EMBEDDERS[source].replace("2-1", "16-1"))
    return made.eval(), embedder


def hidden(source: str, model: Any, tokens: Tensor, text: Tensor, t: float) -> Tensor:
    """What the last block of the original puts out for image tokens (1,L,D), in place of embedded ones."""
    seen: list[Tensor] = []
    kind = get_source(source)

    def given(*_: object) -> Tensor:
        return tokens[0] if source == "z-image" else tokens

    def taken(_module: object, _given: object, made: Any) -> None:
        seen.append(made[1] if isinstance(made, tuple) else made)

    hooks = [model.get_submodule(EMBEDDERS[source]).register_forward_hook(given)]
    hooks.append(kind.blocks(model)[-1].register_forward_hook(taken))
    level = torch.tensor([t])
    with torch.no_grad():
        if source == "z-image":
            tokens = torch.cat([tokens, torch.zeros(1, -tokens.shape[1] % 32, tokens.shape[2])], 1)
            model([torch.zeros(16, 1, 2 * ROWS, 2 * COLUMNS)], 1 - level, [text])
        elif source == "flux2-klein":
            one = torch.arange(1)
            model(
                hidden_states=torch.zeros(1, ROWS * COLUMNS, 16),
                encoder_hidden_states=text[None],
                timestep=level,
                img_ids=torch.cartesian_prod(one, torch.arange(ROWS), torch.arange(COLUMNS), one),
                txt_ids=torch.cartesian_prod(one, one, one, torch.arange(len(text))),
            )
        else:
            model(
                hidden_states=torch.zeros(1, ROWS * COLUMNS, 16),
                encoder_hidden_states=text[None],
                encoder_hidden_states_mask=None,
                timestep=level,
                img_shapes=[[(1, ROWS, COLUMNS)]],
            )
    for hook in hooks:
        hook.remove()
    last = seen[0]
    return last[:, len(text) :] if source == "flux2-klein" else last[:, : ROWS * COLUMNS]


@pytest.mark.parametrize("source", list(SOURCES))
def test_the_middle_is_the_sources(source: str):
    model = original(source)
    made, embedder = transplanted(source, model)
    x, text = unit("source/x", 1, 3, 16 * ROWS, 16 * COLUMNS), unit("source/text", 5, TEXT)
    given: list[Tensor] = []
    hook = embedder.register_forward_hook(lambda _m, _a, tokens: given.append(tokens))
    with torch.no_grad():
        features = made.source.features(made.transformer, x, torch.tensor([LEVEL]), [text], 16)
    hook.remove()
    tokens = given[0].reshape(1, -1, given[0].shape[-1])[:, : ROWS * COLUMNS]
    wanted = hidden(source, model, tokens, text, LEVEL)
    assert features.shape == (1, wanted.shape[2], ROWS, COLUMNS)
    assert float((features.flatten(2).transpose(1, 2) - wanted).norm() / wanted.norm()) < 1e-6


@pytest.mark.parametrize("source", list(SOURCES))
def test_ragged_batches_gradients_and_exact_time(source: str):
    made, _ = transplanted(source, original(source))
    x, t = unit("source/ragged", 3, 3, 32, 48), torch.tensor([0.9, 0.5, 0.1])
    texts = [unit(f"source/{n}", n, TEXT) for n in (5, 40, 5)]
    with torch.no_grad():
        together = made(x, t, texts)
        apart = torch.cat([made(x[i : i + 1], t[i : i + 1], [texts[i]]) for i in range(3)])
        assert float((together - apart).norm() / apart.norm()) < 1e-5
        low = made.to(torch.bfloat16)
        levels = torch.tensor([LEVEL, LEVEL + 0.001, LEVEL])  # one level in bfloat16
        image, each = x[:1].expand(3, -1, -1, -1).bfloat16(), [texts[0].bfloat16()] * 3
        near = low.source.features(low.transformer, image, levels, each, 16)
    assert torch.equal(near[0], near[2])
    assert not torch.equal(near[0], near[1])
    made.float()(x, t, texts).square().mean().backward()
    last = made.source.blocks(made.transformer)[-1]
    unused = {id(p) for name, p in last.named_parameters() if name.startswith(("txt_", "attn.to_add_out"))}
    missing = [name for name, p in made.named_parameters() if p.grad is None and id(p) not in unused]
    assert not [name for name in missing if "ff_context" not in name]


def test_a_class_that_is_no_source_is_refused():
    with pytest.raises(ValueError, match=r"SanaTransformer2DModel.*ZImageTransformer2DModel"):
        source_of("SanaTransformer2DModel")
    with pytest.raises(ValueError, match="guidance_embeds=True"):
        PixelModel(PixelSettings("flux2-klein", {"guidance_embeds": True}, 16))


def test_full_size_sources_can_be_built_and_frozen():
    sizes: Mapping[str, tuple[Mapping[str, Any], int]] = {
        "flux2-klein": (
            {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680,
             "guidance_embeds": False}, 25),
        "qwen-image": ({}, 60),
    }  # fmt: skip
    for source, (config, blocks) in sizes.items():
        made = PixelModel(PixelSettings(source, config, 16))
        names = shallow_only(made, 5)
        assert len(made.source.blocks(made.transformer)) == blocks
        assert 0 < len(names) < len(list(made.named_parameters()))
