//go:build !(linux || darwin || freebsd)

package peercred

import "errors"

func get(fd int) (*Cred, error) { return nil, errors.ErrUnsupported }
