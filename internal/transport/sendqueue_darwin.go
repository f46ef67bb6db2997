package transport

import "golang.org/x/sys/unix"

// sendQueue is the number of bytes in the socket's send buffer.
func sendQueue(fd int) (int, error) {
	return unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_NWRITE)
}
