"""SCimilarity: a cell as one unit vector, near those of cells of its type."""

import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mgen.backbones.cell_tokenizer import TARGET, CellTokenizer, normalised, tensors
from mgen.backbones.cells import CellBackbone
from mgen.config import InputError
from mgen.io.counts import Counts
from mgen.io.weights import Tensors, fetch, fetch_file, list_file, list_weights, read_json
from mgen.models.scimilarity import SCimilarity, SCimilarityConfig, Stage

FOLDERS = ("model_v1.1/", "")  # of the repository, or a copy of the one folder
PARTS = ("linear", "norm", "activation")


class SCimilarityTokenizer(CellTokenizer):
    """One token, which is all there is of a cell."""

    def batch(self, rows: Sequence[Counts]) -> dict[str, Tensor]:
        """`values` (B, G), the masks (B, 1)."""
        mask, counts = np.ones((len(rows), 1)), self.dense(rows)
        values = published_values(counts) if self.as_published else normalised(counts)
        return tensors(values=values, attention_mask=mask > 0, special_tokens_mask=mask < 0)

    def expressed_tokens(self, expressed: np.ndarray) -> np.ndarray:
        return np.ones_like(expressed)


def published_values(counts: np.ndarray) -> np.ndarray:
    """ln(1 + 1e4 c / T) as a published wrapper computes it, in bfloat16."""
    x = torch.from_numpy(counts).bfloat16()
    return torch.log1p(x / (x.sum(1, keepdim=True) + 1e-8) * TARGET).float().numpy()


class SCimilarityBackbone(CellBackbone):
    """Normalisation over the batch keeps its statistics where its weights are kept."""

    tokenizer_type = SCimilarityTokenizer
    gene_list = "scimilarity"
    blocks = (Stage,)
    lora_targets = ("linear",)
    read = staticmethod(SCimilarityConfig.from_json)

    def __init__(self, config: SCimilarityConfig, tokenizer: CellTokenizer, keys: set[str]) -> None:
        has_decoder = not keys or any(key.startswith("decoder.") for key in keys)
        super().__init__(SCimilarity(config, decoder=has_decoder), tokenizer, config)

    @staticmethod
    def num_genes(config: SCimilarityConfig) -> int:
        return config.n_genes

    @classmethod
    def config_file(cls, choice) -> dict:
        """config.json, or the sizes in layer_sizes.json."""
        if found := fetch_file(choice.source, choice.at, "config.json"):
            return {"model_type": "scimilarity"} | read_json(found)
        sizes = fetch_file(choice.source, choice.at, *(f"{f}layer_sizes.json" for f in FOLDERS))
        if not sizes:
            raise InputError(f"{choice.source}: neither config.json nor layer_sizes.json")
        shapes = read_json(sizes)
        widths = [shape for shape in shapes.values() if len(shape) == 2]  # (outputs, inputs)
        return {
            "model_type": "scimilarity",
            "n_genes": widths[0][1],
            "hidden_dim": [outputs for outputs, _ in widths[:-1]],
            "latent_dim": widths[-1][0],
        }

    @classmethod
    def stored(cls, choice) -> Tensors:
        """The encoder's tensors and, where there are any, the decoder's."""
        found: Tensors = {}
        for part, plain in (("encoder", "model"), ("decoder", "decoder")):
            names = [f"{folder}{part}.ckpt" for folder in FOLDERS]
            if path := fetch_file(choice.source, choice.at, *names, f"{plain}.safetensors"):
                named = list_file(path, *["state_dict"] * (path.suffix == ".ckpt"))
            else:  # in shards, or an error
                named = list_weights(fetch(choice.source, choice.at)) if part == "encoder" else {}
            for key, tensor in named.items():
                found[f"{part}.{key}" if key.startswith("network.") else key] = tensor
        return found

    @staticmethod
    def rename(tensors: Tensors, config: SCimilarityConfig) -> Tensors:
        return {_renamed(key, config.num_hidden_layers - 1): t for key, t in tensors.items()}

    @property
    def encoder(self) -> nn.Module:
        return self.model.encoder

    @property
    def heads(self) -> list[nn.Module]:
        return [self.model.decoder] if self.model.decoder else []

    def decoder(self, hidden: Tensor) -> Tensor:
        """ln(1 + 1e4 c / T) of all genes (B, G) of hidden states (B, 1, D)."""
        if self.model.decoder is None:
            raise InputError("this checkpoint of SCimilarity has no decoder (decoder.ckpt)")
        return self.model.decoder(hidden[:, 0]).float()

    def train(self, mode: bool = True) -> "SCimilarityBackbone":
        super().train(mode)
        for part in self.modules():
            if isinstance(part, nn.BatchNorm1d) and not part.weight.requires_grad:
                part.eval()
        return self


def _renamed(key: str, last: int) -> str:
    """`network.i.1.weight` is `network.i.linear.weight`; without dropout, parts count from 0."""
    if not (found := re.fullmatch(r"(encoder|decoder)\.network\.(\d+)\.(?:(\d)\.)?(\w+)", key)):
        return key
    part, stage, place, name = found.groups()
    is_first = part == "decoder" and stage == "0"
    which = "linear" if place is None else PARTS[int(place) - (0 if is_first else 1)]
    return f"{part}.network.{stage}.{which}.{name}"
