"""What every sequence backbone offers, whatever its family.

Shapes: B sequences, L tokens, D width, V vocabulary, N sequences of `embed`.
"""

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mgen.backbones.tokenizer import Tokenizer
from mgen.config import InputError

Pool = Literal["mean", "cls", "max", "none"]


class SequenceBackbone(nn.Module):
    """A tokenizer and a network with published parameter names in `self.model`.

    A family gives `read` (config.json to a config), `alphabet`, `rename` (a checkpoint's tensors to
    published names), the facts below and its heads. `forward` and `hidden_states` read only
    input_ids and attention_mask (B, L) and give float32 whatever the dtype of the weights, so that
    heads never depend on it.
    """

    modality_by_default: ClassVar[str]  # of a checkpoint that has no name in the zoo
    blocks: ClassVar[tuple[type[nn.Module], ...]] = ()  # classes to shard, checkpoint, unfreeze by
    lora_targets: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, config: Any) -> None:
        super().__init__()
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.width, self.context = config.hidden_size, config.max_position_embeddings
        self.num_layers = config.num_hidden_layers

    @property
    def encoder(self) -> nn.Module:
        """The network without its heads: what gives hidden states and what LoRA adapts."""
        return self.model

    @property
    def heads(self) -> list[nn.Module]:
        """Published heads; their parameters train only if a task says so."""
        return []

    @property
    def vocabulary(self) -> dict[str, int]:
        return self.tokenizer.vocabulary

    @property
    def modality(self) -> str:
        return self.tokenizer.modality

    @property
    def device(self) -> torch.device:
        return next(itertools.chain(self.parameters(), self.buffers())).device

    def tokenize(self, sequences: Sequence[str], **options) -> dict[str, Tensor]:
        """See `Tokenizer.tokenize`."""
        return self.tokenizer.tokenize(sequences, **options)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.encoder(batch["input_ids"], batch["attention_mask"]).float()

    def hidden_states(self, batch: dict[str, Tensor]) -> list[Tensor]:
        """Embeddings, the states after each layer but the last, and what `forward` gives."""
        states: list[Tensor] = []
        self.encoder(batch["input_ids"], batch["attention_mask"], states)
        return [state.float() for state in states]

    def decoder(self, hidden: Tensor) -> Tensor:
        """Logits (B, L, V) of the language-model head. Raises InputError where there is none."""
        raise InputError(
            f"{type(self).__name__}: this checkpoint has no language-model head; "
            "use the masked-LM form of the checkpoint, or another backbone"
        )

    def fingerprint(self) -> str:
        """sha256 over names, shapes, dtypes and bytes of the base weights, LoRA left out."""
        digest = hashlib.sha256()
        named = {k.replace(".base_layer.", "."): v for k, v in self.model.state_dict().items()}
        for name in sorted(name for name in named if ".lora_" not in name):
            tensor = named[name].detach().cpu().contiguous()
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def embed(
        self,
        sequences: Sequence[str],
        pool: Pool = "mean",
        layer: int = -1,
        batch_tokens: int = 16384,
        special_tokens: bool = False,
    ) -> Tensor | list[Tensor]:
        """Embeddings (N, D) on CPU in the order of `sequences`; pool "none": a list of (L_i, D).

        `layer` counts as in `hidden_states`. Batches of equally long sequences hold at most
        `batch_tokens` tokens with padding. Added special tokens count only if `special_tokens`.
        """
        sequences = [sequences] if isinstance(sequences, str) else list(sequences)
        if pool not in ("mean", "cls", "max", "none"):
            raise InputError(f"pool {pool!r}: expected 'mean', 'cls', 'max' or 'none'")
        if pool == "cls" and not self.tokenizer.style.start:
            raise InputError("pool 'cls': this backbone has no start token; use 'mean' or 'max'")
        if not -self.num_layers - 1 <= layer <= self.num_layers:
            raise InputError(f"layer {layer}: this backbone has states 0 to {self.num_layers}")
        results: list[Tensor | None] = [None] * len(sequences)
        was_training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                for rows in self._batches(sequences, batch_tokens):
                    batch = self.tokenize([sequences[i] for i in rows])
                    keep = batch["attention_mask"].bool()
                    if not special_tokens:
                        keep &= ~batch["special_tokens_mask"].bool()
                    self._refuse_empty(rows, keep)
                    batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
                    last = layer in (-1, self.num_layers)
                    hidden = self(batch) if last else self.hidden_states(batch)[layer]
                    for i, row in zip(rows, _pooled(hidden, keep, pool), strict=True):
                        results[i] = row
        finally:
            self.train(was_training)
        if pool == "none":  # copies made outside of inference mode may be trained on
            return [result.clone() for result in results]
        return torch.stack(results) if results else torch.empty(0, self.width)

    def _batches(self, sequences: list[str], batch_tokens: int) -> list[list[int]]:
        """Rows sorted by length and cut where the padded batch would exceed the budget."""
        extra = self.tokenizer.num_special
        batches: list[list[int]] = []
        for i in sorted(range(len(sequences)), key=lambda i: len(sequences[i]), reverse=True):
            if batches:
                longest = len(sequences[batches[-1][0]]) + extra
                if (len(batches[-1]) + 1) * longest <= batch_tokens:
                    batches[-1].append(i)
                    continue
            batches.append([i])
        return batches

    def _refuse_empty(self, rows: list[int], keep: Tensor) -> None:
        empty = [row for row, kept in zip(rows, keep.any(1).tolist(), strict=True) if not kept]
        if empty:
            raise InputError(f"sequence {min(empty)} (counted from 0) has no letters to embed")


def _pooled(hidden: Tensor, keep: Tensor, pool: Pool) -> list[Tensor]:
    """One CPU tensor per row of hidden (B, L, D), over the tokens that keep (B, L) marks."""
    keep = keep.to(hidden.device)
    if pool == "none":
        return [state[kept].cpu() for state, kept in zip(hidden, keep, strict=True)]
    if pool == "cls":
        return list(hidden[:, 0].cpu())
    if pool == "max":
        return list(hidden.masked_fill(~keep.unsqueeze(-1), -torch.inf).amax(1).cpu())
    summed = hidden.masked_fill(~keep.unsqueeze(-1), 0.0).sum(1)
    return list((summed / keep.sum(1, keepdim=True)).cpu())
