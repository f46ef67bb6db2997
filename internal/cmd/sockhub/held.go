package main

import (
	"fmt"
	"os"
	"runtime"
	"time"
)

// held is what the process holds that could be left behind.
type held struct{ goroutines, descriptors int }

// holding counts it. Descriptors are -1 where there is no way to count them.
func holding() held {
	// The runtime makes descriptors of its own for the first pipe.
	if r, w, err := os.Pipe(); err == nil {
		r.Close()
		w.Close()
	}
	return held{runtime.NumGoroutine(), descriptors()}
}

// leftovers reports what is held beyond what was before, when that does not go
// away within a second: a goroutine that is done may not have returned yet.
func leftovers(before held) error {
	var now held
	for range 100 {
		if now = holding(); now.goroutines <= before.goroutines && now.descriptors <= before.descriptors {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("%d goroutines where there were %d, %d descriptors where there were %d",
		now.goroutines, before.goroutines, now.descriptors, before.descriptors)
}

// descriptors is the number of open descriptors.
func descriptors() int {
	if runtime.GOOS != "linux" {
		return -1
	}
	list, err := os.ReadDir("/proc/self/fd") // which has one open itself, always
	if err != nil {
		return -1
	}
	return len(list)
}
