//go:build !(darwin || freebsd || linux || netbsd || openbsd)

package sockopt

import (
	"errors"
	"fmt"
	"runtime"
	"syscall"
)

func reusePort(syscall.RawConn) error {
	return fmt.Errorf("sharing a port on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}
