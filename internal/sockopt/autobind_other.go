//go:build !linux

package sockopt

import "syscall"

func autobind(syscall.RawConn) error { return nil }
