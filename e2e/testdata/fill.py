# fill.py URI FIRST COUNT BYTE   write COUNT MiB of one byte from FIRST MiB on, and flush; stop at an error.
#
# It prints how many MiB were answered, and "ok" or the name of the error (ENOSPC).
import errno
import sys

import nbd

uri = sys.argv[1]
first, count, byte = (int(a) for a in sys.argv[2:])
h = nbd.NBD()
h.connect_uri(uri)
n = 0
try:
    for n in range(count):
        h.pwrite(bytes([byte]) * (1 << 20), (first + n) << 20)
    n = count
    h.flush()
    print(n, "ok")
except nbd.Error as e:
    print(n, e.errno if isinstance(e.errno, str) else errno.errorcode[e.errnum])
