"""GGUF, the format of llama.cpp: a Llama's settings, tensors and tokenizer as a Hugging Face folder would hold them.

Quantised tensors are dequantised one at a time. llama.cpp reorders the rows of query and key so that the pairs of the
rotation are neighbours; here they go back to halves. (``convert_hf_to_gguf.py`` of llama.cpp, ``LlamaModel.permute``.)
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mm1.data.tokenizer import from_hf
from mm1.errors import UserError
from mm1.interop.settings import Settings

LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
SETTINGS = {
    "vocab_size": "vocab_size",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}


class Gguf:
    """The file as :class:`mm1.interop.tensor_files.TensorFiles`, under the names of a Hugging Face Llama.

    Args:
        path: The ``.gguf`` file.

    Attributes:
        config: What ``config.json`` would say.
        licence: What the file says of its licence, or None.

    Raises:
        UserError: The package ``gguf`` is not installed, or the file is none or holds no Llama.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.where = path, str(path)
        reader = _reader(path)
        self._fields = dict(reader.fields)
        architecture = self._value("general.architecture")
        if architecture != "llama":
            raise UserError(f"{path} holds the architecture {architecture!r}; of GGUF files, mm1 reads llama")
        self._tensors = {hugging_face_name(tensor.name): tensor for tensor in reader.tensors}
        self.shapes = {name: tuple(map(int, reversed(tensor.shape))) for name, tensor in self._tensors.items()}
        for kind, tensor in {tensor.tensor_type: tensor for tensor in reader.tensors}.items():
            _check_kind(kind, tensor.data[:1], path)
        self.types = dict.fromkeys(self.shapes, "float32")
        self.config = self._config()
        self.licence: str | None = self._value("general.license")

    def read(self, name: str) -> Tensor:
        """One tensor, dequantised."""
        import gguf

        tensor = self._tensors[name]
        found = gguf.dequantize(tensor.data, tensor.tensor_type)
        values = torch.from_numpy(found if found.flags.writeable else found.copy()).view(self.shapes[name])
        for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if f".{part}." in name:
                return halves(values, self.config[heads])
        return values

    def tokenizer(self) -> tuple[bytes, dict[str, str]]:
        """Our bytes of the file's tokenizer (:func:`mm1.data.tokenizer.from_hf`), and the small files beside it.

        Raises:
            UserError: The package ``transformers``, which knows GGUF's kinds of tokenizers, is not installed or fails.
        """
        try:
            from transformers import AutoTokenizer
        except ImportError:
            raise UserError(
                f"reading the tokenizer of {self.path} takes the package transformers; expected it to be installed"
            ) from None
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(self.path.parent), gguf_file=self.path.name)
        except Exception as error:  # a dozen unrelated classes, by the kind of tokenizer
            raise UserError(f"transformers cannot read the tokenizer of {self.path} ({error!r:.200})") from None
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            self._name_control_tokens(Path(folder) / "tokenizer_config.json")
            small = {file.name: file.read_text() for file in Path(folder).iterdir() if file.name != "tokenizer.json"}
            return from_hf(Path(folder)), small

    def _name_control_tokens(self, path: Path) -> None:
        """By their ids in the file: transformers' versions do not agree on which token ends a text."""
        values = json.loads(path.read_text())
        tokens = self._value("tokenizer.ggml.tokens")
        for role, key in (("bos", "bos_token_id"), ("eos", "eos_token_id"), ("pad", "padding_token_id")):
            index = self._value(f"tokenizer.ggml.{key}")
            values[f"{role}_token"] = None if index is None else tokens[index]
        path.write_text(json.dumps(values, indent=2, ensure_ascii=False))

    def _config(self) -> dict[str, Any]:
        found = {key: self._value(f"llama.{name}") for key, name in SETTINGS.items()}
        found["vocab_size"] = self.shapes.get("model.embed_tokens.weight", (found["vocab_size"],))[0]
        ids = {key: self._value(f"tokenizer.ggml.{key}") for key in ("bos_token_id", "eos_token_id")}
        about = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float32", "hidden_act": "silu"}
        sizes = Settings(found, self.where)
        width, heads = sizes.whole("hidden_size"), sizes.whole("num_attention_heads")
        head_width = sizes.whole_or_none("head_dim") or width // heads
        turned = self._value("llama.rope.dimension_count") or head_width
        share = {} if turned == head_width else {"partial_rotary_factor": turned / head_width}
        scaling = self._value("llama.rope.scaling.type") or "none"
        factor = self._value("llama.rope.scaling.factor")
        scaled = {} if scaling == "none" else {"rope_scaling": {"rope_type": scaling, "factor": factor}}
        known = {key: value for key, value in found.items() if value is not None}
        return {**about, **known, **share, **scaled, **ids, "tie_word_embeddings": "lm_head.weight" not in self.shapes}

    def _value(self, name: str) -> Any:
        field = self._fields.get(name)
        value = None if field is None else field.contents()
        return float(f"{value:.7g}") if isinstance(value, float) else value  # 1e-5, not its nearest in 32 bits


def hugging_face_name(name: str) -> str:
    """What transformers calls a tensor of llama.cpp; one that it does not know keeps its name."""
    found = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if found and found[2] in LAYER:
        return f"model.layers.{found[1]}.{LAYER[found[2]]}.{found[3]}"
    return WHOLE.get(name, name)


def halves(rows: Tensor, heads: int) -> Tensor:
    """Rows of a query or key projection from neighbours (0, 1), (2, 3), ... to halves (k, k + K / 2), head by head.

    For a head of width 4: a0 b0 a1 b1 -> a0 a1 b0 b1.
    """
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(rows.shape)


def _check_kind(kind: Any, data: Any, path: Path) -> None:
    import gguf

    try:
        gguf.dequantize(data, kind)
    except NotImplementedError:
        raise UserError(
            f"{path} holds tensors of the type {kind.name}, which the package gguf does not read; expected another one"
        ) from None


def _reader(path: Path) -> Any:
    try:
        import gguf
    except ImportError:
        raise UserError(
            f"reading {path} takes the package gguf; pip install gguf, or give a Hugging Face folder"
        ) from None
    try:
        return gguf.GGUFReader(path)
    except (ValueError, KeyError, IndexError, OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not readable as GGUF ({error!r:.120}); cut short, or another kind of file?"
        ) from None
