"""sequence_regression with predictions in small blocks, and with what $FAULT asks for.

`pause S`: each batch of a prediction or evaluation takes S seconds; `nan R N`: in the process of
rank R, the N-th batch of the training has outputs that are not finite.
"""

import os
import time

import sequence_regression

Config = sequence_regression.Config


class Faulty(sequence_regression.SequenceRegression):
    block_tokens = 40  # about four of tiny.table's rows
    seen = 0

    def forward(self, batch):
        kind, *values = os.environ.get("FAULT", "none").split()
        predictions = super().forward(batch)
        if kind == "pause" and not self.training:
            time.sleep(float(values[0]))
        if kind == "nan" and self.training and os.environ.get("RANK", "0") == values[0]:
            Faulty.seen += 1
            if self.seen == int(values[1]):
                print("spoilt rows:", *batch["row"].tolist(), flush=True)
                return predictions * float("nan")
        return predictions
