"""What was released is told by its tensors, in whatever packing; what is made of a source has all of it."""

import json
from pathlib import Path

import pytest
import torch
from l2p_reference import FOLDER, facts, needs_reference, weights
from safetensors.torch import load_file, save_file
from small import saved

from pixdec.cli import main
from pixdec.io.tensor_files import TensorFile
from pixdec.l2p import PixelModel, PixelSettings, load_model, open_weights, save_weights, transplant
from pixdec.l2p.model import shallow_only, shapes_of
from pixdec.l2p.transfer import compare
from pixdec.l2p.weight_files import Weights, digest
from pixdec.weights.describe import describe
from pixdec.weights.pixels import PIXEL_CARDS, Z_IMAGE, card_of_tensors, inventory, pixel_tensors

PIXEL_MODELS = [card for card in PIXEL_CARDS if card.patch > 2]
TRAINED = {16: 2_548_257_795, 64: 2_592_504_771, 128: 2_734_067_687, 160: 2_834_795_239}


def released(patch: int) -> PixelModel:
    return PixelModel(PixelSettings("z-image", Z_IMAGE, patch))


@pytest.mark.parametrize("card", PIXEL_MODELS, ids=lambda card: card.name)
def test_inventories_of_what_was_released(card):
    model = released(card.patch)
    shapes = shapes_of(model)
    assert (len(shapes), sum(p.numel() for p in model.parameters())) == (card.tensors, card.parameters)
    assert inventory(shapes) == card.inventory
    assert set(shallow_only(model, 5)) < set(shapes)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == TRAINED[card.patch]


@needs_reference
def test_the_sources_inventory_and_what_becomes_of_its_tensors():
    known = facts()["released"]["source"]
    source = {key: tuple(shape) for key, shape in known["keys"].items()}
    assert inventory(source) == known["md5"] == PIXEL_CARDS[0].inventory
    report = compare(released(16), source)
    assert (len(report.copied), len(report.new), len(report.dropped)) == (515, 30, 6)
    patches = {"1k": 16, "4k": 64, "8k": 128, "10k": 160}
    for step, counts in facts()["inherit_full_size"].items():
        first, then = (patches[name] for name in step.split("->"))
        report = compare(released(then), shapes_of(released(first)))
        assert len(report.copied) == counts["copied"]
        for ours, theirs in ((report.new, "new"), (report.reshaped, "shape_differs"), (report.dropped, "dropped")):
            assert sorted(ours) == sorted(counts[theirs])


@pytest.mark.parametrize("card", PIXEL_CARDS, ids=lambda card: card.name)
def test_inspect_names_a_released_file_as_comfyui_packs_it_too(card, tmp_path: Path, monkeypatch):
    if card.patch > 2:
        shapes = shapes_of(released(card.patch))
    elif FOLDER.is_dir():
        shapes = facts()["released"]["source"]["keys"]
    else:
        pytest.skip("the source's shapes are in the reference")
    plain = {key: torch.empty(tuple(shape), device="meta") for key, shape in shapes.items()}
    comfy = {}
    for key, tensor in plain.items():
        name = key.replace("norm_q", "q_norm").replace("norm_k", "k_norm").replace("to_out.0", "out")
        for ours in ("all_x_embedder", "all_final_layer"):
            if name.startswith(ours):
                name = ours.removeprefix("all_") + name[name.index("-1") + 2 :]
        if ".to_q." in name:
            tensor = torch.empty(3 * tensor.shape[0], tensor.shape[1], device="meta")
            name = name.replace("to_q", "qkv")
        if ".to_k." not in name and ".to_v." not in name:
            comfy[f"model.diffusion_model.{name}"] = tensor
    assert card_of_tensors(pixel_tensors(comfy)) is card
    assert card_of_tensors(pixel_tensors(plain)) is card
    monkeypatch.setattr("pixdec.weights.describe.open_checkpoint", lambda path: TensorFile(tmp_path, comfy, {}, 1))
    found = describe(tmp_path)
    if card.patch > 2:
        assert (found.kind, found.name, found.problem) == ("pixel", card.name, None)


@needs_reference
def test_a_transplant_of_the_reference_source_is_the_reference_model(tmp_path: Path):
    keys, config = facts()["keys"], facts()["config"]
    source = Weights(weights(keys["source"], "tiny"), PixelSettings("z-image", config, 0), "tiny", "none", tmp_path)
    for patch in (16, 64, 128):
        made, report = transplant(source, patch)
        known = facts()["init"][f"p{patch}"]
        assert (len(report.copied), sorted(report.new)) == (known["copied"], sorted(known["new"]))
        assert (list(report.reshaped), sorted(report.dropped)) == ([], sorted(known["dropped"]))
        wanted = weights(keys[f"p{patch}"], "tiny")
        assert made.tensors.keys() == wanted.keys()
        assert all(torch.equal(made.tensors[key], wanted[key]) for key in report.copied)
        assert all(torch.equal(again, made.tensors[key]) for key, again in transplant(source, patch)[0].tensors.items())


def test_init_train_and_merge_on_the_command_line(tmp_path: Path, capsys):
    source, start = saved(tmp_path / "transformer"), tmp_path / "start.safetensors"
    assert main(["l2p", "init", str(source), "-o", str(start), "--shallow", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (len(told["new"]), len(told["dropped"])) == (30, 6)
    begun = open_weights(start)
    model = load_model(begun)
    assert model.dtype == torch.float32
    part = {key: begun.tensors[key] + 1 for key in shallow_only(model, 1)}
    assert sum(tensor.numel() for tensor in part.values()) == told["trained"]
    trained = Weights(part, begun.settings, "mine", "none", tmp_path, part=True, base=digest(start))
    save_weights(trained, tmp_path / "trained.safetensors")
    whole, arguments = tmp_path / "whole.safetensors", [str(start), str(tmp_path / "trained.safetensors")]
    assert main(["l2p", "merge", *arguments, "-o", str(whole), "--dtype", "bfloat16"]) == 0
    merged = load_file(whole)
    assert all(torch.equal(merged[key], part.get(key, begun.tensors[key]).bfloat16()) for key in begun.tensors)
    assert main(["inspect", str(whole)]) == 0
    assert "kind: pixel" in capsys.readouterr().out

    save_weights(transplant(open_weights(source), 16, seed=1)[0], tmp_path / "other.safetensors")
    assert main(["l2p", "merge", str(tmp_path / "other.safetensors"), arguments[1], "-o", str(whole)]) == 2
    assert "digest" in capsys.readouterr().err


def test_files_mixed_in_precision_are_cast(tmp_path: Path):
    made, _ = transplant(open_weights(saved(tmp_path / "transformer")), 16)
    mixed = {key: t.bfloat16() if key.startswith("local_decoder.") else t for key, t in made.tensors.items()}
    save_weights(Weights(mixed, made.settings, "mixed", "none", tmp_path), tmp_path / "mixed.safetensors")
    for dtype in (torch.float32, torch.bfloat16):
        model = load_model(open_weights(tmp_path / "mixed.safetensors"), dtype=dtype)
        assert {p.dtype for p in model.parameters()} == {dtype}


@pytest.mark.parametrize("fault", ["missing", "shape", "class", "setting", "patch"])
def test_bad_sources_are_refused_in_one_line(fault: str, tmp_path: Path, capsys):
    folder = saved(tmp_path / "transformer")
    file, config = folder / "diffusion_pytorch_model.safetensors", folder / "config.json"
    tensors, stated = load_file(file), json.loads(config.read_text())
    if fault == "missing":
        del tensors["layers.1.attention.to_q.weight"]
    if fault == "shape":
        tensors["layers.1.attention.to_q.weight"] = torch.zeros(3, 3)
    if fault == "class":
        stated["_class_name"] = "SanaTransformer2DModel"
    if fault == "setting":
        stated["mystery"] = 3
    save_file(tensors, file)
    config.write_text(json.dumps(stated))
    patch = "24" if fault == "patch" else "16"
    assert main(["l2p", "init", str(folder), "-o", str(tmp_path / "x.safetensors"), "--patch", patch]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    named = {"missing": "layers.1.attention.to_q", "shape": "layers.1.attention.to_q", "class": "Sana"}
    assert len(told) == 1
    assert named.get(fault, {"setting": "mystery", "patch": "24"}.get(fault, "")) in told[0]
    assert not (tmp_path / "x.safetensors").exists()


def test_sizes_that_the_patch_does_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"1008x1000: expected multiples of 16 .* 1008x992"):
        released(16).settings.check_size(1000, 1008)
