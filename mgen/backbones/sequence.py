"""What every sequence backbone offers, whatever its family.

Shapes: B sequences, L tokens, D width, V vocabulary, N sequences of `embed`.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mgen import checkpoint
from mgen.backbones import windows
from mgen.backbones.lora import merge
from mgen.backbones.memory import cast, empty
from mgen.backbones.tokenizer import Tokenizer
from mgen.backbones.zoo import find
from mgen.config import InputError
from mgen.io.weights import Stored, Tensors, fetch, list_weights, load_state, read_config
from mgen.report import warn

if TYPE_CHECKING:
    from mgen.backbones.cache import OutputCache

Pool = Literal["mean", "cls", "max", "none"]
HEAD = "classifier."  # where published checkpoints keep the head of a classification task


class SequenceBackbone(nn.Module):
    """A tokenizer and a network with published parameter names in `self.model`.

    A family gives `read` (config.json to a config), `alphabet`, `rename` (a checkpoint's tensors to
    published names), the facts below and its heads. `forward` and `hidden_states` take what
    `tokenize` gives and return float32 whatever the dtype of the weights, so that heads never
    depend on it.
    """

    modality_by_default: ClassVar[str]  # of a checkpoint that has no name in the zoo
    blocks: tuple[type[nn.Module], ...] = ()  # classes to shard, checkpoint, unfreeze by
    lora_targets: tuple[str, ...] = ()
    is_causal = False  # reads left to right: logits at a token are those of the next one

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, config: Any) -> None:
        super().__init__()
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.width, self.context = config.hidden_size, config.max_position_embeddings
        self.num_layers = config.num_hidden_layers
        self.config_json: dict[str, Any] = {}
        self.head_tensors: dict[str, Stored] = {}  # a classification head the checkpoint has
        self.is_split = False  # over several devices
        self.said: set[str] = set()  # notices, each once
        self.cache: OutputCache | None = None  # looks up what `forward` gives

    @classmethod
    def make_tokenizer(cls, choice, config_json: dict, **options) -> Tokenizer:
        """The tokenizer of `choice`: that of the family, or of the folder's own vocab.txt."""
        config, entry = cls.read(config_json), find(choice.name)
        modality = entry.modality if entry else config_json.get("modality", cls.modality_by_default)
        vocabulary, style = cls.alphabet(modality)
        if choice.folder and (own := choice.folder / "vocab.txt").is_file():
            vocabulary = own.read_text(encoding="utf-8").split()
            if len(vocabulary) > config.vocab_size:
                raise InputError(
                    f"{own}: {len(vocabulary)} tokens, but the embedding table of config.json has "
                    f"vocab_size {config.vocab_size} rows; they do not belong together"
                )
        return Tokenizer(
            vocabulary[: config.vocab_size],  # tokens past the embedding table cannot be used
            style,
            modality=modality,
            max_length=choice.max_length or config.max_position_embeddings,
            truncate=choice.truncate,
            unknown=choice.unknown,
            as_written=choice.as_written,
        )

    @classmethod
    def config_file(cls, choice) -> dict:
        """The checkpoint's config.json; of a family published without, what stands for it."""
        return read_config(choice.source, choice.at)

    @classmethod
    def stored(cls, choice) -> Tensors:
        """The checkpoint's tensors, not read yet."""
        return list_weights(fetch(choice.source, choice.at))

    @classmethod
    def load(cls, choice, config_json: dict, tokenizer: Tokenizer, **options) -> "SequenceBackbone":
        """The network with its weights, or random ones drawn from torch's current state.

        It is made without memory, then filled one tensor at a time.
        """
        config, tensors, head = cls.read(config_json), {}, {}
        if not choice.is_random:
            tensors = cls.stored(choice)
            head = {k.removeprefix(HEAD): tensors.pop(k) for k in [*tensors] if k.startswith(HEAD)}
            tensors = cls.rename(tensors, config)
        with torch.device("meta"):
            network = cls(config, tokenizer, set(tensors), **options)
        network.config_json, network.head_tensors = config_json, head
        if choice.is_random:
            empty(network, choice.device_map)
            network.model.initialise()
            cast(network, choice.dtype)
        else:
            cast(network, choice.dtype)
            empty(network, choice.device_map)
            load_state(network.model, tensors, choice.name)
        return network

    @property
    def encoder(self) -> nn.Module:
        """The network without its heads: what gives hidden states and what LoRA adapts."""
        return self.model

    @property
    def heads(self) -> list[nn.Module]:
        """Published heads; their parameters train only if a task says so."""
        return []

    def matrices(self) -> Iterator[tuple[int, float, bool]]:
        """Of each matrix of the blocks: entries, share of the tokens it sees, whether it trains."""
        for block in self.encoder.modules():
            if isinstance(block, self.blocks):
                for name, weight in block.named_parameters():
                    part = block.get_submodule(name.rpartition(".")[0])
                    if isinstance(part, nn.Linear) and weight is part.weight:
                        # Quantised weights have a shape of their own.
                        size = part.in_features * part.out_features
                        yield size, self.share(name), weight.requires_grad
                    elif weight.ndim == 2 and not isinstance(part, nn.Embedding):
                        yield weight.numel(), self.share(name), weight.requires_grad

    def share(self, name: str) -> float:
        """The share of the tokens that go through the part `name` of a block."""
        return 1.0

    def use_attention(self, back_end: str) -> None:
        """Compute attention by `back_end` of `mgen.models.attention` from now on."""
        self.encoder.attention = back_end

    @property
    def notice(self) -> str:
        """Why the last batch was padded where it could have been packed; "" if it was not so."""
        return self.encoder.notice

    def decoder_parameters(self) -> list[nn.Parameter]:
        """Those that `decoder` alone has. Raises InputError where there is no such head."""
        hidden = torch.zeros(1, 1, self.width, device=self.device)
        own = [p for head in self.heads for p in head.parameters()]
        with torch.enable_grad():
            for parameter in own:
                parameter.requires_grad_(True)
            logits = self.decoder(hidden).sum()
            used = torch.autograd.grad(logits, own, allow_unused=True) if own else ()
        for parameter in own:
            parameter.requires_grad_(False)
        return [p for p, gradient in zip(own, used, strict=True) if gradient is not None]

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
        def compute() -> Tensor:
            return self._states(lambda part: [self.encode(part)], batch)[0].float()

        return self.cache.outputs(self, batch, compute) if self.cache else compute()

    def hidden_states(self, batch: dict[str, Tensor]) -> list[Tensor]:
        """Embeddings, the states after each layer but the last, and what `forward` gives."""

        def collect(part: dict[str, Tensor]) -> list[Tensor]:
            states: list[Tensor] = []
            self.encode(part, states)
            return states

        if self.cache:
            self.cache.note("keeps the last layer alone; other layers are computed each time")
        return [state.float() for state in self._states(collect, batch)]

    def encode(self, batch: dict[str, Tensor], collect: list | None = None) -> Tensor:
        """The encoder's last state (B, L, D); `collect` receives those of `hidden_states`."""
        return self.encoder(batch["input_ids"], batch["attention_mask"], collect)

    def row_inputs(self, batch: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """What decides the states of a row: tensors (B, L, ...) and masks (B, L) of what is real.

        The first mask is that of the states.
        """
        names = ("input_ids", "values", "special_tokens_mask")
        return [(batch[name], batch["attention_mask"]) for name in names if name in batch]

    def _states(self, states, batch: dict[str, Tensor]) -> list[Tensor]:
        """`states(batch)`, in windows where the rows are longer than the limit in force."""
        limit = self.tokenizer.max_length
        if self.tokenizer.truncate == "window" and 0 < limit < batch["attention_mask"].shape[1]:
            found = windows.stitched(states, batch, limit, self.tokenizer.pad_token_id)
        else:
            found = states(batch)
        if (why := self.notice) and why not in self.said:
            self.said.add(why)
            warn(f"attention over padded rows: {why}")
        return found

    def decoder(self, hidden: Tensor) -> Tensor:
        """Logits (B, L, V) of the language-model head. Raises InputError where there is none."""
        raise InputError(
            f"{type(self).__name__}: this checkpoint has no language-model head; "
            "use the masked-LM form of the checkpoint, or another backbone"
        )

    def fingerprint(self) -> str:
        """`checkpoint.digest` of the base weights, LoRA left out."""
        named = {k.replace(".base_layer.", "."): v for k, v in self.model.state_dict().items()}
        return checkpoint.digest((k, v) for k, v in named.items() if ".lora_" not in k)

    def save(self, folder: Path) -> None:
        """Write config.json, weights under their published names and the tokenizer.

        LoRA matrices are merged into the weights for good. Large models are written in shards.
        """
        from huggingface_hub import save_torch_state_dict

        merge(self)
        save_torch_state_dict(self.model.state_dict(), folder)
        facts = self.config_json | {"modality": self.modality}  # which a folder's name does not say
        text = json.dumps(facts, indent=2, sort_keys=True)
        (folder / "config.json").write_text(text + "\n")
        self.tokenizer.save(folder)

    def _apply(self, fn, recurse: bool = True):
        # Moving what was spread over devices to one of them would undo it.
        applied = self if self.is_split else super()._apply(fn, recurse)
        if self.cache:
            self.cache.moved(self.encoder)
        return applied

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
                    if self.modality != "cell":  # of which one without counts is a row like others
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

    def _batches(self, sequences: list, batch_tokens: int) -> list[list[int]]:
        """Rows sorted by length and cut where the padded batch would exceed the budget."""
        if self.tokenizer.per_letter:
            lengths = [len(sequence) + self.tokenizer.num_special for sequence in sequences]
        else:
            lengths = self.tokenizer.lengths(sequences)
        batches: list[list[int]] = []
        for i in sorted(range(len(sequences)), key=lambda i: lengths[i], reverse=True):
            if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
                batches[-1].append(i)
            else:
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
        largest = hidden.masked_fill(~keep.unsqueeze(-1), -torch.inf).amax(1)
        return list(largest.masked_fill(~keep.any(1, keepdim=True), 0).cpu())
    summed = hidden.masked_fill(~keep.unsqueeze(-1), 0.0).sum(1)
    return list((summed / keep.sum(1, keepdim=True).clamp(min=1)).cpu())
