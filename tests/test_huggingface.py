"""Checkpoints of transformers: made on disk by its own classes, compared with their own numbers.

    pytest tests/test_huggingface.py

Hidden states and logits agree with transformers to 1e-5; weights are random, sizes tiny.
"""

import hashlib
import json
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from mgen.backbones import backbone, huggingface, huggingface_loading, load_backbone
from mgen.backbones.zoo import ZOO
from mgen.config import InputError

AMINO_ACIDS = "LAGVSERTIDPKQNFYMHWCXBUZO"
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
BERT_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def ids(tokens) -> dict[str, int]:
    return {token: i for i, token in enumerate(tokens)}


def fast(folder, model, special: dict, frame: str = "", split=None):
    """Write a tokenizer of the tokenizers library the way published ones are stored."""
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = split
    named = [(token, made.token_to_id(token)) for token in set(special.values())]
    if frame:
        made.post_processor = processors.TemplateProcessing(single=frame, special_tokens=named)
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special)
    wrapped.save_pretrained(folder)


def esm(folder):
    tokens = ["<cls>", "<pad>", "<eos>", "<unk>", *AMINO_ACIDS, ".", "-", "<null_1>", "<mask>"]
    (folder / "vocab.txt").write_text("\n".join(tokens))
    transformers.EsmTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    config = transformers.EsmConfig(
        vocab_size=len(tokens),
        pad_token_id=1,
        mask_token_id=len(tokens) - 1,
        max_position_embeddings=42,
        emb_layer_norm_before=True,
        token_dropout=False,
        **SIZES,
    )
    return transformers.EsmForMaskedLM(config)


def esmc(folder):
    transformers.EsmcTokenizer().save_pretrained(folder)
    config = transformers.EsmcConfig(max_position_embeddings=64, **SIZES)
    return transformers.EsmcForMaskedLM(config)


def bert(folder):
    tokens = [*BERT, *AMINO_ACIDS]
    transformers.BertTokenizer(vocab=ids(tokens), do_lower_case=False).save_pretrained(folder)
    config = transformers.BertConfig(vocab_size=30, max_position_embeddings=40, **SIZES)
    return transformers.BertForMaskedLM(config)


def modernbert(folder):
    tokens = [*BERT, *"ACGTN", "AC", "GT", "ACGT"]
    merges = [("A", "C"), ("G", "T"), ("AC", "GT")]
    model = models.BPE(vocab=ids(tokens), merges=merges, unk_token="[UNK]")
    fast(folder, model, BERT_TOKENS, "[CLS] $A [SEP]")
    numbers = ("pad", "cls", "sep")
    special = {f"{name}_token_id": tokens.index(f"[{name.upper()}]") for name in numbers}
    special |= {"bos_token_id": 2, "eos_token_id": 3}
    config = transformers.ModernBertConfig(
        vocab_size=16, max_position_embeddings=64, local_attention=8, **special, **SIZES
    )
    return transformers.ModernBertForMaskedLM(config)


def t5(folder):
    tokens = ["<pad>", "</s>", "<unk>", *(f"\u2581{letter}" for letter in AMINO_ACIDS)]
    model = models.Unigram([(token, -1.0) for token in tokens], unk_id=2)
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    fast(folder, model, special, "$A </s>", pre_tokenizers.Metaspace())
    config = transformers.T5Config(
        vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2
    )
    return transformers.T5ForConditionalGeneration(config)


def gpt2(folder):
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["MKTAYIAKQRQISFVKSHFSRQ", "GATTACAWWDEFHNPVLMKTAYIA"] * 5, trainer)
    end = "<|endoftext|>"
    special = {"eos_token": end, "bos_token": end, "unk_token": end}
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special).save_pretrained(folder)
    config = transformers.GPT2Config(
        vocab_size=made.get_vocab_size(),
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=32,
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config)


def llama(folder):
    tokens = ["<unk>", "<s>", "</s>", *AMINO_ACIDS[:20]]
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    model = models.BPE(vocab=ids(tokens), merges=[], unk_token="<unk>")
    fast(folder, model, special, "<s> $A")
    config = transformers.LlamaConfig(vocab_size=24, max_position_embeddings=64, **SIZES)
    return transformers.LlamaForCausalLM(config)


KINDS = {f.__name__: f for f in (esm, esmc, bert, modernbert, t5, gpt2, llama)}
SPACED = ("bert", "t5")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """`made(kind)`: folder, transformers' model, our backbone; each is made once."""
    known: dict[str, SimpleNamespace] = {}

    def make(kind: str) -> SimpleNamespace:
        if kind not in known:
            folder = tmp_path_factory.mktemp(kind)
            torch.manual_seed(0)
            model = KINDS[kind](folder).eval()
            for parameter in model.parameters():
                if parameter.dim() > 1:  # as initialised, states would hardly depend on letters
                    torch.nn.init.normal_(parameter, std=0.2)
            model.save_pretrained(folder)
            ours = load_backbone(str(folder), **options(kind))
            known[kind] = SimpleNamespace(kind=kind, folder=folder, model=model, ours=ours)
        return known[kind]

    return make


@pytest.fixture(params=KINDS)
def each(request, made):
    return made(request.param)


@pytest.fixture
def copied(made, tmp_path):
    """`copied(kind)`: a copy of a checkpoint folder, to be spoiled."""
    return lambda kind: Path(shutil.copytree(made(kind).folder, tmp_path / kind))


def options(kind: str) -> dict:
    return {"spaced": True} if kind in SPACED else {}


SEQUENCES = ["ACGTACGTAACC", "ACG", "GATTACA"]


def refused(name, match: str, **given) -> None:
    with pytest.raises(InputError, match=match):
        load_backbone(str(name), **given)


# --------------------------------------------------------------------------- numbers


def theirs(each, batch):
    model = each.model.get_encoder() if each.kind == "t5" else each.model
    with torch.no_grad():
        return model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            output_hidden_states=True,
        )


def test_every_hidden_state_is_that_of_transformers(each):
    batch = each.ours.tokenize(SEQUENCES)
    expected = theirs(each, batch).hidden_states
    with torch.no_grad():
        states, last = each.ours.hidden_states(batch), each.ours(batch)
    assert len(states) == each.ours.num_layers + 1 == 3
    for state, other in zip(states, expected, strict=True):
        assert state.dtype == torch.float32 and state.shape == (3, *other.shape[1:])
        assert (state - other)[batch["attention_mask"].bool()].abs().max() <= 1e-5
    assert torch.equal(states[-1], last)


def test_logits_are_those_of_transformers(each):
    batch = each.ours.tokenize(SEQUENCES)
    if each.kind == "t5":
        with pytest.raises(InputError, match="no language-model head"):
            each.ours.decoder(each.ours(batch))
        return
    with torch.no_grad():
        logits = each.ours.decoder(each.ours(batch))
        again = each.ours(batch)  # the network is whole again
    expected = theirs(each, batch)
    real = batch["attention_mask"].bool()
    assert (logits - expected.logits)[real].abs().max() <= 1e-5
    assert (again - expected.hidden_states[-1])[real].abs().max() <= 1e-5


def test_a_sequence_alone_equals_itself_padded(each):
    with torch.no_grad():
        together = each.ours(each.ours.tokenize(SEQUENCES))
        for i, sequence in enumerate(SEQUENCES):
            alone = each.ours(each.ours.tokenize([sequence]))[0]
            assert (alone - together[i, : len(alone)]).abs().max() <= 1e-5


def test_facts_are_those_of_the_checkpoint(each):
    context = {"esm": 40, "bert": 40, "t5": 0, "gpt2": 32}
    block = {
        "esm": "EsmLayer",
        "esmc": "EsmcLayer",
        "bert": "BertLayer",
        "modernbert": "ModernBertEncoderLayer",
        "t5": "T5Block",
        "gpt2": "GPT2Block",
        "llama": "LlamaDecoderLayer",
    }
    ours = each.ours
    assert (ours.width, ours.num_layers) == (16, 2)
    assert ours.context == context.get(each.kind, 64)
    assert [kind.__name__ for kind in ours.blocks] == [block[each.kind]]
    assert ours.modality == ("dna" if each.kind == "modernbert" else "protein")


def test_a_model_that_cannot_be_told_of_padding_reads_rows_one_by_one(made):
    ours = load_backbone(str(made("bert").folder), spaced=True)
    batch = ours.tokenize(SEQUENCES)
    with torch.no_grad():
        expected = ours.hidden_states(batch)
        ours.takes_mask = False
        states = ours.hidden_states(batch)
    real = batch["attention_mask"].bool()
    for state, other in zip(states, expected, strict=True):
        assert state.shape == other.shape and (state - other)[real].abs().max() <= 1e-5


# --------------------------------------------------------------------------- tokens


def test_tokens_are_those_of_transformers(each):
    own = transformers.AutoTokenizer.from_pretrained(each.folder)
    batch = each.ours.tokenize(SEQUENCES)
    for i, sequence in enumerate(SEQUENCES):
        expected = own(" ".join(sequence) if each.kind in SPACED else sequence)["input_ids"]
        assert batch["input_ids"][i, : len(expected)].tolist() == expected
        assert batch["attention_mask"][i].sum() == len(expected)
        pads = batch["input_ids"][i, len(expected) :].unique().tolist()
        assert pads in ([], [own.pad_token_id if own.pad_token else own.eos_token_id])


def test_added_tokens_and_padding_are_marked_special(each):
    batch = each.ours.tokenize(SEQUENCES)
    framed = {"t5": (0, 1), "gpt2": (0, 0), "llama": (1, 0)}
    start, end = framed.get(each.kind, (1, 1))
    assert each.ours.tokenizer.num_special == start + end
    assert bool(each.ours.tokenizer.style.start) == bool(start)
    for real, special in zip(batch["attention_mask"], batch["special_tokens_mask"], strict=True):
        length = int(real.sum())
        expected = torch.ones_like(special)
        expected[start : length - end] = 0
        assert torch.equal(special, expected)


def test_tokens_per_letter_hold_where_they_are_claimed(each):
    tokenizer = each.ours.tokenizer
    assert tokenizer.per_letter == (each.kind not in ("modernbert", "gpt2"))
    counted = tokenizer.tokenize(SEQUENCES)["attention_mask"].sum(1).tolist()
    assert tokenizer.lengths(SEQUENCES) == counted
    if tokenizer.per_letter:
        assert counted == [len(sequence) + tokenizer.num_special for sequence in SEQUENCES]


def test_special_tokens_in_the_text_are_one_token_each(made):
    for kind, mask in (("esm", "<mask>"), ("bert", "[MASK]"), ("modernbert", "[MASK]")):
        tokenizer = made(kind).ours.tokenizer
        batch = tokenizer.tokenize([f"AG{mask}GA"])
        assert (batch["input_ids"] == tokenizer.mask_token_id).sum() == 1
        assert batch["special_tokens_mask"].tolist() == [[1, 0, 0, 0, 0, 0, 1]]


def test_case_and_u_are_read_as_the_vocabulary_has_them(made):
    tokenizer = made("modernbert").ours.tokenizer
    assert torch.equal(
        tokenizer.tokenize(["acguNN A"])["input_ids"], tokenizer.tokenize(["ACGTNNA"])["input_ids"]
    )


def test_rare_residues_are_read_as_x_where_letters_stand_apart(made):
    for kind in SPACED:
        tokenizer = made(kind).ours.tokenizer
        ours = tokenizer.tokenize(["MUZOBk"])["input_ids"]
        assert torch.equal(ours, tokenizer.tokenize(["MXXXXK"])["input_ids"])


def test_a_name_brings_its_own_way_of_reading(made, monkeypatch):
    monkeypatch.setattr(huggingface, "find", lambda name: ZOO["prot_bert"])
    tokenizer = backbone(str(made("bert").folder)).tokenizer()  # without `spaced`
    assert tokenizer.spaced and tokenizer.tokenize(["MKT"])["input_ids"].shape == (1, 5)


def test_letters_outside_the_alphabet_are_an_error_or_one_token_each(made):
    for kind in ("esm", "bert", "modernbert", "llama"):
        tokenizer = made(kind).ours.tokenizer
        with pytest.raises(InputError, match="'J' not in the .* alphabet"):
            tokenizer.tokenize(["AJJC"])
        lenient = backbone(str(made(kind).folder), unknown="token", **options(kind)).tokenizer()
        row = lenient.tokenize(["AJJC"], add_special_tokens=False)["input_ids"][0].tolist()
        assert row[1:3] == [lenient.unk_token_id] * 2 and len(row) == 4


def test_residues_that_must_stand_apart_are_not_read_as_one_unknown_word(made):
    tokenizer = backbone(str(made("bert").folder)).tokenizer()
    with pytest.raises(InputError, match="no entry for some of it.*--backbone.spaced"):
        tokenizer.tokenize(["MKTAYI"])


def test_letters_of_a_byte_level_vocabulary_are_those_it_was_trained_on(made):
    alphabet = made("gpt2").ours.tokenizer.alphabet
    assert set(alphabet) <= set(AMINO_ACIDS) and set("MKTAYIQR") <= set(alphabet)


@pytest.mark.parametrize("side", ["right", "left"])
def test_cut_rows_keep_their_special_tokens(side, made):
    folder = made("esm").folder
    whole = made("esm").ours.tokenize(["MKTAYIAK"])["input_ids"][0].tolist()
    tokenizer = backbone(str(folder), truncate=side, max_length=6).tokenizer()
    batch = tokenizer.tokenize(["MKTAYIAK"])
    kept = whole[1:5] if side == "right" else whole[5:9]
    assert batch["input_ids"].tolist() == [[whole[0], *kept, whole[-1]]]
    assert batch["special_tokens_mask"].tolist() == [[1, 0, 0, 0, 0, 1]]


def test_long_rows_are_refused_or_left_to_windows(made):
    folder = str(made("esm").folder)
    with pytest.raises(InputError, match="a sequence has 50 tokens; 38 fit into 40"):
        backbone(folder).tokenizer().tokenize(["M" * 50])
    ours = load_backbone(folder, truncate="window")
    batch = ours.tokenize(["MKTAY" * 10])
    assert batch["input_ids"].shape == (1, 52)
    assert ours(batch).shape == (1, 52, 16)


def test_a_tokenizer_travels_to_workers_without_its_library_object(made):
    tokenizer = made("modernbert").ours.tokenizer
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert vars(copy)["_published"] is None
    assert torch.equal(
        copy.tokenize(SEQUENCES)["input_ids"], tokenizer.tokenize(SEQUENCES)["input_ids"]
    )


def test_as_written_leaves_the_text_to_transformers(made):
    tokenizer = backbone(
        str(made("modernbert").folder), as_written=True, unknown="token"
    ).tokenizer()
    own = transformers.AutoTokenizer.from_pretrained(made("modernbert").folder)
    text = "ACGTacJJGT"
    assert tokenizer.tokenize([text])["input_ids"][0].tolist() == own(text)["input_ids"]


# --------------------------------------------------------------------------- weights


def test_heads_do_not_train_but_shared_embeddings_do(each):
    network = backbone(str(each.folder), **options(each.kind)).build()
    training = {name for name, p in network.model.named_parameters() if p.requires_grad}
    encoder = {id(p) for p in network.encoder.parameters()}
    named = network.model.named_parameters()
    assert training == {name for name, p in named if id(p) in encoder}


def test_a_task_may_train_the_head(each):
    if each.kind == "t5":
        with pytest.raises(InputError, match="no language-model head"):
            each.ours.decoder_parameters()
        return
    encoder = {id(parameter) for parameter in each.ours.encoder.parameters()}
    own = {id(p) for p in each.ours.model.parameters() if id(p) not in encoder}
    assert {id(parameter) for parameter in each.ours.decoder_parameters()} == own


def test_nothing_trains_in_vain(each):
    network = backbone(str(each.folder), **options(each.kind)).build().eval()
    network(network.tokenize(SEQUENCES)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_lora_on_all_linear_layers_trains_everywhere(each):
    torch.manual_seed(0)
    given = {"lora_rank": 2, "lora_targets": ("all-linear",), **options(each.kind)}
    network = backbone(str(each.folder), **given).build().eval()
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    assert trained and all(".lora_" in name for name in trained)
    layers = {name.partition(".lora_")[0] for name in trained}
    linear = (torch.nn.Linear, transformers.pytorch_utils.Conv1D)
    plain = load_backbone(str(each.folder), **options(each.kind)).encoder
    assert len(layers) == sum(isinstance(module, linear) for module in plain.modules())
    for name, parameter in trained.items():  # B starts at zero, and then nothing reaches A
        if ".lora_B" in name:
            torch.nn.init.normal_(parameter)
    network(network.tokenize(SEQUENCES)).square().sum().backward()
    for name, parameter in trained.items():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_saved_folders_load_here_and_in_transformers(each, tmp_path):
    each.ours.save(tmp_path)
    batch = each.ours.tokenize(SEQUENCES)
    again = load_backbone(str(tmp_path), **options(each.kind))
    model = type(each.ours.model).from_pretrained(tmp_path)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        assert torch.equal(again(batch), each.ours(batch))
        assert torch.equal(model(**inputs)[0], each.ours.model(**inputs)[0])
    stored, published = (set(load_file(d / "model.safetensors")) for d in (tmp_path, each.folder))
    assert stored == {name for name in published if each.kind != "t5" or "decoder" not in name}


def test_random_weights_need_no_weight_file_and_dry_runs_no_memory(copied):
    folder = copied("modernbert")
    (folder / "model.safetensors").unlink()
    torch.manual_seed(1)
    first = load_backbone(str(folder), random_weights=True)
    assert first(first.tokenize(["ACGT"])).shape == (1, 3, 16)
    with torch.device("meta"):
        dry = backbone(str(folder), random_weights=True).build()
    assert all(parameter.is_meta for parameter in dry.parameters())
    assert sum(map(torch.numel, dry.parameters())) == sum(map(torch.numel, first.parameters()))


def test_bf16_weights_give_nearly_the_same_states(each):
    rounded = load_backbone(str(each.folder), dtype="bfloat16", **options(each.kind))
    batch = each.ours.tokenize(SEQUENCES)
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        exact = each.ours(batch)[real]
        difference = (rounded(batch)[real] - exact).abs().mean() / exact.std()
    assert 0 < difference <= 0.022  # seen: 0.004 to 0.011


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lower_precision_stays_close_and_states_are_float32(dtype, made):
    folder, exact = str(made("llama").folder), made("llama").ours
    ours = load_backbone(folder, dtype=dtype)
    batch = ours.tokenize(SEQUENCES)
    assert ours.model.dtype == getattr(torch, dtype)
    with torch.no_grad():
        hidden, logits = ours(batch), ours.decoder(ours(batch))
        assert hidden.dtype == logits.dtype == torch.float32
        assert (hidden - exact(batch)).abs().mean() <= 0.05


def test_a_headless_checkpoint_has_no_decoder_and_no_pooler(made, tmp_path):
    model = made("bert").model.bert
    shutil.copytree(made("bert").folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    transformers.BertModel(model.config).save_pretrained(tmp_path)  # has a pooler
    ours = load_backbone(str(tmp_path), spaced=True)
    assert not any("pooler" in name for name, _ in ours.named_parameters())
    with pytest.raises(InputError, match="no language-model head"):
        ours.decoder(ours(ours.tokenize(["MKT"])))


def test_the_head_of_a_task_is_kept_aside(made, tmp_path):
    shutil.copytree(made("bert").folder, tmp_path, dirs_exist_ok=True)
    config = transformers.BertConfig(vocab_size=30, max_position_embeddings=40, **SIZES)
    transformers.BertForTokenClassification(config).save_pretrained(tmp_path)
    ours = load_backbone(str(tmp_path), spaced=True)
    heads = {name: stored.read() for name, stored in ours.head_tensors.items()}
    stored = load_file(tmp_path / "model.safetensors")
    assert set(heads) == {"weight", "bias"}
    assert all(torch.equal(stored[f"classifier.{name}"], heads[name]) for name in heads)
    with pytest.raises(InputError, match="no language-model head"):
        ours.decoder(ours(ours.tokenize(["MKT"])))


def test_a_head_that_config_json_does_not_name_is_found_by_its_keys(copied, made):
    folder = copied("bert")
    change_config(folder, architectures=["BertForPreTraining"])
    ours, batch = load_backbone(str(folder), spaced=True), made("bert").ours.tokenize(SEQUENCES)
    with torch.no_grad():
        expected = made("bert").ours.decoder(made("bert").ours(batch))
        assert torch.equal(ours.decoder(ours(batch)), expected)


# --------------------------------------------------------------------------- refusals


def change_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def change_weights(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_every_key_that_does_not_fit_is_listed(copied):
    folder = copied("llama")

    def spoil(tensors):
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.0.mlp.extra.weight"] = torch.zeros(2)
        tensors["model.norm.weight"] = torch.zeros(3)

    change_weights(folder, spoil)
    with pytest.raises(InputError) as raised:
        load_backbone(str(folder))
    message = str(raised.value)
    assert "3 tensors do not fit config.json" in message
    assert "missing: model.layers.1.mlp.up_proj.weight" in message
    assert "unexpected: model.layers.0.mlp.extra.weight" in message
    assert "shape: model.norm.weight is (3,), config.json says (16,)" in message


def test_a_missing_head_is_refused_where_config_json_names_it(copied):
    folder = copied("esmc")
    change_weights(folder, lambda tensors: tensors.pop("lm_head.dense.weight"))
    refused(folder, "missing: lm_head.dense.weight")


def test_a_truncated_file_is_named(copied):
    folder = copied("llama")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(folder, "model.safetensors: cannot be read.*damaged or cut short")


def test_code_in_a_pickle_is_never_run(copied, tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    folder = copied("llama")
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Evil()}, folder / "pytorch_model.bin")
    refused(folder, "holds more than tensors, which is never run")
    assert not (tmp_path / "ran").exists()


def test_pickled_tensors_load(copied, made):
    folder = copied("llama")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    batch = made("llama").ours.tokenize(SEQUENCES)
    with torch.no_grad():
        assert torch.equal(load_backbone(str(folder))(batch), made("llama").ours(batch))


def test_a_folder_without_weights_is_refused(copied):
    folder = copied("llama")
    (folder / "model.safetensors").unlink()
    refused(folder, "no weights; expected one of model.safetensors")


def test_a_model_type_that_nobody_knows_is_refused(copied):
    folder = copied("llama")
    change_config(folder, model_type="lama")
    refused(folder, "model_type 'lama' of config.json is known neither here nor to transformers")


def test_a_config_with_nonsense_is_refused(copied):
    folder = copied("esmc")
    change_config(folder, num_attention_heads=3)
    refused(folder, "(?s)config.json: .*not a multiple of the number of attention")


def test_an_encoder_decoder_without_an_encoder_class_is_refused(copied):
    folder = copied("llama")
    small = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 24}
    (folder / "config.json").write_text(json.dumps(transformers.BartConfig(**small).to_dict()))
    refused(folder, "encoder-decoders of model_type 'bart' are not supported")


@pytest.mark.parametrize("kind", ["esm", "bert", "gpt2", "llama"])
def test_a_folder_without_vocabulary_is_refused(kind, copied):
    folder = copied(kind)
    for file in folder.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            file.unlink()
    refused(folder, "tokenizer.*Expected tokenizer.json, vocab.txt or the like")


def test_a_tokenizer_of_another_model_is_refused(copied, made):
    folder = copied("llama")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(made("gpt2").folder / name, folder)
    refused(folder, "the tokenizer has ids up to 289, but the embedding table .* has 24 rows")


def test_more_tokens_than_learned_positions_are_refused(made):
    for kind, positions in (("esm", 40), ("gpt2", 32)):
        folder = made(kind).folder
        refused(folder, f"--backbone.max-length 41: .* has {positions} positions", max_length=41)
    assert load_backbone(str(made("llama").folder), max_length=100).tokenizer.max_length == 100


def test_a_protein_is_refused_by_a_dna_model_before_weights_load(copied):
    folder = copied("modernbert")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="'K', 'M' not in the dna alphabet ACGNT"):
        backbone(str(folder)).tokenizer().tokenize(["MKTA"])


# --------------------------------------------------------------------------- code of a checkpoint

CODE = """
from pathlib import Path

from transformers import {base}Config, {base}ForMaskedLM

Path({trace!r}).touch()

class OwnConfig({base}Config):
    model_type = {kind!r}

class OwnModel({base}ForMaskedLM):
    config_class = OwnConfig
"""


@pytest.fixture
def with_code(copied, tmp_path, monkeypatch):
    """A folder whose model is Python code that leaves a trace when it runs."""
    import transformers.dynamic_module_utils as dynamic

    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    folder, trace = copied("esmc"), tmp_path / "ran"
    kind = f"own_{tmp_path.name}"
    code = CODE.format(base="Esmc", trace=str(trace), kind=kind)
    (folder / "modeling_own.py").write_text(code)
    classes = {
        "AutoConfig": "modeling_own.OwnConfig",
        "AutoModelForMaskedLM": "modeling_own.OwnModel",
    }
    change_config(folder, model_type=kind, architectures=["OwnModel"], auto_map=classes)
    return SimpleNamespace(folder=folder, trace=trace)


def test_code_of_a_checkpoint_does_not_run_unasked(with_code):
    refused(with_code.folder, "modeling_own.py.*which runs only with --backbone.remote-code")
    assert not with_code.trace.exists()


def test_code_of_a_checkpoint_is_announced_before_it_runs(with_code, made, capsys, monkeypatch):
    had_run, say = [], huggingface_loading.announce

    def noted(*said):
        had_run.append(with_code.trace.exists())
        say(*said)

    monkeypatch.setattr(huggingface_loading, "announce", noted)
    ours = load_backbone(str(with_code.folder), remote_code=True)
    assert with_code.trace.exists() and not had_run[0]
    said = capsys.readouterr().err
    digest = hashlib.sha256((with_code.folder / "modeling_own.py").read_bytes()).hexdigest()
    assert str(with_code.folder) in said and f"modeling_own.py  sha256 {digest}" in said
    batch = ours.tokenize(SEQUENCES)
    with torch.no_grad():
        assert torch.equal(ours(batch), made("esmc").ours(batch))


def test_a_tokenizer_that_is_code_is_refused_or_announced(copied, tmp_path, capsys, monkeypatch):
    import transformers.dynamic_module_utils as dynamic

    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    folder, trace = copied("llama"), tmp_path / "ran"
    (folder / "tokenization_own.py").write_text(
        "from pathlib import Path\n"
        "from transformers import PreTrainedTokenizerFast\n"
        f"Path({str(trace)!r}).touch()\n"
        "class OwnTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    file = folder / "tokenizer_config.json"
    facts = {"auto_map": {"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]}}
    facts |= {"tokenizer_class": "OwnTokenizer"}
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))
    change_config(folder, model_type="bloom", n_layer=1, n_head=2)  # has no tokenizer of its own
    refused(folder, "tokenizer is Python code of the checkpoint.*only with --backbone.remote-code")
    assert not trace.exists()
    tokenizer = backbone(str(folder), remote_code=True).tokenizer()
    assert trace.exists() and tokenizer.tokenize(["MKT"])["input_ids"].shape == (1, 4)
    assert "tokenization_own.py  sha256" in capsys.readouterr().err


def test_weights_for_other_code_hint_at_it(copied):
    folder = copied("esmc")
    change_config(folder, auto_map={"AutoModel": "modeling_own.Own"})
    change_weights(folder, lambda tensors: tensors.pop("esmc.norm.weight"))
    refused(folder, r"(?s)missing: esmc.norm.weight.*code of its own \(modeling_own.py\)")


def test_a_task_can_have_one_weight_per_position(made, tmp_path):
    import dataclasses

    import tiny

    from mgen.adapters import adapter

    cfg = tiny.settings(tmp_path)
    (tmp_path / "rows.tsv").write_text(
        "sequence\tlabel\tpart\n"
        + "".join(
            f"ACGT\t{i}.5\t{part}\n" for i, part in enumerate(("train", "train", "valid", "test"))
        )
    )
    cfg = dataclasses.replace(
        cfg, backbone=backbone(str(made("llama").folder)), adapter=adapter("flatten_linear")
    )
    task, _ = tiny.prepared(cfg)
    length = task.facts["tokens"]
    assert task.head.linear.in_features == length * task.backbone.width
