// Command sockhub shows the library at work:
//
//	go run ./internal/cmd/sockhub demo
//
// It starts a hub in this process and its peers in a second one, moves messages
// between them over every kind of connection, lets a peer stop reading and
// another one die, and checks that all of it went as the library promises. Its
// exit status is 1 if anything did not.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

const usage = `usage: sockhub demo [flags]

  -messages n   small messages to send, and to get back (default 1,000,000)
  -bytes n      bytes to send as messages of 1 MiB (default 1 GiB)
  -timeout d    fail after this long (default 60s)
`

// run is main without the process around it. It returns the exit status.
func run(args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		io.WriteString(stderr, usage)
		return 2
	}
	switch args[0] {
	case "demo":
		return runDemo(args[1:], stdout, stderr)
	case peerCommand:
		return runPeer(args[1:], stderr)
	}
	fmt.Fprintf(stderr, "sockhub: no such command: %q\n%s", args[0], usage)
	return 2
}

func runDemo(args []string, stdout, stderr io.Writer) int {
	size := size{}
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { io.WriteString(stderr, usage) }
	flags.IntVar(&size.messages, "messages", 1_000_000, "")
	flags.Int64Var(&size.bytes, "bytes", 1<<30, "")
	limit := flags.Duration("timeout", time.Minute, "")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	case flags.NArg() > 0 || size.messages < 1 || size.bytes < 1:
		io.WriteString(stderr, usage)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	ctx, cancel := context.WithTimeoutCause(ctx, *limit, fmt.Errorf("not done after %v", *limit))
	defer cancel()
	// Everything waits for ctx too, the peer processes included. Should the
	// library fail to, this is the end nevertheless.
	bomb := time.AfterFunc(*limit+5*time.Second, func() {
		fmt.Fprintf(stderr, "FAILED: something still waits %v after the limit of %v\n", 5*time.Second, *limit)
		os.Exit(1)
	})
	defer bomb.Stop()
	if !runDemoOn(ctx, size, stdout, stderr) {
		return 1
	}
	return 0
}
