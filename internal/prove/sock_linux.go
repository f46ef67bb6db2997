package main

import (
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// likeEthernet makes a TCP socket that is about to connect use segments as
// Ethernet carries them. Over loopback they have 64 KiB, and a receiver says
// nothing of room for less than one.
func likeEthernet(_, _ string, c syscall.RawConn) error {
	var err error
	if cerr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, 1448)
	}); cerr != nil {
		return cerr
	}
	return err
}

// receiveBuffer gives a socket a receive buffer of that size, of which the system makes
// twice as much, for what it needs beside. Accepted connections have it from their listener.
func receiveBuffer(size int) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, size)
		}); cerr != nil {
			return cerr
		}
		return err
	}
}

// sendFrom sends one datagram from an address.
func sendFrom(ip [4]byte, to netip.AddrPort, b []byte) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: ip}); err != nil {
		return err
	}
	return unix.Sendto(fd, b, 0, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
}
