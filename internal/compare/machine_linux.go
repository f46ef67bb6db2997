package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// supported is nil where this program can measure.
func supported() error { return nil }

// twoCPUs are those that setup A gives to the server and to the load.
func twoCPUs() (srv, load int, err error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return 0, 0, os.NewSyscallError("sched_getaffinity", err)
	}
	var cpus []int
	for i := 0; len(cpus) < 2 && i < len(set)*64; i++ {
		if set.IsSet(i) {
			cpus = append(cpus, i)
		}
	}
	if len(cpus) < 2 {
		return 0, 0, fmt.Errorf("setup A needs two CPUs")
	}
	return cpus[0], cpus[1], nil
}

// startOn starts a process that runs on one CPU alone, or anywhere for -1. A new
// process has the CPUs of the thread that started it: so none of its own threads
// is ever elsewhere.
func startOn(cpu int, cmd *exec.Cmd) error {
	if cpu < 0 {
		return cmd.Start()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return os.NewSyscallError("sched_getaffinity", err)
	}
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return os.NewSyscallError("sched_setaffinity", err)
	}
	err := cmd.Start()
	if e := unix.SchedSetaffinity(0, &before); e != nil && err == nil {
		err = os.NewSyscallError("sched_setaffinity", e)
	}
	return err
}

// processCPU is utime + stime of processes, in seconds, from the kernel's clock
// for each: /proc counts in hundredths of a second.
func processCPU(pids ...int) (sum float64) {
	for _, pid := range pids {
		var t unix.Timespec
		if unix.ClockGettime(^int32(pid)<<3|2, &t) == nil { // as clock_getcpuclockid(3) makes it
			sum += float64(t.Nano()) / 1e9
		}
	}
	return sum
}

// machineCPU is the CPU time that all processes of the machine have used, and
// what was taken from it by others outside, in seconds.
func machineCPU() (total float64) {
	b, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(b), "\n")
	for i, f := range strings.Fields(line) {
		switch i {
		case 1, 2, 3, 6, 7, 8: // user nice system; irq softirq steal
			n, _ := strconv.ParseFloat(f, 64)
			total += n / 100 // USER_HZ is 100 on all architectures that Go runs on
		}
	}
	return total
}

// memory returns fields of /proc/PID/status, in bytes.
func memory(pid int) (anonymous, peak int64) {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		n, _ := strconv.ParseInt(f[1], 10, 64)
		switch f[0] {
		case "RssAnon:":
			anonymous = n << 10
		case "VmHWM:":
			peak = n << 10
		}
	}
	return anonymous, peak
}

// maxFiles is how many descriptors a process can have.
func maxFiles() int {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) != nil {
		return 1024
	}
	return int(min(l.Max, 1<<20))
}

// system describes the machine for the results.
func system() string {
	var u unix.Utsname
	unix.Uname(&u)
	cpu := "unknown CPU"
	b, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
			cpu = strings.TrimSpace(v)
			break
		}
	}
	return fmt.Sprintf("Linux %s, %s, %d CPUs, %s", unix.ByteSliceToString(u.Release[:]), cpu, runtime.NumCPU(), runtime.Version())
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
