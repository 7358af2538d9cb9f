"""How far DINOv2's interpolated positions at 224 pixels lie from those of its torch.hub code.

uv run benchmarks/dinov2_positions.py

A DINOv2 has a position table of 37 x 37 (518 pixels in patches of 14), and 224 pixels are 16 x 16 patches.
The hub code resizes the table by the factor (16 + 0.1) / 37, so that it reads it at other places, where
transformers resizes it to the size 16. With registers the two agree: both resize to that size, antialiased.
The tables are smooth ones, sums of waves no shorter than so many cells, and white noise, the worst possible.
"""

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from plumbing.commandline import Parser, positive, script

TABLE, PICTURE = 37, 16  # patches on a side
OFFSET = 0.1  # dinov2/models/vision_transformer.py, interpolate_pos_encoding: w0 + 0.1, h0 + 0.1


@script
def main(argv=None) -> dict[str, tuple[float, float]]:
    """Print the table; returns {table: (relative difference, mean cosine)}."""
    parser = Parser(__doc__, __file__)
    parser.add_argument("--width", type=positive, default=768, help="dimensions of a position")
    parser.add_argument("--seed", type=int, default=0, help="of the random tables")
    arguments = parser.parse_args(argv)
    import torch

    generator = torch.Generator().manual_seed(arguments.seed)
    tables = {
        f"smooth, waves of {cells} cells and more": smooth(cells, arguments.width, generator)
        for cells in (37, 18, 9)
    }
    tables["white noise"] = torch.randn(TABLE, TABLE, arguments.width, generator=generator)
    print(f"{'position table':<34} {'|ours - hub| / |hub|':>20} {'cosine':>8}")
    measured = {name: compare(ours(table), hubs(table)) for name, table in tables.items()}
    for name, (difference, cosine) in measured.items():
        print(f"{name:<34} {difference:>20.4f} {cosine:>8.4f}")
    print(f"places read: {places()[0]:.2f} cells apart at the first patch, {places()[1]:.2f} at the last")
    return measured


def smooth(cells: int, width: int, generator):
    """Random tables [row column width] of waves of at least `cells` cells."""
    import torch

    grid = torch.arange(TABLE) / TABLE
    table = torch.zeros(TABLE, TABLE, width)
    highest = TABLE // cells
    for down in range(-highest, highest + 1):
        for across in range(highest + 1):
            if down**2 + across**2 <= highest**2:
                phase = 2 * math.pi * torch.rand(width, generator=generator)
                wave = 2 * math.pi * (down * grid[:, None] + across * grid)
                table += torch.randn(width, generator=generator) * torch.cos(wave[..., None] + phase)
    return table


def ours(table):
    """As transformers' own code has it, [16 * 16, width]."""
    import torch
    from transformers import Dinov2Config
    from transformers.models.dinov2.modeling_dinov2 import Dinov2Embeddings

    width = table.shape[-1]
    embeddings = Dinov2Embeddings(Dinov2Config(hidden_size=width, image_size=14 * TABLE, patch_size=14))
    embeddings.position_embeddings.data = torch.cat(
        [torch.zeros(1, 1, width), table.reshape(1, -1, width)], 1
    )
    with torch.no_grad():
        picture = torch.zeros(1, PICTURE**2 + 1, width)
        return embeddings.interpolate_pos_encoding(picture, 14 * PICTURE, 14 * PICTURE)[0, 1:]


def hubs(table):
    """As the hub code has it, [16 * 16, width]."""
    import torch

    factor = (PICTURE + OFFSET) / TABLE
    resized = torch.nn.functional.interpolate(
        table.movedim(-1, 0)[None], scale_factor=(factor, factor), mode="bicubic"
    )
    return resized[0].flatten(1).T


def compare(one, other) -> tuple[float, float]:
    """Relative Frobenius distance, and the mean cosine of a position with itself."""
    import torch

    cosine = torch.nn.functional.cosine_similarity(one, other).mean()
    return float((one - other).norm() / other.norm()), float(cosine)


def places() -> tuple[float, float]:
    """Cells of the table between where ours and the hub's read it, at the first and last patch."""
    apart = [(patch + 0.5) * TABLE * (1 / PICTURE - 1 / (PICTURE + OFFSET)) for patch in (0, PICTURE - 1)]
    return apart[0], apart[1]


if __name__ == "__main__":
    main()
