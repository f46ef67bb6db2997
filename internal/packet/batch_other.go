//go:build !linux

package packet

import "net"

// writeBatch is how many datagrams are gathered at most before they are sent.
const writeBatch = 64

// newFastBatcher returns nil: there are no calls for many datagrams here that
// package net's sockets could be used with.
func newFastBatcher(net.PacketConn, int) batcher { return nil }
