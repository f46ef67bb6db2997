// Package sockopt sets options of sockets that package net has no name for.
//
// Its functions fit net.ListenConfig.Control, which runs before the socket is
// bound.
package sockopt

import "syscall"

// Control is the type of net.ListenConfig.Control. It may be called
// concurrently, as a ListenConfig may be used so.
type Control func(network, address string, c syscall.RawConn) error

// Then returns a Control that calls first, unless it is nil, and then next.
// next comes last so that first cannot undo it.
func Then(first, next Control) Control {
	if first == nil {
		return next
	}
	return func(network, address string, c syscall.RawConn) error {
		if err := first(network, address, c); err != nil {
			return err
		}
		return next(network, address, c)
	}
}

// ReusePort lets several sockets, of several processes too, listen on one TCP
// port. All of them have to ask for it before they are bound.
//
// It is SO_REUSEPORT on Linux and Android, where new connections are spread over
// the sockets and only processes of one user can share a port, and
// SO_REUSEPORT_LB on FreeBSD, which spreads them too. Darwin, iOS, OpenBSD and
// NetBSD have an SO_REUSEPORT that lets the sockets be bound, and promise nothing
// about which of them gets a connection. On other systems it fails with
// errors.ErrUnsupported: Windows has only SO_REUSEADDR, by which anybody can take
// a port away from its owner.
//
// A connection that its socket has not accepted when the socket is closed, or
// when its process dies, is reset; it is not passed on to the other sockets.
func ReusePort(network, address string, c syscall.RawConn) error {
	return reusePort(c)
}

// Autobind gives a Unix datagram socket that is about to be connected an address
// of its own, so that it can be answered: an abstract one that nobody else has
// (unix(7), autobind). It does nothing but on Linux, and where the socket is
// bound already.
func Autobind(network, address string, c syscall.RawConn) error {
	return autobind(c)
}
