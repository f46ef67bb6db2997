package sockopt

import "golang.org/x/sys/unix"

// reusePortOption spreads connections, since FreeBSD 12. SO_REUSEPORT gives all
// of them to the socket that was bound last.
const reusePortOption = unix.SO_REUSEPORT_LB
