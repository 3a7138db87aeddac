"""Stop a process at each system call that changes a file below a folder: to count, to kill, or to let the call fail.

The kernel asks this process before such a call of another one is made (seccomp, user notification), whichever library
makes it. For Linux on x86-64 only.
"""

import ctypes
import errno
import fcntl
import os
import platform
import select
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path

IS_SUPPORTED = sys.platform == "linux" and platform.machine() == "x86_64"
_ARCHITECTURE, _ALLOW, _ASK = 0xC000003E, 0x7FFF0000, 0x7FC00000
_RECEIVE, _ANSWER, _CONTINUE = 0xC0502100, 0xC0182101, 1
WRITES_TO_FD = {"write": 1, "pwrite64": 18, "writev": 20, "pwritev": 296, "ftruncate": 77, "fallocate": 285}
COPIES_TO_FD = {"sendfile": 40}
OPENS = {"open": (2, 1, 0), "openat": (257, 2, 1)}  # number, which argument holds the flags, and which the path
PATHS = {
    "creat": (85, 0), "rename": (82, 1), "renameat": (264, 3), "renameat2": (316, 3), "unlink": (87, 0),
    "unlinkat": (263, 1), "mkdir": (83, 0), "mkdirat": (258, 1), "rmdir": (84, 0), "link": (86, 1), "linkat": (265, 3),
    "symlink": (88, 1), "symlinkat": (266, 2), "truncate": (76, 0), "chmod": (90, 0), "fchmodat": (268, 1),
}  # fmt: skip
"""Number, and which argument holds the path."""
_FD_BEFORE = {"openat", "renameat", "renameat2", "unlinkat", "mkdirat", "linkat", "symlinkat", "fchmodat"}
"""Calls whose path is relative to the folder that the argument before it names."""
_FOR_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
FILLS_DISK = {*WRITES_TO_FD, *COPIES_TO_FD, *OPENS, "creat", "mkdir", "mkdirat", "symlink", "symlinkat"}
"""Calls that a full disk refuses; it lets files be renamed and deleted."""

_BY_FD = {number: name for name, number in (WRITES_TO_FD | COPIES_TO_FD).items()}
_BY_PATH = {number: (name, path) for name, (number, path) in PATHS.items()}
_BY_PATH |= {number: (name, path) for name, (number, _, path) in OPENS.items()}


def ask_first(to: socket.socket) -> None:
    """Let this process, and all that it starts, wait at such calls for the answer of the process behind `to`."""
    rules = [(0x20, 0, 0, 4), (0x15, 1, 0, _ARCHITECTURE), (0x06, 0, 0, _ALLOW), (0x20, 0, 0, 0)]
    for number in (*_BY_FD, *(number for number, _ in PATHS.values())):
        rules += [(0x15, 0, 1, number), (0x06, 0, 0, _ASK)]
    for number, flags, _ in OPENS.values():
        rules += [(0x15, 0, 4, number), (0x20, 0, 0, 16 + 8 * flags), (0x45, 0, 1, _FOR_WRITING), (0x06, 0, 0, _ASK)]
        rules += [(0x06, 0, 0, _ALLOW)]
    rules += [(0x06, 0, 0, _ALLOW)]
    program = b"".join(struct.pack("HBBI", *rule) for rule in rules)
    buffer = ctypes.create_string_buffer(program)
    head = struct.pack("H6xQ", len(rules), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0):  # PR_SET_NO_NEW_PRIVS
        raise OSError(ctypes.get_errno(), "prctl")
    listener = libc.syscall(317, 1, 8, head)  # SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    socket.send_fds(to, [b"x"], [listener])
    os.close(listener)


class Asked:
    """The calls of a process that waits: iterate over their names, and answer each."""

    def __init__(self, connection: socket.socket, root: Path):
        _, fds, _, _ = socket.recv_fds(connection, 1, 1)
        self.fd, self.root = fds[0], os.fsencode(root.resolve())

    def wait(self, seconds: float) -> bool:
        """Return whether a call waits, within some time."""
        return bool(select.select([self.fd], [], [], seconds)[0])

    def answer(self, decide: Callable[[str, str], int | None]) -> bool:
        """Answer one call: ask `decide` by name and path if it is about a file below the root.

        It returns 0 to let the call be made, an error number to let it fail, `None` to give no answer at all.
        Returns whether the other process still lives.
        """
        request = bytearray(80)
        try:
            fcntl.ioctl(self.fd, _RECEIVE, request)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                return error.errno == errno.EINTR or not self._is_over()
            raise
        key, pid, _, number = struct.unpack_from("QIIi", request)
        name, path = self._about(pid, number, struct.unpack_from("6Q", request, 32))
        error = decide(name, os.fsdecode(path)) if path is not None else 0
        if error is not None:
            response = struct.pack("QqiI", key, 0, -error, 0 if error else _CONTINUE)
            try:
                fcntl.ioctl(self.fd, _ANSWER, response)
            except OSError as gone:
                if gone.errno != errno.ENOENT:
                    raise
        return True

    def close(self) -> None:
        os.close(self.fd)

    def _is_over(self) -> bool:
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return any(event & select.POLLHUP for _, event in poll.poll(0))

    def _about(self, pid: int, number: int, arguments: tuple[int, ...]) -> tuple[str, bytes | None]:
        """Return the name of a call and the path of its file, or `None` for one elsewhere."""
        try:
            if number in _BY_FD:
                name, path = _BY_FD[number], os.readlink(f"/proc/{pid}/fd/{arguments[0]}".encode())
            else:
                name, index = _BY_PATH[number]
                with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
                    memory.seek(arguments[index])
                    path = memory.read(4096).split(b"\0", 1)[0]
                where = f"/proc/{pid}/cwd"
                if name in _FD_BEFORE and ctypes.c_int(arguments[index - 1]).value >= 0:
                    where = f"/proc/{pid}/fd/{arguments[index - 1]}"
                path = os.path.join(os.readlink(where.encode()), path)
        except OSError:
            return "gone", None
        return name, path if os.path.normpath(path).startswith(self.root + b"/") else None
