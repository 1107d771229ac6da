"""Tables of sequences and labels, their splits and the checks of them."""

from mgen.data.table import Rows, Table
from mgen.data.zoo import table

__all__ = ["Rows", "Table", "table"]
