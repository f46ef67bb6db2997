package transport

import "golang.org/x/sys/unix"

// fionwrite is FIONWRITE of <sys/filio.h>, _IOR('f', 119, int), which x/sys
// does not have.
const fionwrite = 0x40046677

// sendQueue is the number of bytes in the socket's send buffer.
func sendQueue(fd int) (int, error) {
	return unix.IoctlGetInt(fd, fionwrite)
}
