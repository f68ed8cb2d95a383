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
    # Not `ctypes`, whose import takes three times as long as all that is done here.
    import _ctypes
    import os
    import sys

    class Long(_ctypes._SimpleCData):  # type: ignore[type-arg]
        _type_ = "l"

    class Word(_ctypes._SimpleCData):  # type: ignore[type-arg]
        _type_ = "L"

    class Function(_ctypes.CFuncPtr):
        _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
        _restype_ = Long

    library = _ctypes.dlopen(None, os.RTLD_NOW)  # type: ignore[arg-type]

    def call(name: str, *arguments: "int | bytes") -> int:
        # All arguments fill a register; as a C int, the upper half of it would be undefined.
        words = [Word(argument) if isinstance(argument, int) else argument for argument in arguments]
        function: Any = Function(_ctypes.dlsym(library, name))
        result: int = function(*words)
        result = (result + 0x80000000) % 0x100000000 - 0x80000000  # prctl and capset return an int
        if result < 0:
            code = _ctypes.get_errno()
            raise OSError(code, f"{name} {arguments[0]!r}: {os.strerror(code)}")
        return result

    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    call("capset", CAPABILITY_VERSION.to_bytes(4, sys.byteorder) + bytes(4), bytes(24))
    # After the capabilities, because a change of credentials forgets it.
    call("prctl", PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    if orders["parent"] and os.getppid() != orders["parent"]:
        raise RuntimeError("the parent ended first")
    if orders["landlock"]:
        restrict_files(call, *orders["landlock"])
    if orders["seccomp"]:
        # A core dump handed to a program of the system is not stopped by RLIMIT_CORE.
        call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)
        refuse_calls(call, orders["seccomp"], orders["own_pid"])


def restrict_files(call: "Any", attributes: bytes, flags: int, rules: "Any") -> None:
    """Apply the rules of Landlock to this process."""
    import os
    import struct

    ruleset = call("syscall", CREATE_RULESET, attributes, len(attributes), 0)
    for path, rights in rules:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        call("syscall", ADD_RULE, ruleset, 1, struct.pack("=Qi", rights, descriptor), 0)
        os.close(descriptor)
    call("syscall", RESTRICT_SELF, ruleset, flags)
    os.close(ruleset)


def refuse_calls(call: "Any", program: bytes, own_pid: int) -> None:
    """Install the filter of system calls."""
    import os
    import struct

    program = program.replace(struct.pack("<I", own_pid), struct.pack("<I", os.getpid()))
    # The address of the bytes themselves: they follow the head of the object, and `program` keeps them alive.
    address = id(program) + bytes.__basicsize__ - 1
    call("prctl", PR_SET_SECCOMP, 2, struct.pack("@HP", len(program) // 8, address), 0, 0)
