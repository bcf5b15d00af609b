"""What runs in the serving process, in a page of shared memory that the supervisor reads without asking.

The serving process writes, the supervisor reads, so the answer is right even while user code holds the GIL; only
`Board.draining` goes the other way. A slot's sequence number is written last on entering and zeroed first on
leaving: a reader that finds it unchanged around its read has seen one request, not halves of two.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from typing import Final, NamedTuple

_HEARTBEAT: Final = struct.Struct("=d")
_DRAINING: Final = 8
_HEADER_BYTES: Final = 64
_SEQUENCE: Final = struct.Struct("=Q")
_REQUEST: Final = struct.Struct("=d128p")  # deadline, request id
_REQUEST_OFFSET: Final = 8
_SLOT_BYTES: Final = 192
MAX_REQUEST_ID_BYTES: Final = 127


class Occupied(NamedTuple):
    """One slot with a request in it.

    Args:
        slot: Its index.
        sequence: Number of the request in the serving process, never used twice there.
        request_id: As the caller named it, cut to `MAX_REQUEST_ID_BYTES`.
        deadline: When its time is over, in seconds of the monotonic clock; infinity for never.
    """

    slot: int
    sequence: int
    request_id: bytes
    deadline: float


class Board:
    """The shared page.

    Args:
        fd: File descriptor of memory of at least `size_bytes`, the same in both processes.
        slots: How many slots it holds.
    """

    def __init__(self, fd: int, slots: int) -> None:
        self.slots = slots
        self._memory = mmap.mmap(fd, self.size_bytes(slots))

    @staticmethod
    def size_bytes(slots: int) -> int:
        """Return how much memory a board of so many slots takes."""
        return _HEADER_BYTES + _SLOT_BYTES * slots

    @classmethod
    def create(cls, slots: int) -> tuple[Board, int]:
        """Make an empty board and return it with the descriptor that opens it in another process."""
        fd = os.memfd_create("brinery-board")
        os.ftruncate(fd, cls.size_bytes(slots))
        return cls(fd, slots), fd

    def close(self) -> None:
        """Unmap the page."""
        self._memory.close()

    # ------------------------------------------------------------------------------- written by the serving process
    def beat(self) -> None:
        """Note that Python code runs in the serving process."""
        _HEARTBEAT.pack_into(self._memory, 0, time.monotonic())

    def enter(self, index: int, sequence: int, request_id: bytes, deadline: float) -> None:
        """Note that a request took a slot; see `Occupied`."""
        offset = _HEADER_BYTES + _SLOT_BYTES * index
        _REQUEST.pack_into(self._memory, offset + _REQUEST_OFFSET, deadline, request_id)
        _SEQUENCE.pack_into(self._memory, offset, sequence)

    def leave(self, index: int) -> None:
        """Note that a slot is free."""
        _SEQUENCE.pack_into(self._memory, _HEADER_BYTES + _SLOT_BYTES * index, 0)

    # ------------------------------------------------------------------------------------ written by the supervisor
    @property
    def draining(self) -> bool:
        """Whether new requests are to be turned away."""
        return self._memory[_DRAINING] != 0

    @draining.setter
    def draining(self, value: bool) -> None:
        self._memory[_DRAINING] = int(value)

    # ---------------------------------------------------------------------------------------- read by the supervisor
    def silent_seconds(self) -> float:
        """Return how long ago the last heartbeat was; 0 before the first."""
        (at,) = _HEARTBEAT.unpack_from(self._memory, 0)
        return time.monotonic() - at if at else 0.0

    def sequence(self, index: int) -> int:
        """Return the sequence number of the request in a slot, 0 when it is free."""
        (sequence,) = _SEQUENCE.unpack_from(self._memory, _HEADER_BYTES + _SLOT_BYTES * index)
        return int(sequence)

    def occupied(self) -> list[Occupied]:
        """Return the slots that have a request in them."""
        found = []
        for index in range(self.slots):
            sequence = self.sequence(index)
            if not sequence:
                continue
            offset = _HEADER_BYTES + _SLOT_BYTES * index + _REQUEST_OFFSET
            deadline, request_id = _REQUEST.unpack_from(self._memory, offset)
            if self.sequence(index) == sequence:
                found.append(Occupied(index, sequence, request_id, deadline))
        return found
