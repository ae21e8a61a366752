"""Noise levels, conditions and the objectives of prior and decoder."""

from dataclasses import replace

import pytest
import torch

from pixdec.models.pid import PiD
from pixdec.sampling.flow import interpolate
from pixdec.train.data.degrade import DegradeSettings, degrade
from pixdec.train.draws import Draws, LevelSettings, noise_levels
from pixdec.train.losses import alignment
from pixdec.train.representation import Representation, RepresentationSettings
from pixdec.train.stages.decoder import DecoderSettings, DecoderStage
from pixdec.train.stages.prior import PriorSettings, PriorStage
from pixdec.train.stages.stage import Conditioner, ConditionSettings, Examples
from trainset import SILENT, WORDY, embed, examples, network, tiny_encoder

PLAIN = ConditionSettings(DegradeSettings(scale=4), clean=1.0, drop_caption=0.0, drop_latent=0.0)


def draws(step: int = 0, count: int = 4, batch: int | None = None) -> Draws:
    return Draws(0, step, range(count), batch or count)


# ---- random numbers


def test_a_place_draws_the_same_whoever_works_on_it():
    whole = draws()
    parts = [Draws(0, 0, [place], 4) for place in range(4)]
    for _ in range(2):
        assert torch.equal(whole.normal(3, 5), torch.cat([part.normal(3, 5) for part in parts]))
        assert torch.equal(whole.uniform(), torch.cat([part.uniform() for part in parts]))
        assert torch.equal(whole.spread(), torch.cat([part.spread() for part in parts]))
    assert whole.common() == parts[2].common()
    assert not torch.equal(draws(1).normal(4), draws(2).normal(4))


def test_levels_have_the_distribution():
    settings = LevelSettings(mean=0.3, std=0.8, shift=6.0)
    levels = torch.cat([noise_levels(settings, draws(i, 16), 64, 64) for i in range(300)])
    logits = torch.logit(levels.double())
    assert float(logits.mean()) == pytest.approx(0.3 + torch.tensor(6.0).log().item(), abs=0.02)
    assert float(logits.std()) == pytest.approx(0.8, abs=0.02)


def test_levels_shift_with_the_size():
    fixed = noise_levels(LevelSettings(shift=6.0), draws(), 2048, 2048)
    assert torch.allclose(noise_levels(LevelSettings(shift="v1.5"), draws(), 2048, 2048), fixed)
    assert (noise_levels(LevelSettings(shift="v1.5"), draws(), 4096, 4096) > fixed).all()


def test_a_share_of_levels_is_high():
    levels = torch.cat([noise_levels(LevelSettings(mean=-4.0, high=0.25), draws(i), 8, 8) for i in range(500)])
    assert 0.2 < float((levels > 0.5).float().mean()) < 0.3
    clamped = noise_levels(LevelSettings(std=9.0, least=0.02, most=0.99), draws(0, 64), 8, 8)
    assert float(clamped.min()) == pytest.approx(0.02)
    assert float(clamped.max()) == pytest.approx(0.99)


@pytest.mark.parametrize(
    ("change", "message"), [({"shift": 0.0}, "shift"), ({"least": 0.5, "most": 0.4}, "least"), ({"high": 2.0}, "high")]
)
def test_levels_that_cannot_be(change: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        LevelSettings(**change)


# ---- conditions


def test_plain_conditions_are_the_encoders_latents():
    encode, shown = tiny_encoder(), examples(0)
    conditions = Conditioner(PLAIN, [encode])(shown, draws())
    low = degrade(shown.images, 4)
    assert torch.allclose(conditions.low, low, atol=1e-6)
    assert torch.allclose(conditions.latent, encode(low), atol=1e-5)
    assert conditions.text is None
    assert conditions.sigma.tolist() == [0] * 4
    assert conditions.kept.tolist() == [1] * 4


def test_latents_are_noised_to_their_sigma():
    zeros = Examples(torch.zeros(64, 3, 64, 64), [""] * 64, torch.zeros(64, 128, 4, 4))
    settings = replace(PLAIN, clean=0.5, sigma_max=0.8)
    conditions = Conditioner(settings, [])(zeros, draws(0, 64))
    assert 0.3 < float((conditions.sigma == 0).float().mean()) < 0.7
    assert conditions.sigma.max() <= 0.8
    assert torch.allclose(conditions.latent.flatten(1).std(1), conditions.sigma, atol=0.05)


def test_dropped_latents_are_zero_and_shut_the_gates():
    shown = Examples(torch.zeros(64, 3, 64, 64), [""] * 64, torch.ones(64, 128, 4, 4))
    conditions = Conditioner(replace(PLAIN, drop_latent=0.25), [])(shown, draws(0, 64))
    gone = conditions.kept == 0
    assert 0.1 < float(gone.float().mean()) < 0.4
    assert (conditions.latent[gone] == 0).all()
    assert (conditions.sigma[gone] == 1).all()
    assert (conditions.latent[~gone] == 1).all()


def test_dropped_captions_are_the_empty_one():
    shown = examples(0, count=4)
    text = Conditioner(replace(PLAIN, drop_caption=1.0), [tiny_encoder()], embed)(shown, draws()).text
    assert text is not None
    assert (text == 0).all()
    given = embed(list(shown.captions)) + 1
    shown = Examples(shown.images, shown.captions, None, given)
    kept = Conditioner(PLAIN, [tiny_encoder()], embed)(shown, draws()).text
    assert kept is not None
    assert torch.equal(kept, given)
    half = Conditioner(replace(PLAIN, drop_caption=0.5), [tiny_encoder()], embed)(shown, draws(3)).text
    assert half is not None
    emptied = (half == 0).all(-1).all(-1)
    assert 0 < int(emptied.sum()) < 4
    assert torch.equal(half[~emptied], given[~emptied])


def test_encoders_take_turns_by_place():
    encoders = [lambda x, k=k: torch.full((len(x), 1, 1, 1), float(k)) for k in range(3)]
    shown = examples(0)
    conditions = Conditioner(PLAIN, encoders)(shown, draws())
    assert conditions.latent.flatten().tolist() == [0, 1, 2, 0]
    later = Conditioner(PLAIN, encoders)(Examples(shown.images[2:], shown.captions[2:]), Draws(0, 0, [2, 3], 4))
    assert later.latent.flatten().tolist() == [2, 0]


# ---- the prior


def prior() -> PiD:
    return network(replace(WORDY, adapter=None))


def test_the_priors_loss_is_the_velocitys():
    stage = PriorStage(prior(), PriorSettings(drop_caption=0.0), embed)
    shown = examples(0)
    losses = stage.losses(0, shown, draws())
    again = draws()
    again.uniform()
    t = noise_levels(stage.settings.levels, again, 64, 64)
    noise = again.normal(3, 64, 64)
    v = stage.network(interpolate(shown.images, noise, t), t, embed(list(shown.captions)), None, None)
    assert float(losses["total"]) == pytest.approx(float((v - (noise - shown.images)).square().mean()), rel=1e-6)
    assert set(losses) == {"total", "flow"}


def test_representation_alignment():
    settings = PriorSettings(representation=RepresentationSettings(weight=0.5, block=1, hidden=16, width=6))
    made = prior()
    features = torch.randn(4, 6, 7, 7, generator=torch.Generator().manual_seed(0))
    stage = PriorStage(made, settings, embed, Representation(settings.representation, made, lambda images: features))
    losses = stage.losses(0, examples(0), draws())
    assert float(losses["total"]) == pytest.approx(float(losses["flow"] + 0.5 * losses["representation"]), rel=1e-6)
    assert -1 <= float(losses["representation"]) <= 1
    losses["representation"].backward()
    blocks = made.backbone.patch_blocks
    assert blocks[1].image.proj.weight.grad is not None
    assert made.backbone.final_linear.weight.grad is None
    assert set(stage.networks) == {"prior", "projector"}
    projector = stage.networks["projector"]
    optimizer = torch.optim.Adam(projector.parameters(), 1e-2)
    first = float(losses["representation"])
    for _ in range(30):
        optimizer.zero_grad()
        loss = stage.losses(0, examples(0), draws())["representation"]
        loss.backward()
        optimizer.step()
    assert float(loss) < first - 0.2


def test_representation_needs_both_weight_and_encoder():
    with pytest.raises(ValueError, match=r"representation\.weight=0\.5"):
        PriorStage(prior(), PriorSettings(representation=RepresentationSettings(weight=0.5)), embed)


def test_a_decoder_is_no_prior():
    with pytest.raises(ValueError, match="train this network as a decoder"):
        PriorStage(network(WORDY), PriorSettings(), embed)


# ---- the decoder


def test_the_decoders_loss_is_the_velocitys():
    settings = DecoderSettings(conditions=PLAIN)
    stage = DecoderStage(network(WORDY), settings, Conditioner(PLAIN, [tiny_encoder()], embed))
    shown = examples(0)
    losses = stage.losses(0, shown, draws())
    again = draws()
    conditions = stage.conditioner(shown, again)
    t, noise = noise_levels(settings.levels, again, 64, 64), again.normal(3, 64, 64)
    v = stage.network(interpolate(shown.images, noise, t), t, conditions.text, conditions.latent, conditions.sigma)
    expected = float((v - (noise - shown.images)).square().mean())
    assert float(losses["total"]) == pytest.approx(expected, rel=1e-6)
    assert float(losses["clean"]) == pytest.approx(expected, rel=1e-6)


def test_alignment_counts_what_was_kept():
    conditions = replace(PLAIN, clean=0.0, drop_latent=0.5)
    settings = DecoderSettings(conditions=conditions, alignment=0.8, learns="adapter")
    stage = DecoderStage(network(WORDY), settings, Conditioner(conditions, [tiny_encoder()], embed))
    shown = examples(0)
    losses = stage.losses(0, shown, draws(4))
    seen = stage.conditioner(shown, draws(4))
    assert 0 < float(seen.kept.sum()) < 4
    expected = alignment(stage.network.adapter.low_resolution(seen.latent), seen.low, seen.sigma, seen.kept)
    assert float(losses["alignment"]) == pytest.approx(float(expected), rel=1e-6)
    assert float(losses["total"]) == pytest.approx(float(losses["flow"] + 0.8 * expected), rel=1e-6)


def test_only_the_adapter_learns():
    settings = DecoderSettings(conditions=PLAIN, learns="adapter", alignment=0.8)
    stage = DecoderStage(network(WORDY), settings, Conditioner(PLAIN, [tiny_encoder()], embed))
    stage.losses(0, examples(0), draws())["total"].backward()
    learning = {name.split(".")[0] for name, p in stage.network.named_parameters() if p.requires_grad}
    assert learning == {"adapter", "gates", "pixel_gate"}
    with_gradient = {name.split(".")[0] for name, p in stage.network.named_parameters() if p.grad is not None}
    assert with_gradient == learning


@pytest.mark.parametrize(
    ("settings", "made", "message"),
    [
        (DecoderSettings(alignment=0.8), SILENT, "no auxiliary head"),
        (DecoderSettings(), replace(WORDY, adapter=None), "no latent adapter"),
        (DecoderSettings(conditions=ConditionSettings(DegradeSettings(scale=8))), SILENT, "decodes 4x"),
    ],
)
def test_decoders_that_cannot_be(settings: DecoderSettings, made: object, message: str):
    with pytest.raises(ValueError, match=message):
        DecoderStage(PiD(made), settings, Conditioner(settings.conditions, []))  # pyright: ignore[reportArgumentType]
