//go:build darwin || freebsd

package peercred

import (
	"errors"

	"golang.org/x/sys/unix"
)

// xucredVersion is XUCRED_VERSION of <sys/ucred.h>, the only one there is.
const xucredVersion = 0

func get(fd int) (*Cred, error) {
	x, err := unix.GetsockoptXucred(fd, unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
	if err != nil {
		return nil, err
	}
	if x.Version != xucredVersion || x.Ngroups < 1 {
		return nil, errors.New("credentials of an unknown form")
	}
	return &Cred{PID: pid(fd), UID: x.Uid, GID: x.Groups[0]}, nil
}
