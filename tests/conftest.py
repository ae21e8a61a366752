import os
import sys
from pathlib import Path

# `battery`, which several tests share, lies beside this file.
sys.path.insert(0, str(Path(__file__).parent))
# A caption cache of the person who runs the tests is none of their business.
os.environ.setdefault("PIXDEC_CACHE", str(Path(os.environ.get("TMPDIR", "/tmp")) / "pixdec-test-cache"))
