//go:build !linux && !darwin && !freebsd && !netbsd && !openbsd

package main

// isTerminal is false where nobody has made out how a terminal wants to be
// talked to: the output is then that for a pipe.
func isTerminal(any) bool { return false }
