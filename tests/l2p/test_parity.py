"""The head, whole models and hidden states against the original's, within 1e-5 in float32."""

import re

import pytest
import torch
from l2p_reference import FOLDER, distance, facts, model, needs_reference, tensors, text, unit, weights

from pixdec.models.detailer import Detailer, DetailerSettings

pytestmark = needs_reference
MODELS = [name for name in (tensors() if FOLDER.is_dir() else ()) if re.fullmatch(r"p\d+\.\d+x\d+\.text\d+", name)]


def test_inputs_are_the_references():
    assert torch.allclose(
        unit("tiny/x/64x128", 3, 1, 64, 128).flatten()[:3], torch.tensor([-0.3583257, 0.0419572, 1.2970401])
    )


@pytest.mark.parametrize("patch", [16, 64, 128, 160])
def test_head(patch: int):
    case, (_, _, height, width) = f"tiny-head{patch}", facts()["tensors"][f"head{patch}"]["image"]
    known = facts()["heads"][str(patch)]
    head = Detailer(DetailerSettings(patch, known["features"]))
    named = {key.removeprefix("local_decoder."): value for key, value in weights(known["keys"], case).items()}
    head.load_state_dict(named)
    assert sum(p.numel() for p in head.parameters()) == known["params"]
    image = unit(f"{case}/x", 1, 3, height, width)
    features = unit(f"{case}/features", 1, known["features"], height // patch, width // patch)
    with torch.no_grad():
        whole = head(image, features)
        assert distance(whole, f"head{patch}") < 1e-5
        banded = head(image, features, rows=1)
    assert float((banded - whole).abs().max()) < 2e-5


@pytest.mark.parametrize("name", MODELS)
def test_whole_model_and_hidden_states(name: str):
    patch, height, width, length = map(int, re.findall(r"\d+", name))
    network = model(patch)
    x = unit(f"tiny/x/{height}x{width}", 3, 1, height, width)[:, 0][None]
    parts = {
        "image_tokens_refined": network.transformer.noise_refiner[-1],
        "text_tokens_refined": network.transformer.context_refiner[-1],
        "after_block_0": network.transformer.layers[0],
        "features": network.local_decoder,
    }
    seen: dict[str, list[torch.Tensor]] = {part: [] for part in parts}
    hooks = [
        module.register_forward_hook(
            lambda _, given, made, part=part: seen[part].append(given[1] if part == "features" else made)
        )
        for part, module in parts.items()
    ]
    try:
        with torch.no_grad():
            made = [-network(x, torch.tensor([1 - t]), [text(length)]) for t in facts()["times"]]
    finally:
        for hook in hooks:
            hook.remove()
    assert distance(torch.cat(made), name) < 1e-5
    if f"{name}.features" in tensors():
        assert distance(torch.cat(seen["features"]), f"{name}.features") < 1e-5
    for part in list(parts)[:3]:
        if f"{name}.{part}" in tensors():
            assert distance(seen[part][1], f"{name}.{part}") < 1e-5


def test_a_ragged_batch_is_what_one_by_one_is():
    network = model(16)
    x, t = unit("ragged", 3, 3, 96, 80), torch.tensor([0.9, 0.5, 0.1])
    texts = [text(7), text(41), text(7)]
    with torch.no_grad():
        together = network(x, t, texts)
        apart = torch.cat([network(x[i : i + 1], t[i : i + 1], [texts[i]]) for i in range(3)])
    assert float((together - apart).norm() / apart.norm()) < 1e-5
