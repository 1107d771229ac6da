"""sequence_regression, where the second process has memory for two rows at once.

It has none left in the forward pass, or in a run named "backward" in the backward pass of a batch
as it was planned.
"""

import os
import sys

import sequence_regression
import torch

Config = sequence_regression.Config
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class ShortOfMemory(sequence_regression.SequenceRegression):
    def forward(self, batch):
        is_full = os.environ.get("RANK") == "1" and self.training and len(batch["row"]) > 2
        if is_full and "backward" not in sys.argv:
            raise FULL
        outputs = super().forward(batch)
        if is_full and "backward" in sys.argv:
            outputs.register_hook(self.fail)
        return outputs

    @staticmethod
    def fail(gradient):
        raise FULL
