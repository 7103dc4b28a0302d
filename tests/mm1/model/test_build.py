"""Models from YAML, and what is said when the YAML is wrong."""

import pytest
import torch

from mm1.errors import UserError
from mm1.model.build import build
from mm1.model.mm1 import MM1


def test_every_yaml_builds_without_memory(model_configs):
    files = sorted(model_configs.glob("*.yaml"))
    assert {path.stem for path in files} >= {"tiny", "tiny_moe", "ablation_base", "3b", "7b", "30b", "3b_moe", "7b_moe"}
    for path in files:
        mm1 = build(path)
        assert isinstance(mm1, MM1)
        assert all(tensor.is_meta for tensor in [*mm1.parameters(), *mm1.buffers()])


@pytest.mark.parametrize("renormalise", [False, True])
def test_a_sparse_layer_of_an_older_checkpoint_still_builds(config, renormalise):
    old = config(experts=4)
    old["init_args"]["decoder"]["init_args"]["moe"]["init_args"]["renormalise"] = renormalise
    assert build(old).decoder.layers[1].ffn.router.renormalise is renormalise


def test_a_model_can_be_built_where_it_will_stay(config):
    mm1 = build(config(), device="cpu")
    mm1.init_weights(0)
    assert mm1.decoder.embedding.weight.device == torch.device("cpu")


def change(path, value):
    def apply(config):
        place = config
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return apply


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (change(["init_args", "decoder", "init_args", "wdith"], 3), "wdith"),
        (change(["init_args", "decoder", "init_args", "width"], "wide"), "width"),
        (change(["init_args", "connector", "class_path"], "mm1.model.connector.Nonsense"), "Nonsense"),
        (change(["init_args", "vision", "class_path"], "mm1.model.connector.AveragePool"), "AveragePool"),
        (change(["init_args", "conector"], {"class_path": "mm1.model.connector.AveragePool"}), "conector"),
    ],
)
def test_a_wrong_key_is_named_in_one_sentence(config, fault, message):
    value = config()
    fault(value)
    with pytest.raises(UserError, match=f"the model configuration does not describe a model.*{message}") as error:
        build(value)
    assert "\n" not in str(error.value)


def test_a_missing_or_broken_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        build("nowhere")
    (tmp_path / "broken.yaml").write_text("a: [1, 2")
    with pytest.raises(UserError, match="is not YAML"):
        build(tmp_path / "broken.yaml")


def test_a_fault_inside_a_constructor_reaches_the_user(config):
    value = config()
    value["init_args"]["connector"]["init_args"]["tokens"] = 10
    with pytest.raises(UserError, match="10 tokens per picture; expected a square"):
        build(value)
