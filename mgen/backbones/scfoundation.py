"""scFoundation: the genes that a cell expresses, with their values, and its depth."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mgen.backbones.cell_tokenizer import TARGET, CellTokenizer, padded, tensors
from mgen.backbones.cells import READING, CellBackbone
from mgen.config import InputError
from mgen.io.counts import Counts
from mgen.io.weights import Tensors, fetch_file, list_file, read_pickle
from mgen.models.scfoundation import Layer, ScFoundation, ScFoundationConfig

FILE = "models.ckpt"


def published_values(x: Tensor, *, bulk: bool, normalised: str) -> Tensor:
    """Values of genes (B, G) with two depths (B, G + 2) as a published wrapper makes them.

    In the dtype of `x`. Depths are of values that are logarithms already, against the paper.
    `normalised`: "F" no, "T" yes, "A" yes, with the total as one further column.
    """
    if normalised == "A":
        x, depth = x[:, :-1], x[:, -1:].log10()
    elif bulk and normalised == "T":
        depth = x.sum(1, keepdim=True)
    else:
        if not bulk and normalised == "F":
            x = torch.log1p(x / x.sum(1, keepdim=True) * TARGET)
        depth = x.sum(1, keepdim=True).log10()
    return torch.cat((x, depth, depth), 1)


class ScFoundationTokenizer(CellTokenizer):
    """A token for each gene above zero, in order, then those of target and source depth.

    Args:
        depth: target depth, log10 of counts.
        bulk: values are not normalised.
    """

    num_special = 2

    def __init__(self, *given, depth: float = 4.0, bulk: bool = False, **options: Any) -> None:
        super().__init__(*given, **options)
        self.depth, self.bulk = float(depth), bulk

    def batch(self, rows: Sequence[Counts]) -> dict[str, Tensor]:
        """`values`, `gene_ids` (G and G + 1 are the depths) and the masks, all (B, L)."""
        pairs = [*map(self._pair, rows)] if not self.as_published else self._published(rows)
        ids, values = zip(*pairs, strict=True) if pairs else ((), ())
        ids, values = padded(ids, len(self.genes) + 2), padded(values, 0.0)
        found = {"values": values, "gene_ids": ids, "special_tokens_mask": ids >= len(self.genes)}
        found["attention_mask"] = ids < len(self.genes) + 2
        if self.as_published:  # raw values may be taken for a mask or padding
            found["masked"] = values == self.config.mask_token_id
            found["attention_mask"] &= values != self.config.pad_token_id
        return tensors(**found)

    def _pair(self, row: Counts) -> tuple[np.ndarray, np.ndarray]:
        places, counts = self.sparse(row)
        total = counts.sum(dtype=np.float64)
        values = counts if self.bulk else np.log1p(TARGET * counts / (total if total > 0 else 1))
        depths = (self.depth, np.log10(max(total, 1.0)))  # the source's stays where it is zero
        size = len(self.genes)
        kept = np.append(values > 0, (True, True))
        return (
            np.append(places, (size, size + 1))[kept],
            np.append(values, depths).astype(np.float32)[kept],
        )

    def _published(self, rows: Sequence[Counts]) -> list[tuple[np.ndarray, np.ndarray]]:
        is_log = self.values == "log1p"
        x = self.dense(rows)
        given = torch.from_numpy(np.log1p(x) if is_log else x).bfloat16()
        found = published_values(given, bulk=self.bulk, normalised="T" if is_log else "F")
        found = found.nan_to_num(0.0, neginf=0.0).float().numpy()
        size = len(self.genes)
        kept = found > 0
        kept[:, size:] = True
        return [(np.flatnonzero(k), v[k]) for k, v in zip(kept, found, strict=True)]

    def expressed_tokens(self, expressed: np.ndarray) -> np.ndarray:
        return expressed + 2


class ScFoundationBackbone(CellBackbone):
    """Cost grows with the genes that a cell expresses; `reconstruct` gives all of them."""

    tokenizer_type = ScFoundationTokenizer
    gene_list = "aido_cell"
    reading = (*READING, "depth", "bulk")
    further = ("gene_ids", "masked")
    blocks = (Layer,)
    lora_targets = ("in_proj", "out_proj")
    read = staticmethod(ScFoundationConfig.from_json)

    def __init__(
        self,
        config: ScFoundationConfig,
        tokenizer: CellTokenizer,
        keys: set[str],
        *,
        dropout: float,
    ) -> None:
        model = ScFoundation(config, dropout=dropout, over_batch=tokenizer.as_published)
        super().__init__(model, tokenizer, config)

    @staticmethod
    def num_genes(config: ScFoundationConfig) -> int:
        return config.max_position_embeddings - 2

    @classmethod
    def config_file(cls, choice) -> dict:
        if path := fetch_file(choice.source, choice.at, FILE):
            config = read_pickle(path, choice.weights, "config")
            if not isinstance(config, dict):
                raise InputError(f"{path}: expected a dict as config of {choice.weights}")
            # Settings of its training are left behind: they need not be plain values.
            names = ("model", "model_config", "dataset_config")
            return {name: config[name] for name in names if name in config}
        return super().config_file(choice)

    @classmethod
    def stored(cls, choice) -> Tensors:
        if path := fetch_file(choice.source, choice.at, FILE):
            return list_file(path, choice.weights, "state_dict")
        return super().stored(choice)

    @staticmethod
    def rename(tensors: Tensors, config: ScFoundationConfig) -> Tensors:
        named = {key.removeprefix("model."): tensor for key, tensor in tensors.items()}
        return {
            key.replace(".in_proj_", ".in_proj."): tensor
            for key, tensor in named.items()
            if not key.endswith("calls_since_last_redraw")  # features are never drawn anew
        }

    @property
    def heads(self) -> list[nn.Module]:
        model, embedding = self.model, self.model.token_emb
        unread = [embedding.emb_mask, embedding.emb_pad]  # unless values are hidden
        return [model.decoder_embed, model.decoder, model.norm, model.to_final, *unread]

    def decoder(self, hidden: Tensor) -> Tensor:
        raise InputError(
            "scFoundation's decoder needs to know which genes the hidden states are of: use "
            "reconstruct(batch) of the backbone"
        )

    def reconstruct(self, batch: dict[str, Tensor]) -> Tensor:
        """Values (B, G + 2) of all genes, ln(1 + 1e4 c / T) at the target depth, and of both
        depths."""
        hidden = self(batch).to(self.model.pos_emb.weight.dtype)
        return self.model.reconstruct(hidden, batch["attention_mask"], batch["gene_ids"]).float()

    def cell_embedding(self, batch: dict[str, Tensor]) -> Tensor:
        """The paper's embedding of cells (B, 4 D): the states of source and target depth, largest
        and mean states of genes (zeros of a cell without)."""
        hidden, size = self(batch), self.num_genes(self.config)
        found = [
            (hidden * (batch["gene_ids"] == place).unsqueeze(-1)).sum(1)
            for place in (size + 1, size)
        ]
        is_gene = (batch["special_tokens_mask"] == 0).unsqueeze(-1)
        count = is_gene.sum(1)
        largest = hidden.masked_fill(~is_gene, -torch.inf).amax(1).masked_fill(count == 0, 0.0)
        mean = hidden.masked_fill(~is_gene, 0.0).sum(1) / count.clamp(min=1)
        return torch.cat((*found, largest, mean), -1)
