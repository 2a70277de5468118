# writer.py URI BLOCKS SEED   write blocks of 4 KiB at random through libnbd; after each flush that was answered, say which.
#
# Block b written in round r holds the two numbers b and r, 256 times. A line "r b b b ..." is printed when the flush after round r
# was answered, so that whoever reads the lines knows what must survive. It ends when the connection does.
import random
import struct
import sys

import nbd

uri, blocks, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
pick = random.Random(seed)
h = nbd.NBD()
h.connect_uri(uri)
round = seed * 1000000
try:
    while True:
        round += 1
        chosen = [pick.randrange(blocks) for _ in range(pick.choice([1, 4, 32, 200]))]
        for b in chosen:
            h.pwrite(struct.pack("<QQ", b, round) * 256, b * 4096)
        h.flush()
        print(round, *chosen, flush=True)
except nbd.Error:
    pass
