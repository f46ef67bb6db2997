//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package unixsock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"runtime"
)

// open leaves everything to the net package, and refuses what that cannot do.
func open[S any](_ context.Context, _, path string, mode fs.FileMode, _ func(fs.FileMode) (S, error), plain func() (S, error)) (S, *file, error) {
	var none S
	if isAbstract(path) {
		return none, nil, fmt.Errorf("abstract names on %s: %w", runtime.GOOS, errors.ErrUnsupported)
	}
	if mode != 0 {
		return none, nil, fmt.Errorf("the mode of a socket file on %s (access is what its directory grants): %w", runtime.GOOS, errors.ErrUnsupported)
	}
	s, err := plain()
	return s, nil, err
}

// file is never made here.
type file struct{}

func (*file) remove() error { return nil }
func (*file) unlock() error { return nil }

func listen(context.Context, *net.ListenConfig, string, string, fs.FileMode) (*net.UnixListener, error) {
	return nil, errors.ErrUnsupported
}

func listenPacket(context.Context, *net.ListenConfig, string, fs.FileMode) (*net.UnixConn, error) {
	return nil, errors.ErrUnsupported
}
