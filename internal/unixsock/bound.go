package unixsock

import (
	"net"
	"os"
)

// Bound is the socket file of one who dials again and again from a path of his own: no
// system removes it, also where it came to a connection, and the next attempt could not
// bind. A nil *Bound is for those who have none. It is not safe for concurrent use.
type Bound struct {
	path string
	file os.FileInfo // that the last attempt has made; nil: none
}

// NewBound returns that of the address that is dialed from, or nil if that is no path.
func NewBound(local net.Addr) *Bound {
	a, ok := local.(*net.UnixAddr)
	if !ok || a == nil || a.Name == "" || isAbstract(a.Name) || a.Name[0] == 0 {
		return nil
	}
	return &Bound{path: a.Name}
}

// Dial calls dial, without what the last attempt has left, and notes the file that it
// makes, whatever comes of it: a dial whose context ends does not tell how far it came.
func (b *Bound) Dial(dial func() (net.Conn, error)) (net.Conn, error) {
	if b == nil {
		return dial()
	}
	b.remove()
	_, before := os.Lstat(b.path)
	nc, err := dial()
	if file, now := os.Lstat(b.path); before != nil && now == nil && file.Mode().Type() == os.ModeSocket {
		b.file = file
	}
	return nc, err
}

// remove removes the file of the last attempt, if it is still that.
func (b *Bound) remove() {
	if b.file == nil {
		return
	}
	if now, err := os.Lstat(b.path); err == nil && os.SameFile(b.file, now) && b.file.ModTime().Equal(now.ModTime()) {
		os.Remove(b.path)
	}
	b.file = nil
}
