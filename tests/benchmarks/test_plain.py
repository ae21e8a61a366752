import dataclasses

import pytest
import torch

from battery import randomised
from benchmarks.plain import plain_velocity
from pixdec.models.adapter import AdapterSettings
from pixdec.models.execution import Execution
from pixdec.models.pid import PiD, PiDSettings
from pixdec.models.pixdit import PixDiTSettings

BACKBONE = PixDiTSettings(
    patch=8, hidden=24, heads=2, depth=3, pixel_width=8, pixel_hidden=16, pixel_heads=2, text_width=12, text_length=6
)
V1 = AdapterSettings(8, latent_factor=4, width=8, blocks=1)
V1_5 = dataclasses.replace(V1, padding="replicate", gate="token", pixel_head=True)
NETWORKS = {
    "v1": PiDSettings(BACKBONE, V1),
    "v1.5": PiDSettings(BACKBONE, V1_5),
    "prior": PiDSettings(BACKBONE, None),
    "x0": PiDSettings(BACKBONE, V1, prediction="x0"),
}


@pytest.mark.parametrize("kind", NETWORKS)
@torch.no_grad()
def test_the_network_computes_what_is_written_plainly(kind: str):
    torch.manual_seed(0)
    network = randomised(PiD(NETWORKS[kind]))
    latent, text = None if kind == "prior" else torch.randn(2, 8, 8, 12), torch.randn(2, 5, 12)
    x = torch.randn(2, 3, 128, 192)
    given = x, torch.tensor([0.3, 0.9]), text, latent, None if latent is None else torch.tensor([0.0, 0.4])
    expected = plain_velocity(network, *given)
    for chunk in (None, 40):
        condition = None if latent is None else network.condition(latent)
        found = network.velocity(*given[:3], condition, given[4], Execution(chunk=chunk))
        assert float((found - expected).norm() / expected.norm()) < 3e-6
