# writer.py URI FIRST COUNT SEED ROUND   write blocks of 4 KiB at random over several connections of libnbd, and say what was promised.
#
# Only the blocks [FIRST, FIRST+COUNT) are touched. What is written in a round has its number; rounds are counted from ROUND. Block b of
# round r holds the two numbers b and r, 256 times. It prints
#
#     w r b b b ...   before these blocks are written
#     z r b b b ...   before these blocks are zeroed or trimmed
#     a r             after all of round r was answered
#     f r             after a flush was answered that began when all of round r and before was answered
#     u r b           after a write of block b with FUA was answered
#
# and ends when the connection does, or when its input ends.
import random
import select
import struct
import sys

import nbd

uri = sys.argv[1]
first, count, seed, round = (int(a) for a in sys.argv[2:])
pick = random.Random(seed)


def connect():
    h = nbd.NBD()
    h.connect_uri(uri)
    return h


def say(*words):
    print(*words, flush=True)


def content(b):
    return struct.pack("<QQ", b, round) * 256


def write(blocks):
    """Write all of them, in flight together."""
    say("w", round, *blocks)
    flying = []
    for b in blocks:
        h = pick.choice(connections)
        flying.append((h, h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(content(b))), b * 4096)))
    for h, cookie in flying:
        while not h.aio_command_completed(cookie):
            h.poll(-1)


def zero():
    n = pick.choice([1, 8, min(100, count), count // 3])
    b = first + pick.randrange(count - n + 1)
    say("z", round, *range(b, b + n))
    h = pick.choice(connections)
    pick.choice([h.zero, h.trim])(n * 4096, b * 4096)


connections = []
try:
    connections = [connect() for _ in range(3)]
    while not select.select([sys.stdin], [], [], 0)[0]:
        round += 1
        what = pick.random()
        if what < 0.1:
            b = first + pick.randrange(count)
            say("w", round, b)
            pick.choice(connections).pwrite(content(b), b * 4096, nbd.CMD_FLAG_FUA)
            say("u", round, b)
            continue
        if what < 0.25:
            zero()
        else:
            write(sorted({first + pick.randrange(count) for _ in range(pick.choice([1, 4, 32, 200]))}))
        say("a", round)
        if pick.random() < 0.7:
            pick.choice(connections).flush()
            say("f", round)
except nbd.Error as e:
    print(e, file=sys.stderr)
