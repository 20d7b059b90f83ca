"""Work that is shared out over several processes or machines, through MLX's distributed engine.

Under `mlx.launch -n 4 -- mflux-teacache …` every process runs the same verb. Each takes its share of the items (`mine`), keeps
what it finds on its own disk, and rank 0 gathers and writes. Without a launcher there is one rank, and MLX's engine is not touched.
All ranks have to come to each call that gathers. One that fails ends with an error that bears its name (`label`).
"""

import json
import os
import socket
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from mflux_teacache_plugin.checks import as_table
from mflux_teacache_plugin.errors import TeaCacheError

T = TypeVar("T")

# How launchers tell a process its rank: mlx.launch (ring, jaccl, nccl), then mpirun.
_RANKS = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")


@cache
def world() -> tuple[int, int]:
    """This process's rank, from 0, and their number: (0, 1) where nothing launched several. TeaCacheError if it cannot reach them."""
    if not _launched():
        return 0, 1
    import mlx.core as mx

    try:
        group = mx.distributed.init(strict=True)
    except RuntimeError as error:
        what = "this process was launched as one of several, and cannot reach the others"
        hint = "see `mlx.launch --help`; without mlx.launch one process does all the work"
        raise TeaCacheError(what, cause=str(error), hint=hint) from None
    return group.rank(), group.size()


def _launched() -> bool:
    """`mlx.launch -n 1` gives an empty host file, which MLX refuses."""
    hosts = os.environ.get("MLX_HOSTFILE")
    alone = hosts is not None and Path(hosts).is_file() and not Path(hosts).read_text().strip()
    return any(name in os.environ for name in _RANKS) and not alone


def label() -> str:
    """`rank 1 (hostname)`, to say whose a message is; empty where nothing launched several. Never raises."""
    ranks = [os.environ[name] for name in _RANKS if name in os.environ]
    return f"rank {ranks[0]} ({socket.gethostname()})" if ranks and _launched() else ""


def leads() -> bool:
    """Whether this rank merges and writes. The others keep silent."""
    return world()[0] == 0


def mine(items: Sequence[T]) -> list[T]:
    """This rank's share: every n-th item of n ranks. The shares of all ranks make up `items`."""
    rank, size = world()
    return list(items[rank::size])


def share(value: Any) -> Any:
    """Rank 0's `value`, as JSON holds it, on every rank. All ranks have to come; what the others give does not count."""
    return json.loads(_every(json.dumps(value if leads() else None, default=as_table).encode())[0])


def wait() -> None:
    """Until all ranks are here."""
    _every(b"")


def gather_files(files: Sequence[Path], folder: Path) -> None:
    """Bring the files below `folder` that this rank made to rank 0's `folder`, under the same names.

    One file after the other, so that memory holds one of each rank. Where the ranks share a disk, nothing is written.
    """
    if world()[1] == 1:
        return
    for index in range(max(map(int, _every(str(len(files)).encode())))):
        own = [f.relative_to(folder).as_posix().encode() + b"\0" + f.read_bytes() for f in files[index : index + 1]]
        for data in filter(None, _every(b"".join(own))):
            name, _, contents = data.partition(b"\0")
            target = folder / name.decode()
            if leads() and not (target.exists() and target.read_bytes() == contents):
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(contents)


def _every(data: bytes) -> list[bytes]:
    """The bytes of every rank, by rank. They are padded on the way: MLX gathers arrays of one shape."""
    if world()[1] == 1:
        return [data]
    import mlx.core as mx
    import numpy as np

    try:
        lengths = np.array(mx.distributed.all_gather(mx.array([len(data)], dtype=mx.int64))).tolist()
        padded = np.zeros(max(*lengths, 1), np.uint8)
        padded[: len(data)] = np.frombuffer(data, np.uint8)
        gathered = np.array(mx.distributed.all_gather(mx.array(padded)[None]))
    except RuntimeError as error:
        hint = "its own message says why; the same command again goes on with what was streamed"
        raise TeaCacheError("another rank of this run was lost", cause=str(error), hint=hint) from None
    return [row[:length].tobytes() for row, length in zip(gathered, lengths, strict=True)]
