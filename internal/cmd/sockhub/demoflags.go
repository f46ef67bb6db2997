package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"time"
)

var demoCommand = &command{
	name: "demo",
	about: `It starts a hub in this process and its peers in a second one, moves messages
between them over every kind of connection, refuses peers that may not come in,
lets one stop reading, another one die and a third one come back, shuts down, and
checks that all of it went as the library promises. Nothing leaves the machine.
`,
	examples: `  sockhub demo
  sockhub demo -messages 10000 -bytes 10M   # in a second
`,
	prepare: func(flags *flag.FlagSet) func(context.Context, streams, []string) error {
		size := size{}
		flags.IntVar(&size.messages, "messages", 1_000_000, "`number` of small messages to send, and to get back")
		size.bytes = 1 << 30
		flags.Var((*byteSize)(&size.bytes), "bytes", "`number` of bytes to send as messages of 1 MiB")
		var limit time.Duration
		durationVar(flags, &limit, "timeout", time.Minute, "`time` after which to fail")
		return func(ctx context.Context, s streams, operands []string) error {
			switch {
			case len(operands) > 0:
				return usagef("nothing is expected beside flags: %q", operands[0])
			case size.messages < 1 || size.bytes < 1:
				return usagef("there has to be something to send")
			}
			return runDemo(ctx, size, limit, s)
		}
	},
}

func runDemo(ctx context.Context, size size, limit time.Duration, s streams) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not done after %v", limit))
	defer cancel()
	// Everything waits for ctx too, the peer processes included. Should the
	// library fail to, this is the end nevertheless.
	bomb := time.AfterFunc(limit+5*time.Second, func() {
		fmt.Fprintf(s.err, "FAILED: something still waits %v after the limit of %v\n", 5*time.Second, limit)
		os.Exit(exitFailure)
	})
	defer bomb.Stop()
	if !runDemoOn(ctx, size, s.out, s.err) {
		return errReported
	}
	return nil
}
