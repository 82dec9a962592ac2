#!/usr/bin/env python3
"""Runs a test binary for cargo and ends it when it hangs: a test of ours takes minutes at most, and a hang that nobody ends
costs the whole run and tells nothing.

    tests/limit.py BINARY [WORDS...]      as cargo's `runner`

It counts as hanging when its standard output, where libtest writes a line for every test, brings nothing for as many
seconds as NETREEVE_TEST_LIMIT says (600 if it says nothing). Then every process that it has started and what each of its
threads waits for are printed, all of them are killed, and the exit code is 124. Else it is the binary's own.
"""
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

LIMIT = float(os.environ.get("NETREEVE_TEST_LIMIT") or 600)
PR_SET_PDEATHSIG = 1  # prctl(2)


def read(path):
    """A file of /proc, or nothing where it has gone or may not be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as f:
            return f.read().replace("\0", " ").strip()
    except OSError:
        return ""


def parents():
    """The parent of every process there is."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        # "PID (NAME) STATE PPID ...", and the name may hold anything.
        after = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        if len(after) > 1:
            found[int(pid)] = int(after[1])
    return found


def family(pid):
    """A process and all that descend from it."""
    tree, found = parents(), [pid]
    for one in found:
        found.extend(p for p, parent in tree.items() if parent == one)
    return found


def describe(pid):
    """Its command line, and what its threads wait for: the kernel's function, or its stack where it may be seen."""
    print(f"{pid}: {read(f'/proc/{pid}/cmdline')[:300]}", file=sys.stderr)
    for task in sorted(os.listdir(f"/proc/{pid}/task"), key=int)[:40]:
        at = f"/proc/{pid}/task/{task}"
        state = next((s for s in read(f"{at}/status").splitlines() if s.startswith("State:")), "")
        stack = " < ".join(s.split("] ")[-1] for s in read(f"{at}/stack").splitlines()[:5])
        print(f"  {task} {read(f'{at}/comm')}, {state} {stack or read(f'{at}/wchan')}", file=sys.stderr)


def end(child, name):
    """Says what it does and kills it and all that it started."""
    print(f"\n{name} hangs: nothing from it for {LIMIT:.0f} s, so it is killed. What is there:", file=sys.stderr)
    members = family(child.pid)
    for pid in members:
        try:
            describe(pid)
        except OSError:
            pass  # It has ended.
    for pid in members:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    child.wait()


def main():
    words = sys.argv[1:]
    if not words:
        sys.exit(__doc__)
    libc = ctypes.CDLL(None)
    child = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        bufsize=0,
        preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
    )
    # A signal that ends us ends the tests; those that a terminal sends have reached both of us.
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    signal.signal(signal.SIGINT, lambda *_: None)
    name = os.path.basename(words[0])
    out, last = child.stdout.fileno(), time.monotonic()
    while True:
        left = last + LIMIT - time.monotonic()
        if left <= 0:
            end(child, name)
            return 124
        if not select.select([out], [], [], min(left, 1))[0]:
            # Something that outlives it may hold its output.
            if child.poll() is not None:
                break
            continue
        chunk = os.read(out, 1 << 16)
        if not chunk:
            break
        last = time.monotonic()
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
    code = child.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
