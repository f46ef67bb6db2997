//go:build darwin || linux || netbsd || openbsd

package sockopt

import "golang.org/x/sys/unix"

const reusePortOption = unix.SO_REUSEPORT
