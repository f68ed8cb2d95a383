"""Numbers of the system calls the filter names, on x86_64 and aarch64.

`REFUSED` is grouped by what a call would let a program do. Landlock and rlimits cover none of it, or not everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

Numbers = tuple[int | None, int | None]
"""On x86_64 and on aarch64; None where the machine has no such call."""

NEWEST: Final = 450
"""The newest call looked at when the table was written (Linux 5.17). Later ones do not exist for the program."""

REFUSED: Final[Mapping[str, Numbers]] = MappingProxyType(
    {
        # reach other machines and processes
        "socket": (41, 198),
        "socketpair": (53, 199),
        "connect": (42, 203),
        "bind": (49, 200),
        "listen": (50, 201),
        "accept": (43, 202),
        "accept4": (288, 242),
        "sendto": (44, 206),
        "sendmsg": (46, 211),
        "sendmmsg": (307, 269),
        "recvfrom": (45, 207),
        "recvmsg": (47, 212),
        "recvmmsg": (299, 243),
        "getsockname": (51, 204),
        "getpeername": (52, 205),
        "setsockopt": (54, 208),
        "getsockopt": (55, 209),
        "shutdown": (48, 210),
        "ptrace": (101, 117),
        "process_vm_readv": (310, 270),
        "process_vm_writev": (311, 271),
        "process_madvise": (440, 440),
        "process_mrelease": (448, 448),
        "pidfd_open": (434, 434),
        "pidfd_getfd": (438, 438),
        "pidfd_send_signal": (424, 424),
        "kcmp": (312, 272),
        "tkill": (200, 130),
        "migrate_pages": (256, 238),
        "move_pages": (279, 239),
        # become another process, or leave the group that is killed at the end
        "fork": (57, None),
        "vfork": (58, None),
        "execve": (59, 221),
        "execveat": (322, 281),
        "setsid": (112, 157),
        "setpgid": (109, 154),
        "setns": (308, 268),
        "unshare": (272, 97),
        # take more than its share
        "setrlimit": (160, 164),
        "setpriority": (141, 140),
        "sched_setscheduler": (144, 119),
        "sched_setparam": (142, 118),
        "sched_setattr": (314, 274),
        "ioprio_set": (251, 30),
        "sync": (162, 81),
        "syncfs": (306, 267),
        # keep memory that outlives the process, or that no limit counts
        "memfd_create": (319, 279),
        "memfd_secret": (447, 447),
        "shmget": (29, 194),
        "shmat": (30, 196),
        "shmctl": (31, 195),
        "shmdt": (67, 197),
        "semget": (64, 190),
        "semop": (65, 193),
        "semctl": (66, 191),
        "semtimedop": (220, 192),
        "msgget": (68, 186),
        "msgsnd": (69, 189),
        "msgrcv": (70, 188),
        "msgctl": (71, 187),
        "mq_open": (240, 180),
        "mq_unlink": (241, 181),
        "mq_timedsend": (242, 182),
        "mq_timedreceive": (243, 183),
        "mq_notify": (244, 184),
        "mq_getsetattr": (245, 185),
        "add_key": (248, 217),
        "request_key": (249, 218),
        "keyctl": (250, 219),
        # change files without opening them for writing, or learn of them
        "chmod": (90, None),
        "fchmod": (91, 52),
        "fchmodat": (268, 53),
        "chown": (92, None),
        "fchown": (93, 55),
        "lchown": (94, None),
        "fchownat": (260, 54),
        "utime": (132, None),
        "utimes": (235, None),
        "utimensat": (280, 88),
        "futimesat": (261, None),
        "setxattr": (188, 5),
        "lsetxattr": (189, 6),
        "fsetxattr": (190, 7),
        "removexattr": (197, 14),
        "lremovexattr": (198, 15),
        "fremovexattr": (199, 16),
        "truncate": (76, 45),
        "mknod": (133, None),
        "mknodat": (259, 33),
        "name_to_handle_at": (303, 264),
        "open_by_handle_at": (304, 265),
        "fanotify_init": (300, 262),
        "fanotify_mark": (301, 263),
        "inotify_init": (253, None),
        "inotify_init1": (294, 26),
        "inotify_add_watch": (254, 27),
        # see another tree of files
        "mount": (165, 40),
        "umount2": (166, 39),
        "pivot_root": (155, 41),
        "chroot": (161, 51),
        "open_tree": (428, 428),
        "move_mount": (429, 429),
        "fsopen": (430, 430),
        "fsconfig": (431, 431),
        "fsmount": (432, 432),
        "fspick": (433, 433),
        "mount_setattr": (442, 442),
        "quotactl": (179, 60),
        "quotactl_fd": (443, 443),
        "swapon": (167, 224),
        "swapoff": (168, 225),
        # do work past this filter, or reach the parts of the kernel where most holes were found
        "io_uring_setup": (425, 425),
        "io_uring_enter": (426, 426),
        "io_uring_register": (427, 427),
        "io_setup": (206, 0),
        "bpf": (321, 280),
        "perf_event_open": (298, 241),
        "userfaultfd": (323, 282),
        # manage the machine
        "personality": (135, 92),
        "reboot": (169, 142),
        "kexec_load": (246, 104),
        "kexec_file_load": (320, 294),
        "create_module": (174, None),
        "init_module": (175, 105),
        "finit_module": (313, 273),
        "delete_module": (176, 106),
        "acct": (163, 89),
        "syslog": (103, 116),
        "settimeofday": (164, 170),
        "clock_settime": (227, 112),
        "clock_adjtime": (305, 266),
        "adjtimex": (159, 171),
        "sethostname": (170, 161),
        "setdomainname": (171, 162),
        "iopl": (172, None),
        "ioperm": (173, None),
        "modify_ldt": (154, None),
        "vhangup": (153, 58),
        "lookup_dcookie": (212, 18),
        "nfsservctl": (180, 42),
        "uselib": (134, None),
        "_sysctl": (156, None),
        "sysfs": (139, None),
    }
)

ABSENT: Final[Mapping[str, Numbers]] = MappingProxyType({"clone3": (435, 435), "openat2": (437, 437)})
"""Calls whose arguments lie in memory, where a filter cannot look; C libraries know kernels without them."""

WEIGHED: Final[Mapping[str, Numbers]] = MappingProxyType(
    {
        "clone": (56, 220),
        "kill": (62, 129),
        "tgkill": (234, 131),
        "rt_sigqueueinfo": (129, 138),
        "rt_tgsigqueueinfo": (297, 240),
        "sched_setaffinity": (203, 122),
        "prctl": (157, 167),
        "prlimit64": (302, 261),
        "open": (2, None),
        "openat": (257, 56),
        "fcntl": (72, 25),
        "ioctl": (16, 29),
    }
)
"""Calls that are refused or not by their arguments."""
