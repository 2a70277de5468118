# knock.py URI MIB   for each line of input write a MiB of zeros at MIB, and flush; print "ok", or the name of the error (EIO).
import errno
import sys

import nbd

h = nbd.NBD()
h.connect_uri(sys.argv[1])
print("connected", flush=True)
for _ in sys.stdin:
    answers = []
    for call in (lambda: h.pwrite(bytes(1 << 20), int(sys.argv[2]) << 20), h.flush):
        try:
            call()
            answers.append("ok")
        except nbd.Error as e:
            answers.append(e.errno if isinstance(e.errno, str) else errno.errorcode[e.errnum])
    print(*answers, flush=True)
