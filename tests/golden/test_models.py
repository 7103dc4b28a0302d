"""What every model configuration amounts to, and what a fresh model looks like, held against files beside this one.

A change here is a change of what people train: look at the difference, then write the files anew with
``MM1_GOLDEN=write pytest tests/golden/test_models.py`` and say why in CHANGELOG.
"""

import json
import os
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest

from mm1.model.build import build
from mm1.model.count import parameters

HERE = Path(__file__).resolve().parent
CONFIGS = sorted((HERE.parents[1] / "configs" / "model").glob("*.yaml"))


def compare(name, found):
    path = HERE / "models" / f"{name}.json"
    if os.environ.get("MM1_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
    return found, json.loads(path.read_text())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configurations(path):
    """Every tensor's name and shape, repeated layers written once with their number."""
    mm1 = build(path)
    shapes = Counter()
    for name, tensor in mm1.state_dict().items():
        kind = re.sub(r"\.(b?)\d+\.", r".\1*.", name)
        shapes[f"{kind} {list(tensor.shape)}"] += 1
    found = {"parameters": asdict(parameters(mm1)), "pictures": asdict(mm1.image_spec), "tensors": dict(shapes)}
    found, expected = compare(path.stem, json.loads(json.dumps(found)))
    assert found == expected


@pytest.mark.parametrize("name", ["tiny", "tiny_moe"])
def test_statistics_of_a_fresh_model(name):
    """Mean and standard deviation of every kind of tensor; rounded, as kinds of CPU differ in the last digits."""
    mm1 = build(HERE.parents[1] / "configs" / "model" / f"{name}.yaml")
    mm1.to_empty(device="cpu")
    mm1.init_weights(0)
    found = {
        path: [round(float(tensor.mean()), 5), round(float(tensor.std(correction=0)), 5)]
        for path, tensor in mm1.state_dict().items()
    }
    found, expected = compare(f"{name}_init", found)
    assert found.keys() == expected.keys()
    for path, numbers in found.items():
        assert numbers == pytest.approx(expected[path], abs=2e-5), path
