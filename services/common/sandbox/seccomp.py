"""The system calls that a program in a box may not make, as a BPF program for the kernel.

A list of what is refused, plus everything newer than the newest call that was looked at. It holds what container
engines refuse by default, and what would reach around the limits of a box: anonymous files and System V memory are in
no process and on no disk that we count, ``vsock`` and ``netlink`` sockets do not end at the network namespace.

Numbers are from the kernel's ``unistd.h``; they never change. Pairs are x86-64 and arm64; None: not on arm64.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from services.common.sandbox.types import SandboxFailed

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
#: The newest system call that was looked at (``mseal``).
_NEWEST = 462

#: Refused with EPERM: what needs rights that no box has, and what only looks at or reaches into others.
_FORBIDDEN: dict[str, tuple[int, int | None]] = {
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "process_mrelease": (448, 448),
    # namespaces and mounts
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "statmount": (457, 457), "listmount": (458, 458), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264),
    # the kernel's own things
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "bpf": (321, 280),
    "perf_event_open": (298, 241), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "create_module": (174, None), "get_kernel_syms": (177, None), "query_module": (178, None),
    "lookup_dcookie": (212, 18), "fanotify_init": (300, 262), "syslog": (103, 116), "acct": (163, 89),
    "_sysctl": (156, None), "sysfs": (139, None), "uselib": (134, None), "ustat": (136, None),
    "nfsservctl": (180, 42), "lsm_set_self_attr": (460, 460),
    # the machine
    "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "sethostname": (170, 161),
    "setdomainname": (171, 162), "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171),
    "clock_adjtime": (305, 266), "iopl": (172, None), "ioperm": (173, None), "vhangup": (153, 58),
    "ioprio_set": (251, 30), "modify_ldt": (154, None), "mbind": (237, 235), "set_mempolicy": (238, 237),
    "get_mempolicy": (239, 236),
    "migrate_pages": (256, 238), "move_pages": (279, 239), "set_mempolicy_home_node": (450, 450),
}  # fmt: skip

#: Refused as if the kernel did not have them, for which programs have another way.
_ABSENT: dict[str, tuple[int, int | None]] = {
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "userfaultfd": (323, 282), "memfd_create": (319, 279), "memfd_secret": (447, 447),
    # Watches are counted by user and hold files in the kernel's memory.
    "inotify_init": (253, None), "inotify_init1": (294, 26),
    "io_setup": (206, 0),  # its requests are counted over the whole machine
    "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186),
    # Its flags lie in memory, where no filter can look; libraries then use `clone`.
    "clone3": (435, 435),
}  # fmt: skip

#: For oneself only: others of the box's user may be what guards it. The first argument is a process, 0 is oneself.
_OWN = {
    "prlimit64": (302, 261), "sched_setscheduler": (144, 119), "sched_setparam": (142, 118),
    "sched_setaffinity": (203, 122), "sched_setattr": (314, 274),
}  # fmt: skip
_CLONE, _SET_PRIORITY, _IOCTL, _PERSONALITY = (56, 220), (141, 140), (16, 29), (135, 92)
_SOCKETS = ((41, 198), (53, 199))
#: CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
_NEW_NAMESPACES = 0x7E020000
#: Characters and commands for terminals, and TIOCSETD: disciplines for lines, for which the kernel loads modules.
_TERMINAL_COMMANDS = (0x5412, 0x541C, 0x5423)
_FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6
#: The usual one, ICMP (or unix sockets' own number), TCP, UDP; for others the kernel loads modules.
_PROTOCOLS = (0, 1, 6, 17)

_LOAD, _EQUAL, _ABOVE, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16


class _Step(NamedTuple):
    code: int
    k: int
    then: int = 0
    otherwise: int = 0


def _refuse(error: int) -> _Step:
    return _Step(_RETURN, _ERRNO | error)


def _argument(index: int) -> _Step:
    """Load the low half of an argument, on machines that store it first; all that is looked at has 32 bits."""
    return _Step(_LOAD, _ARGUMENTS_AT + 8 * index)


def _when(number: int, steps: Sequence[_Step]) -> list[_Step]:
    return [_Step(_EQUAL, number, 0, len(steps)), *steps]


def _one_of(values: Sequence[int], error: int) -> list[_Step]:
    """Allow what was loaded if it is one of these, and refuse it otherwise. The last step allows."""
    known = [_Step(_EQUAL, value, len(values) - at, 0) for at, value in enumerate(values)]
    return [*known, _refuse(error), _Step(_RETURN, _ALLOW)]


def _rules(which: int) -> list[_Step]:
    steps: list[_Step] = []
    for table, error in ((_FORBIDDEN, errno.EPERM), (_ABSENT, errno.ENOSYS)):
        for numbers in table.values():
            if (number := numbers[which]) is not None:
                steps += _when(number, [_refuse(error)])
    allow = _Step(_RETURN, _ALLOW)
    steps += _when(
        _CLONE[which], [_argument(0), _Step(_ANY_BIT, _NEW_NAMESPACES, 0, 1), _refuse(errno.EPERM), allow]
    )
    for numbers in _OWN.values():
        steps += _when(numbers[which], [_argument(0), *_one_of((0,), errno.EPERM)])
    # Two arguments: of a process (0), which is oneself (0).
    other = [_Step(_EQUAL, 0, 1, 0), _refuse(errno.EPERM)]
    steps += _when(_SET_PRIORITY[which], [_argument(0), *other, _argument(1), *other, allow])
    # The kernel takes the low half of the command, so that alone is compared.
    known = [
        _Step(_EQUAL, command, len(_TERMINAL_COMMANDS) - at, 0)
        for at, command in enumerate(_TERMINAL_COMMANDS)
    ]
    steps += _when(_IOCTL[which], [_argument(1), *known, allow, _refuse(errno.EPERM)])
    # 0xFFFFFFFF only asks.
    steps += _when(_PERSONALITY[which], [_argument(0), *_one_of((0, 0xFFFFFFFF), errno.EPERM)])
    for numbers in _SOCKETS:
        families = _one_of(_FAMILIES, errno.EAFNOSUPPORT)[:-1]
        protocols = _one_of(_PROTOCOLS, errno.EPROTONOSUPPORT)
        steps += _when(numbers[which], [_argument(0), *families, _argument(2), *protocols])
    return steps


@cache
def program() -> bytes:
    """The filter for this machine, as an array of ``struct sock_filter``.

    :raises SandboxFailed: there is none for this kind of processor.
    """
    machine = os.uname().machine
    if machine not in _ARCHITECTURES:
        raise SandboxFailed(
            f"no filter of system calls for {machine}: expected {' or '.join(_ARCHITECTURES)}"
        )
    which, audit = _ARCHITECTURES[machine]
    steps = [
        _Step(_LOAD, _ARCH_AT),
        _Step(_EQUAL, audit, 1, 0),
        _Step(_RETURN, _KILL),
        _Step(_LOAD, _NUMBER_AT),
        # Newer calls, and the x32 ones, which have numbers of their own.
        _Step(_ABOVE, _NEWEST, 0, 1),
        _refuse(errno.ENOSYS),
        *_rules(which),
        _Step(_RETURN, _ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", step.code, step.then, step.otherwise, step.k) for step in steps)
