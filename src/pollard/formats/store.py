"""Files that are whole or not there: safetensors with JSON metadata, written beside their place and renamed into it."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pollard.errors import InvalidInput, StoreError
from pollard.formats.tensorfile import FIX, NAMES, Digest, damaged, digest_of, memory_of, read_tensors
from pollard.formats.topology import Topology
from pollard.reading import DEEPEST, is_shallow, parse_json

VERSION = 2  # version 1 had no digest
_KEY = "pollard"  # the one entry of the header: of several, safetensors writes now one first, now another
_DIGEST = '{"digest": "'
_BLANK = "0" * 32
LARGE = 1 << 22  # bytes: of less, a wait for the disk costs more than the digest
_ADVICE = {
    errno.ENOSPC: "Free some space, or write to another disk.",
    errno.EDQUOT: "Free some of your quota, or write to another disk.",
    errno.EROFS: "Choose a folder that may be written to.",
    errno.EACCES: "Choose a folder that may be written to.",
    errno.EPERM: "Choose a folder that may be written to.",
    errno.ENOENT: "Create the folder first.",
    errno.ENOTDIR: "Create the folder first.",
}


def write_atomic(path: str | os.PathLike[str], content: bytes | Callable[[Path], None]) -> None:
    """Put `content` at `path`, or leave what was there: no reader and no crash ever meets half a file.

    content: the bytes, or a function that writes them to the path it is given. They go to a new name in the same
    folder, are synced, renamed over `path`, or over the file that it links to, and the folder is synced. Raises StoreError where
    that fails (full disk, read-only folder) or `path` is a device or a pipe, with what was there intact and nothing left behind.

    >>> write_atomic("note.txt", b"kept")
    >>> Path("note.txt").read_bytes()
    b'kept'
    """
    if Path(path).exists() and not Path(path).is_file():  # as root, /dev/null would be renamed over
        raise StoreError(f"{path}, which is no ordinary file", "a file that can be written", "Give the name of a file.")
    target = Path(os.path.realpath(path))
    beside = target.parent / f".{os.getpid()}-{os.urandom(8).hex()}.tmp"
    try:
        beside.touch()
        mode = beside.stat().st_mode
        if isinstance(content, bytes):
            beside.write_bytes(content)
        else:
            content(beside)
        beside.chmod(mode)  # some writers keep their files to themselves: the user's umask decides
        _sync(beside)
        beside.replace(target)
        _sync(target.parent)
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "Check the path and the disk.")
        raise StoreError(f"{path}: {error.strerror or error}", "a file that can be written", advice) from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def save_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write `tensors` and JSON-able `metadata` as one safetensors file, atomically, with a digest over all of it.

    Tensors that share memory are stored apart. Raises InvalidInput on what cannot be stored, StoreError on a failed
    write.

    >>> save_tensors("weights.safetensors", {"w": torch.arange(3.0)}, {"epoch": 2})
    >>> load_tensors("weights.safetensors")
    ({'w': tensor([0., 1., 2.])}, {'epoch': 2})
    """
    import safetensors.torch  # keeps `import pollard` light

    text = _told(metadata)
    stored = _apart(tensors)

    def write(beside: Path) -> None:
        try:
            # The digest is made while the disk writes, which waits for it and not for us, and takes its place in the header.
            with ThreadPoolExecutor(1) as beside_the_disk:
                digest = beside_the_disk.submit(digest_of, stored, text)
                safetensors.torch.save_file(stored, beside, _undigested(text))
                if sum(each.nbytes for each in stored.values()) > LARGE:
                    _sync(beside)
                _fill_in(beside, digest.result())
        except safetensors.SafetensorError as error:
            raise _io_error(error) from error
        except (KeyError, ValueError) as error:
            raise InvalidInput(f"a tensor with {error}", "a dtype of safetensors", "Convert it first.") from error

    write_atomic(path, write)


class Pieces(NamedTuple):
    """A tensor that is made some numbers at a time: `made` gives its parts in order, each contiguous."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    made: Callable[[], Iterable[Tensor]]

    @property
    def nbytes(self) -> int:
        """Of all of it."""
        return math.prod(self.shape) * self.dtype.itemsize


def save_pieces(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Pieces],
    metadata: Mapping[str, Any],
    *,
    wrote: Callable[[int], None] = lambda _: None,
) -> None:
    """As `save_tensors`, of tensors of which one piece is there at a time; `wrote` is told of the bytes of each.

    >>> halves = Pieces(torch.float32, (4,), lambda: torch.arange(4.0).split(2))
    >>> save_pieces("weights.safetensors", {"w": halves}, {"epoch": 2})
    >>> load_tensors("weights.safetensors")
    ({'w': tensor([0., 1., 2., 3.])}, {'epoch': 2})
    """
    text, places, end = _told(metadata), dict[str, int](), 0
    # Wide numbers first, so that each lies where its width divides the place; readers view them as they lie.
    for name in sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name)):
        places[name] = end
        end += tensors[name].nbytes
    header: dict[str, Any] = {"__metadata__": _undigested(text)}
    for name, start in places.items():
        each = tensors[name]
        offsets = [start, start + each.nbytes]
        header[name] = {"dtype": NAMES[each.dtype], "shape": list(each.shape), "data_offsets": offsets}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)

    def write(beside: Path) -> None:
        digest = Digest(text)
        with beside.open("r+b") as file:
            file.write(len(head).to_bytes(8, "little") + head)
            file.truncate(8 + len(head) + end)
            for name, each in sorted(tensors.items()):
                file.seek(8 + len(head) + places[name])
                digest.begin(name, each.dtype, each.shape)
                for piece in each.made():
                    content = memory_of(piece)
                    file.write(content)
                    digest.update(content)
                    wrote(len(content))
        _fill_in(beside, digest.told())

    write_atomic(path, write)


def _told(metadata: Mapping[str, Any]) -> str:
    """The text that the header has of `metadata`, without a digest."""
    try:
        text = json.dumps({"version": VERSION, "metadata": dict(metadata)})
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"metadata with {error}", "JSON: dicts, lists, text, numbers", "Leave it out.") from error
    if not is_shallow([[metadata]]):
        raise InvalidInput(
            "metadata nested too deeply", f"dicts and lists at most {DEEPEST - 2} deep", "Keep it flatter."
        )
    return text


def _undigested(text: str) -> dict[str, str]:
    """Our entry of the header, with room for the digest."""
    return {_KEY: f'{_DIGEST}{_BLANK}", {text[1:]}'}


def _fill_in(path: Path, digest: str) -> None:
    """Puts `digest` where the header of the file at `path` has none yet."""
    blank = json.dumps(_DIGEST + _BLANK)[1:-1].encode()  # metadata come first, as a text within the header's
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        place = 8 + file.read(length).index(blank) + len(blank) - len(_BLANK)
        file.seek(place)
        file.write(digest.encode())


def load_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a file that `save_tensors` wrote, by name in order; the tensors own their memory.

    The file is read, not mapped, so that nothing done to it later reaches the tensors, and each byte is held once. Raises
    StoreError on a file that is missing, truncated, foreign, of another version, or not what it was when it was written:
    one flipped bit is enough. Files of version 1 have no digest: of those, only what is malformed is refused.
    """
    tensors, texts = read_tensors(path)
    return tensors, _checked(path, tensors, texts)


def load_any(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a safetensors file, whoever wrote it; raises StoreError as `load_tensors`, of its own files."""
    tensors, texts = read_tensors(path)
    if _KEY in texts:
        _checked(path, tensors, texts)
    return tensors


def _checked(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> dict[str, Any]:
    """The metadata in `texts`, once they and `tensors` are known to be what was written."""
    text = texts.get(_KEY)
    version, metadata = _metadata(path, text)
    told, separator, rest = str(text).removeprefix(_DIGEST).partition('", ')
    if version > 1 or str(text).startswith(_DIGEST):
        found = digest_of(tensors, "{" + rest)
        if not separator or told != found:
            raise damaged(path, f"digest {found} where {told:.40} was written")
    return metadata


def save_topologies(
    path: str | os.PathLike[str],
    topologies: Mapping[str, Topology],
    metadata: Mapping[str, Any] | None = None,
    values: Mapping[str, Tensor] | None = None,
) -> None:
    """Write named `topologies`, `values` of some and JSON-able `metadata` as one safetensors file, atomically.

    Raises as `save_tensors` does.

    >>> save_topologies("plan.safetensors", {"fc1": Topology.full((4, 2), "v2")}, {"criterion": "snip"})
    >>> load_topologies("plan.safetensors")
    ({'fc1': Topology(shape=(4, 2), pattern='v2', grains=4, density=1)}, {}, {'criterion': 'snip'})
    """
    layers = {
        name: {"shape": topology.shape, "pattern": str(topology.pattern), "fingerprint": topology.fingerprint}
        for name, topology in topologies.items()
    }
    arrays = {f"{name}.{array}": getattr(topology, array) for name, topology in topologies.items() for array in _ARRAYS}
    arrays |= {f"{name}.{_VALUES}": held for name, held in (values or {}).items()}
    save_tensors(path, arrays, {"topologies": layers, "metadata": dict(metadata or {})})


def load_topologies(path: str | os.PathLike[str]) -> tuple[dict[str, Topology], dict[str, Tensor], dict[str, Any]]:
    """Topologies, each validated, values and metadata of a file that `save_topologies` wrote.

    Raises StoreError on a file that `load_tensors` refuses, and on one whose index arrays are not those it was saved
    with.
    """
    arrays, content = load_tensors(path)
    try:
        topologies = {
            name: Topology.adopt(layer["shape"], layer["pattern"], *(arrays[f"{name}.{array}"] for array in _ARRAYS))
            for name, layer in content["topologies"].items()
        }
        altered = [
            name for name in topologies if topologies[name].fingerprint != content["topologies"][name]["fingerprint"]
        ]
        values = {name: arrays[f"{name}.{_VALUES}"] for name in topologies if f"{name}.{_VALUES}" in arrays}
        metadata = dict(content["metadata"])
    except (InvalidInput, KeyError, TypeError, AttributeError, ValueError) as error:
        raise damaged(path, f"no valid topologies ({error})") from error
    if altered:
        raise damaged(path, f"altered indices in {altered[0]!r}")
    return topologies, values, metadata


_ARRAYS, _VALUES = ("row_pointers", "columns"), "values"
_OURS = "a whole file that Pollard wrote"


def _sync(path: Path) -> None:
    """Have the disk hold what was written to the file or folder `path`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor contiguous, on the CPU, and in memory of its own, as the format wants them."""
    apart: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided or tensor.device.type == "meta":
            raise InvalidInput(f"{name!r}: {tensor!r:.80}", "a dense tensor", "Save its parts as dense tensors.")
        dense = tensor.detach().cpu().contiguous().resolve_conj().resolve_neg()
        memory = dense.untyped_storage().data_ptr()
        apart[name] = dense.clone() if memory in seen else dense
        seen.add(memory)
    return apart


def _metadata(path: str | os.PathLike[str], text: object) -> tuple[int, dict[str, Any]]:
    """Version and metadata in `text`, which is what the header has of ours."""
    try:
        held = parse_json(text, str(path), _OURS, FIX) if isinstance(text, str) else None
        version, metadata = held["version"], held["metadata"]  # type: ignore[index]  # a TypeError like any other
    except (StoreError, KeyError, TypeError) as error:
        raise damaged(path, "no metadata of ours", _OURS) from error
    if version not in (1, VERSION):
        raise StoreError(
            f"{path} of version {version!r}", f"version {VERSION}", "Write it again, or use the Pollard that wrote it."
        )
    if not isinstance(metadata, dict):
        raise damaged(path, "no metadata of ours", _OURS)
    return version, metadata


def _io_error(error: Exception) -> OSError:
    """safetensors tells of a failed write in words only: `... (os error 28)`."""
    found = [code for code in _ADVICE if f"(os error {code})" in str(error)]
    return OSError(found[0], os.strerror(found[0])) if found else OSError(str(error))
