//go:build dragonfly || netbsd || openbsd

package transport

import "errors"

// sendQueue is the number of bytes in the socket's send buffer, which these
// systems do not all tell.
func sendQueue(fd int) (int, error) { return 0, errors.ErrUnsupported }
