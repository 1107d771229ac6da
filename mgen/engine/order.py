"""Which training rows a run takes when: by the seed, the epoch and the place in it alone."""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from mgen.data.batches import Batch, batch_seed, loader, num_batches, plan
from mgen.data.sampling import draw
from mgen.engine.memory import on_device, parts_of

Step = tuple[int, int, list[Batch], list[dict]]  # epoch and place after it, batches, what they hold


class Order:
    """The training batches of a task in this process, epoch by epoch, as `train` (`Train`) says.

    `lengths` are the tokens of each row of the table.
    """

    def __init__(self, task, rows, lengths: np.ndarray, train, accelerator) -> None:
        self.task, self.rows, self.lengths, self.train = task, rows, lengths, train
        self.device = accelerator.device
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.per_step = train.accumulate * self.world

    def plan(self, epoch: int) -> list[np.ndarray]:
        """The rows of each batch of all processes."""
        train, seed = self.train, (self.train.seed, epoch)
        rows = draw(self.rows.splits["train"], self.task.weights, (*seed, 1))
        rows = np.sort(rows) if train.shuffle_block else rows
        sizes = train.batch_size, train.batch_tokens
        cut = plan(self.lengths[rows], *sizes, seed, train.shuffle_block)
        return [rows[positions] for positions in cut]

    def steps_of(self, epochs: int) -> int:
        """Steps of the first epochs, counted out where sizes of batches depend on the shuffle."""
        train, lengths = self.train, self.lengths[self.rows.splits["train"]]
        if alike := num_batches(lengths, train.batch_size, train.batch_tokens):
            return epochs * -(-alike // self.per_step)
        return sum(-(-len(self.plan(epoch)) // self.per_step) for epoch in range(epochs))

    def groups(self, state, steps: int) -> Iterator[tuple[int, int, list[Batch]]]:
        """(epoch, batches of it used after this step, this process's batches) of the next steps.

        `state` (`State`) says from where on, and in how many parts batches are computed.
        """
        place, parts = state.index, state.parts
        for epoch in itertools.count(state.epoch):
            cut = self.plan(epoch)
            for start in range(place, len(cut), self.per_step):
                if steps == 0:
                    return
                steps -= 1
                group = [
                    Batch(tuple(map(int, rows)), batch_seed(self.train.seed, epoch, start + i))
                    for i, rows in enumerate(cut[start : start + self.per_step])
                ]
                # Every process takes as many batches: the missing ones count nothing.
                filler = Batch(group[0].rows, group[0].seed, counts=False)
                group += [filler] * (-len(group) % self.world)
                own = group[self.rank :: self.world]
                after = min(start + self.per_step, len(cut))
                last = after == len(cut)
                in_parts = [part for batch in own for part in parts_of(batch, parts)]
                yield epoch + last, 0 if last else after, in_parts
            place = 0

    def stream(self, state, steps: int) -> Iterator[Step]:
        """`groups` with the batches made."""
        random_state = torch.get_rng_state()
        made = self.load(batch for _, _, group in self.groups(state, steps) for batch in group)
        torch.set_rng_state(random_state)
        for epoch, index, group in self.groups(state, steps):
            yield epoch, index, group, [next(made) for _ in group]

    def once(self) -> Iterator[dict]:
        """The training rows once, in the batches of the first epoch."""
        return self.load(Batch(tuple(map(int, rows)), self.train.seed) for rows in self.plan(0))

    def load(self, batches: Iterable[Batch]) -> Iterator[dict]:
        """Batches made of training views of their rows, on the device."""
        collate, workers = self.task.collator(training=True), self.train.num_workers
        made = loader(self.rows, batches, collate, workers, pin_memory=self.device.type == "cuda")
        # Made in this process, a batch borrows its random state: not while a step uses it.
        return on_device(made, self.device, ahead=workers > 0)
