package peercred

import "golang.org/x/sys/unix"

func get(fd int) (*Cred, error) {
	u, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return nil, err
	}
	// A socket without a peer answers too, with nobody: that must not become
	// user 4294967295, and much less be let in.
	if u.Uid == ^uint32(0) {
		return nil, unix.ENOTCONN
	}
	return &Cred{PID: int(u.Pid), UID: u.Uid, GID: u.Gid}, nil
}
