package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strings"
)

// rss is the memory of this process that is in RAM, in bytes. The row is
// skipped where the system does not tell.
func (p *proof) rss() int64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		p.skip("no /proc/self/statm here")
	}
	var size, resident int64
	if _, err := fmt.Fscan(bytes.NewReader(b), &size, &resident); err != nil {
		p.skip("/proc/self/statm: %v", err)
	}
	return resident * int64(os.Getpagesize())
}

// settle collects the garbage and gives the memory back.
func settle() {
	runtime.GC()
	runtime.GC() // what pools hold goes with the second
	debug.FreeOSMemory()
}

// heap is what is in use after a collection.
func heap() int64 {
	settle()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// fds counts this process's descriptors, or returns 0 where that is not told.
func fds() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(entries) - 1 // that of the directory
}

// leaked counts the goroutines that can never go on, where the runtime was built
// to tell (GOEXPERIMENT=goroutineleakprofile).
func leaked() (n int, ok bool) {
	profile := pprof.Lookup("goroutineleak")
	if profile == nil {
		return 0, false
	}
	var b bytes.Buffer
	if profile.WriteTo(&b, 1) != nil {
		return 0, false
	}
	for in := bufio.NewScanner(&b); in.Scan(); {
		var total int
		if _, err := fmt.Sscanf(in.Text(), "goroutineleak profile: total %d", &total); err == nil {
			return total, true
		}
	}
	return strings.Count(b.String(), " @ "), true
}

// mib is a number of bytes as text.
func mib(n int64) string { return fmt.Sprintf("%.2f MiB", float64(n)/(1<<20)) }
