//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package transport

import (
	"io"
	"net"
)

// newFD returns nil: descriptors cannot be waited for here without reading
// (windows), or there are none (plan9, js, wasip1), or nobody has tried (other
// Unix systems). New falls back to the blocking adapter.
func newFD(rwc io.ReadWriteCloser) Conn { return nil }

// underlying returns nil too: a connection below another is then known by its
// methods alone.
func underlying(inner net.Conn) Conn { return nil }
