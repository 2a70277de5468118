package testbed

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
)

// reserved keeps the ports that this process has taken from others of the kind.
var reserved struct {
	sync.Mutex
	marks []net.Listener
}

// freePorts returns TCP ports of the loopback interface for servers that start
// later, and may end and start again. Nobody else listens on them, and no test
// bed gets them while this process lives. They are below those that the kernel
// gives to clients: a client that asks for a server that is away would be given
// its port now and then, and the server could not come back.
func freePorts(n int) ([]int, error) {
	const least, tries = 10_000, 1000
	end := 32_768 // Linux: Documentation/networking/ip-sysctl, ip_local_port_range
	if text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		if _, err := fmt.Sscan(string(text), &end); err != nil || end < 2*least {
			return nil, fmt.Errorf("clients are given ports from %d on: there is no room for servers below", end)
		}
	}
	reserved.Lock()
	defer reserved.Unlock()
	var ports []int
	for range tries {
		if len(ports) == n {
			return ports, nil
		}
		port := least + rand.IntN(end-least)
		mark, err := net.Listen("unix", fmt.Sprintf("@varve-testbed-%d", port)) // of the network's name space, as the port is
		if err != nil {
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			mark.Close()
			continue
		}
		l.Close()
		reserved.marks = append(reserved.marks, mark)
		ports = append(ports, port)
	}
	return nil, errors.New("no free port was found")
}
