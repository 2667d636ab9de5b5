"""Grey images of 8 or 16 bits <-> bytes, nothing lost, each pixel by what a network expects from its neighbours.

Pixels are coded in the order of t = column + SLOPE * row, and down the rows where t is equal. What a pixel is told of
the rows above lies less than SLOPE columns to the right for each row up, and so has a smaller t: all pixels of equal t
can be decoded at once, those of all images together. An image of 128 x 128 takes 509 steps instead of 16,384.

At each t are written, of all its pixels: whether it is 0; then, of those that are not, the value less 1 in digits of
DIGIT_BITS bits, all first digits before all second ones. The bytes of an image are those of the range coder, coder.py.
The neighbours beyond the image's edge are 0. The network sees 8 bits of each pixel: those of an image of 16 bits are
rounded. Where it sees only zeros, as in most of a background, its answer is always the same, and is computed once.

An image that would need as many bytes as its pixels, or more, is stored as its pixels, row by row, those of 16 bits
with their lower byte first. Its number of bytes tells it from others.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vqvae2.common.errors import UserError, expect
from vqvae2.compression import coder
from vqvae2.compression.pixel_network import Mixture, PixelNetwork
from vqvae2.runs import weights

KIND = "lossless"
SLOPE = 3
DIGIT_BITS = 4
DIGITS = 1 << DIGIT_BITS
AT_A_TIME = 1024
"""Pixels whose answers are computed together: their activations fit into the processor's cache."""


class ResidualCoder:
    """Images <-> their bytes, by a network of whole numbers: the same bytes on any machine, whatever the batch.

    Args:
        network: where it has inputs from a reconstruction, each image must have one.
        hash: of the network's weights, which a file should name.
    """

    def __init__(self, network: PixelNetwork, hash: str):
        rows, columns = network.past.T
        expect(bool(((rows <= 0) & (columns + SLOPE * rows < 0)).all()), "network of pixels",
               "neighbours that are decoded before the pixel", "others", weights.DAMAGED)
        self.network, self.hash = network, hash

    @classmethod
    def load(cls, folder: Path | str) -> "ResidualCoder":
        """Return the coder whose network is in `folder`. Raises: UserError if there is none, or a damaged one."""
        tensors, config = weights.load_weights(Path(folder) / weights.WEIGHTS)
        expect(config.get("kind") == KIND, str(folder), f"a network of the kind {KIND}", config.get("kind"),
               "Give a folder such as pretrained/lossless.")
        try:
            network = PixelNetwork({name: tensor.numpy() for name, tensor in tensors.items()})
            return cls(network, weights.weights_hash(tensors))
        except UserError as error:
            raise UserError(f"{folder}: {error}") from None

    def encode(self, images: np.ndarray, reconstructions: np.ndarray | None = None) -> list[bytes]:
        """Return the bytes of each image.

        Args:
            images: uint8 or uint16 `[n, height, width]`, at least one pixel each.
            reconstructions: uint8 `[n, height, width]`; None for a network that sees none.
        Raises: UserError for images of other types or forms, such as colour.
        """
        expect(images.dtype in (np.uint8, np.uint16) and images.ndim == 3, "images",
               "grey ones of 8 or 16 bits to compress without loss", f"{images.dtype} of shape {images.shape}",
               "Convert them to grey.")
        plain = [image.astype(_stored(8 * image.itemsize)).tobytes() for image in images]
        return [min(pair, key=len) for pair in zip(plain, self._encoded(images, reconstructions))]

    def _encoded(self, images: np.ndarray, reconstructions: np.ndarray | None) -> list[bytes]:
        """Return the coder's bytes of each image, also where these are more than the pixels."""
        steps = _steps(*images.shape[1:])
        order = np.concatenate(steps)
        step_of = np.repeat(np.arange(len(steps)), [len(step) for step in steps])
        payloads = []
        for number, image in enumerate(images):
            seen = None if reconstructions is None else reconstructions[number:number + 1]
            sight = _Sight(self.network, (1, *image.shape), seen)
            sight.show(np.arange(image.size), image.ravel())
            values = image.ravel()[order].astype(np.int64)
            payloads.append(self._encoded_image(values, step_of, sight.answers(order), 8 * image.itemsize))
        return payloads

    def _encoded_image(self, values: np.ndarray, step_of: np.ndarray, answers: np.ndarray, bits: int) -> bytes:
        """Return the bytes of one image, given, in the order of coding, its pixels, their steps, and the answers."""
        bright, spreads, black = np.flatnonzero(values), _spreads(bits), self.network.black(answers)
        times = [step_of * (1 + len(spreads))]
        lows, highs = [np.where(values, black, 0)], [np.where(values, coder.TOTAL, black)]
        mixture, rest = self.network.mixture(answers[bright]), values[bright] - 1
        for number, spread in enumerate(spreads):
            ends, known = (rest // spread % DIGITS)[:, None] + [0, 1], rest - rest % (spread * DIGITS)
            low, high = self._cumulative(mixture, known, ends, spread, bits).T
            times.append(times[0][bright] + 1 + number)
            lows.append(low)
            highs.append(high)
        order = np.argsort(np.concatenate(times), kind="stable")
        encoder = coder.Encoder()
        encoder.encode(np.concatenate(lows)[order], np.concatenate(highs)[order])
        return encoder.bytes()

    def decode(self, payloads: Sequence[bytes], reconstructions: np.ndarray | None, shape: tuple[int, int],
               bits: int) -> np.ndarray:
        """Return the images `[n, height, width]`, uint8 or uint16, whose bytes `encode` returned.

        Args:
            reconstructions: those that `encode` was given. shape: height and width. bits: of a pixel, 8 or 16.
        Raises: ValueError where the bytes cannot be those of images of this form; usually other bytes give other
            images without any error, so that a file should hold a checksum too.
        """
        images = np.zeros((len(payloads), *shape), _stored(bits))
        plain = np.array([len(payload) == images[0].nbytes for payload in payloads], bool)
        for number in np.flatnonzero(plain):
            images[number] = np.frombuffer(payloads[number], images.dtype).reshape(shape)
        coded = np.flatnonzero(~plain)
        if len(coded):
            seen = None if reconstructions is None else reconstructions[coded]
            images[coded] = self._decoded([payloads[number] for number in coded], seen, shape, bits)
        return images.astype(images.dtype.newbyteorder("="))

    def _decoded(self, payloads: list[bytes], reconstructions: np.ndarray | None, shape: tuple[int, int],
                 bits: int) -> np.ndarray:
        """Return the images of the coder's bytes, at least one."""
        count = len(payloads)
        images = np.zeros((count, *shape), np.uint8 if bits == 8 else np.uint16)
        sight = _Sight(self.network, images.shape, reconstructions)
        decoders = [coder.Decoder(payload) for payload in payloads]
        starts = np.arange(count)[:, None] * images[0].size
        for step in _steps(*shape):
            pixels = (starts + step).ravel()
            answers = sight.answers(pixels)
            black = self.network.black(answers)
            is_bright = _symbols(decoders, np.stack([black, coder.TOTAL - black], 1), np.full(count, len(step)))
            bright, counts = np.flatnonzero(is_bright), is_bright.reshape(count, -1).sum(1)
            if not len(bright):
                continue
            pixels, mixture = pixels[bright], self.network.mixture(answers[bright])
            rest = np.zeros(len(bright), np.int64)
            for spread in _spreads(bits):
                every = self._cumulative(mixture, rest, np.arange(DIGITS + 1)[None], spread, bits)
                rest += spread * _symbols(decoders, np.diff(every), counts)
            if rest.max() >= (1 << bits) - 1:
                raise ValueError("bytes of a pixel that is brighter than white")
            images.reshape(-1)[pixels] = rest + 1
            sight.show(pixels, images.reshape(-1)[pixels])
        return images

    def _cumulative(self, mixture: Mixture, known: np.ndarray, digits: np.ndarray, spread: int,
                    bits: int) -> np.ndarray:
        """Return how often, of coder.TOTAL, the next digit of n pixels is smaller than `digits` `[n, m]`.

        Args:
            known: the value less 1, as far as its digits are known, `[n]`. spread: what 1 in the digit stands for.
        """
        places = np.concatenate([np.broadcast_to([0, DIGITS], (len(known), 2)),
                                 np.broadcast_to(digits, (len(known), digits.shape[1]))], 1)
        below = self.network.below(mixture, known[:, None] + spread * places + 1, bits)
        start, end = below[:, :1], below[:, 1:2]
        return (below[:, 2:] - start) * (coder.TOTAL - DIGITS) // (end - start) + digits


class _Sight:
    """What the network sees of images that become known pixel by pixel.

    Args:
        shape: number, height and width of the images. Pixels are numbered through all of them, row by row.
    """

    def __init__(self, network: PixelNetwork, shape: tuple[int, int, int], reconstructions: np.ndarray | None):
        expect((reconstructions is not None) == (len(network.reconstruction) > 0), "network of pixels",
               "reconstructions where it was trained with them, and none elsewhere",
               "none" if reconstructions is None else "some", "Give the network that belongs to the file.")
        self._network = network
        margin = int(np.abs(np.concatenate([network.past, network.reconstruction])).max())
        around = ((0, 0), (margin, margin), (margin, margin))
        images = np.pad(np.zeros(shape, np.uint8), around)
        places = np.arange(images.size).reshape(images.shape)
        self._places = places[:, margin:margin + shape[1], margin:margin + shape[2]].ravel()
        steps = np.array([images.shape[2], 1])
        self._images, self._past = images.ravel(), network.past @ steps
        self._seen = [(self._images, self._past)]
        if reconstructions is not None:
            self._seen.append((np.pad(reconstructions, around).ravel(), network.reconstruction @ steps))
        self._quiet = network(np.zeros((1, len(network.past) + len(network.reconstruction))))

    def show(self, pixels: np.ndarray, values: np.ndarray) -> None:
        """Make the values of pixels known: uint8, or uint16, of which the network sees the nearest of 8 bits."""
        if values.dtype == np.uint16:
            values = (values.astype(np.int64) + 128) // 257
        self._images[self._places[pixels]] = values

    def answers(self, pixels: np.ndarray) -> np.ndarray:
        """Return the network's answers for pixels `[m]`."""
        places = self._places[pixels]
        inputs = np.concatenate([array[places[:, None] + around] for array, around in self._seen], 1)
        busy = np.flatnonzero(inputs.any(1))
        found = np.repeat(self._quiet, len(pixels), 0)
        for first in range(0, len(busy), AT_A_TIME):
            some = busy[first:first + AT_A_TIME]
            found[some] = self._network(inputs[some])
        return found


def _steps(height: int, width: int) -> list[np.ndarray]:
    """Return the pixels of an image that are decoded together, in the order of the steps, numbered row by row."""
    rows, columns = np.divmod(np.arange(height * width), width)
    steps = columns + SLOPE * rows
    counts = np.bincount(steps)  # some are 0 where an image is narrower than SLOPE
    return np.split(np.argsort(steps, kind="stable"), np.cumsum(counts[counts > 0])[:-1])


def _spreads(bits: int) -> list[int]:
    """Return what 1 stands for in each digit of a value of so many bits, the first digit first."""
    return [1 << place for place in range(bits - DIGIT_BITS, -1, -DIGIT_BITS)]


def _stored(bits: int) -> np.dtype:
    """Return the type of pixels of so many bits in an image that is stored as its pixels."""
    return np.dtype(f"<u{bits // 8}")


def _symbols(decoders: list[coder.Decoder], tables: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the next symbols of all images, of which each has so many, by their tables."""
    ends = np.cumsum(counts)
    return np.concatenate([decoder.decode(tables[end - count:end])
                           for decoder, end, count in zip(decoders, ends, counts) if count])
