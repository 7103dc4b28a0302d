"""Make a CUDA build of torchvision importable beside a CPU build of torch.

The package index offers torchvision for Linux as a CUDA build alone. Beside CPU torch its compiled operators do not
load, and the import fails with ``operator torchvision::nms does not exist``, which also breaks lightning, timm and
open_clip. None of them needs those operators for what mm1 does, so declaring the two missing schemas is enough:
transforms and models work, ``torchvision.ops.nms`` and ``torchvision.io`` do not. Does nothing where nothing is wrong.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

GUARD = """

# Added by mm1's scripts/repair_torchvision.py: the compiled operators did not load beside this build of torch.
if not _has_ops():
    _schemas = torch.library.Library("torchvision", "DEF")
    _schemas.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _schemas.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def main() -> None:
    """Append the guard to torchvision's ``extension.py`` if the import fails and torch is a CPU build."""
    works = [sys.executable, "-c", "import torchvision"]
    if subprocess.run(works, capture_output=True).returncode == 0:
        return
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or torch.version.cuda is not None:
        sys.exit("torchvision does not import, and this cannot mend it: see `python -c 'import torchvision'`")
    extension = Path(spec.origin).with_name("extension.py")
    # A new file renamed over the old one: installers hard-link from a cache, and writing in place would edit the cache.
    mended = extension.with_name("extension.py.mm1")
    mended.write_text(extension.read_text() + GUARD)
    os.replace(mended, extension)
    if subprocess.run(works).returncode:
        sys.exit(f"torchvision still does not import after mending {extension}")
    print("torchvision: declared the operators that its CUDA build could not load beside CPU torch")


if __name__ == "__main__":
    main()
