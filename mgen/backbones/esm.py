"""ESM-2: amino acids, <cls> sequence <eos>."""

import torch
from torch import Tensor, nn

from mgen.backbones.sequence import SequenceBackbone
from mgen.backbones.tokenizer import ESM as ESM_STYLE
from mgen.backbones.tokenizer import ESM_AMINO_ACIDS, Style, Tokenizer
from mgen.config import InputError
from mgen.io.weights import Held, Tensors, published_keys
from mgen.models.attention import Rotary
from mgen.models.esm import ESM, ESMConfig, Layer

TIED = {
    "lm_head.decoder.weight": "esm.embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias",
}
CONTACTS = "esm.contact_head."
FREQUENCIES = "rotary_embeddings.inv_freq"


class ESMBackbone(SequenceBackbone):
    """Rotary positions; masked-LM and contact heads where the checkpoint has them."""

    modality_by_default = "protein"
    blocks = (Layer,)
    lora_targets = ("query", "value")
    read = staticmethod(ESMConfig.from_json)

    def __init__(
        self, config: ESMConfig, tokenizer: Tokenizer, keys: set[str], *, dropout: float
    ) -> None:
        if config.mask_token_id != tokenizer.mask_token_id:
            raise InputError(
                f"config.json: mask_token_id {config.mask_token_id}, but the vocabulary has "
                f"{tokenizer.style.mask} at {tokenizer.mask_token_id}; add the right vocab.txt"
            )
        head = not keys or any(key.startswith("lm_head.") for key in keys)
        contacts = not keys or any(key.startswith(CONTACTS) for key in keys)
        model = ESM(config, head=head, contacts=contacts, dropout=dropout)
        super().__init__(model, tokenizer, config)

    @staticmethod
    def alphabet(modality: str) -> tuple[tuple[str, ...], Style]:
        return ESM_AMINO_ACIDS, ESM_STYLE

    @staticmethod
    def rename(tensors: Tensors, config: ESMConfig) -> Tensors:
        named = published_keys(tensors, "esm.", ["lm_head."], TIED)
        # Older files hold the frequencies once per layer, the newest leave both of these out.
        stored = [tensor for key, tensor in tensors.items() if key.endswith(FREQUENCIES)]
        exact = Held(Rotary(config.head_width).frequencies())
        named[f"esm.{FREQUENCIES}"] = stored[0] if stored else exact
        shape = (config.max_position_embeddings, config.hidden_size)
        named.setdefault("esm.embeddings.position_embeddings.weight", Held(torch.zeros(shape)))
        return named

    @property
    def encoder(self) -> nn.Module:
        return self.model.esm

    @property
    def heads(self) -> list[nn.Module]:
        return [head for head in (self.model.lm_head, self.model.esm.contact_head) if head]

    def decoder(self, hidden: Tensor) -> Tensor:
        if self.model.lm_head is None:
            return super().decoder(hidden)
        return self.model.logits(hidden).float()

    def contacts(self, batch: dict[str, Tensor]) -> Tensor:
        """Contact probabilities (B, L-2, L-2) of residue pairs."""
        if self.model.esm.contact_head is None:
            raise InputError("this checkpoint has no contact head")
        return self.model.esm.contacts(batch["input_ids"], batch["attention_mask"]).float()
