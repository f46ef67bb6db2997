package leakcheck

import (
	"os"
	"strconv"
)

// openFDs lists the open descriptors of the process. It is empty where /proc
// is not mounted: there goroutines alone are compared, as on other systems.
func openFDs() map[fd]struct{} {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	all := make(map[fd]struct{}, len(entries))
	for _, e := range entries {
		num, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		// One that does not resolve was closed since; the descriptor that
		// read the directory always is.
		if target, err := os.Readlink(dir + "/" + e.Name()); err == nil {
			all[fd{num, target}] = struct{}{}
		}
	}
	return all
}
