"""The mean and the scale of each layer's activations, by which they are standardised: measured once, then kept."""

from typing import NamedTuple

import torch
from torch import Tensor

from plumbing import files
from plumbing.errors import UserError
from plumbing.processes import first_process_says, of_all, team
from training.plan import own_share
from training.trainer import RECIPES, Moments, Standardizer
from training.work import Work

STATISTICS_BATCHES = 8  # whose tokens give each layer's mean and scale


class Scales(NamedTuple):
    """What the first batches tell: the same bits in every process, and in a command that is resumed."""

    standard: dict[int, Standardizer]  # by layer
    batch_tokens: float  # the mean over batches, of all processes together

    def state(self) -> dict[str, Tensor]:
        """All numbers, as named tensors."""
        found = {"scales.batch_tokens": torch.tensor(self.batch_tokens, dtype=torch.float64)}
        for layer, one in self.standard.items():
            found[f"scales.{layer}.mean"] = one.mean
            found[f"scales.{layer}.scale"] = torch.tensor(one.scale, dtype=torch.float64)
            if one.center is not None:
                found[f"scales.{layer}.center"] = one.center
        return {name: tensor.contiguous() for name, tensor in found.items()}


def saved_scales(work: Work) -> Scales | None:
    """The scales of the checkpoint; None where there is none."""
    found = files.read_state(work.state().training_file, "scales.")
    if found is None:
        return None
    tensors, device = found[1], work.stream.encoder.device
    standard = {}
    for layer in work.stream.layers:
        center = tensors.get(f"scales.{layer}.center")
        standard[layer] = Standardizer(
            tensors[f"scales.{layer}.mean"].to(device),
            float(tensors[f"scales.{layer}.scale"]),
            None if center is None else center.to(device),
        )
    return Scales(standard, float(tensors["scales.batch_tokens"]))


def measure_scales(work: Work, plan: list[list[int]]) -> Scales:
    """Each layer's standardiser from the first batches, of which each process encodes its share."""
    moments, first = {layer: Moments() for layer in work.stream.layers}, plan[:STATISTICS_BATCHES]
    for batch in work.stream.batches(own_share(first)):
        chosen = batch.real_tokens()
        for layer, found in moments.items():
            found.add(batch.flat(layer, chosen))
    moments = {layer: merged(found) for layer, found in moments.items()}
    for layer, found in moments.items():
        if not found.spread.isfinite():
            raise UserError(
                f"layer {layer} gives NaN or infinite activations within batches 1 to {len(first)}: "
                "leave it out with --layers, or look at the encoder and its data"
            )
    recipe = RECIPES[work.jobs[0].settings.recipe]
    standard = {layer: found.standardizer(recipe) for layer, found in moments.items()}
    return Scales(standard, found.count / len(first))


def merged(own: Moments) -> Moments:
    """The moments of all processes' tokens, as the first process merges them: the same bits in every process."""
    if team().world == 1:
        return own
    everyone, total = of_all([own.count, float(own.spread), *own.mean.tolist()]), Moments()

    def merge() -> list[float]:
        for count, spread, *mean in everyone.tolist():
            total.merge(int(count), own.mean.new_tensor(mean), own.mean.new_tensor(spread))
        return [total.count, float(total.spread), *total.mean.tolist()]

    count, spread, *mean = first_process_says(merge, everyone.shape[1])
    total = Moments()
    total.merge(int(count), own.mean.new_tensor(mean), own.mean.new_tensor(spread))
    return total
