"""What figures were measured on."""

import hashlib
from pathlib import Path

import torch

import pixdec
from pixdec.devices import environment


def machine_facts(device: torch.device) -> dict[str, str]:
    """The environment, the device, and as `code` twelve digits of SHA-256 over the package's modules."""
    digest, root = hashlib.sha256(), Path(pixdec.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return {**environment(), "device": str(device), "code": digest.hexdigest()[:12]}
