"""How a decoder's network is called: by which kernels, compiled or not, in how much memory, by how many processes.

All of it is set from outside and leaves the image as it is, but for rounding, unless it says otherwise.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch

from pixdec.devices import computes_in_bfloat16
from pixdec.inference.compiled import compile_blocks
from pixdec.inference.graphs import GraphedVelocity
from pixdec.inference.kernels import NAMES, KernelName, Shape, choose, shapes_of
from pixdec.inference.limits import available_memory, parse_memory
from pixdec.inference.memory import CHUNKS, DecodePlan, DeviceType, plan_decode
from pixdec.inference.offload import Offloaded, offload_blocks
from pixdec.inference.quantised import Kind, quantise, stored_bytes
from pixdec.inference.sharing import is_windowed
from pixdec.inference.sizes import WHOLE, tiling_for
from pixdec.layers.attention import Kernel
from pixdec.models.places import Context
from pixdec.sampling.tiling import Tiling
from pixdec.weights.load import LoadedDecoder

CompileMode = Literal["default", "graphs"]
KEPT = 2**30  # bytes of the adapter's tokens that are kept for a decode; more is made in every call


@dataclass(frozen=True)
class Arrangement:
    """How one batch is decoded: in these tiles, or as a whole; the pixel blocks `chunk` patches at a time; with the
    adapter's tokens kept for all steps or made in every call; by the processes of a context together; with calls
    replayed as graphs."""

    tiling: Tiling | None = None
    chunk: int = CHUNKS[0]
    keep_tokens: bool = True
    context: Context | None = None
    graphs: GraphedVelocity | None = None


class Runner:
    """A loaded decoder's network, and how it is called on `device`.

    Attributes:
        tile: side in pixels of the tiles that network calls run in; None leaves it to `inference.sizes.tiling_for`.
        context: the processes that decode each image together (`pixdec.inference.sharing`).
        quantised: what `quantise` made of the weights, if it did.
    """

    def __init__(self, model: LoadedDecoder, device: torch.device):
        self.model, self.network, self.device = model, model.network, device
        self.tile: int | None = None
        self.context: Context | None = None
        self.is_changed = False  # whether the weights must stay of the dtype they are: a LoRA keeps what it changed
        self._memory: int | Literal["auto"] | None = None
        self._attention: KernelName = "torch"
        self._kernels = dict[tuple[Shape, ...], Kernel]()
        self._compiled: CompileMode | None = None
        self.quantised: Kind | None = None
        self._graphs: GraphedVelocity | None = None
        self._offloaded: Offloaded | None = None

    @property
    def _dtype(self) -> torch.dtype:
        return self.network.backbone.patch_embed.weight.dtype

    @property
    def memory(self) -> int | Literal["auto"] | None:
        """Bytes that a decode may take, all in all; "auto" what the device has; None does not ask."""
        return self._memory

    @memory.setter
    def memory(self, memory: str | int | None) -> None:
        self._memory = memory if memory is None or memory == "auto" else parse_memory(memory)

    @property
    def attention(self) -> KernelName:
        """Which kernel computes attention, see `pixdec.inference.kernels.choose`."""
        return self._attention

    @attention.setter
    def attention(self, name: KernelName) -> None:
        if name not in NAMES:
            raise ValueError(f"attention={name!r}: expected one of {', '.join(NAMES)}")
        self._attention = name
        self._kernels.clear()
        self._forget_graphs()

    def compile(self, mode: CompileMode) -> None:
        """Compiles the network's blocks when they are first called (`pixdec.inference.compiled`); "graphs" also replays
        its calls as CUDA graphs (`pixdec.inference.graphs`). ValueError for another mode, or where it cannot be."""
        if mode not in get_args(CompileMode):
            raise ValueError(f"compile={mode!r}: expected one of {', '.join(get_args(CompileMode))}")
        if mode == "graphs" and self.device.type != "cuda":
            raise ValueError(f"compile='graphs' on {self.device}: CUDA graphs need a CUDA device; take 'default'")
        compile_blocks(self.network)
        self._graphs = GraphedVelocity(self.network) if mode == "graphs" else None
        self._compiled = mode

    def quantise(self, kind: Kind) -> None:
        """Weights, or weights and activations, in eight bits: smaller, quicker, and not the same image any more (see
        `pixdec.inference.quantised`). To undo it, load the decoder again."""
        if self._compiled is not None:
            raise ValueError(f"quantise={kind!r}: the network is compiled; quantise first, then compile")
        self.check_weights_can_change()
        self._on_device()
        quantise(self.network, kind)
        self.quantised = kind

    def check_weights_can_change(self) -> None:
        """ValueError if the weights are in eight bits."""
        if self.quantised is not None:
            raise ValueError(
                f"the network is quantised ({self.quantised}); load the decoder again to change its weights"
            )

    def plan(self, height: int, width: int, batch: int = 1) -> DecodePlan:
        """How a batch of outputs of height x width pixels, whole patches, is decoded within `memory`; what the device
        has if that is None. ValueError if nothing fits."""
        device = self.device.type
        if device not in get_args(DeviceType):
            raise ValueError(f"memory on {self.device}: can be planned on {', '.join(get_args(DeviceType))} only")
        has_low = computes_in_bfloat16(self.device)
        return plan_decode(
            self.network.settings,
            height,
            width,
            batch=batch,
            dtype=self._dtype,
            low=torch.bfloat16 if self._dtype == torch.float32 and has_low and not self.is_changed else None,
            limit=self._limit(),
            device_type=cast(DeviceType, device),
            sizes=self.model.sizes,
            tile=self.tile,
            teacher=self.model.kind == "teacher",
        )

    def images_at_once(self, height: int, width: int) -> int:
        """How many outputs of height x width pixels are decoded together: as many as have the pixels of the largest
        that is decoded whole; with a limit of memory as many of these as fit."""
        images = max(1, WHOLE // (height * width))
        while self._memory is not None and images > 1:
            try:
                return self.plan(height, width, images).images
            except ValueError:  # not so many: they wait for each other
                images //= 2
        return images

    def arrange(self, height: int, width: int, batch: int) -> Arrangement:
        """How a batch of outputs of height x width pixels, whole patches, is decoded; the network is made ready for it.

        ValueError if it does not fit, or a chosen kernel is not to be trusted.
        """
        tile, chunk, keeps = self.tile, CHUNKS[0], self._token_bytes(height, width, batch) <= KEPT
        if self._memory is not None:
            plan = self.plan(height, width, batch)
            tile, chunk, keeps = plan.tile, plan.chunk, plan.keep_tokens
            self._settle(plan)
        else:
            self._on_device()
        tiling = tiling_for((height, width), tile, self.model.sizes, self.network.settings.backbone)
        seen = (height, width) if tiling is None else (min(tiling.side, height), min(tiling.side, width))
        self.network.backbone.kernel = self._kernel(*seen)
        context = self.context
        if context is not None and tiling is None and is_windowed(self.network):
            warnings.warn(
                f"{self.model.name}: an image that is decoded as a whole is not shared, for attention is windowed: "
                f"each of the {context.count} processes decodes it; set a tile",
                stacklevel=3,
            )
            context = None
        whole = tiling is None and context is None
        return Arrangement(tiling, chunk, whole and keeps, context, self._graphs if context is None else None)

    def _limit(self) -> int:
        if isinstance(self._memory, int):
            return self._memory
        held = 0 if self._offloaded is not None else stored_bytes(self.network)
        resident = self.network.backbone.patch_embed.weight.device.type == self.device.type
        return available_memory(self.device) + (held if resident else 0)

    def _token_bytes(self, height: int, width: int, batch: int) -> int:
        """What the adapter's tokens of a batch take, with their parts of the gates."""
        network, backbone = self.network, self.network.settings.backbone
        assert network.adapter is not None and network.gates is not None
        points = len(network.gates) + (network.pixel_gate is not None)
        values = backbone.hidden * (2 if network.adapter.settings.gate == "channel" else 1)
        patches = math.ceil(height / backbone.patch) * math.ceil(width / backbone.patch)
        return batch * points * patches * values * self._dtype.itemsize

    def _kernel(self, height: int, width: int) -> Kernel:
        """What computes the attention of calls on height x width pixels."""
        shapes = tuple(shapes_of(self.network, height, width))
        if shapes not in self._kernels:
            self._kernels[shapes] = choose(self._attention, self.device, self._dtype, shapes)
        return self._kernels[shapes]

    def _settle(self, plan: DecodePlan) -> None:
        """Puts the weights where a plan wants them, in its precision."""
        if plan.dtype != self._dtype:
            self._restore()
            self._forget_graphs()
            self.network.to(plan.dtype)
        if plan.offload == "none":
            self._on_device()
        elif self._offloaded is None:
            if self._compiled is not None or self.quantised is not None:
                what = "compiled" if self._compiled is not None else "quantised"
                raise ValueError(
                    f"{plan.width}x{plan.height} fits only with the blocks' weights in host memory ({plan.how}), which "
                    f"a {what} network does not take; allow more memory, or leave that out"
                )
            self.network.cpu()
            self._offloaded = offload_blocks(self.network, self.device)

    def _on_device(self) -> None:
        """All weights on the device, if they are not there."""
        self._restore()
        if self.network.backbone.patch_embed.weight.device.type != self.device.type:
            self.network.to(self.device)

    def _forget_graphs(self) -> None:
        """They hold what the network was when they were recorded."""
        if self._graphs is not None:
            self._graphs.forget()

    def _restore(self) -> None:
        if self._offloaded is not None:
            self._offloaded.close()
            self._offloaded = None
