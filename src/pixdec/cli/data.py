"""`pixdec data pack`: folders of images → shards; `pixdec data index`: an index of shards made elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from pixdec.cli.options import Dtype, Flag, Inputs, Json, Output, check_device, torch_dtype
from pixdec.cli.report import Report, progress, tell

if TYPE_CHECKING:
    from pixdec.train.data.pack import CaptionEmbedder, LatentEncoder

MOST_NAMED = 20  # images of a shard that are left out


@dataclass(frozen=True)
class Pack:
    """Pack folders of images, with the captions beside them, into WebDataset shards.

    A caption is NAME.txt beside NAME.jpg, or NAME.json with texts under long, medium and short. Files are packed as
    they are; broken, too small and duplicate ones are left out and listed in OUT/report.jsonl. A run that was
    interrupted goes on when it is called again, and ends with the same shards.
    """

    inputs: Inputs
    """Folders of images, or images."""
    output: Output
    """The folder of the shards: it is created."""
    min_side: int = 0
    """Leave out images whose shorter side has fewer pixels."""
    shard_mb: float = 500.0
    """Megabytes in a shard. Training needs at least one shard for each worker of each rank."""
    near: int | None = None
    """Leave out images that look like an earlier one too, in all but so many of 63 bits (4 finds copies that were
    resized or compressed); without it only those of the same pixels."""
    no_captions: Flag = False
    """Do not look for captions."""
    latents: str | None = None
    """Add latents: "tiny", the bundled encoder (FLUX.2 space), or a diffusers VAE by name or folder."""
    space: str = "flux2"
    """The latent space of --latents: flux1, flux2, sd3, sdxl, qwen-image or z-image."""
    base: int = 2048
    """The base size of training that the latents are for: images are brought to their aspect bucket at it."""
    scale: int = 4
    """How much smaller the image is that is encoded."""
    embeddings: str | None = None
    """Add caption embeddings: Gemma-2 by name or folder, such as google/gemma-2-2b-it."""
    device: str | None = None
    """Where latents and embeddings are computed, such as cuda; without it the CPU."""
    dtype: Dtype | None = None
    """Precision of the autoencoder; without it float32."""
    json: Json = False

    def run(self) -> int:
        from pixdec.train.data.pack import PackSettings, pack
        from pixdec.train.data.sources import find_images

        settings = PackSettings(self.min_side, self.shard_mb, self.near, not self.no_captions)
        total = len(find_images(self.inputs))  # before anything is loaded
        latents, embeddings = self._latents(), self._embeddings()
        report = Report(json_lines=self.json)
        last = None
        with progress(total, "image") as bar:
            for last in pack(self.inputs, self.output, settings, latents=latents, embeddings=embeddings):
                bar.update(last.done - bar.n)
                bar.set_postfix_str(f"{last.shards} shards, {sum(last.skipped.values())} left out", refresh=False)
        assert last is not None, "there is at least one file"
        skipped = dict(sorted(last.skipped.items()))
        reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
        report.done(
            {"output": self.output, "shards": last.shards, "images": last.images, "left_out": skipped},
            f"{self.output}  {last.images} images in {last.shards} shards"
            + (f"; left out: {reasons} (report.jsonl)" if reasons else ""),
        )
        return report.exit_code

    def _latents(self) -> LatentEncoder | None:
        if self.latents is None:
            return None
        from pixdec.encoder import ImageEncoder
        from pixdec.latents import get_space
        from pixdec.train.data.buckets import buckets
        from pixdec.train.data.pack import LatentEncoder

        factor = get_space(self.space).factor
        if self.scale < 1 or 64 % (self.scale * factor):
            raise ValueError(
                f"--scale {self.scale}: sides are multiples of 64, and {self.space} needs multiples of {factor} after "
                f"shrinking: expected a divisor of {64 // factor}"
            )
        buckets(self.base)
        check_device(self.device)
        name = None if self.latents == "tiny" else self.latents
        encoder = ImageEncoder.from_pretrained(self.space, name, self.device, torch_dtype(self.dtype))
        return LatentEncoder(
            lambda images: encoder.encode(images).tensor, encoder.name, self.space, self.base, self.scale
        )

    def _embeddings(self) -> CaptionEmbedder | None:
        if self.embeddings is None:
            return None
        from pixdec.text import CaptionEncoder
        from pixdec.train.data.pack import CaptionEmbedder

        check_device(self.device)
        encoder = CaptionEncoder.from_pretrained(self.embeddings, device=self.device or "cpu")
        return CaptionEmbedder(encoder, self.embeddings)


@dataclass(frozen=True)
class IndexShards:
    """Index WebDataset shards that were made elsewhere, so that training can read them: each is read through once.

    Shards are paths or URLs (file:, http:, https:, hf:, gs:), with braces for many:
    "https://example.org/shard-{000000..000031}.tar". Images that cannot be read or told apart, or whose caption cannot
    be read, are named and left out.
    """

    inputs: Inputs
    """Shards."""
    output: Output
    """The index, a file index.jsonl; beside the shards it names them by name, elsewhere by URL."""
    json: Json = False

    def run(self) -> int:
        from pixdec.io.files import prepare
        from pixdec.train.data.shards import Index, Shard, index_shard, save_index
        from pixdec.train.data.urls import expand, name_in

        if not self.output.endswith(".jsonl"):
            raise ValueError(f"{self.output}: expected the name of a file that ends in .jsonl, such as index.jsonl")
        urls = expand(self.inputs)
        if not urls:
            raise ValueError("no input; name shards, paths or URLs")
        for url in urls:
            name_in(Path(self.output), url)  # refused before anything is read
        prepare([Path(self.output)])
        report = Report(json_lines=self.json)

        def shards() -> Iterator[Shard]:
            with progress(len(urls), "shard") as bar:
                for url in urls:
                    with report.attempt(url):
                        found = index_shard(url)
                        images, left_out = len(found.shard.sizes), found.left_out
                        for line in left_out[:MOST_NAMED]:
                            tell(f"{url}: left out: {line}")
                        if len(left_out) > MOST_NAMED:
                            tell(f"{url}: and {len(left_out) - MOST_NAMED} more are left out")
                        if not images:
                            tell(f"{url}: holds no images")
                        report.done(
                            {
                                "input": url,
                                "images": images,
                                "unreadable": len(left_out),
                                "uncaptioned": found.uncaptioned,
                                "left_out": list(left_out),
                            },
                            f"{url}  {images} images, {len(left_out)} of them left out, "
                            f"{found.uncaptioned} without a caption",
                        )
                        yield found.shard
                    bar.update()

        found = tuple(shards())
        if report.failures:
            raise ValueError(f"{report.failures} of {len(urls)} shards cannot be indexed; nothing is written")
        save_index(Index(found), self.output)
        return report.exit_code


@dataclass(frozen=True)
class Data:
    """Prepare images for training."""

    action: tyro.conf.OmitArgPrefixes[
        Annotated[Pack, tyro.conf.subcommand("pack", prefix_name=False)]
        | Annotated[IndexShards, tyro.conf.subcommand("index", prefix_name=False)]
    ]

    def run(self) -> int:
        return self.action.run()
