"""Host memory while a sharded checkpoint of a gigabyte is loaded."""

import json
import subprocess
import sys
from pathlib import Path

SIZES = {"hidden_size": 1024, "num_hidden_layers": 16, "num_attention_heads": 16}
SHARDS = 4

READ = """
import json, re, sys
from pathlib import Path
from mgen.backbones import backbone
from mgen.backbones.rnabert import RNABertBackbone
import safetensors.torch

def peak():  # resident, mapped files included
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) * 1024

before = peak()
network = backbone(sys.argv[1], dtype=sys.argv[2]).build()
size = sum(p.numel() * p.element_size() for p in network.parameters())
print(json.dumps({"model": size, "peak": peak() - before}))
"""


def loading(folder: Path) -> dict[str, float]:
    """Peak memory over that of the imports, in MB and as a multiple of the model's size."""
    write_checkpoint(folder)
    report = {}
    for dtype in ("float32", "bfloat16"):
        words = [sys.executable, "-c", READ, str(folder), dtype]
        seen = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
        report[dtype] = {
            "model_mb": round(seen["model"] / 1e6),
            "peak_mb": round(seen["peak"] / 1e6),
            "peak_over_model": round(seen["peak"] / seen["model"], 3),
            "within": seen["peak"] <= 1.2 * seen["model"] + 200e6,
        }
    return report


def write_checkpoint(folder: Path) -> None:
    """A rnabert of 268 million random parameters, fp32, in shards with an index."""
    import torch
    from safetensors.torch import save_file

    from mgen.backbones.zoo import find
    from mgen.models.rnabert import RNABert, RNABertConfig

    folder.mkdir(parents=True, exist_ok=True)
    config = find("aido_dna_debug").config_json() | SIZES | {"intermediate_size": 4096}
    (folder / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        shapes = RNABert(RNABertConfig.from_json(config)).state_dict()
    files = {}
    for shard in range(SHARDS):
        name = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        keys = list(shapes)[shard::SHARDS]
        save_file({key: torch.randn(shapes[key].shape) * 0.02 for key in keys}, folder / name)
        files |= dict.fromkeys(keys, name)
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
