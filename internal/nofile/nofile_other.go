//go:build !unix

package nofile

// Limit is Unlimited: the system has no limit of this kind.
func Limit() int { return Unlimited }
