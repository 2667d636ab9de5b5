"""Rows of vectors and a codebook -> the number of the nearest embedding of each row, and k-means by it.

No matrix of distances outlives its block of rows (docs/benchmarks.md).
"""

import torch
from torch.nn import functional

CPU_BLOCK = 2**20
"""Distances that each CPU thread computes before they are reduced: 4 MB as float32, so that they stay in the cache.

A fourth would be as fast on an idle machine. But each block ends with threads that wait for each other, and where
other processes hold the cores each wait was seen to take 10 ms or more.
"""
GPU_BLOCK = 2**27
"""Distances that a whole GPU computes before they are reduced: it wants large products, 512 MB as float32."""


def as_rows(vectors: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return `vectors` `[batch, dim, height, width]` as rows `[batch height width, dim]`, a view where it can be."""
    vectors = vectors.to(dtype, memory_format=torch.channels_last)
    return vectors.movedim(1, -1).reshape(-1, vectors.shape[1])


def mean_squares(rows: torch.Tensor, others: torch.Tensor, batch: int, cells: int) -> torch.Tensor:
    """Return the mean squared difference of each image's `cells` rows `[batch cells, dim]`: `[batch]`."""
    numbers = cells * rows.shape[1]
    ours, theirs = rows.reshape(batch, numbers), others.reshape(batch, numbers)
    images = max(1, block_size(rows.device) // max(1, numbers))
    return torch.cat([(row - other).square_().mean(1) for row, other in zip(ours.split(images), theirs.split(images))])


def block_size(device: torch.device) -> int:
    """Return how many numbers to compute at once, before they are reduced to fewer."""
    return CPU_BLOCK * torch.get_num_threads() if device.type == "cpu" else GPU_BLOCK


@torch.no_grad()
def nearest(rows: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Return the code `[n]` of the embedding nearest to each of `rows` `[n, dim]` (lowest code on a tie).

    |row|² is the same for every embedding, so one matrix product and |embedding|² decide. Distances are
    computed for a block of rows at a time, which stays in the cache until the smallest is found.
    """
    if rows.device.type == "cpu":
        return _nearest_on_cpu(rows, codebook)
    squares = codebook.square().sum(1)[None]
    blocks = rows.split(max(1, block_size(rows.device) // len(codebook)))
    return torch.cat([torch.addmm(squares, block, codebook.T, alpha=-2).argmin(1) for block in blocks])


def _nearest_on_cpu(rows: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Return the same as `nearest`, by max_pool2d of `2 row · embedding - |embedding|²`.

    argmin looks at one number after another, which takes half as long as the product itself. Pooling in
    channels_last finds the largest number *and its place* for sixteen channels at once, the first on a tie. So rows
    are its channels, embeddings its height.

    The product is a convolution of embeddings (pixels of 16 images, the least for which torch always takes oneDNN) with
    rows (its kernels, of which each makes one channel), since torch.mm reaches two fifths of that rate where the
    BLAS is MKL and the CPU AMD's. The last input channel is -|embedding|² times 1.
    """
    (size, dim), images = codebook.shape, 16
    table = rows.new_zeros(size + -size % images, dim + 1)
    table[:size, :dim], table[:size, dim] = 2 * codebook, -codebook.square().sum(1)
    pixels = table.view(images, -1, 1, dim + 1).permute(0, 3, 1, 2)
    width = max(16, block_size(rows.device) // (2 * size))
    codes = torch.empty(len(rows), dtype=torch.long)
    for some, found in zip(rows.split(width), codes.split(width)) if len(rows) else ():
        scores = functional.conv2d(pixels, functional.pad(some, (0, 1), value=1.0)[:, :, None, None])
        scores = scores.permute(0, 2, 3, 1).reshape(1, len(table), 1, len(some))[:, :size].permute(0, 3, 1, 2)
        found.copy_(functional.max_pool2d(scores, (size, 1), return_indices=True)[1].flatten())
    return codes


def kmeans(rows: torch.Tensor, clusters: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return centres `[clusters, dim]` of `rows` `[n, dim]` and how many rows each has `[clusters]` (Lloyd 1982).

    Starts from rows drawn without repetition; where there are fewer rows than clusters, the centres left
    over repeat rows and have count 0, so that they are restarted with later vectors.
    """
    order = torch.randperm(len(rows), generator=generator)
    centres = rows[order[torch.arange(clusters) % len(rows)]].clone()
    for _ in range(10):
        codes = nearest(rows, centres)
        counts = torch.bincount(codes, minlength=clusters).to(rows.dtype)
        sums = torch.zeros_like(centres).index_add_(0, codes, rows)
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centres)
    counts = torch.bincount(nearest(rows, centres), minlength=clusters).to(rows.dtype)
    return centres, counts
