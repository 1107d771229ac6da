"""Names and types of a table's columns, and how messages speak of its rows."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from mgen.config import InputError


def place(path: Path, row: int) -> str:
    return f"{path}, row {row} (header not counted)"


def short(text: str, length: int = 60) -> str:
    return repr(text if len(text) <= length else text[: length - 3] + "...")


def reject_duplicates(path: Path, names: Iterable[str]) -> None:
    """Raise InputError if two columns have one name."""
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise InputError(f"{path}: more than one column is named {name!r}. Rename one.")


def unified(path: Path, start: int, schema: pa.Schema, records: list[dict]) -> pa.Schema:
    """The types that hold the values so far, of `schema`, and those of rows `start` and following.

    Numbers with and without decimal points unite; raises InputError naming the row that does not.
    """
    names = dict.fromkeys(name for record in records for name in record)
    for name in names:
        values = [record.get(name) for record in records]
        try:
            schema = _with_values(schema, name, values)
        except UNFIT as error:
            row = start + _first_unfit(schema, name, values)
            raise InputError(
                f"{path}, row {row}, column '{name}': values of different types, or of none "
                f"that fits ({error}). Write all as text or all as numbers."
            ) from None
    return schema


UNFIT = (ValueError, TypeError, OverflowError)  # those of Arrow are among them


def _with_values(schema: pa.Schema, name: str, values: list) -> pa.Schema:
    field = pa.schema([(name, pa.array(values).type)])
    return pa.unify_schemas([schema, field], promote_options="permissive")


def _first_unfit(schema: pa.Schema, name: str, values: list) -> int:
    for i, value in enumerate(values):
        try:
            schema = _with_values(schema, name, [value])
        except UNFIT:
            return i
    return 0  # each fits those before, yet not all at once: the first of the block


def plain_types(schema: pa.Schema) -> pa.Schema:
    """Views and dictionaries as what they hold: few kernels know them."""
    return pa.schema([field.with_type(_plain(field.type)) for field in schema])


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    return {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}.get(kind, kind)
