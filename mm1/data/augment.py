"""Random crops and mirrorings of training pictures, for corpora so small that every picture is seen many times.

Off by default: MM1 saw its pictures about once. A crop keeps nearly all of a picture or its caption would no longer be
true, and mirroring is chosen by stream, because a question about the left side has another answer in a mirror.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import PIL.Image
import PIL.ImageOps

from mm1.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What is varied.

    Args:
        area: Smallest share of a picture's area that a random crop keeps; 1 crops nothing.
        stretch: Largest change of a crop's aspect against the picture's: 1.2 allows 5:6 to 6:5 of it.
        mirror: Streams whose pictures are mirrored every other time.
    """

    area: float = 1.0
    stretch: float = 1.0
    mirror: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.area <= 1:
            raise UserError(f"data.augment.area is {self.area}; expected a share above 0, at most 1")
        if self.stretch < 1:
            raise UserError(f"data.augment.stretch is {self.stretch}; expected a factor of at least 1")

    def __call__(self, picture: PIL.Image.Image, stream: str, seed: str) -> PIL.Image.Image:
        """The picture as it is seen this time, decided by ``seed`` alone."""
        chance = random.Random(seed)
        share, log_stretch = chance.uniform(self.area, 1.0), math.log(self.stretch)
        aspect = math.exp(chance.uniform(-log_stretch, log_stretch))
        width = min(picture.width, max(1, round(picture.width * math.sqrt(share * aspect))))
        height = min(picture.height, max(1, round(picture.height * math.sqrt(share / aspect))))
        left, top = chance.randint(0, picture.width - width), chance.randint(0, picture.height - height)
        if (width, height) != picture.size:
            picture = picture.crop((left, top, left + width, top + height))
        mirrored = chance.random() < 0.5 and stream in self.mirror
        return PIL.ImageOps.mirror(picture) if mirrored else picture
