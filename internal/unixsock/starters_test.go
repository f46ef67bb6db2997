//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package unixsock

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

var rounds = flag.Int("rounds", 1000, "races for one path in each test of starters")

// remains puts at the path what one of the ways in which a server can end
// leaves there.
func remains(t *testing.T, path string, round int) {
	t.Helper()
	if round%3 > 0 {
		dead(t, "unix", path)
	}
	if round%3 > 1 {
		if err := os.WriteFile(path+".lock", nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOneOfManyStartersWins(t *testing.T) {
	path := tempPath(t)
	const starters = 4
	for round := range *rounds {
		remains(t, path, round)
		var wg sync.WaitGroup
		ready := make(chan struct{})
		won := make(chan *Listener, starters)
		for range starters {
			wg.Go(func() {
				<-ready
				l, err := Listen(t.Context(), nil, "unix", path, 0)
				if err == nil {
					won <- l
				} else if !errors.Is(err, syscall.EADDRINUSE) {
					t.Errorf("round %d: %v", round, err)
				}
			})
		}
		close(ready)
		wg.Wait()
		if len(won) != 1 {
			t.Fatalf("round %d: %d listen, want 1", round, len(won))
		}
		l := <-won
		reaches(t, l, path)
		if err := l.Close(); err != nil {
			t.Errorf("round %d: Close: %v", round, err)
		}
		nothing(t, path)
	}
}

// Those who start while another ends either fail or are reached.
func TestStartersRaceWithClose(t *testing.T) {
	path := tempPath(t)
	var holders, starts atomic.Int32
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for int(starts.Load()) < *rounds && !t.Failed() {
				l, err := Listen(t.Context(), nil, "unix", path, 0)
				if err != nil {
					if !errors.Is(err, syscall.EADDRINUSE) {
						t.Error(err)
					}
					continue
				}
				starts.Add(1)
				if n := holders.Add(1); n != 1 {
					t.Errorf("%d listen at once", n)
				}
				reaches(t, l, path)
				holders.Add(-1)
				if err := l.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			}
		})
	}
	wg.Wait()
	nothing(t, path)
}

// starterEnv, in the environment of this test binary, is the path for which it
// is a starter; see TestStarter.
const starterEnv = "SOCKHUB_UNIXSOCK_STARTER"

// TestStarter is the body of a starter process, and does nothing elsewhere. At
// each line of its input it closes its listener if it has one, else it tries
// to listen. It says how that went.
func TestStarter(t *testing.T) {
	path, ok := os.LookupEnv(starterEnv)
	if !ok {
		return
	}
	var l *Listener
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var err error
		if l != nil {
			err = l.Close()
			l = nil
		} else if l, err = Listen(context.Background(), nil, "unix", path, 0); err == nil {
			fmt.Println("won")
			continue
		}
		switch {
		case err == nil:
			fmt.Println("closed")
		case errors.Is(err, syscall.EADDRINUSE):
			fmt.Println("in use")
		default:
			fmt.Println(err)
		}
	}
	os.Exit(0)
}

// starter is such a process.
type starter struct {
	*exec.Cmd
	t   *testing.T
	in  io.WriteCloser
	out *bufio.Scanner
}

func startStarter(t *testing.T, path string) *starter {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Skip(err)
	}
	// The limit is for what hangs.
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	cmd := exec.CommandContext(ctx, exe, "-test.run=^TestStarter$")
	cmd.Env = append(os.Environ(), starterEnv+"="+path)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		cancel()
		t.Skipf("cannot run a process here: %v", err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Wait()
		cancel()
	})
	return &starter{cmd, t, in, bufio.NewScanner(out)}
}

func (s *starter) tell() {
	s.t.Helper()
	if _, err := io.WriteString(s.in, "\n"); err != nil {
		s.t.Fatal(err)
	}
}

func (s *starter) says() string {
	s.t.Helper()
	if !s.out.Scan() {
		s.t.Fatalf("the process ended: %v", s.out.Err())
	}
	return s.out.Text()
}

func TestOneOfManyStartingProcessesWins(t *testing.T) {
	path := tempPath(t)
	var all []*starter
	for range 3 {
		all = append(all, startStarter(t, path))
	}
	for round := range *rounds {
		if round%10 == 9 {
			raceForWhatIsNotOurs(t, path, round, all)
			continue
		}
		remains(t, path, round)
		for _, s := range all {
			s.tell()
		}
		var winner *starter
		var said []string
		for _, s := range all {
			answer := s.says()
			said = append(said, answer)
			switch answer {
			case "won":
				winner = s
			case "in use":
			default:
				t.Fatalf("round %d: %s", round, answer)
			}
		}
		if strings.Count(strings.Join(said, ","), "won") != 1 {
			t.Fatalf("round %d: they say %q, want one to have won", round, said)
		}
		// It does not accept, but it has the name.
		if err := probe("unix", path); err != nil {
			t.Errorf("round %d: connecting: %v", round, err)
		}
		winner.tell()
		if answer := winner.says(); answer != "closed" {
			t.Fatalf("round %d: %s", round, answer)
		}
		nothing(t, path)
	}
}

// raceForWhatIsNotOurs puts something at the path that is no dead socket, and
// checks that none of the starters has it, or has removed it.
func raceForWhatIsNotOurs(t *testing.T, path string, round int, all []*starter) {
	t.Helper()
	target := path + ".target"
	var err error
	if round%20 == 9 {
		err = os.WriteFile(path, []byte("a file"), 0o600)
	} else {
		dead(t, "unix", target) // a link to it is not it
		err = os.Symlink(target, path)
	}
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		s.tell()
	}
	for _, s := range all {
		if answer := s.says(); answer == "won" || answer == "closed" {
			t.Fatalf("round %d: %s, at what is no socket", round, answer)
		}
	}
	if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
		t.Fatalf("round %d: it is no longer there: %v", round, err)
	}
	os.Remove(path)
	os.Remove(target)
	os.Remove(path + ".lock") // that of who has looked
}

func TestKilledServerIsReplaced(t *testing.T) {
	path := tempPath(t)
	for range 5 {
		s := startStarter(t, path)
		s.tell()
		if answer := s.says(); answer != "won" {
			t.Fatal(answer)
		}
		fails(t, "unix", path, syscall.EADDRINUSE)
		if err := s.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		s.Wait()
		nothing(t, path, "s", "s.lock")
	}
	l := listenAt(t, path)
	reaches(t, l, path)
	l.Close()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	nothing(t, path)
}
