# fsx.py URI VARVE VOLUME SEED STEPS   operate at random on an export through libnbd, compared with an array of bytes.
#
# Four connections: an operation goes to any of them, and what one was answered the others see. Writes, with and without FUA, zeroes,
# trims, reads, flushes and block status; bursts of operations side by side that do not overlap; snapshots through the program VARVE,
# each read to the end and compared, some of them deleted. A difference ends it with exit status 1 and the last operations.
import random
import subprocess
import sys

import nbd

uri, varve, volume = sys.argv[1:4]
seed, steps = int(sys.argv[4]), int(sys.argv[5])
pick = random.Random(seed)
done = []  # what was done, for the message
snapshots = {}  # name -> content


def connect(uri):
    h = nbd.NBD()
    h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.connect_uri(uri)
    return h


connections = [connect(uri) for _ in range(4)]
size = connections[0].get_size()
model = bytearray(size)


def any_of_them():
    return pick.choice(connections)


def fail(why):
    sys.exit("%s; seed %d, after:\n%s" % (why, seed, "\n".join(done[-30:])))


def place(limit):
    """A range: any bytes, sectors, or blocks."""
    unit = pick.choice([1, 512, 4096, 4096])
    n = pick.randrange(1, max(2, limit // unit)) * unit
    return pick.randrange((size - n) // unit + 1) * unit, n


def flags():
    return nbd.CMD_FLAG_FUA if pick.random() < 0.2 else 0


def compare(got, off, what):
    want = model[off : off + len(got)]
    if got != want:
        at = next(i for i in range(len(got)) if got[i] != want[i])
        fail("%s differs at %d: got %#x, want %#x" % (what, off + at, got[at], want[at]))


def write(off, n):
    data = pick.randbytes(n)
    any_of_them().pwrite(data, off, flags())
    model[off : off + n] = data


def zero(off, n):
    flag = flags() | (nbd.CMD_FLAG_NO_HOLE if pick.random() < 0.3 else 0)
    any_of_them().zero(n, off, flag)
    model[off : off + n] = bytes(n)


def trim(off, n):
    any_of_them().trim(n, off, flags())
    model[off : off + n] = bytes(n)  # Varve's trim reads as zeros: docs/nbd.md


def read(off, n):
    compare(any_of_them().pread(n, off), off, "read")


def status(off, n):
    """What is said to read as zeros does; the extents lie side by side."""
    at = off

    def extents(context, first, entries, error):
        nonlocal at
        for length, state in zip(entries[::2], entries[1::2]):
            end = min(at + length, off + n)
            if state & nbd.STATE_ZERO and model[at:end].count(0) != end - at:
                fail("block status says that [%d, %d) is zero" % (at, end))
            at = end

    while at < off + n:
        before = at
        any_of_them().block_status(off + n - at, at, extents)
        if at == before:
            fail("block status says nothing at %d" % at)


def burst():
    """Operations in flight together, each in a part of its own."""
    part = size // 32
    flying = []
    for i in range(32):
        off = i * part + pick.randrange(part // 2)
        n = pick.randrange(1, part // 2)
        h = any_of_them()
        what = pick.choice(["write", "zero", "trim", "read", "flush"])
        if what == "write":
            data = pick.randbytes(n)
            cookie = h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), off, flags=flags())
            model[off : off + n] = data
        elif what == "read":
            buffer = nbd.Buffer(n)
            flying.append((h, h.aio_pread(buffer, off), (buffer, off)))
            continue
        elif what == "flush":
            cookie = h.aio_flush()
        else:
            cookie = (h.aio_zero if what == "zero" else h.aio_trim)(n, off)
            model[off : off + n] = bytes(n)
        flying.append((h, cookie, None))
    for h, cookie, answer in flying:
        while not h.aio_command_completed(cookie):
            h.poll(-1)
        if answer:
            compare(answer[0].to_bytearray(), answer[1], "read in a burst")


def snapshot():
    name = "fsx%d" % len(done)
    subprocess.run([varve, "snapshot", "create", volume, "--name", name], check=True, stdout=subprocess.DEVNULL)
    snapshots[name] = bytes(model)
    if len(snapshots) > 4:
        name = pick.choice(list(snapshots))
        del snapshots[name]
        subprocess.run([varve, "snapshot", "delete", "%s@%s" % (volume, name)], check=True, stdout=subprocess.DEVNULL)


def compare_snapshots():
    for name, want in snapshots.items():
        got = connect(uri.replace("/" + volume + "?", "/%s@%s?" % (volume, name))).pread(size, 0)
        if got != want:
            fail("snapshot %s differs" % name)


for step in range(steps):
    what = pick.choices(
        [write, zero, trim, read, status, burst, snapshot], [30, 8, 8, 30, 10, 4, 2])[0]
    if what in (burst, snapshot):
        done.append(what.__name__)
        what()
    else:
        off, n = place(pick.choice([16, 256]) << 10)
        done.append("%s [%d, %d)" % (what.__name__, off, off + n))
        what(off, n)
    if pick.random() < 0.1:
        any_of_them().flush()
    if step % 200 == 199:
        compare_snapshots()
compare(any_of_them().pread(size, 0), 0, "the volume")
compare_snapshots()
for h in connections:
    h.shutdown()
