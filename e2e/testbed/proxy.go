package testbed

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
)

// A Proxy stands between a client and a server and breaks what passes. A fault
// holds for all connections, open and new, until Heal.
type Proxy struct {
	Address string // host:port

	t     testing.TB
	proxy *toxiproxy.Proxy
}

// NewProxy starts a proxy to the server at an URL (http://host:port).
func NewProxy(t testing.TB, server string) *Proxy {
	t.Helper()
	ports, err := freePorts(1)
	if err != nil {
		t.Fatalf("testbed: %v", err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", ports[0])
	silent := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	p := &Proxy{Address: address, t: t, proxy: toxiproxy.NewProxy(silent, t.Name(), address, strings.TrimPrefix(server, "http://"))}
	p.Up()
	t.Cleanup(p.proxy.Stop)
	return p
}

// Down cuts all connections and refuses new ones, as a server that has ended.
func (p *Proxy) Down() { p.proxy.Stop() }

// Up ends Down.
func (p *Proxy) Up() {
	p.t.Helper()
	if err := p.proxy.Start(); err != nil {
		p.t.Fatalf("testbed: proxy: %v", err)
	}
}

// Delay lets everything arrive later by d, in each direction.
func (p *Proxy) Delay(d time.Duration) {
	p.t.Helper()
	for _, stream := range []string{"upstream", "downstream"} {
		p.add("latency", stream, map[string]int64{"latency": d.Milliseconds()})
	}
}

// CutUpload ends each connection when the client has sent n bytes.
func (p *Proxy) CutUpload(n int64) {
	p.t.Helper()
	p.add("limit_data", "upstream", map[string]int64{"bytes": n})
}

// CutDownload ends each connection when the server has sent n bytes.
func (p *Proxy) CutDownload(n int64) {
	p.t.Helper()
	p.add("limit_data", "downstream", map[string]int64{"bytes": n})
}

// Reset resets each connection when the server sends something.
func (p *Proxy) Reset() {
	p.t.Helper()
	p.add("reset_peer", "downstream", map[string]int64{"timeout": 0})
}

// Hang lets nothing arrive, and says nothing.
func (p *Proxy) Hang() {
	p.t.Helper()
	p.add("timeout", "downstream", map[string]int64{"timeout": 0})
}

// Heal ends all faults but Down.
func (p *Proxy) Heal() {
	p.proxy.Toxics.ResetToxics(context.Background())
}

func (p *Proxy) add(kind, stream string, attributes map[string]int64) {
	p.t.Helper()
	text, err := json.Marshal(map[string]any{"type": kind, "stream": stream, "attributes": attributes})
	if err != nil {
		p.t.Fatalf("testbed: proxy: %v", err)
	}
	if _, err := p.proxy.Toxics.AddToxicJson(bytes.NewReader(text)); err != nil {
		p.t.Fatalf("testbed: proxy: %s: %v", kind, err)
	}
}
