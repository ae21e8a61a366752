"""float32 against bfloat16 on the full-size network, with random weights: how far the velocity moves, and what a call
costs.

python -m pixdec.bench.precision --side 512
"""

import json
import time

import torch

from pixdec.bench.machine import machine_facts
from pixdec.bench.measure import peak_memory
from pixdec.models.pid import PiD, PiDSettings


@torch.inference_mode()
def main(side: int = 512, device: str = "cpu") -> None:
    """One call of the default (v1, FLUX.1) network at `side` x `side` in both precisions; prints one line of JSON."""
    generator = torch.Generator().manual_seed(0)
    network = PiD(PiDSettings()).eval()
    for name, parameter in network.named_parameters():
        # Of the size that trained weights have, none of them zero; norms and gates keep their start.
        if parameter.ndim > 1:
            fan_in = parameter[0].numel()
            gain = 0.1 if ".modulation." in name else 1.0
            parameter.copy_(gain * torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    network.to(device)
    x = torch.randn(1, 3, side, side, generator=generator).to(device)
    latent = torch.randn(1, 16, side // 32, side // 32, generator=generator).to(device)
    text = torch.randn(1, 300, 2304, generator=generator).to(device)
    t, sigma = torch.tensor([0.634], device=device), torch.zeros(1, device=device)

    seconds: dict[str, float] = {}
    results: dict[str, torch.Tensor] = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        network.to(dtype)  # the weights are rounded once; noise levels, norms and gates stay float32 inside
        condition = network.condition(latent)
        start = time.perf_counter()
        results[name] = network.velocity(x, t, text, condition, sigma, chunk=1024).cpu()
        seconds[name] = time.perf_counter() - start
    difference = (results["bfloat16"] - results["float32"]).norm() / results["float32"].norm()
    print(
        json.dumps(
            {
                "side": side,
                "relative_difference": float(difference),
                "seconds_for_each_call": {name: round(value, 2) for name, value in seconds.items()},
                "peak_memory_GB": round(peak_memory(x.device) / 1e9, 2),
                **machine_facts(x.device),
                "torch": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
