"""The wheel: what is in it, and a decode from it. `make dist` runs the demo from it in a fresh environment."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

import pixdec

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (found,) = folder.iterdir()
    return found


def test_what_is_in_it(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {"pixdec", f"pixdec-{pixdec.__version__}.dist-info"}
    for name in ("py.typed", *(f"weights/bundled/pixdec-{name}.safetensors" for name in ("nano", "tiny", "l2p"))):
        assert f"pixdec/{name}" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_it_decodes_alone(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    Image.radial_gradient("L").resize((32, 32)).convert("RGB").save(tmp_path / "photo.png")
    code = (
        "import sys; sys.path.insert(0, 'installed'); import pixdec; from pixdec.cli import main; "
        "assert 'installed' in pixdec.__file__; "
        "sys.exit(main(['upscale', 'photo.png', '-o', 'large.png', '--device', 'cpu', '--steps', '1']))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "large.png").size == (128, 128)
