// Package peercred asks the system who is at the other end of a Unix socket.
package peercred

import (
	"errors"
	"fmt"
	"net"
)

// Cred names the process that connected, or that listened, as the kernel knew
// it at that moment. The process may have changed or ended since, and its PID
// may be another's by now: decide by UID and GID.
type Cred struct {
	PID int // 0 where the system does not tell it (freebsd)
	UID uint32
	GID uint32 // the effective, first group
}

// Of returns the credentials of c's peer. The error is errors.ErrUnsupported
// if c is not a Unix socket of package net or the system has no such thing.
// It may be called concurrently with any other use of c.
func Of(c net.Conn) (*Cred, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("peercred: %w", err)
	}
	var cred *Cred
	cerr := raw.Control(func(fd uintptr) { cred, err = get(int(fd)) })
	if cerr != nil {
		err = cerr
	}
	if err != nil {
		return nil, fmt.Errorf("peercred: %w", err)
	}
	return cred, nil
}
