"""Language-model head under conditions. B batch, L tokens, D width, V vocabulary, C conditions."""

from collections.abc import Callable

from torch import Tensor, nn

from mgen.adapters import ADAPTERS
from mgen.adapters.transformer import Encoder
from mgen.config import InputError


@ADAPTERS.register("conditional_lm", "per token", "reads conditions")
class ConditionalLM(nn.Module):
    """Logits of tokens (B, L, V) given numbers that the whole row has, such as an expression level.

    The conditions, as a vector, are added to every token; what transformer layers make of that is
    added again and decoded. Equals the published ConditionalLMAdapter, except that tokens attend
    within their own sequence, not to padding, and that `hidden` is left as it is. With
    `--adapter.pretrained` the decoder is that of the checkpoint, which the backbone lends.

    Args:
        conditions: numbers per row; 0: those of the task
        heads: attention heads, a divisor of the width
        hidden_size: units of the inner layer of each block
        layers: transformer blocks
        dropout: probability of dropping a value within a block
    """

    def __init__(
        self,
        width: int,
        outputs: int,
        *,
        conditions: int = 0,
        heads: int = 8,
        hidden_size: int = 2048,
        layers: int = 2,
        dropout: float = 0.1,
    ) -> None:
        if conditions < 1:
            raise InputError("--adapter conditional_lm: this task has no conditions for it")
        super().__init__()
        self.outputs = outputs
        self.label_encoder = nn.Linear(conditions, width)
        self.transformer = Encoder(
            width, heads=heads, hidden_size=hidden_size, layers=layers, dropout=dropout
        )
        self.lm_decoder = nn.Linear(width, outputs)

    def borrow(self, decode: Callable[[Tensor], Tensor]) -> None:
        """Decode with the backbone's head, (B, L, D) -> (B, L, V), in place of a new one."""
        del self.lm_decoder
        self.lm_decoder = decode

    def forward(self, hidden: Tensor, mask: Tensor | None, conditions: Tensor) -> Tensor:
        hidden = hidden.to(self.label_encoder.weight.dtype)
        given = hidden + self.label_encoder(conditions.to(hidden.dtype)).unsqueeze(1)
        logits = self.lm_decoder(self.transformer(given, mask) + given)
        if logits.shape[-1] != self.outputs:
            raise InputError(
                f"the checkpoint's decoder gives {logits.shape[-1]} outputs per token, this task "
                f"needs {self.outputs}. Drop --adapter.pretrained"
            )
        return logits
