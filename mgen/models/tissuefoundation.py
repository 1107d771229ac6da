"""The encoder of AIDO.Tissue: AIDO.Cell's blocks over the expressed genes of a cell and its
neighbours, turned by two coordinates: which gene, and which cell.

Shapes: B rows, L tokens, D width, G genes.
"""

from torch import Tensor

from mgen.models.attention import Layout, Rotary
from mgen.models.cellfoundation import CellFoundation, CellFoundationConfig, Encoder
from mgen.models.encoder import Angles, SequenceEncoder


class TissueEncoder(Encoder):
    """Values (B, L) and `position_ids` (B, 2, L): gene and cell; G + 2 at padding. Or x and y of
    the cell in place of both, 0 at padding.

    `attends_padding`: as published, padding is attended to; `zeroes_padding`: by queries and keys
    of zeros.
    """

    extra_positions = 3  # the depth tokens, and padding
    attends_padding, zeroes_padding = False, True

    def __init__(self, config: CellFoundationConfig, dropout: float = 0.0) -> None:
        super().__init__(config, dropout)
        self.rotary = Rotary(config.head_width, axes=2)
        self.pad_position = config.max_position_embeddings + 2

    def embed(
        self, values: Tensor, attention_mask: Tensor, position_ids: Tensor
    ) -> tuple[Tensor, Angles]:
        x = self.gene_embedding(values) + self.position_embedding(position_ids[:, 0])
        places = position_ids.transpose(1, 2).unsqueeze(1)  # (B, 1, L, 2): the same for all heads
        angles = self.rotary(places, x.dtype)
        if self.attends_padding and self.zeroes_padding:
            kept = (places != self.pad_position).unsqueeze(-1)
            angles = tuple(part * kept for part in angles)
        return self.dropout(x), angles

    def layout(self, attention_mask: Tensor) -> Layout:
        return SequenceEncoder.layout(self, attention_mask)


class TissueFoundation(CellFoundation):
    encoder_type = TissueEncoder
