"""Make the 10,000 digits of the studies out of MNIST's own test files, which DomainBed downloads.

    python -m analysis.studies.digits MNIST_ROOT OUT

``MNIST_ROOT`` holds ``MNIST/raw/t10k-images-idx3-ubyte`` and ``t10k-labels-idx1-ubyte``. Writes the same folder
below ``OUT``, which then serves as ``--data_dir`` of RotatedMNIST and ColoredMNIST: all digits in the order of the
studies, 8,000 of them under the names of the training files.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

#: The first eight bytes of each image's SHA-256, in the studies' order: equal images have equal labels.
ORDER = Path(__file__).with_name("digits_order.npy")
TRAIN = 8000
IMAGES_MAGIC, LABELS_MAGIC = 2051, 2049


def hashes(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Hash images, ``[N, 28, 28]``, one by one."""
    return np.array(
        [int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:8], "big") for image in images], "u8"
    )


def main(root: Path, out: Path) -> None:
    raw = root / "MNIST" / "raw"
    try:
        images = np.fromfile(raw / "t10k-images-idx3-ubyte", np.uint8, offset=16).reshape(-1, 28, 28)
        labels = np.fromfile(raw / "t10k-labels-idx1-ubyte", np.uint8, offset=8)
    except FileNotFoundError as error:
        raise SystemExit(
            f"{error.filename} is missing; let DomainBed or torchvision download MNIST to {root}"
        ) from None
    found = hashes(images)
    by_hash = np.argsort(found)
    order = np.load(ORDER)
    places = np.searchsorted(found[by_hash], order).clip(max=len(found) - 1)
    chosen = by_hash[places]
    if len(found) != len(order) or (found[chosen] != order).any():
        raise SystemExit(f"{raw} does not hold MNIST's 10,000 test digits; give MNIST's own t10k files")
    images, labels = images[chosen], labels[chosen]
    target = out / "MNIST" / "raw"
    target.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", slice(None, TRAIN)), ("t10k", slice(TRAIN, None))):
        head = np.array([IMAGES_MAGIC, len(images[part]), 28, 28], ">i4").tobytes()
        (target / f"{name}-images-idx3-ubyte").write_bytes(head + images[part].tobytes())
        head = np.array([LABELS_MAGIC, len(labels[part])], ">i4").tobytes()
        (target / f"{name}-labels-idx1-ubyte").write_bytes(head + labels[part].tobytes())


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
