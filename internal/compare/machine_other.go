//go:build !linux

package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
)

// What follows exists so that results can be looked at anywhere (-from).

func supported() error {
	return fmt.Errorf("servers are measured on Linux only, this is %s", runtime.GOOS)
}

func twoCPUs() (srv, load int, err error) { return 0, 0, supported() }
func startOn(int, *exec.Cmd) error        { return supported() }
func processCPU(...int) float64           { return 0 }
func machineCPU() float64                 { return 0 }
func memory(int) (anonymous, peak int64)  { return 0, 0 }
func maxFiles() int                       { return 1024 }
func system() string                      { return runtime.GOOS }
func isTerminal(*os.File) bool            { return false }
