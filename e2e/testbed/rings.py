# rings.py FOLDER kind:port...   write the rings of a Swift of one node
import os
import sys

from swift.common.ring import RingBuilder

folder = sys.argv[1]
for kind, port in (pair.split(":") for pair in sys.argv[2:]):
    builder = RingBuilder(4, 1, 0)  # 16 partitions, 1 replica
    builder.add_dev({
        "id": 0, "region": 1, "zone": 1, "device": "d1", "weight": 1.0, "meta": "",
        "ip": "127.0.0.1", "port": int(port), "replication_ip": "127.0.0.1", "replication_port": int(port),
    })
    builder.rebalance()
    builder.get_ring().save(os.path.join(folder, kind + ".ring.gz"))
