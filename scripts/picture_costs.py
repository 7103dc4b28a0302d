"""What a picture costs by its size and views, counted (mm1.model.count): the table of docs/training.md.

python scripts/picture_costs.py [configs/model/3b.yaml]
"""

from __future__ import annotations

import sys
from typing import Any

from mm1.model.build import build, read
from mm1.model.count import flops
from mm1.sample import Views

SETTINGS = [(px, Views()) for px in (378, 448, 560, 672)] + [(672, Views(rows=2, columns=2))]


def main(path: str = "configs/model/3b.yaml") -> None:
    """Print the table."""
    tree: dict[str, Any] = read(path)
    print(
        "| a picture | encoder | tokens | pictures in 2048 | encoder, connector: TFLOPs | its tokens in the decoder |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for px, views in SETTINGS:
        tree["init_args"]["vision"]["init_args"]["image_px"] = px
        model = build(tree)
        found = flops(model)
        tokens = views.count * model.connector.tokens
        side = f"{px * views.columns} px" + f", {views}" * (views.count > 1)
        seen = views.count * (found.vision + found.connector) / 1e12
        keys = len(found.windows_L) * found.key * tokens * (tokens + 1) / 2
        read_once = (tokens * found.position + keys) / 1e12
        patches = f"{px} px, {model.vision.grid}²"
        print(f"| {side} | {patches} | {tokens} | {(2048 - 3) // tokens} | {seen:.2f} | {read_once:.2f} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
