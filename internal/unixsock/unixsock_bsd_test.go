//go:build darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock

const hasAbstract = false
