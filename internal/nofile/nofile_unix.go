//go:build unix

package nofile

import "golang.org/x/sys/unix"

// Limit is the number of descriptors that the process may have open at a
// time. The runtime has raised the soft limit to the hard one, if package os
// was initialised.
func Limit() int {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil || r.Cur > Unlimited {
		return Unlimited
	}
	return int(r.Cur)
}
