package testbed

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
)

// A Proxy stands between a client and a server and breaks what passes. A fault
// holds for all connections until Heal. Each change of faults ends the
// connections that are open, as a server that is started anew.
//
// It is a new Toxiproxy for each set of faults, since a change in one that has
// connections may wait for ever: for one that has just ended, which waits for
// the change to end.
type Proxy struct {
	Address string // host:port

	t      testing.TB
	server string           // host:port
	faults []map[string]any // as Toxiproxy's API has them
	proxy  *toxiproxy.Proxy // nil: down
}

// NewProxy starts a proxy to the server at an URL (http://host:port).
func NewProxy(t testing.TB, server string) *Proxy {
	t.Helper()
	ports, err := freePorts(1)
	if err != nil {
		t.Fatalf("testbed: %v", err)
	}
	p := &Proxy{Address: fmt.Sprintf("127.0.0.1:%d", ports[0]), t: t, server: strings.TrimPrefix(server, "http://")}
	p.Up()
	t.Cleanup(p.Down)
	return p
}

// Down cuts all connections and refuses new ones, as a server that has ended.
func (p *Proxy) Down() {
	if p.proxy != nil {
		p.proxy.Stop()
	}
	p.proxy = nil
}

// Up ends Down.
func (p *Proxy) Up() {
	p.t.Helper()
	silent := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	proxy := toxiproxy.NewProxy(silent, p.t.Name(), p.Address, p.server)
	for _, fault := range p.faults {
		text, err := json.Marshal(fault)
		if err != nil {
			p.t.Fatalf("testbed: proxy: %v", err)
		}
		if _, err := proxy.Toxics.AddToxicJson(bytes.NewReader(text)); err != nil {
			p.t.Fatalf("testbed: proxy: %v: %v", fault, err)
		}
	}
	if err := proxy.Start(); err != nil {
		p.t.Fatalf("testbed: proxy: %v", err)
	}
	p.proxy = proxy
}

// Delay lets everything arrive later by d, in each direction.
func (p *Proxy) Delay(d time.Duration) {
	p.t.Helper()
	late := map[string]int64{"latency": d.Milliseconds()}
	p.set(append(p.faults, fault("latency", "upstream", late), fault("latency", "downstream", late))...)
}

// CutUpload ends each connection when the client has sent n bytes.
func (p *Proxy) CutUpload(n int64) {
	p.t.Helper()
	p.set(append(p.faults, fault("limit_data", "upstream", map[string]int64{"bytes": n}))...)
}

// CutDownload ends each connection when the server has sent n bytes.
func (p *Proxy) CutDownload(n int64) {
	p.t.Helper()
	p.set(append(p.faults, fault("limit_data", "downstream", map[string]int64{"bytes": n}))...)
}

// Reset resets each connection when the server sends something.
func (p *Proxy) Reset() {
	p.t.Helper()
	p.set(append(p.faults, fault("reset_peer", "downstream", map[string]int64{"timeout": 0}))...)
}

// Hang lets nothing arrive, and says nothing.
func (p *Proxy) Hang() {
	p.t.Helper()
	p.set(append(p.faults, fault("timeout", "downstream", map[string]int64{"timeout": 0}))...)
}

// Heal ends all faults but Down.
func (p *Proxy) Heal() {
	p.t.Helper()
	p.set()
}

func (p *Proxy) set(faults ...map[string]any) {
	p.t.Helper()
	if len(faults) == 0 && len(p.faults) == 0 {
		return
	}
	p.faults = faults
	if p.proxy != nil {
		p.Down()
		p.Up()
	}
}

func fault(kind, stream string, attributes map[string]int64) map[string]any {
	return map[string]any{"type": kind, "stream": stream, "attributes": attributes}
}
