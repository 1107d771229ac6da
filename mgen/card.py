"""The model card of an exported run: what it is, where it came from, how good, how to load it."""

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mgen.backbones.zoo import Entry
from mgen.report import number

# Licences of the zoo (what stands before the colon) that the hub has identifiers for.
HUB_LICENCES = {
    "mgen": "apache-2.0",
    "MIT": "mit",
    "Apache 2.0": "apache-2.0",
    "BSD 3": "bsd-3-clause",
    "AFL 3.0": "afl-3.0",
    "CC BY-NC-SA": "cc-by-nc-sa-4.0",
}
LETTERS = {"dna": "ACGT", "rna": "ACGU", "protein": "MKTAYIAKQR"}


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a card says. `settings`, `session`, `results`, `facts` are those of the run's files."""

    name: str  # folder or hub id that it is loaded by
    what: str  # first line of the recipe's docstring
    settings: dict[str, Any]
    session: dict[str, Any]
    results: dict[str, Any]
    facts: dict[str, Any]
    step: int | None
    bundle: bool
    base: str  # zoo name, hub id or folder of the backbone
    entry: Entry | None
    modality: str
    context: int
    finetuned: bool  # weights of the backbone itself changed, LoRA aside
    special: int  # special tokens of a sequence
    auto: str  # class of transformers that loads the backbone, if any
    calibration: str = ""  # what its validation rows have shown, in a line

    @property
    def recipe(self) -> str:
        return self.session.get("recipe", "")

    @property
    def hub(self) -> str:
        """Hub id of the base, if it has one."""
        if self.entry:
            return self.entry.hub
        return self.base if _is_id(self.base) else ""

    @property
    def licence(self) -> str:
        return self.entry.licence if self.entry else ""

    def text(self) -> str:
        """README.md."""
        front = yaml.safe_dump(self.front(), sort_keys=False, allow_unicode=True)
        parts = [
            f"---\n{front}---\n\n# {prose(Path(self.name).name)}\n\n{prose(self.what)}",
            self._model(),
            "## Data\n\n" + _table(self._data()),
            self._metrics(),
            self._loading(),
            "## Settings\n\nThose of the run:\n\n" + _block("yaml", _dump(self.settings)),
            "## Limits\n\n" + "\n".join(f"- {line}" for line in self._limits()),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"

    def front(self) -> dict[str, Any]:
        """The head of the card that the hub reads."""
        tuned, (short, _, terms) = self.settings["backbone"], self.licence.partition(":")
        front: dict[str, Any] = {"license": HUB_LICENCES.get(short, "other")}
        if not short or not (self.hub or short == "mgen"):
            front["license"] = "unknown"
        elif front["license"] == "other":
            name = re.sub(r"[^a-z0-9]+", "-", (terms.partition(",")[0] or short).lower()).strip("-")
            front |= {"license_name": name, "license_link": f"https://huggingface.co/{self.hub}"}
        if self.hub:
            relation = "adapter" if self.bundle and tuned["lora_rank"] else "finetune"
            front |= {"base_model": self.hub, "base_model_relation": relation}
        front["library_name"] = "transformers" if self.auto and not self.bundle else "mgen"
        lora = ["lora"] if tuned["lora_rank"] else []
        tags = ["mgen", self.modality, "biology", self.recipe.replace("_", "-"), *lora]
        front["tags"] = [tag for tag in tags if tag]
        if _is_id(self.settings["data"]["path"]):
            front["datasets"] = [self.settings["data"]["path"]]
        return front

    def _model(self) -> str:
        tuned, adapter = self.settings["backbone"], self.settings.get("adapter", {})
        if tuned["lora_rank"]:
            layers = ", ".join(tuned["lora_targets"]) or "the family's default layers"
            how = f"LoRA of rank {tuned['lora_rank']} on {layers}"
            how += "" if self.bundle else ", merged into the weights"
        else:
            how = "weights finetuned" if self.finetuned else "kept as it was"
        address = f"[{prose(self.hub)}](https://huggingface.co/{self.hub})" if self.hub else ""
        revision = f", revision {code(tuned['revision'])}" if tuned.get("revision") else ""
        local = Path(self.base).name
        rows = {
            "recipe": code(self.recipe),
            "made with": prose(self._version()),
            "backbone": (address or code(self.entry.name if self.entry else local)) + revision,
            "backbone's licence": prose(self.licence) or "not known here: see the backbone's card",
            "cite": prose(self.entry.citation) if self.entry else "",
            "started from": code(Path(tuned["name"]).name) if self._is_of_run() else "",
            "tuning": prose(how),
            "head": code(adapter["name"]) if "name" in adapter else "",
            "checkpoint": f"step {self.step}" if self.step is not None else "",
        }
        holds = (
            "This folder holds what training changed, not the backbone's weights: they are read "
            "from where they were published, and other ones are refused."
            if self.bundle
            else "This folder holds the whole model: backbone, head and settings."
        )
        return f"{holds}\n\n## Model\n\n" + _table(rows)

    def _version(self) -> str:
        commit = self.session.get("commit", "")
        version = self.session.get("versions", {}).get("mgen", "")
        return f"mgen {version}" + (f", commit {commit[:12]}" if commit else "") if version else ""

    def _is_of_run(self) -> bool:
        """Whether the backbone had been trained by another run before."""
        return self.settings["backbone"]["name"] != self.base

    def _data(self) -> dict[str, str]:
        data, splits = self.settings["data"], self.session.get("splits", {})
        paths = [data[key] for key in ("path", "valid_path", "test_path") if data[key]]
        counts = [
            f"{splits[name]:,} {name}" for name in ("train", "valid", "test") if name in splits
        ]
        return {
            "table": ", ".join(code(p if _is_id(p) else Path(p).name) for p in paths),
            "columns": f"{code(data['x_col'])} to {', '.join(map(code, data['y_cols']))}",
            "rows": ", ".join(counts),
            "split": prose(self.session.get("plan", "").partition("; rows:")[0]),
            "SHA-256 of rows and splits": code(self.session.get("rows", "")),
        }

    def _metrics(self) -> str:
        test = self.results.get("test")
        if not test:
            return "## Test metrics\n\nNot tested: the run had no test rows, or is not finished."
        others = {name: values for name, values in test.items() if isinstance(values, dict)}
        columns = {"this model": test, **others}
        lines = ["| metric | " + " | ".join(map(prose, columns)) + " |"]
        lines.append("|---|" + "---:|" * len(columns))
        for metric in [name for name in test if name not in others]:
            values = [number(column.get(metric)) for column in columns.values()]
            lines.append(f"| {prose(metric)} | " + " | ".join(values) + " |")
        return "## Test metrics\n\n" + "\n".join(lines)

    def _loading(self) -> str:
        python = (
            f"import mgen\n\nrun = mgen.load_run({_quoted(self.name)})\nrun.predict({self._rows()})"
        )
        file = f"python recipes/{self.recipe}.py"
        name = shlex.quote(self.name)
        shell = f"{file} predict --run {name} --data.path new.tsv"
        if not self.bundle:
            shell += f"\n{file} fit --run {name} --backbone.no-frozen --data.path more.tsv"
        parts = [
            "## Use\n\nFrom the repository of mgen:\n\n" + _block("python", python),
            _block("bash", shell),
            self._transformers(),
        ]
        return "\n\n".join(part for part in parts if part)

    def _transformers(self) -> str:
        if not self.auto or (self.bundle and not self.settings["backbone"]["lora_rank"]):
            return ""
        if not self.bundle:
            lines = (
                f"from transformers import {self.auto}, AutoTokenizer\n\n"
                f"tokenizer = AutoTokenizer.from_pretrained({_quoted(self.name)})\n"
                f"backbone = {self.auto}.from_pretrained({_quoted(self.name)})"
            )
            return "The backbone alone, without the head:\n\n" + _block("python", lines)
        base = self.hub or Path(self.base).name
        lines = (
            f"from peft import PeftModel\nfrom transformers import {self.auto}\n\n"
            f"base = {self.auto}.from_pretrained({_quoted(base)})\n"
            f"backbone = PeftModel.from_pretrained(base, {_quoted(self.name)}, "
            'subfolder="checkpoints/best")'
        )
        return "The backbone alone, without the head, through peft:\n\n" + _block("python", lines)

    def _rows(self) -> str:
        """One row as long as the longest training sequence, which every head takes."""
        letters = max(self.facts.get("tokens", 12) - self.special, 1)
        pattern, data = LETTERS.get(self.modality, "A"), self.settings["data"]
        row = _quoted((pattern * letters)[:letters])
        if letters > 60:
            row = f"({_quoted(pattern)} * {letters // len(pattern) + 1})[:{letters}]"
        more = [data[key] for key in ("msa_col", "structure_col") if data.get(key)]
        if more:
            row = (
                "{"
                + f"{_quoted(data['x_col'])}: {row}"
                + "".join(f", {_quoted(c)}: ..." for c in more)
                + "}"
            )
        return f"[{row}]"

    def _limits(self) -> list[str]:
        tuned = self.settings["backbone"]
        longer = {"error": "longer ones are refused", "window": "longer ones are read in windows"}
        kept = longer.get(tuned["truncate"], "longer ones are cut")
        lines = [
            f"Reads {self.modality or 'one kind of'} sequences of at most "
            f"{tuned['max_length'] or self.context:,} tokens, special ones included; {kept}.",
            "The metrics hold for the test rows above, as they were split; sequences unlike the "
            "training rows may give anything.",
        ]
        if self.calibration:
            lines.append(f"`--calibrated` and `--interval` rest on {self.calibration}.")
        if self.licence or not self.entry:
            lines.append("The backbone's licence applies to what is derived from it.")
        if not self.bundle:
            lines.append("`fit` keeps the backbone frozen unless `--backbone.no-frozen` is given.")
        if not self.bundle and tuned["lora_rank"] and tuned["dtype"] != "float32":
            lines.append(f"LoRA was merged into {tuned['dtype']} weights, which rounds it.")
        if self.bundle and not self.hub and Path(self.base).name != self.base:
            lines.append(
                f"The backbone was the local folder {code(Path(self.base).name)}: where it is not "
                "found under the path in config.yaml, name yours (`load_run(..., backbone=)`, "
                "`--backbone`)."
            )
        return lines


def prose(text: Any) -> str:
    """Text from outside as one line of Markdown that means nothing but itself."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return re.sub(r"([\\`*_{}\[\]<>#|~&])", r"\\\1", line)


def code(text: Any) -> str:
    """Text from outside as a code span that fits into a table; "" of nothing."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return f"`{line.replace('`', chr(39)).replace('|', chr(92) + '|')}`" if line else ""


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _table(rows: dict[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items() if v)])


def _block(language: str, text: str) -> str:
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _dump(settings: dict) -> str:
    """Settings without the folders of the machine they come from."""
    local = {
        group: {
            key: Path(v).name if isinstance(v, str) and Path(v).is_absolute() else v
            for key, v in values.items()
        }
        if isinstance(values, dict)
        else values
        for group, values in settings.items()
    }
    return yaml.safe_dump(local, sort_keys=False, allow_unicode=True, width=100)


def _is_id(name: str) -> bool:
    """Whether a name is that of something on the hub and of nothing here."""
    from mgen.io.tables import is_table

    form = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name)
    return bool(form) and not Path(name).exists() and not is_table(name)
