"""What a hostile program tries, and that it gets nowhere.

Attacks that any user may carry out are tried at the level that does not stop them as well: there they succeed, so it is
the confinement that stops them elsewhere and not a mistake in the attack.
"""

from __future__ import annotations

import os
import platform
import socket
import sys
import time

import pytest

from latentmas.sandbox import Ending

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="confinement is a matter of Linux")

TOOLS = """
import ctypes, os, sys
secret, outside, port, parent = sys.stdin.read().splitlines()
port, parent = int(port), int(parent)
libc = ctypes.CDLL(None, use_errno=True)

def check(result):
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result

def syscall(on_x86_64, on_aarch64, *arguments):
    number = on_x86_64 if os.uname().machine == "x86_64" else on_aarch64
    words = [ctypes.c_ulong(word) if isinstance(word, int) else word for word in arguments]
    return check(libc.syscall(ctypes.c_long(number), *words))

for name, attack in ATTACKS.items():
    try:
        exec(attack)
    except (OSError, ValueError):
        pass
    else:
        say(name + "\\n")
say("end")
os._exit(0)
"""

BECOME = "become another program"

# What any user may do to files and processes of their own, if nothing stops it.
FILES = {
    "read a file outside": "open(secret).read()",
    "read the user list": "open('/etc/passwd').read()",
    "read its environment in proc": "open('/proc/self/environ').read()",
    "list the folder of a file outside": "os.listdir(outside)",
    "list processes": "os.listdir('/proc')",
    "read through a link": "os.symlink(secret, 'link'); open('link').read()",
    "read through a link in a folder": "os.symlink(outside, 'link'); open('link/secret').read()",
    "take a file in by a hard link": "os.link(secret, 'link'); open('link').read()",
    "move a file in": "os.rename(secret, 'moved')",
    "write a file outside": "open(outside + '/made', 'w')",
    "change a file outside": "open(secret, 'a')",
    "empty a file outside": "os.truncate(secret, 0)",
    "empty a file by reading it": "os.open(secret, os.O_RDONLY | os.O_TRUNC)",
    "make a folder outside": "os.mkdir(outside + '/made')",
    "remove a file outside": "os.unlink(secret)",
    "link outside": "os.symlink('/', outside + '/made')",
    "make a pipe outside": "os.mkfifo(outside + '/made')",
    "change permissions outside": "os.chmod(secret, 0o600)",
    "change times outside": "os.utime(secret, (1, 1))",
    "change the owner outside": "os.chown(secret, os.getuid(), os.getgid())",
    "share memory by name": "from multiprocessing.shared_memory import *; SharedMemory(f'l{parent}', True, 9).unlink()",
    "open a device": "open('/dev/full')",
}
NETWORK = {
    "reach the network": "import socket; socket.create_connection(('127.0.0.1', port), timeout=1)",
    "send a datagram": "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', port))",
    "make an internet socket": "import socket; socket.socket()",
    "make a local socket": "import socket; socket.socket(socket.AF_UNIX)",
    "make a pair of sockets": "import socket; socket.socketpair()",
    "listen": "import socket; socket.create_server(('127.0.0.1', 0))",
    "talk to the kernel by netlink": "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
}
PROCESSES = {
    "fork": "os.fork() or os._exit(0)",
    "start a program": "os.posix_spawn(sys.executable, [sys.executable, '-S', '-c', ''], {})",
    "start a program by subprocess": "import subprocess; subprocess.run([sys.executable, '-S', '-c', ''])",
    BECOME: (
        "os.execv(sys.executable, [sys.executable, '-c', f'import os; os.write({OUTPUT_FD}, b\"it did\\\\nend\")'])"
    ),
    "start a process pool": "import multiprocessing as m; m.get_context('fork').Process(target=int).start()",
    "see its parent by a signal": "os.kill(parent, 0)",
    "signal its parent's thread": "syscall(234, 131, parent, parent, 0)",
    "queue a signal for its parent": "syscall(129, 138, parent, 0, (ctypes.c_int * 32)(0, 0, -1))",
    "signal everyone": "os.kill(-1, 0)",
    "signal its group": "os.killpg(0, 0)",
    "have its parent signalled": "import fcntl; fcntl.fcntl(OUTPUT_FD, fcntl.F_SETOWN, parent)",
    "renice": "os.nice(1)",
    "change its limits": "import resource as r; r.setrlimit(7, (9, 9))",
    "hold memory without a file": "os.memfd_create('x')",
    "outlive its parent": "check(libc.prctl(1, 0, 0, 0, 0))",
    "let others look into it": "check(libc.prctl(4, 1, 0, 0, 0))",
}
# What takes a right, a kernel or a folder that not everyone has, or would stay behind.
NOT_FOR_EVERYONE = {
    "pin its parent to a core": "os.sched_setaffinity(parent, os.sched_getaffinity(0))",
    "change the standard library's times": "os.utime(os.__file__, None)",
    "write into the standard library": "open(os.path.dirname(os.__file__) + '/made_by_a_test', 'w')",
    "change the standard library": "open(os.__file__, 'a')",
    "open the terminal": "open('/dev/tty', 'w')",
    "raise its limits": "import resource as r; hard = r.getrlimit(7)[1]; r.setrlimit(7, (hard, hard + 1))",
    "hold shared memory": "syscall(29, 194, 0, 4096, 0o1600)",
    "hold semaphores": "syscall(64, 190, 0, 1, 0o1600)",
    "hold messages": "syscall(68, 186, 0, 0o1600)",
    "keep a key": "syscall(248, 217, b'user', b'latentmas', b'x', 1, ctypes.c_long(-3))",
    "read an installed package": "import sysconfig; open(sysconfig.get_path('purelib') + '/README.txt')",
    "clone with raw numbers": "syscall(56, 220, 17, 0, 0, 0, 0) or os._exit(0)",
    "clone by its newest call": "syscall(435, 435, bytes(88), 88) or os._exit(0)",
    "open by its newest call": "syscall(437, 437, ctypes.c_long(-100), secret.encode(), bytes(24), 24)",
    "trace its parent": "syscall(101, 117, 16, parent, 0, 0)",
    "read its parent's memory": "syscall(310, 270, parent, bytes(16), 1, bytes(16), 1, 0)",
    "hold its parent": "syscall(434, 434, parent, 0)",
    "change its parent's limits": "import resource as r; r.prlimit(parent, 7, r.getrlimit(7))",
    "leave its session": "os.setsid()",
    "leave its group": "os.setpgid(0, 0)",
    "enter new namespaces": "syscall(272, 97, 0x10000000)",
    "mount": "syscall(165, 40, b'none', b'/', b'tmpfs', 0, 0)",
    "change its root": "os.chroot('.')",
    "load a program into the kernel": "syscall(321, 280, 0, bytes(128), 128)",
    "watch the machine's counters": "syscall(298, 241, bytes(128), 0, ctypes.c_long(-1), ctypes.c_long(-1), 0)",
    "handle page faults": "syscall(323, 282, 0)",
    "queue system calls": "syscall(425, 425, 1, bytes(120))",
    "read the kernel's log": "syscall(103, 116, 2, bytes(9), 9)",
    "change what kind of system it sees": "syscall(135, 92, 0x0040000)",
    "watch a folder": "syscall(254, 27, 0, outside.encode(), 2)",
    "open by a handle": "syscall(304, 265, 0, bytes(128), 0)",
    "make a device": "os.mknod('device', 0o20666, os.makedev(1, 5))",
    "take attributes of a descriptor": "import fcntl; fcntl.ioctl(0, 0x40086602, bytes(8))",
    "use a call of the future": "syscall(999, 999)",
}


@pytest.fixture
def payload(tmp_path, temporary):
    """A folder outside with a readable file, a port that listens, and the number of this process."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o644)
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"{secret}\n{tmp_path}\n{server.getsockname()[1]}\n{os.getpid()}".encode()


def succeeding(run, attacks, payload, level):
    """Return the names of the attacks that are not refused."""
    ran = run(f"ATTACKS = {attacks!r}\n{TOOLS}", payload, level=level)
    *names, end = ran.said.split("\n")
    assert (end, ran.outcome.ending) == ("end", Ending.DONE)
    return names


@pytest.mark.parametrize(
    "attacks", [FILES, NETWORK, PROCESSES, NOT_FOR_EVERYONE], ids=["files", "network", "processes", "rest"]
)
def test_all_attacks_are_refused(run, confining, payload, attacks, tmp_path):
    secret = tmp_path / "secret"
    before = secret.stat()
    assert succeeding(run, attacks, payload, confining) == []
    assert {path.name for path in tmp_path.iterdir()} == {"secret", "temporary"}
    assert secret.read_text() == "secret"
    assert (secret.stat().st_mode, secret.stat().st_mtime) == (before.st_mode, before.st_mtime)


OF_ANYONE = FILES | NETWORK | PROCESSES


@pytest.mark.parametrize("name", [name for name in OF_ANYONE if name not in {BECOME}])
def test_limits_alone_do_not_stop_it(run, rlimit, payload, name):
    assert succeeding(run, {name: OF_ANYONE[name]}, payload, rlimit) == [name]


def test_limits_alone_do_not_stop_it_from_becoming_another_program(run, rlimit, payload):
    assert succeeding(run, {BECOME: PROCESSES[BECOME]}, payload, rlimit) == ["it did"]


def test_a_harmless_program_is_not_disturbed(run, confining):
    ran = run(
        "import threading, time, random, datetime, decimal, json, re, collections, itertools, math, string, heapq\n"
        "import contextlib, io, copy, functools, bisect, statistics, fractions, typing, queue, hashlib, secrets\n"
        "results = queue.Queue()\n"
        "threads = [threading.Thread(target=results.put, args=(n,)) for n in range(8)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
        "with open('file', 'w+') as f: f.write('x'); f.seek(0); f.truncate(); os.isatty(f.fileno())\n"
        "import signal; signal.signal(signal.SIGALRM, lambda *_: say('alarm ')); signal.setitimer(0, 0.001)\n"
        "time.sleep(0.01); os.kill(os.getpid(), signal.SIGALRM); signal.raise_signal(signal.SIGALRM)\n"
        "import resource; resource.getrlimit(resource.RLIMIT_AS); os.sched_getaffinity(0); os.cpu_count()\n"
        "say(secrets.token_hex(4) != secrets.token_hex(4), results.qsize(), os.urandom(1) != b'', os.listdir())",
        level=confining,
    )
    assert ran.said == "alarm alarm alarm True 8 True ['file']"


@pytest.mark.parametrize(
    "attempt",
    [
        "import asyncio; asyncio.run(asyncio.sleep(0))",
        "import subprocess; subprocess.run(['true'])",
        "import multiprocessing; multiprocessing.Pool(1)",
        "import shutil; open('a', 'w'); shutil.copy('a', 'b')",
    ],
)
def test_what_the_documentation_says_does_not_work_does_not(run, confining, attempt):
    ran = run(f"try: {attempt}\nexcept OSError as error: say('refused')\nos._exit(0)", level=confining)
    assert ran.said == "refused"


def test_landlock_lets_a_program_see_that_a_file_exists_but_not_what_is_in_it(run, payload, landlock):
    driver = "import sys; secret = sys.stdin.readline().strip()\nsay(os.stat(secret).st_size)\nopen(secret)"
    ran = run(driver, payload, level=landlock)
    assert (ran.said, ran.outcome.detail) == ("6", "exit status 1")


def test_no_capability_is_left(run, confining):
    ran = run(
        "import ctypes\ndata = (ctypes.c_uint32 * 6)()\n"
        "ctypes.CDLL(None).capget((ctypes.c_uint32 * 2)(0x20080522, 0), data)\nsay(list(data))",
        level=confining,
    )
    assert ran.said == "[0, 0, 0, 0, 0, 0]"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="an entry to the kernel that only x86_64 has")
def test_calls_of_another_architecture_kill(run, confining):
    ran = run(
        "import ctypes, mmap\n"
        "code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)\n"
        "code.write(bytes.fromhex('b814000000cd80c3'))  # getpid, the 32-bit way\n"
        "say('before ')\n"
        "ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()\n"
        "say('after')",
        level=confining,
    )
    assert (ran.said, ran.outcome.ending) == ("before ", Ending.FAILED)
    assert ran.outcome.detail in {"killed by SIGSYS", "killed by SIGSEGV"}


def test_folders_that_can_be_listed_are_few(run, confining):
    listed = eval(
        run(
            "found = []\n"
            "for folder in '/ /root /home /etc /var /proc /sys /dev /usr/bin /usr/local /opt /mnt /srv'.split():\n"
            "    try: found += [(folder, name) for name in os.listdir(folder)]\n"
            "    except OSError: pass\n"
            "say(found)",
            level=confining,
        ).said
    )
    expected = {"dev", "etc", "lib", "lib64", "packages", "tmp", "usr", "null", "urandom", "zero"}
    expected |= {"ld.so.cache", "alternatives", *sys.base_prefix.split("/"), "share"}
    expected.add(os.path.basename(os.path.realpath(sys.executable)))
    assert {name for _, name in listed} <= expected


DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        say(os.getpid())
        time.sleep(60)
    os._exit(0)
time.sleep(0.2)
os._exit(0)
"""


def test_a_daemon_does_not_survive_limits_either(run, rlimit):
    ran = run(DAEMON, level=rlimit)
    assert ran.outcome.ending is Ending.DONE
    assert _is_gone(int(ran.said))


def test_processes_in_its_group_end_with_it(run, rlimit):
    ran = run("import time\nif os.fork() == 0: say(os.getpid()); time.sleep(60)\ntime.sleep(0.1)", level=rlimit)
    assert ran.outcome.ending is Ending.DONE
    assert _is_gone(int(ran.said))


def _is_gone(pid: int) -> bool:
    until = time.monotonic() + 2
    while time.monotonic() < until:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False
