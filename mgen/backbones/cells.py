"""What the families of cell models share: their genes, and batches of numbers."""

from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from mgen.backbones.cell_tokenizer import GENES_FILE, CellTokenizer
from mgen.backbones.genes import GeneList, gene_list
from mgen.backbones.sequence import SequenceBackbone
from mgen.config import InputError

READING = ("genes", "values", "pooled_genes", "as_published")  # options of all families
READ = ("values", "input_ids", "gene_ids", "special_tokens_mask")  # (B, L) tensors of a batch


def gene_list_of(model: str, kind: str, file: str, size: int) -> GeneList:
    """The list `kind`, or that of a file. Raises InputError unless it has `size` genes."""
    found = gene_list(kind, file, size)
    if size and len(found) != size:
        raise InputError(
            f"{file or kind}: {len(found):,} genes, but {model} reads {size:,}. Name its own list "
            "with --backbone.genes"
        )
    return found


class CellBackbone(SequenceBackbone):
    """A network that reads the counts of a cell.

    A family gives besides what `SequenceBackbone` asks for: `tokenizer_type`, `gene_list` (a name
    of `mgen.backbones.genes.LISTS`; config.json may say another) and `num_genes`.
    """

    modality_by_default = "cell"
    tokenizer_type: ClassVar[type[CellTokenizer]]
    gene_list: ClassVar[str]
    reading: ClassVar[tuple[str, ...]] = READING  # options of the tokenizer, not of the network

    @staticmethod
    def num_genes(config: Any) -> int:
        """Genes of the model's input; 0: any number."""
        return config.max_position_embeddings

    @classmethod
    def limit(cls, config: Any) -> int:
        """Most tokens of a cell; 0: none."""
        return 0

    @classmethod
    def make_tokenizer(
        cls, choice, config_json: dict, *, genes: str = "", **options
    ) -> CellTokenizer:
        """By the genes of `--backbone.genes`, of the folder's own genes.tsv, or of the family.

        The list is read when the first cell is.
        """
        config = cls.read(config_json)
        own = choice.folder and choice.folder / GENES_FILE
        file = genes or (str(own) if own and own.is_file() else "")
        kind = config_json.get("gene_list", cls.gene_list)
        options = {name: value for name, value in options.items() if name in cls.reading}
        return cls.tokenizer_type(
            partial(gene_list_of, choice.name, kind, file, cls.num_genes(config)),
            config=config,
            max_length=choice.max_length or cls.limit(config),
            truncate=choice.truncate,
            **options,
        )

    @classmethod
    def load(cls, choice, config_json: dict, tokenizer: CellTokenizer, **options):
        options = {name: value for name, value in options.items() if name not in cls.reading}
        return super().load(choice, config_json, tokenizer, **options)

    @property
    def vocabulary(self) -> dict[str, int]:
        """Genes by their place."""
        names = zip(self.tokenizer.genes.symbols, self.tokenizer.genes.ensembl, strict=True)
        return {symbol or ensembl: i for i, (symbol, ensembl) in enumerate(names)}

    def encode(self, batch: dict[str, Tensor], collect: list | None = None) -> Tensor:
        further = {name: batch[name] for name in self.further if name in batch}
        return self.encoder(batch["values"], batch["attention_mask"], collect, **further)

    further: ClassVar[tuple[str, ...]] = ()  # tensors that the encoder takes beside values

    def row_inputs(self, batch: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        found = [batch[name] for name in READ if name in batch]
        found += [batch["position_ids"].transpose(1, 2)] if "position_ids" in batch else []
        mask = batch["attention_mask"]
        # Where a cell is one token, all of its values are that token's.
        return [(t if t.shape[1] == mask.shape[1] else t.unsqueeze(1), mask) for t in found]
