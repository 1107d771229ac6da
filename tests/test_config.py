"""Configs: what flags and files may say, and that a saved file gives the same config back."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import pytest
import yaml

from mgen.adapters import Adapter, adapter
from mgen.backbones import Backbone, backbone
from mgen.config import InputError, from_yaml, parse, to_yaml
from mgen.data import Table, table


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Settings within settings."""

    rate: float = 1e-4
    steps: int = 10
    pair: tuple[float, float] = (0.9, 0.999)
    is_on: bool = False
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings."""

    backbone: Backbone = backbone("aido_dna_debug")
    adapter: Adapter = adapter("mean_pool_mlp")
    data: Table = table("promoters_tiny")
    inner: Inner = Inner()
    some_name: str = "text"
    names: tuple[str, ...] = ("x",)
    numbers: tuple[float, ...] = (0.1,)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Not saved."""

    config: tuple[str, ...] = ()
    out: str = "runs"


def parsed(*flags: str) -> Config:
    return parse(Config(), Launch(), flags, "prog")[0]


def left(capsys, *flags: str) -> tuple[int, str]:
    """Exit code and message of flags that are refused."""
    with pytest.raises(SystemExit) as raised:
        parse(Config(), Launch(), flags, "prog")
    out, err = capsys.readouterr()
    return raised.value.code, " ".join((out + err).replace("│", " ").split())


def written(folder, text: str, name: str = "c.yaml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


# --------------------------------------------------------------------------- there and back

FLAGS = {
    "defaults": (),
    "numbers": ("--inner.rate", "1e-4", "--inner.steps", "-3", "--inner.pair", "0.5", "1e-9"),
    "tiny and large numbers": ("--inner.rate", "1e-300", "--numbers", "1e22", "-0.1", "3"),
    "bools": ("--inner.is-on", "--backbone.as-written"),
    "bools of options": ("--adapter", "mean_pool_linear", "--adapter.no-bias"),
    "empty strings": ("--some-name", "", "--data.truth-col", ""),
    "empty lists": ("--names", "--numbers", "--data.y-cols"),
    "lists": ("--names", "a b", "c,d", "", "--data.y-cols", "one", "two"),
    "strings that look like something else": ("--some-name", "true", "--names", "1", "null", "~"),
    "strings YAML must quote": ("--some-name", "a: b # [c] 'd'", "--names", "\ttab", "ünï"),
    "a string that starts with a dash": ("--some-name=-x",),
    "choices with options": ("--adapter", "conv", "--backbone", "esm2_8m", "--backbone.dropout=.5"),
    "literals": ("--inner.kind", "b", "--backbone.truncate", "left"),
    "another data set": ("--data", "peptides_tiny", "--data.test-fraction", "0.5"),
}


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_a_saved_config_gives_the_same_config_back(flags, tmp_path):
    config = parsed(*flags)
    assert from_yaml(Config(), written(tmp_path, to_yaml(config))) == config


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_a_saved_config_read_and_saved_again_is_the_same_file(flags, tmp_path):
    text = to_yaml(parsed(*flags))
    assert to_yaml(parsed("--config", written(tmp_path, text))) == text


def test_a_saved_config_names_its_format_and_nothing_of_the_launch():
    tree = yaml.safe_load(to_yaml(parsed("--out", "elsewhere")))
    assert tree["format"] == 1
    assert list(tree) == ["format", *(f.name for f in dataclasses.fields(Config))]


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("inner:\n  rate: 1e-4\n  steps: 7", ("--inner.rate", "1e-4", "--inner.steps", "7")),
        ("adapter: mean_pool_linear", ("--adapter", "mean_pool_linear")),
        ("adapter:\n  name: conv\n  channels: 8", ("--adapter", "conv", "--adapter.channels", "8")),
        ("inner: {is_on: true}", ("--inner.is-on",)),
        ("inner: {is_on: false}", ("--inner.no-is-on",)),
        ("some_name: ''\nnames: []", ("--some-name", "", "--names")),
        ("names: [a, b]\nsome_name: c", ("--names", "a", "b", "--some-name", "c")),
        ("numbers: [1, -2.5, 1e-4]", ("--numbers", "1", "-2.5", "1e-4")),
        ("some-name: c", ("--some_name", "c")),
        ("", ()),
        ("format: 1", ()),
    ],
)
def test_a_file_says_what_flags_say(text, flags, tmp_path):
    assert parsed("--config", written(tmp_path, text)) == parsed(*flags)


def test_a_number_is_a_number_although_yaml_reads_text(tmp_path):
    text = "inner: {rate: 2e-4}"
    assert yaml.safe_load(text)["inner"]["rate"] == "2e-4"
    assert from_yaml(Config(), written(tmp_path, text)).inner.rate == 0.0002


# --------------------------------------------------------------------------- choices


@pytest.mark.parametrize("flip", [False, True])
def test_naming_a_choice_keeps_what_all_names_share_whatever_the_order(flip):
    pairs = [("--backbone", "esm2_8m"), ("--backbone.max-length", "99")]
    config = parsed(*(word for pair in (pairs[::-1] if flip else pairs) for word in pair))
    assert (config.backbone.name, config.backbone.max_length) == ("esm2_8m", 99)


def test_naming_a_choice_in_a_later_file_keeps_what_all_names_share(tmp_path):
    first = written(tmp_path, "backbone: {name: aido_dna_debug, max_length: 99}", "1.yaml")
    second = written(tmp_path, "backbone: esm2_8m", "2.yaml")
    config = parsed("--config", first, "--config", second)
    assert (config.backbone.name, config.backbone.max_length) == ("esm2_8m", 99)


def test_naming_a_choice_resets_its_own_options(tmp_path):
    first = written(tmp_path, "adapter: {name: mean_pool_mlp, hidden_sizes: [7]}", "1.yaml")
    assert parsed("--config", first).adapter.hidden_sizes == (7,)
    again = parsed("--config", first, "--adapter", "mean_pool_mlp")
    assert again.adapter == adapter("mean_pool_mlp")


@pytest.mark.parametrize("flip", [False, True])
def test_an_option_of_the_named_choice_holds_whatever_the_order(flip):
    pairs = [("--adapter", "conv"), ("--adapter.channels", "8")]
    config = parsed(*(word for pair in (pairs[::-1] if flip else pairs) for word in pair))
    assert config.adapter == adapter("conv", channels=8)


def test_an_option_of_another_choice_is_refused(capsys):
    code, text = left(capsys, "--adapter", "mean_pool_linear", "--adapter.hidden-sizes", "7")
    assert code == 2
    assert "--adapter.hidden-sizes" in text


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="no adapter 'mean_pol_mlp'. Did you mean 'mean_pool_mlp'"):
        parsed("--adapter", "mean_pol_mlp")


def test_an_unknown_backbone_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="no backbone 'esm2_8'. Did you mean 'esm2_8m'"):
        parsed("--backbone=esm2_8")


# --------------------------------------------------------------------------- order and mistakes


def test_later_files_win_over_earlier_ones_and_flags_over_all(tmp_path):
    first = written(tmp_path, "inner: {steps: 1, rate: 1}\nsome_name: one", "1.yaml")
    second = written(tmp_path, "inner: {steps: 2}\nsome_name: two", "2.yaml")
    config = parsed("--some-name", "flag", "--config", first, "--config", second)
    assert (config.inner.rate, config.inner.steps, config.some_name) == (1.0, 2, "flag")


def test_files_named_with_an_equals_sign_keep_their_place(tmp_path):
    first = written(tmp_path, "some_name: one", "1.yaml")
    second = written(tmp_path, "some_name: two", "2.yaml")
    assert parsed(f"--config={first}", "--config", second).some_name == "two"


def test_a_misspelt_flag_is_refused_with_the_right_one(capsys):
    code, text = left(capsys, "--inner.stepz", "3")
    assert code == 2
    assert "--inner.steps" in text


def test_a_misspelt_setting_of_a_file_names_the_file_and_the_right_one(tmp_path, capsys):
    code, text = left(capsys, "--config", written(tmp_path, "inner: {stepz: 3}"))
    assert code == 2
    assert "c.yaml" in text
    assert "--inner.steps" in text


@pytest.mark.parametrize("flags", [("--inner.steps", "many"), ("--inner.kind", "c")])
def test_a_wrong_value_is_refused_with_the_flag(flags, capsys):
    code, text = left(capsys, *flags)
    assert code == 2
    assert flags[0] in text


def test_a_wrong_value_in_a_file_names_the_file_and_the_setting(tmp_path, capsys):
    code, text = left(capsys, "--config", written(tmp_path, "inner: {steps: many}"))
    assert code == 2
    assert "c.yaml" in text
    assert "--inner.steps" in text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("inner: [", "cannot be read as YAML"),
        ("- a\n- b", "expected 'name: value' lines"),
        ("just text", "expected 'name: value' lines"),
        ("format: 2", "format 2, this version reads format 1"),
        ("format: 1.0", "format 1.0"),
    ],
)
def test_an_ill_formed_file_is_refused_by_name(text, says, tmp_path):
    file = written(tmp_path, text)
    with pytest.raises(InputError, match=says) as raised:
        parsed("--config", file)
    assert file in str(raised.value)


def test_a_setting_given_twice_in_a_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="some_name"):
        parsed("--config", written(tmp_path, "some_name: one\nsome_name: two"))


@pytest.mark.parametrize("text", ["some_name: {a: 1}", "some_name: [a, b]", "inner: 3"])
def test_a_setting_of_the_wrong_shape_is_refused(text, tmp_path, capsys):
    code, message = left(capsys, "--config", written(tmp_path, text))
    assert code == 2
    assert "c.yaml" in message


def test_a_missing_file_is_refused_by_name():
    with pytest.raises(InputError, match="--config nowhere.yaml: no such file"):
        parsed("--config", "nowhere.yaml")


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read as YAML"):
        parsed("--config", str(tmp_path / "c.yaml"))


def test_a_list_item_that_starts_with_a_dash_is_refused(tmp_path, capsys):
    code, text = left(capsys, "--config", written(tmp_path, "names: ['-x']"))
    assert code == 2
    assert "c.yaml" in text


def test_a_list_given_twice_is_refused_not_replaced():
    with pytest.raises(InputError, match="--names: given more than once; name all values after"):
        parsed("--names", "a", "--names", "b")
    assert parsed("--names", "a", "b").names == ("a", "b")
