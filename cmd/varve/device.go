package main

import (
	"context"
	"log/slog"
	"net"

	"varve/agent"
	"varve/nbd"
	"varve/nbd/kernel"
)

// kernelDevices shows exports as devices of the kernel: agent.Devices.
type kernelDevices struct {
	server *nbd.Server
	log    *slog.Logger
}

func newKernelDevices(log *slog.Logger) kernelDevices {
	return kernelDevices{&nbd.Server{Log: log}, log}
}

// Attach implements agent.Devices.
func (k kernelDevices) Attach(ctx context.Context, e *agent.Export, o agent.DeviceOptions) (agent.Device, error) {
	// The export stays open from the first connection to the last.
	export := nbd.Export{Name: e.Name, Description: e.Description, Device: deviceOf(e), ReadOnly: !e.Writable}
	d, err := kernel.Attach(ctx, kernel.Options{
		Identity: o.Identity, Link: o.Link, TakeOver: o.TakeOver, Index: o.Index, IndexIsAWish: o.IndexIsAWish,
		Size: e.Layer.Size(), BlockSize: o.BlockSize, Flags: nbd.KernelFlags(&export), Connections: o.Connections,
		Serve: func(ctx context.Context, conn net.Conn) error { return k.server.ServeExport(ctx, conn, &export) },
		Log:   k.log,
	})
	if err != nil {
		return nil, err
	}
	return d, nil
}

// deviceOf gives an export the shape of the NBD server's device.
func deviceOf(e *agent.Export) nbd.Device {
	if !e.Writable {
		return nbd.ReadOnly(e.Layer)
	}
	device, ok := e.Layer.(nbd.Device)
	if !ok {
		panic("varve: a writable export that cannot be written")
	}
	return device
}
