"""The checkpoint of a training, from which a killed command goes on.

The first process writes its trainers and the standardisers. Where each process trains its own SAEs, the others write
theirs before it, into files that name the step: only with the first one's file, which is written last, are they valid.
"""

import sys

from torch import Tensor

from plumbing import files
from plumbing.errors import UserError
from plumbing.processes import team, wait_for_all
from training.scales import Scales
from training.trainer import LayerTrainer
from training.work import Work

Trainers = dict[tuple[int, int], LayerTrainer]  # those of this process, by job number and layer


class Checkpoint:
    """Writes and restores the trainers of a command. `apart`: each process has trainers of its own."""

    def __init__(self, work: Work, scales: Scales, trainers: Trainers, apart: bool):
        self.work, self.scales, self.trainers, self.apart = work, scales, trainers, apart
        self.last = 0  # the steps of the last one

    def write(self, done: int):
        """Write the state after `done` steps. Where the processes' trainers differ, all of them have to call this."""
        rank = team().rank
        if self.apart:
            if rank > 0:
                self.remove_older()
                self.write_file(done, {})
            wait_for_all()
        if rank == 0:
            self.write_file(done, self.scales.state())
        self.last = done

    def write_file(self, done: int, tensors: dict[str, Tensor]):
        """Write this process's file."""
        for (job, layer), trainer in self.trainers.items():
            tensors |= {f"{job}.{layer}.{name}": tensor for name, tensor in trainer.state().items()}
        state = self.work.state()
        files.write_state(state.own_training_file(team().rank, done), self.work.header(done), tensors)

    def remove_older(self):
        """Remove this process's files but the last; of that step the first process has written its own by now."""
        state = self.work.state()
        last = state.own_training_file(team().rank, self.last)
        for file in state.all_training_files(team().rank):
            if file != last:
                file.unlink(missing_ok=True)

    def restore(self) -> int:
        """Restore the trainers from a killed command's checkpoint; returns the number of its steps."""
        state, rank = self.work.state(), team().rank
        header = files.read_header(state.training_file)
        if header is None:
            return 0
        self.last = header["done"]
        file = state.own_training_file(rank if self.apart else 0, self.last)
        for (job, layer), trainer in self.trainers.items():
            prefix = f"{job}.{layer}."
            found = files.read_state(file, prefix)
            if found is None:
                raise UserError(
                    f"{file} is missing, so nothing can be resumed: add --overwrite to start afresh"
                )
            own = {name.removeprefix(prefix): tensor for name, tensor in found[1].items()}
            trainer.restore(own, self.last)
        if rank == 0:
            print(f"going on after {self.last} steps", file=sys.stderr)
        return self.last
