"""Any encoder or decoder that transformers knows, from the hub or a folder.

Checkpoints with a language-model head keep it (`decoder`); of encoder-decoders such as T5 the
encoder is used. What the hidden states do not depend on (poolers, contact heads) is set aside, so
that nothing trains in vain, and is put back by `save`. Python files of a checkpoint run only with
`remote_code`, and are printed before.

Shapes: B sequences, L tokens, D width, V vocabulary.
"""

import inspect
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mgen.backbones.huggingface_loading import (
    announce_tokenizer,
    auto_class,
    is_causal,
    quiet,
    random_model,
    read_config_class,
    refuse_misfits,
)
from mgen.backbones.huggingface_tokenizer import HuggingFaceTokenizer
from mgen.backbones.lora import merge
from mgen.backbones.sequence import HEAD, SequenceBackbone
from mgen.backbones.windows import joined
from mgen.backbones.zoo import find
from mgen.config import InputError
from mgen.io.weights import fetch, list_weights

# Names of the number of layers in config.json: those of remote code have their own.
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
POSITIONS = re.compile(r"(^|[._])(position_embeddings?|embed_positions|positions_embed|wpe)$")
# Their hidden states depend on padding although it is masked: rows go in one by one.
LEAKS = ("convbert", "mobilebert", "nystromformer", "yoso")


class Sizes(NamedTuple):
    hidden_size: int
    num_hidden_layers: int
    max_position_embeddings: int


class HuggingFaceBackbone(SequenceBackbone):
    """A model of transformers in `self.model`; its network without heads is `encoder`."""

    lora_targets = ("all-linear",)

    def __init__(
        self, model: nn.Module, tokenizer: HuggingFaceTokenizer, config_json: dict
    ) -> None:
        config = model.config
        super().__init__(model, tokenizer, Sizes(0, _num_layers(config), tokenizer.context))
        self.config, self.config_json = config, config_json
        if self.encoder is model and model.get_output_embeddings() is not None:
            raise InputError(f"{type(model).__name__}: has no network apart from its head")
        known = inspect.signature(self.encoder.forward).parameters
        self.takes_mask = "attention_mask" in known and config.model_type not in LEAKS
        self.flags = {"use_cache": False} if "use_cache" in known else {}
        self.blocks = _blocks(self.encoder, self.num_layers)
        self.set_aside, self.reason = self._without_unread(), ""

    @classmethod
    def make_tokenizer(cls, choice, config_json, *, spaced, remote_code) -> HuggingFaceTokenizer:
        entry = find(choice.name)
        config = read_config_class(choice, config_json, remote_code)
        with torch.device("meta"):
            skeleton = random_model(choice, config, remote_code)
        if remote_code:
            announce_tokenizer(choice)
        tokenizer = HuggingFaceTokenizer(
            choice.source,
            choice.at,
            modality=entry.modality if entry else "",
            positions=_positions(skeleton),
            context=getattr(config, "max_position_embeddings", 0) or (entry and entry.context) or 0,
            max_length=choice.max_length,
            truncate=choice.truncate,
            unknown=choice.unknown,
            as_written=choice.as_written,
            spaced=spaced or bool(entry and entry.options.get("spaced")),
            remote_code=remote_code,
        )
        rows = skeleton.get_input_embeddings().weight.shape[0]
        if len(tokenizer.tokens) > rows:
            raise InputError(
                f"{choice.name}: the tokenizer has ids up to {len(tokenizer.tokens) - 1}, but the "
                f"embedding table of config.json has {rows} rows; they do not belong together"
            )
        return tokenizer

    @classmethod
    def load(cls, choice, config_json, tokenizer, *, spaced, remote_code) -> "HuggingFaceBackbone":
        config = read_config_class(choice, config_json, remote_code)
        if choice.is_random:
            if choice.device_map:
                raise InputError("--backbone.device-map: random weights of this family stay on one")
            model = random_model(choice, config, remote_code)
            return cls(model, tokenizer, config_json).train()
        folder = fetch(choice.source, choice.at)
        stored = list_weights(folder)
        auto, options = auto_class(config, remote_code, set(stored))
        # The repository itself has the Python files, the folder what was checked just now.
        source = choice.source if remote_code else str(folder)
        with quiet():
            try:
                model, report = auto.from_pretrained(
                    source,
                    config=config,
                    revision=choice.at,
                    trust_remote_code=remote_code,
                    dtype=getattr(torch, choice.dtype),
                    device_map=choice.device_map or None,
                    ignore_mismatched_sizes=True,  # refused below, with all that does not fit
                    output_loading_info=True,
                    **options,
                )
            except (OSError, ValueError, RuntimeError, KeyError) as error:
                reason = str(error).strip().partition("\n")[0]
                raise InputError(f"{choice.name}: cannot be loaded: {reason}") from None
        refuse_misfits(choice, model, report, set(stored), config_json, remote_code)
        network = cls(model, tokenizer, config_json).train()
        network.is_split = len(set(getattr(model, "hf_device_map", {}).values())) > 1
        heads = [key for key in stored if key.startswith(HEAD)]
        network.head_tensors = {key.removeprefix(HEAD): stored[key] for key in heads}
        return network

    @property
    def encoder(self) -> nn.Module:
        return self.model.base_model

    def use_attention(self, back_end: str) -> None:
        """`varlen` is transformers' flash_attention_2, which leaves padding out of attention.

        `auto` takes it for weights in half precision on CUDA, where the flash-attn package is
        installed.
        """
        from transformers.utils import is_flash_attn_2_available

        model, reason = self.model, ""
        if back_end == "document":
            raise InputError(
                "--backbone.attention document is for mgen's own architectures; transformers' "
                "models have sdpa, and varlen where flash-attn is installed"
            )
        if back_end == "sdpa" or not torch.cuda.is_available():
            return
        if not model._supports_flash_attn:
            reason = f"{type(model).__name__} has no attention without padding"
        elif not is_flash_attn_2_available():
            reason = "attention without padding needs a package: pip install flash-attn"
        elif back_end == "auto" and model.dtype == torch.float32:
            reason = "attention without padding needs --backbone.dtype bfloat16"
        if not reason:
            model.set_attn_implementation("flash_attention_2")
        elif back_end == "varlen":
            raise InputError(f"--backbone.attention varlen: {reason}")
        self.reason = reason

    @property
    def notice(self) -> str:
        return self.reason

    @property
    def is_causal(self) -> bool:
        return is_causal(self.model)

    @property
    def heads(self) -> list[nn.Module]:
        """The language-model head, without weights that it shares with the embeddings."""
        if self.encoder is self.model:
            return []
        ours = {id(parameter) for parameter in self.encoder.parameters()}
        return [nn.ParameterList(p for p in self.model.parameters() if id(p) not in ours)]

    def encode(self, batch: dict[str, Tensor], collect: list | None = None) -> Tensor:
        ids, mask = batch["input_ids"], batch["attention_mask"]
        if not self.takes_mask and not mask.all():
            return self._one_by_one(ids, mask, collect)
        inputs = {"attention_mask": mask} if self.takes_mask else {}
        if collect is not None:
            inputs["output_hidden_states"] = True
        outputs = self.encoder(input_ids=ids, **inputs, **self.flags)
        if collect is not None:
            states = getattr(outputs, "hidden_states", None)
            if states is None or len(states) != self.num_layers + 1:
                raise InputError(f"{type(self.model).__name__} does not give its inner states")
            collect += [*states[:-1], outputs[0]]
        return outputs[0]

    def _one_by_one(self, ids: Tensor, mask: Tensor, collect: list | None) -> Tensor:
        """Rows without their padding, where a model cannot be told of it."""
        rows: list[list[Tensor]] = []
        for row, real in zip(ids, mask.bool(), strict=True):
            states: list[Tensor] | None = None if collect is None else []
            one = row[real][None]
            last = self.encode({"input_ids": one, "attention_mask": torch.ones_like(one)}, states)
            rows.append([state[0] for state in states or [last]])
        named = [{str(i): state[None] for i, state in enumerate(row)} for row in rows]
        padded = [*joined(named, ids.shape[1]).values()]
        if collect is not None:
            collect += padded
        return padded[-1]

    def decoder(self, hidden: Tensor) -> Tensor:
        """Logits (B, L, V) of the model's own head, given the encoder's last state (B, L, D)."""
        encoder, model = self.encoder, self.model
        if encoder is model:
            return super().decoder(hidden)
        ids = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)
        setattr(model, model.base_model_prefix, _Given(hidden.to(model.dtype)))
        try:
            return model(input_ids=ids).logits.float()
        finally:
            setattr(model, model.base_model_prefix, encoder)

    def save(self, folder: Path) -> None:
        merge(self)
        stand_ins = {name: self.encoder.get_submodule(name) for name in self.set_aside}
        _put(self.encoder, self.set_aside)
        with quiet():
            self.model.save_pretrained(folder)
        _put(self.encoder, stand_ins)
        self.tokenizer.save(folder)

    def _without_unread(self) -> dict[str, nn.Module]:
        """Take out the parts that hidden states do not depend on; names in the encoder to parts."""
        try:
            hidden, read = self._parameters_read()
        except RuntimeError:
            if self.device.type != "meta":
                raise
            # Decoders look at values, which mere shapes have not: nothing is taken out.
            self.width = self.config.hidden_size
            return {}
        self.width = hidden.shape[-1]
        # Blocks are kept whole: which expert of a mixture runs depends on the tokens.
        blocks = tuple(
            f"{n}." for n, m in self.encoder.named_modules() if isinstance(m, self.blocks)
        )
        trained = {
            name: parameter
            for name, parameter in self.encoder.named_parameters()
            if parameter.requires_grad and not name.startswith(blocks)
        }
        unread = {name for name, parameter in trained.items() if id(parameter) not in read}
        parts: dict[str, nn.Module] = {}
        for name, part in [*self.encoder.named_modules()][1:]:
            own = {f"{name}.{key}" for key, _ in part.named_parameters()}
            if own and own <= unread:
                parts[name] = part
                unread -= own
        stand_ins = {name: _PassOn() for name in parts}
        _put(self.encoder, stand_ins)
        same = self._still_gives(hidden)
        if not same:
            _put(self.encoder, parts)
        for name in unread if same else {n for n, p in trained.items() if id(p) not in read}:
            trained[name].requires_grad_(False)
        return parts if same else {}

    def _still_gives(self, hidden: Tensor) -> bool:
        try:
            with torch.no_grad():
                now = self._probe()
        except (TypeError, AttributeError, IndexError, RuntimeError):
            return False  # what was taken out is missed
        return hidden.is_meta or torch.equal(hidden, now)

    def _probe(self) -> Tensor:
        """Last state of two tokens."""
        ids = torch.zeros(1, 2, dtype=torch.long, device=self.device)
        was_training = self.training
        self.eval()
        try:
            return self.encoder(input_ids=ids, **self.flags)[0]
        finally:
            self.train(was_training)

    def _parameters_read(self) -> tuple[Tensor, set[int]]:
        """Last state of two tokens, and ids of the parameters in its graph."""
        with torch.enable_grad():
            hidden = self._probe()
        todo, seen, read = [hidden.grad_fn], set(), set()
        while todo:
            node = todo.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if hasattr(node, "variable"):
                read.add(id(node.variable))
            todo += [following for following, _ in node.next_functions]
        return hidden.detach(), read


def _put(encoder: nn.Module, parts: dict[str, nn.Module]) -> None:
    for name, part in parts.items():
        parent, _, last = name.rpartition(".")
        setattr(encoder.get_submodule(parent), last, part)


class _PassOn(nn.Module):
    """Stands where a part was whose result nothing reads."""

    def forward(self, hidden: Any = None, *_: Any, **__: Any) -> Any:
        return hidden


class _Given(nn.Module):
    """Stands where the encoder was and returns a hidden state that is known already."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.outputs = _Outputs([hidden])
        self.outputs.last_hidden_state = hidden

    def __getattr__(self, name: str) -> "_Given":
        return self  # some heads call a part of the encoder, such as its decoder

    def forward(self, *_: Any, **__: Any) -> "_Outputs":
        return self.outputs


class _Outputs(tuple):
    """What an encoder returns, read by place or by name; all but the hidden state is None."""

    def __getattr__(self, name: str) -> None:
        return None


def _num_layers(config: Any) -> int:
    for name in LAYERS:
        if isinstance(value := getattr(config, name, None), int):
            return value
    raise InputError(f"config.json of {config.model_type!r} has none of {', '.join(LAYERS)}")


def _positions(model: nn.Module) -> int:
    """Tokens that a table of learned positions has room for; 0 where there is none."""
    room = [
        table.num_embeddings - getattr(table, "offset", 0) - _start(table)
        for name, table in model.named_modules()
        if isinstance(table, nn.Embedding) and POSITIONS.search(name)
    ]
    # Some tables have rows to spare, which the config does not count.
    counted = getattr(model.config, "max_position_embeddings", 0)
    return min([*room, counted or room[0]]) if room else 0


def _start(table: nn.Embedding) -> int:
    # Where the table has a padding row, positions of tokens start behind it.
    return 0 if table.padding_idx is None else table.padding_idx + 1


def _blocks(encoder: nn.Module, layers: int) -> tuple[type[nn.Module], ...]:
    """The classes of the repeated layers."""
    for module in encoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == layers:
            return tuple(dict.fromkeys(type(layer) for layer in module))
    names = getattr(encoder, "_no_split_modules", None) or ()
    return tuple({type(module) for module in encoder.modules() if type(module).__name__ in names})
