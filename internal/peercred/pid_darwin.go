package peercred

import "golang.org/x/sys/unix"

// pid is the peer's process, or 0.
func pid(fd int) int {
	n, err := unix.GetsockoptInt(fd, unix.SOL_LOCAL, unix.LOCAL_PEERPID)
	if err != nil {
		return 0
	}
	return n
}
