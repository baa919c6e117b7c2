"""Lose random lines of some images' k-space, as if a scanner had never measured them."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform


class RandKSpaceLinesd(RandomizableTransform, MapTransform):
    """Zeroes random phase-encoding lines of images (C, D, H, W), along one axis that is drawn, as if never measured.

    What is lost is all of the 3D Fourier transform with a certain frequency along that axis, of both signs, since a
    scanner can compute one from the other. The other axes' transforms cancel out, so only one is computed. Values may
    leave the range of the input (ringing); scale them again behind it.

    Args:
        keys: of images of one size, which lose the same lines.
        prob: probability that a scan loses lines.
        fraction: up to this share of the lines outside of the centre is lost; the share is uniform.
        centre: this share of the frequencies, the lowest, is always kept; that of 0 always is.
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.1,
        fraction: float = 0.5,
        centre: float = 0.1,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.fraction, self.centre = fraction, centre

    def randomize(self, shape: tuple[int, ...]) -> None:
        """Draw whether, along which axis and which lines of the non-negative frequencies are kept."""
        super().randomize(None)
        self.axis = 1 + self.R.randint(3)
        frequencies = np.fft.rfftfreq(shape[self.axis]) * 2  # from 0 to 1, the highest
        lost = self.R.random_sample(len(frequencies)) < self.R.uniform(0, self.fraction)
        self.kept = torch.from_numpy(~lost | (frequencies <= self.centre))

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, Any]:
        """The data with the images that are left."""
        data = dict(data)
        self.randomize(data[self.first_key(data)].shape)
        for key in self.key_iterator(data) if self._do_transform else ():
            lines = torch.fft.rfft(data[key].movedim(self.axis, -1)) * self.kept.to(data[key].device)
            data[key] = torch.fft.irfft(lines, data[key].shape[self.axis]).movedim(-1, self.axis).contiguous()
        return data
