//go:build !linux

package packet

import "net"

// newFastBatcher returns nil: there are no calls for many datagrams here that
// package net's sockets could be used with.
func newFastBatcher(net.PacketConn, int) batcher { return nil }
