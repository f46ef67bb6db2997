// Command deep is the part of internal/prove that needs more than the library
// does: a checker of linearizability, and a proxy that breaks connections. Its
// parent runs it:
//
//	go run . registry 1000000 1
//	go run . faults 2000 1
//
// with how often, and where chance begins.
package main

import (
	"fmt"
	"os"
	"strconv"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Println("FAIL", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("usage: deep registry|faults number seed")
	}
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	seed, err := strconv.ParseUint(args[2], 10, 64)
	if err != nil {
		return err
	}
	switch args[0] {
	case "registry":
		return registry(n, seed)
	case "faults":
		return faults(n, seed)
	}
	return fmt.Errorf("no such proof: %q", args[0])
}
