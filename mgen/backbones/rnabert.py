"""AIDO.DNA and AIDO.RNA: single nucleotides, [CLS] sequence [SEP]."""

from torch import Tensor, nn

from mgen.backbones.sequence import SequenceBackbone
from mgen.backbones.tokenizer import NUCLEOTIDE, NUCLEOTIDES, Style, Tokenizer
from mgen.config import InputError
from mgen.io.weights import Tensors, published_keys
from mgen.models.rnabert import Layer, RNABert, RNABertConfig

TABLE = "bert.embeddings.word_embeddings.weight"
TIED = {
    "cls.predictions.decoder.weight": TABLE,
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}


class RNABertBackbone(SequenceBackbone):
    """Rotary or learned positions; masked-LM head where the checkpoint has one."""

    modality_by_default = "dna"
    blocks = (Layer,)
    lora_targets = ("query", "value")
    read = staticmethod(RNABertConfig.from_json)

    def __init__(
        self, config: RNABertConfig, tokenizer: Tokenizer, keys: set[str], *, dropout: float
    ) -> None:
        limit = config.max_position_embeddings
        if config.position_embedding_type == "absolute" and tokenizer.max_length > limit:
            raise InputError(
                f"--backbone.max-length {tokenizer.max_length}: this model has {limit} positions"
            )
        head = not keys or any(key.startswith("cls.") for key in keys)
        super().__init__(RNABert(config, head=head, dropout=dropout), tokenizer, config)

    @staticmethod
    def alphabet(modality: str) -> tuple[tuple[str, ...], Style]:
        return NUCLEOTIDES, NUCLEOTIDE

    @staticmethod
    def rename(tensors: Tensors, config: RNABertConfig) -> Tensors:
        return published_keys(tensors, "bert.", ["cls."], TIED)

    @property
    def encoder(self) -> nn.Module:
        return self.model.bert

    @property
    def heads(self) -> list[nn.Module]:
        return [self.model.cls] if self.model.cls else []

    def decoder(self, hidden: Tensor) -> Tensor:
        if self.model.cls is None:
            return super().decoder(hidden)
        return self.model.logits(hidden).float()
