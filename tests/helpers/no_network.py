"""A process that may not reach a network: the kernel kills it at its first connection, even if C++ code makes it.

A seccomp filter of Linux on x86-64 forbids connect(2) and sendto(2) with an internet address, which it tells by its
length; glibc may ask other processes of the machine for the user's name. Opening a socket is allowed: urllib3 does, on
import, to see whether the machine has IPv6.
"""

import ctypes
import platform
import signal
import struct
import sys

KILLED = -signal.SIGSYS
"""Return code of a process that tried to connect or to send."""

SUPPORTED = sys.platform == "linux" and platform.machine() == "x86_64"

_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER = 38, 22, 2  # prctl(2)
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # classic BPF
_NUMBER, _ARCHITECTURE, _THIRD, _SIXTH = 0, 4, 32, 56  # offsets in struct seccomp_data, of arguments too
_X86_64, _CONNECT, _SENDTO = 0xC000003E, 42, 44
_INET, _INET6 = 16, 28  # bytes of an address


def forbid_network() -> None:
    """Forbids connections to this process and its children, for good."""
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_IF_EQUAL, 0, 9, _X86_64),  # calls of other architectures pass
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_IF_EQUAL, 1, 0, _CONNECT),
        (_JUMP_IF_EQUAL, 2, 6, _SENDTO),
        (_LOAD, 0, 0, _THIRD),
        (_JUMP_IF_EQUAL, 3, 1, _INET),
        (_LOAD, 0, 0, _SIXTH),
        (_JUMP_IF_EQUAL, 1, 0, _INET),
        (_JUMP_IF_EQUAL, 0, 1, _INET6),
        (_RETURN, 0, 0, _KILL),
        (_RETURN, 0, 0, _ALLOW),
    ]
    code = b"".join(struct.pack("=HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((_NO_NEW_PRIVS, 1, 0, 0, 0), (_SET_SECCOMP, _FILTER, header)):
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "prctl")
