"""The service under load and abuse, at full size: `python -m benchmarks.serve -o docs/benchmarks/serve`. `tests/serve`
runs the same in a size that a suite can bear.

With `--device cuda --source random:v1` throughput and overhead are those of the released FLUX.1 student, with random
weights; its images are latents of noise.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import random
import shlex
import socket
import statistics
import struct
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import torch
import tyro
import uvicorn
from PIL import Image

from benchmarks.facts import machine_facts
from benchmarks.methods import RANDOM, random_decoder
from pixdec.decoder import PixelDecoder
from pixdec.devices import computes_in_bfloat16
from pixdec.io.writing import encode_image
from pixdec.latents import Latent, get_space
from pixdec.serve import schema
from pixdec.serve.engine import Engine
from pixdec.serve.http import app_for
from pixdec.serve.jobs import ServiceError, Work
from pixdec.serve.settings import ModelSettings, ServeSettings

MODEL = "pixdec-nano"
BATCHES = (1, 4)
TITLES = {
    "overhead": "Overhead over a bare decode, in seconds",
    "aborts": "Requests with random aborts among them",
    "sizes": "Random sizes, one after the other",
    "fuzz": "Damaged and hostile bodies",
    "storm": "Clients that hang up, and then a clean request",
    "health": "Seconds of /healthz during a decode",
}


def picture(width: int = 12, height: int = 12, seed: int = 0, kind: str = "PNG") -> bytes:
    """The file of an image of noise."""
    file = io.BytesIO()
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(values).save(file, kind)
    return file.getvalue()


def work(seed: int = 0, width: int = 12, height: int = 12, steps: int = 4) -> Work:
    """An upscale."""
    data, shape = picture(width, height, seed), tuple(sorted((height, width)))
    return Work("upscale", MODEL, data, shape, 16 * width * height, seed=seed, steps=steps)


def asked(engine: Engine, side: int, seed: int = 0) -> schema.Upscale | schema.Decode:
    """A request for an image of side x side pixels, of the model's own steps: of a picture of noise, or of a latent of
    noise for a decoder of latents."""
    model = engine.models[MODEL]
    small = side // (model["factor"] * model["scale"])
    if model["space"] == "rgb":
        return schema.Upscale(image=picture(small, small, seed), seed=seed)
    space = get_space(model["space"])
    noise = torch.randn(1, space.channels, small, small, generator=torch.Generator().manual_seed(seed))
    return schema.Decode(latent=Latent(noise, space).to_bytes(), seed=seed)


@contextlib.contextmanager
def served(engine: Engine) -> Generator[str]:
    """The engine behind HTTP, on a port of its own."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=512)
    server = uvicorn.Server(uvicorn.Config(app_for(engine), http="h11", log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


def aborts(engine: Engine, requests: int, seed: int = 0) -> dict[str, int]:
    """Requests with random aborts among them: how many were cancelled, and how many of the others had other bytes than
    alone."""
    draw, alone = random.Random(seed), [engine.run(work(each)).data for each in range(6)]
    found = Counter({"cancelled": 0, "differ": 0, "requests": requests})
    for start in range(0, requests, engine.settings.queue // 2):
        seeds = [draw.randrange(6) for _ in range(min(engine.settings.queue // 2, requests - start))]
        jobs = [engine.submit(work(each)) for each in seeds]
        for job in draw.sample(jobs, len(jobs) // 3):
            threading.Timer(draw.random() * 0.5, engine.cancel, [job]).start()
        for each, job in zip(seeds, jobs, strict=True):
            try:
                found["differ"] += job.wait(120).data != alone[each]
            except ServiceError as failure:
                found[failure.code] += 1
    return dict(found)


def sizes(engine: Engine, requests: int) -> dict[str, float]:
    """Requests of random sizes: how much the worker's memory has grown, in MB, after the first tenth."""
    draw, process, first = random.Random(0), psutil.Process(engine.workers[0].process.pid), 0
    for i in range(requests):
        engine.run(work(i, draw.randint(4, 40), draw.randint(4, 40), steps=1))
        if i == requests // 10:
            first = process.memory_info().rss
    return {"requests": requests, "grown_mb": round((process.memory_info().rss - first) / 1e6, 1)}


def storm(url: str, engine: Engine, requests: int) -> dict[str, float]:
    """Requests whose clients hang up, and then a clean one: seconds until it is answered."""
    import httpx2

    def hang_up(i: int) -> None:
        with contextlib.suppress(httpx2.HTTPError):
            httpx2.post(f"{url}/v1/upscale", files={"image": picture(60, 60, i)}, timeout=0.05)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(hang_up, range(requests)))
    started = time.perf_counter()
    answer = httpx2.post(f"{url}/v1/upscale", files={"image": picture()}, timeout=120)
    return {"requests": requests, "status": answer.status_code, "seconds": round(time.perf_counter() - started, 2)}


def fuzz(url: str, requests: int, seed: int = 0) -> dict[str, Any]:
    """Damaged and hostile bodies: the statuses, the slowest answer, and files that were left."""
    import httpx2

    draw, statuses, slowest = random.Random(seed), Counter[int](), 0.0
    with tempfile.TemporaryDirectory() as temporary, httpx2.Client(base_url=url, timeout=120) as client:
        tempfile.tempdir = temporary  # the service's too, which is in this process
        for _ in range(requests):
            path, headers, body = _hostile(draw)
            started = time.perf_counter()
            try:
                status = client.post(path, content=body, headers=headers).status_code
            except httpx2.RemoteProtocolError:  # it hung up on what was no HTTP
                status = 0
            statuses[status] += 1
            slowest = max(slowest, time.perf_counter() - started)
        left, tempfile.tempdir = [file.name for file in Path(temporary).iterdir()], None
    return {"requests": requests, "statuses": dict(statuses), "slowest": round(slowest, 3), "files_left": left}


def _hostile(draw: random.Random) -> tuple[str, dict[str, str], bytes]:
    """A route, headers and a body."""
    path = draw.choice(["/v1/upscale", "/v1/decode", "/v1/images/edits", "/v1/generate", "/v1/images/generations"])
    name = "latent" if path == "/v1/decode" else "image"
    file = _hostile_file(draw, latent=name == "latent")
    field, value = (
        draw.choice(["steps", "seed", "model", "scale", "size", "n", "prompt", "\x00", "é"]),
        draw.choice(["", "-1", "4", "1e9", "NaN", "null", "[[]]", "a" * 5000, "\xed\xa0\x80"]),
    )
    wrong = draw.random() < 0.4  # else what is wrong is the file
    if draw.random() < 0.4:
        fields: dict[str, Any] = {name: base64.b64encode(file).decode()}
        if wrong:
            fields[field] = draw.choice([value, 4, -1, None, [], {}, 1e300, True])
        body = json.dumps(fields).encode()
        return path, {"content-type": "application/json"}, _damaged(draw, body) if draw.random() < 0.4 else body
    disposition = f'Content-Disposition: form-data; name="{name}"; filename="../../etc/x"'
    text = f'Content-Disposition: form-data; name="{field}"\r\n\r\n{value}'
    extra = f"\r\n--b\r\n{text}" if wrong else ""
    body = f"--b\r\n{disposition}\r\n\r\n".encode() + file + f"{extra}\r\n--b--\r\n".encode()
    kind = draw.choice(
        ["multipart/form-data; boundary=b"] * 6 + ["multipart/form-data", "multipart/form-data; boundary=x"]
    )
    return path, {"content-type": kind}, _damaged(draw, body) if draw.random() < 0.3 else body


def _hostile_file(draw: random.Random, *, latent: bool) -> bytes:
    if latent:
        shape = draw.choice([[1, 3, 4, 4], [1, 16, 2, 2], [1, 3, 10**6, 10**6], [-1], [1, 3, 4, 4.5], []])
        header = {"latent": {"dtype": "F32", "shape": shape, "data_offsets": [0, draw.choice([192, 10**12])]}}
        metadata = {"pixdec": "latent", "space": draw.choice(["rgb", "flux2", "x"]), "sigma": draw.choice(["[0]", "x"])}
        text = json.dumps({"__metadata__": metadata, **header}).encode()
        length = draw.choice([len(text), len(text), 2**63, 0])
        file = struct.pack("<Q", length) + text + draw.randbytes(192)
    else:
        kind = draw.choice(["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "bomb"])
        file = (
            _bomb(draw.choice([(50_000, 50_000), (50_000, 1), (2**31 - 1, 1)]))
            if kind == "bomb"
            else picture(4, 4, 0, kind)
        )
    return _damaged(draw, file) if draw.random() < 0.7 else file


def _bomb(size: tuple[int, int]) -> bytes:
    """A PNG that says it is large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10_000))) + chunk(b"IEND", b"")


def _damaged(draw: random.Random, data: bytes) -> bytes:
    found = bytearray(data)
    for _ in range(draw.randint(1, 6)):
        if found:
            found[draw.randrange(len(found))] = draw.randrange(256)
    return bytes(found[: draw.randint(0, len(found))] if draw.random() < 0.4 else found)


def health(url: str, engine: Engine) -> dict[str, float]:
    """Seconds of /healthz during the decode of a large image: the median, and the slowest."""
    import httpx2

    job, times = engine.submit(work(0, 512, 512)), list[float]()
    with httpx2.Client(base_url=url, timeout=60) as client:
        while not job.ended:
            started = time.perf_counter()
            client.get("/healthz").raise_for_status()
            times.append(time.perf_counter() - started)
            time.sleep(0.01)
    return {"requests": len(times), "median": round(statistics.median(times), 4), "slowest": round(max(times), 4)}


def overhead(url: str, engine: Engine, settings: Settings, repeats: int = 5) -> dict[str, float]:
    """Seconds of the same image, read, decoded and written, by a bare decode and by the service, medians in turns; and
    those of the processors, which others who use them do not change, of the service those of its client too."""
    import httpx2

    from pixdec.generation.enlarge import upscale
    from pixdec.io.images import read_picture

    source, request = engine.settings.models[MODEL].source, asked(engine, settings.side)
    decoder = PixelDecoder.from_pretrained(source, settings.device)
    worker = psutil.Process(engine.workers[0].process.pid)

    def processors() -> float:
        return time.process_time() + sum(worker.cpu_times()[:2])

    def bare() -> None:
        if isinstance(request, schema.Upscale):
            image = upscale(read_picture(io.BytesIO(request.image)), decoder).pil()
        else:
            image = decoder.decode(Latent.from_bytes(request.latent))[0]
        encode_image(image, "PNG", settings={})

    def service() -> None:
        if isinstance(request, schema.Upscale):
            answer = client.post("/v1/upscale", files={"image": request.image})
        else:
            answer = client.post("/v1/decode", files={"latent": request.latent})
        answer.raise_for_status()

    found = {name: list[float]() for name in ("bare", "bare_cpu", "service", "service_cpu")}
    with httpx2.Client(base_url=url, timeout=600) as client:
        for do in (bare, service) * (repeats + 1):
            busy, started = processors(), time.perf_counter()
            do()
            found[do.__name__].append(time.perf_counter() - started)
            found[f"{do.__name__}_cpu"].append(processors() - busy)
    medians = {name: round(statistics.median(some[1:]), 3) for name, some in found.items()}
    return {
        "side": settings.side,
        **medians,
        "ratio": round(medians["service"] / medians["bare"], 3),
        "ratio_cpu": round(medians["service_cpu"] / medians["bare_cpu"], 3),
    }


def throughput(engine: Engine, side: int, clients: Sequence[int], seconds: float) -> list[dict[str, float]]:
    """Images a second of the engine, and the median and 99th percentile of the seconds of one, for so many clients at
    once who each ask for the next image when they have one."""
    works = [schema.work_of(asked(engine, side, seed), engine) for seed in range(max(clients))]
    rows = list[dict[str, float]]()
    for count in clients:
        for job in [engine.submit(each) for each in works[:count]]:  # the first of a size is slower
            job.wait()
        times, end = list[float](), time.perf_counter() + seconds

        def ask(seed: int, times: list[float] = times, end: float = end) -> None:
            while time.perf_counter() < end:
                started = time.perf_counter()
                engine.run(works[seed])
                times.append(time.perf_counter() - started)

        started = time.perf_counter()
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(ask, range(count)))
        rate = len(times) / (time.perf_counter() - started)
        ordered = sorted(times)
        p50, p99 = (round(ordered[min(len(ordered) - 1, int(len(ordered) * q))], 3) for q in (0.5, 0.99))
        rows.append(
            {
                "side": side,
                "clients": count,
                "batch": engine.workers[0].batch,
                "images_per_second": round(rate, 3),
                "p50": p50,
                "p99": p99,
            }
        )
    return rows


def plot(rows: Sequence[dict[str, float]], path: Path) -> None:
    """p50 and p99 against load, for each size of images."""
    import matplotlib.pyplot as plt

    sides = list(dict.fromkeys(row["side"] for row in rows))
    figure, grid = plt.subplots(1, len(sides), figsize=(5 * len(sides), 3.6), squeeze=False)
    for side, axes in zip(sides, grid[0], strict=True):
        for batch, color in zip(BATCHES, ("tab:gray", "tab:blue"), strict=True):
            some = [row for row in rows if (row["batch"], row["side"]) == (batch, side)]
            for name, style in (("p50", "-o"), ("p99", "--o")):
                rates = [row["images_per_second"] for row in some]
                label = f"{name}, {'one at a time' if batch == 1 else f'batches of {batch}'}"
                axes.plot(rates, [row[name] for row in some], style, color=color, label=label)
        axes.set(title=f"{side}²", xlabel="images a second", ylabel="seconds", xlim=(0, None), ylim=(0, None))
    grid[0][0].legend()
    figure.savefig(path, dpi=100, bbox_inches="tight")


def page(found: dict[str, Any], picture: str) -> str:
    """All that was found, in Markdown."""
    lines = ["# The service under load", "", "Made by", "", f"    {found['command']}", ""]
    lines += [f"- {name}: {value}" for name, value in found["machine"].items()]
    if rows := found.get("throughput"):
        lines += [
            "",
            "## Throughput",
            "",
            "So many clients at once each ask the engine for the next image when they have one; seconds of one image.",
            "",
            f"![seconds of an image against images a second]({picture})",
            "",
            "| image | clients | together at most | images a second ↑ | p50 s ↓ | p99 s ↓ |",
            "| ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for row in sorted(rows, key=lambda row: (row["side"], row["clients"], row["batch"])):
            named = ("clients", "batch", "images_per_second", "p50", "p99")
            lines.append(" | ".join([f"| {row['side']}²", *(f"{row[name]:g}" for name in named)]) + " |")
    for name, title in TITLES.items():
        if name in found:
            lines += ["", f"## {title}", "", *(f"- {key}: {value}" for key, value in found[name].items())]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Settings:
    """The service under load and abuse."""

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """OUTPUT.json, OUTPUT.md and OUTPUT.webp, a plot of latency against load; what is not measured now stays."""
    source: str = MODEL
    """The model, by name or file, or random:v1, the released network with random weights."""
    device: str = "cpu"
    """Where it decodes."""
    requests: int = 500
    """With aborts among them; 0 leaves out the abuse, which is for decoders of images only."""
    sizes: int = 2000
    """Requests of random sizes."""
    fuzz: int = 10_000
    """Hostile bodies."""
    side: int = 2048
    """Pixels of an output's side whose time is compared with a bare decode."""
    load_sides: tuple[int, ...] = (128, 512)
    """Pixels of outputs' sides whose throughput is measured."""
    seconds: float = 20
    """Of throughput, for each number of clients; 0 leaves it out."""


def source_of(settings: Settings, folder: Path) -> str:
    """The model's source; one of random weights is written to a folder, with the embedding of the empty caption in a
    cache there, so that no encoder is asked for."""
    if settings.source != RANDOM:
        return settings.source
    from pixdec.text import CaptionEmbeddings, CaptionSettings, EmbeddingCache

    device = torch.device(settings.device)
    dtype = torch.bfloat16 if computes_in_bfloat16(device) else torch.float32
    PixelDecoder(random_decoder(dtype, device)).save_pretrained(folder / "random")
    os.environ["PIXDEC_CACHE"] = str(folder)  # which workers inherit
    shape = CaptionSettings().tokens, CaptionSettings().width
    EmbeddingCache().store(CaptionEmbeddings().key(""), torch.randn(shape).bfloat16())
    return str(folder / "random")


def main(settings: Settings) -> None:
    """All of it, one after the other; what is found is printed and written as it comes."""
    file = settings.output.with_suffix(".json")
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    found["machine"] = machine_facts(torch.device(settings.device))
    found["command"] = shlex.join(["python", "-m", "benchmarks.serve", *sys.argv[1:]])
    rows = list[dict[str, float]]()

    def keep(name: str, value: Any) -> None:
        found[name] = value
        print(name, json.dumps(value), flush=True)
        file.write_text(json.dumps(found, indent=1) + "\n")
        settings.output.with_suffix(".md").write_text(page(found, settings.output.with_suffix(".webp").name))

    with tempfile.TemporaryDirectory() as folder:
        offered = {MODEL: ModelSettings(source=source_of(settings, Path(folder)), device=settings.device)}
        for batch in BATCHES:
            with Engine(ServeSettings(models=offered, batch=batch)) as engine:
                engine.wait_ready(600)
                if batch > 1:
                    with served(engine) as url:
                        if settings.requests and engine.models[MODEL]["space"] == "rgb":
                            keep("aborts", aborts(engine, settings.requests))
                            keep("sizes", sizes(engine, settings.sizes))
                            keep("fuzz", fuzz(url, settings.fuzz))
                            keep("storm", storm(url, engine, 100))
                            keep("health", health(url, engine))
                        keep("overhead", overhead(url, engine, settings))
                for side in settings.load_sides if settings.seconds else ():
                    rows += throughput(engine, side, (1, 2, 4, 8), settings.seconds)
                    keep("throughput", rows)
    if rows:
        plot(rows, settings.output.with_suffix(".webp"))


if __name__ == "__main__":
    main(tyro.cli(Settings))
