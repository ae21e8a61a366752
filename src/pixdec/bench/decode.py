"""Time and peak memory of whole decodes.

python -m pixdec.bench.decode --model pixdec-nano --side 512
"""

import json
import platform
import resource
import sys
import time

import torch

from pixdec.decoder import PixelDecoder


def main(model: str = "pixdec-nano", side: int = 512, steps: int | None = None, runs: int = 3) -> None:
    """Decodes a random latent of a `side` x `side` image `runs` times after one warm-up, and prints one line of
    JSON."""
    decoder = PixelDecoder.from_pretrained(model)
    loaded = peak_memory()
    cells = side // decoder.space.factor
    latent = torch.randn(1, decoder.space.channels, cells, cells, generator=torch.Generator().manual_seed(0))
    image = decoder.decode(latent, steps=steps, output="pt")
    seconds: list[float] = []
    for _ in range(runs):
        start = time.perf_counter()
        image = decoder.decode(latent, steps=steps, output="pt")
        seconds.append(time.perf_counter() - start)
    print(
        json.dumps(
            {
                "model": decoder.model.name,
                "output": f"{image.shape[3]}x{image.shape[2]}",
                "device": str(decoder.device),
                "dtype": str(decoder.dtype).removeprefix("torch."),
                "seconds": [round(s, 2) for s in sorted(seconds)],
                "peak_memory_GB": round(peak_memory() / 1e9, 2),
                "loaded_memory_GB": round(loaded / 1e9, 2),
                **machine(),
            }
        )
    )


def peak_memory() -> int:
    """The most memory in bytes that this process has held: on CUDA of the device, else its resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    name = platform.processor() or platform.machine()
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    return {
        "machine": name,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
