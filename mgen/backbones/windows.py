"""Sequences longer than a model's context: overlapping windows and their stitched states.

The rule: a sequence of n letters that does not fit is read in windows of w letters, w being what
the limit leaves beside the special tokens, each framed by the special tokens like a sequence of its
own. Windows start every w // 2 letters; the last one ends with the sequence. Each letter takes its
state from the window in which it lies farthest from a cut, the earlier one if two are equal; ends
of the sequence are no cuts. The start token's state is that of the first window, the end token's
that of the last. A sequence that fits is one window: nothing changes.

Shapes: B sequences, L tokens of the longest, W windows of all sequences, M tokens of a window.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

AT_ONCE = 2**14  # tokens of windows in one forward pass


@dataclass(frozen=True)
class Windows:
    """Where each token's state comes from.

    `batch`: input_ids, attention_mask, special_tokens_mask of the windows (W, M); `window` and
    `place` (B, L): the window and the position in it whose state a token takes; padding takes 0, 0.
    """

    batch: dict[str, Tensor]
    window: Tensor
    place: Tensor


def spans(letters: int, width: int) -> list[tuple[int, int, int, int]]:
    """Windows over `letters` of at most `width`: (start, stop, first, last), 0-based half-open.

    Letters `first` to `last` take their states from the window over `start` to `stop`.
    """
    last = letters - width
    if last <= 0:
        return [(0, letters, 0, letters)]
    step = max(1, width // 2)
    starts = [*range(0, last, step), last]
    # Two neighbours overlap from the later one's start to the earlier one's end: half each.
    cuts = [(b + a + width + 1) // 2 for a, b in zip(starts, starts[1:], strict=False)]
    kept = zip([0, *cuts], [*cuts, letters], strict=True)
    return [(a, a + width, first, stop) for a, (first, stop) in zip(starts, kept, strict=True)]


def cut(batch: dict[str, Tensor], limit: int, pad: int) -> Windows:
    """The windows of a batch of tokenised sequences, at most `limit` tokens each."""
    mask, special = batch["attention_mask"].bool().cpu(), batch["special_tokens_mask"].cpu()
    window, place = (torch.zeros(mask.shape, dtype=torch.long) for _ in range(2))
    picked = []  # positions in the row of each window's tokens
    rows = []
    for row, (real, is_special) in enumerate(zip(mask, special, strict=True)):
        length = int(real.sum())
        letters = (is_special[:length] == 0).nonzero()[:, 0]
        head = int(letters[0]) if len(letters) else length
        count = len(letters)
        assert count == 0 or int(letters[-1]) == head + count - 1, "added tokens stand at the ends"
        tail = length - head - count
        for start, stop, first, last in spans(count, limit - head - tail):
            ends = torch.arange(length - tail, length)
            picked.append(
                torch.cat([torch.arange(head), torch.arange(head + start, head + stop), ends])
            )
            here = torch.arange(head + first, head + last)
            window[row, here], place[row, here] = len(rows), here - start
            if start == 0:
                window[row, :head], place[row, :head] = len(rows), torch.arange(head)
            if stop == count:
                window[row, ends], place[row, ends] = len(rows), ends - start
            rows.append(row)
    index = torch.nn.utils.rnn.pad_sequence(picked, batch_first=True, padding_value=-1)
    padding, device = (index < 0), batch["input_ids"].device
    numbers = torch.tensor(rows)[:, None]
    filler = {"input_ids": pad, "attention_mask": 0, "special_tokens_mask": 1}
    cut_batch = {
        name: batch[name].cpu()[numbers, index.clamp(min=0)].masked_fill(padding, value).to(device)
        for name, value in filler.items()
    }
    return Windows(cut_batch, window.to(device), place.to(device))


def joined(parts: Sequence[dict[str, Tensor]], length: int = 0) -> dict[str, Tensor]:
    """Outputs of different length as one: tensors (B_i, L_i, ...) padded on the right and stacked.

    Padding is 0, and 1 in `special_tokens_mask`, as tokenizers mark it. To `length` positions if
    that is more than the longest has.
    """
    longest = max([length, *(next(iter(part.values())).shape[1] for part in parts)])
    outputs = {}
    for name in parts[0]:
        filler = int(name == "special_tokens_mask")
        outputs[name] = torch.cat(
            [
                F.pad(t, (0, 0) * (t.ndim - 2) + (0, longest - t.shape[1]), value=filler)
                for t in (part[name] for part in parts)
            ]
        )
    return outputs


def stitched(
    states: Callable[[dict[str, Tensor]], list[Tensor]],
    batch: dict[str, Tensor],
    limit: int,
    pad: int,
) -> list[Tensor]:
    """`states` (a batch to tensors (B, L, D)) of sequences of any length, by the rule above."""
    windows = cut(batch, limit, pad)
    size = max(1, AT_ONCE // windows.batch["input_ids"].shape[1])
    total = len(windows.batch["input_ids"])
    parts = [
        states({name: tensor[i : i + size] for name, tensor in windows.batch.items()})
        for i in range(0, total, size)
    ]
    return [torch.cat(every)[windows.window, windows.place] for every in zip(*parts, strict=True)]
