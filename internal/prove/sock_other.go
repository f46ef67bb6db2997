//go:build !linux

package main

import (
	"errors"
	"net/netip"
	"syscall"
)

func likeEthernet(string, string, syscall.RawConn) error { return nil }
func receiveBuffer(int) func(network, address string, c syscall.RawConn) error {
	return func(string, string, syscall.RawConn) error { return nil }
}

func sendFrom([4]byte, netip.AddrPort, []byte) error { return errors.ErrUnsupported }
