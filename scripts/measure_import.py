"""How much memory an import takes: a Mistral-7B-shaped checkpoint of random bf16 weights, read and joined.

    python scripts/measure_import.py FOLDER          # 14.5 GB there, and as much again for what is joined
    python scripts/measure_import.py FOLDER --layers 2 --width 1024 --ffn_width 3584     # the same in small

Peak anonymous memory is what the process itself asked for, above what it held before it began; file pages are those of
mapped files, which the system takes back when somebody needs the room. Each step runs in its own process.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

GB = 1e9
VOCABULARY = 32000


def main() -> None:
    """Write the checkpoint unless it is there, measure both ways in, print a table, remove everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--ffn_width", type=int, default=14336)
    parser.add_argument("--step", choices=("write", "load", "join"), help="one of them alone, in this process")
    options = parser.parse_args()
    if options.step:
        {"write": write, "load": load, "join": joined}[options.step](options)
        return
    if options.folder.exists():
        sys.exit(f"{options.folder} exists already; expected a folder that is not there yet")
    try:
        for step in ("write", "load", "join"):
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--step", step], check=True)
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)


def write(options: argparse.Namespace) -> None:
    """A folder as Mistral AI publishes one, shard by shard, with a small tokenizer and a small encoder beside it."""
    import safetensors.torch
    import timm
    import torch
    import yaml

    from mm1.data.tokenizer import train
    from mm1.interop.write import write_tensors

    options.folder.mkdir(parents=True)
    chance = torch.Generator().manual_seed(0)

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for name, shape in shapes(options):
            yield name, torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02, generator=chance)

    write_tensors(options.folder, tensors(), {"format": "pt"}, shard_bytes=2 * 10**9)
    settings = {
        "architectures": ["MistralForCausalLM"],
        "vocab_size": VOCABULARY,
        "hidden_size": options.width,
        "intermediate_size": options.ffn_width,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.width // 128,
        "num_key_value_heads": options.width // 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "sliding_window": None,
    }
    (options.folder / "config.json").write_text(json.dumps(settings))
    (options.folder / "tokenizer.model").write_bytes(train(["a red square and a blue circle"] * 9, 290))
    tower = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    safetensors.torch.save_file(tower.state_dict(), options.folder / "tower.safetensors")
    vision = {"class_path": "mm1.model.vision.Timm", "init_args": {"name": "vit_tiny_patch16_224"}}
    connector = {"class_path": "mm1.model.connector.AveragePool", "init_args": {"tokens": 144}}
    model = {"class_path": "mm1.model.mm1.MM1", "init_args": {"vision": vision, "connector": connector}}
    (options.folder / "model.yaml").write_text(yaml.safe_dump(model))


def shapes(options: argparse.Namespace) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of every tensor."""
    width, ffn_width, narrow = options.width, options.ffn_width, options.width // 4
    yield "model.embed_tokens.weight", (VOCABULARY, width)
    for layer in range(options.layers):
        for name, shape in {
            "input_layernorm": (width,),
            "post_attention_layernorm": (width,),
            "self_attn.q_proj": (width, width),
            "self_attn.k_proj": (narrow, width),
            "self_attn.v_proj": (narrow, width),
            "self_attn.o_proj": (width, width),
            "mlp.gate_proj": (ffn_width, width),
            "mlp.up_proj": (ffn_width, width),
            "mlp.down_proj": (width, ffn_width),
        }.items():
            yield f"model.layers.{layer}.{name}.weight", shape
    yield "model.norm.weight", (width,)
    yield "lm_head.weight", (VOCABULARY, width)


def load(options: argparse.Namespace) -> None:
    """The decoder into memory, in its own type."""
    import torch

    from mm1.interop.decoder_in import load_decoder

    measure("load_decoder", options, lambda: load_decoder(options.folder, torch.bfloat16))


def joined(options: argparse.Namespace) -> None:
    """The decoder joined with a small encoder, to disk."""
    from mm1.interop.join import join

    folder, out = options.folder, options.folder / "joined"
    tower = folder / "tower.safetensors"
    measure(
        "mm1-convert join",
        options,
        lambda: join(folder / "model.yaml", folder, out, vision_weights=tower, dtype="bfloat16"),
    )


def measure(name: str, options: argparse.Namespace, work: Callable[[], object]) -> None:
    """Run ``work`` and print the largest anonymous and mapped memory of this process while it runs."""
    weights = sum(path.stat().st_size for path in options.folder.glob("model*.safetensors"))
    before, peak, done = resident()["RssAnon"], {"RssAnon": 0, "RssFile": 0}, threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            for kind, size in resident().items():
                peak[kind] = max(peak[kind], size)

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.monotonic()
    kept = work()
    time_s = time.monotonic() - began
    done.set()
    watcher.join()
    del kept
    anonymous = peak["RssAnon"] - before
    print(
        f"{name}: weights {weights / GB:.2f} GB, peak anonymous {anonymous / GB:.2f} GB = {anonymous / weights:.3f} x, "
        f"mapped file pages up to {peak['RssFile'] / GB:.2f} GB, {time_s:.0f} s",
        flush=True,
    )


def resident() -> dict[str, int]:
    """Anonymous and mapped memory of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines if line.startswith(("RssAnon", "RssFile")))
    return {kind: int(value.split()[0]) * 1024 for kind, value in found.items()}


if __name__ == "__main__":
    main()
