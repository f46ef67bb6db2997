// Command sockhub puts the library on the command line: a hub that listens, a
// peer that dials, a load generator, and a demonstration that checks itself.
//
//	go run ./internal/cmd/sockhub demo
//	go run ./internal/cmd/sockhub listen -echo tcp://127.0.0.1:7000
//	go run ./internal/cmd/sockhub dial tcp://127.0.0.1:7000
//	go run ./internal/cmd/sockhub bench tcp://127.0.0.1:7000
//
// Each says with -help what it can do. The exit status is 0 if all went well, 1
// if not, and 2 if the command line was wrong.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
)

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

// Exit statuses.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

const usage = `usage: sockhub command [flags] [arguments]

commands:
  listen   accept peers, print what they do, answer them
  dial     connect, send lines, print what comes
  bench    put load on a hub that echoes, and measure
  demo     see the library work, and check itself
  version  which one this is

'sockhub command -help' has the flags and examples of each.
` + exitHelp

const exitHelp = `The exit status is 0 if all went well, 1 if not, and 2 if the command line was wrong.
`

// streams are where a command reads and writes.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

// command is what can stand as the first word of the command line.
type command struct {
	name     string
	operands string // in the usage line, with a space before them
	about    string // what it does; ends with a newline
	examples string // lines; ends with a newline

	// prepare defines the flags, and returns what runs after they are
	// parsed, with what else stood on the command line.
	prepare func(*flag.FlagSet) func(ctx context.Context, s streams, operands []string) error
}

var commands = []*command{listenCommand, dialCommand, benchCommand, demoCommand}

// usageError is an error of whoever wrote the command line.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// errReported ends a command that has said itself what went wrong.
var errReported = errors.New("failed")

// run is main without the process around it. It returns the exit status.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	s := streams{stdin, stdout, stderr}
	if len(args) == 0 {
		io.WriteString(stderr, usage)
		return exitUsage
	}
	word := args[0]
	if word == "help" && len(args) > 1 {
		args = []string{args[1], "-help"}
		word = args[0]
	}
	switch word {
	case "help", "-h", "-help", "--help":
		io.WriteString(stdout, usage)
		return exitOK
	case "version", "-version", "--version":
		fmt.Fprintln(stdout, "sockhub", version())
		return exitOK
	case peerCommand:
		return runPeer(args[1:], stderr)
	}
	for _, c := range commands {
		if c.name == word {
			return c.run(args[1:], s)
		}
	}
	fmt.Fprintf(stderr, "sockhub: no such command: %q\n\n%s", word, usage)
	return exitUsage
}

func (c *command) run(args []string, s streams) int {
	flags := flag.NewFlagSet(c.name, flag.ContinueOnError)
	flags.SetOutput(io.Discard) // what it has to say is said below
	do := c.prepare(flags)
	operands, err := parse(flags, args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		c.help(s.out, flags)
		return exitOK
	case err != nil:
		err = usageError{err}
	default:
		// The second signal ends the process in the usual way, should the
		// first not have done it.
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		context.AfterFunc(ctx, stop)
		err = do(ctx, s, operands)
		stop()
	}
	var wrong usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &wrong):
		fmt.Fprintf(s.err, "sockhub %[1]s: %[2]v\nusage: sockhub %[1]s [flags]%[3]s; 'sockhub %[1]s -help' says more\n", c.name, err, c.operands)
		return exitUsage
	case !errors.Is(err, errReported):
		fmt.Fprintf(s.err, "sockhub %s: %v\n", c.name, err)
	}
	return exitFailure
}

// parse parses flags wherever they stand, as most programs do; the flag package
// alone would take everything behind the first operand for operands. Behind
// "--" all are.
func parse(flags *flag.FlagSet, args []string) (operands []string, err error) {
	for len(args) > 0 {
		if err := flags.Parse(args); err != nil {
			return nil, err
		}
		rest := flags.Args()
		if n := len(args) - len(rest); n > 0 && args[n-1] == "--" {
			return append(operands, rest...), nil
		}
		if len(rest) == 0 {
			break
		}
		operands, args = append(operands, rest[0]), rest[1:]
	}
	return operands, nil
}

func (c *command) help(w io.Writer, flags *flag.FlagSet) {
	fmt.Fprintf(w, "usage: sockhub %s [flags]%s\n\n%s\nflags:\n", c.name, c.operands, c.about)
	flags.SetOutput(w)
	flags.PrintDefaults()
	fmt.Fprintf(w, "\nexamples:\n%s\n%s", c.examples, exitHelp)
}

func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(unknown version)"
	}
	return info.Main.Version
}
