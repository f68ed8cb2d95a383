"""What a confined process does first: give up its rights, for good, and only then run the driver.

The code of this module is handed to a bare interpreter as it stands, so it knows nothing of the package and imports as
little as it can: every import is paid at every run. Values are plain ones for the same reason.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType
    from typing import Any, TypedDict

    class Orders(TypedDict):
        """What the parent wants of this process.

        Attributes:
            driver: The program to run.
            output: Descriptor of the pipe that the parent reads.
            parent: Its number, or 0 where the numbers of processes differ inside.
            packages: Folder of the packages that can be imported.
            environment: Names of the variables that remain.
            rlimits: Resource, soft and hard limit.
            linux: Whether rights are given up at all; no other system has them.
            landlock: Attributes, flags and rules; None applies none.
            seccomp: The filter; empty applies none.
            own_pid: Stands in the filter for the number of this process.
        """

        driver: CodeType
        output: int
        parent: int
        packages: str
        environment: tuple[str, ...]
        rlimits: tuple[tuple[int, int, int], ...]
        linux: bool
        landlock: tuple[bytes, int, tuple[tuple[str, int], ...]] | None
        seccomp: bytes
        own_pid: int


READY = b"R"
"""First byte on the pipe: all rights are given up, the driver begins."""

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
ADD_RULE, RESTRICT_SELF = 445, 446
CREATE_RULESET = 444
CAPABILITY_VERSION = 0x20080522
SIGKILL = 9


def enter(orders: "Orders") -> None:
    """Give up all rights and run the driver. If a step fails, the driver is not reached."""
    import os
    import sys

    for name in set(os.environ) - set(orders["environment"]):
        del os.environ[name]  # bubblewrap and Python add a few
    set_limits(orders["rlimits"])
    if orders["linux"]:
        give_up_rights(orders)
    sys.path.append(orders["packages"])
    sys.argv = [""]
    module = type(sys)("__main__")
    sys.modules["__main__"] = module
    namespace = module.__dict__
    namespace["__builtins__"] = __builtins__
    namespace["OUTPUT_FD"] = orders["output"]
    driver = orders["driver"]
    os.dup2(1, 2)  # until here the parent would have read why it failed
    os.write(orders["output"], READY)
    orders.clear()  # type: ignore[attr-defined]
    exec(driver, namespace)


def set_limits(rlimits: "tuple[tuple[int, int, int], ...]") -> None:
    """Set limits on resources, as far as those in force let them be set."""
    import resource

    for which, soft, hard in rlimits:
        ceiling = resource.getrlimit(which)[1]
        if ceiling != resource.RLIM_INFINITY:
            resource.setrlimit(which, (min(soft, ceiling), min(hard, ceiling)))
        else:
            resource.setrlimit(which, (soft, hard))


def give_up_rights(orders: "Orders") -> None:
    """Give up capabilities, files, network and system calls, each for good."""
    import ctypes
    import os

    libc = ctypes.CDLL(None, use_errno=True)

    def call(function: "Any", *arguments: object) -> int:
        # All arguments fill a register; as a C int, the upper half of it would be undefined.
        words = [ctypes.c_ulong(argument) if isinstance(argument, int) else argument for argument in arguments]
        result: int = function(*words)
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"{function.__name__} {arguments[0]}: {os.strerror(code)}")
        return result

    call(libc.prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    call(libc.capset, (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)())
    # After the capabilities, because a change of credentials forgets it.
    call(libc.prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    if orders["parent"] and os.getppid() != orders["parent"]:
        raise RuntimeError("the parent ended first")
    if orders["landlock"]:
        restrict_files(call, libc, *orders["landlock"])
    if orders["seccomp"]:
        # A core dump handed to a program of the system is not stopped by RLIMIT_CORE.
        call(libc.prctl, PR_SET_DUMPABLE, 0, 0, 0, 0)
        refuse_calls(call, libc, orders["seccomp"], orders["own_pid"])


def restrict_files(call: "Any", libc: "Any", attributes: bytes, flags: int, rules: "Any") -> None:
    """Apply the rules of Landlock to this process."""
    import os
    import struct

    ruleset = call(libc.syscall, CREATE_RULESET, attributes, len(attributes), 0)
    for path, rights in rules:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        call(libc.syscall, ADD_RULE, ruleset, 1, struct.pack("=Qi", rights, descriptor), 0)
        os.close(descriptor)
    call(libc.syscall, RESTRICT_SELF, ruleset, flags)
    os.close(ruleset)


def refuse_calls(call: "Any", libc: "Any", program: bytes, own_pid: int) -> None:
    """Install the filter of system calls."""
    import ctypes
    import os
    import struct

    program = program.replace(struct.pack("<I", own_pid), struct.pack("<I", os.getpid()))
    instructions = ctypes.create_string_buffer(program, len(program))
    call(
        libc.prctl,
        PR_SET_SECCOMP,
        2,
        struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions)),
        0,
        0,
    )
