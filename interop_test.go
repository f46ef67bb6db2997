package sockhub_test

// Peers in Python that speak the wire format.

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sockhub/sockhub"
)

// python finds an interpreter that can run wirepeer.py, once.
var python = sync.OnceValues(func() (string, error) {
	for _, name := range []string{"python3", "python"} {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		if exec.Command(path, "-c", "import sys; sys.exit(sys.version_info < (3, 9))").Run() == nil {
			return path, nil
		}
	}
	return "", errors.New("no Python 3.9 or newer here")
})

// wirepeer is a running testdata/wirepeer.py.
type wirepeer struct {
	t      *testing.T
	cmd    *exec.Cmd
	stderr bytes.Buffer
	lines  chan string // of its output; closed at its end
	ended  chan struct{}
	err    error
}

func startWirepeer(t *testing.T, args ...string) *wirepeer {
	t.Helper()
	path, err := python()
	if err != nil {
		t.Skip(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	p := &wirepeer{t: t, lines: make(chan string, 100), ended: make(chan struct{})}
	p.cmd = exec.CommandContext(ctx, path, append([]string{"testdata/wirepeer.py"}, args...)...)
	p.cmd.Stderr = &p.stderr
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stdout = w
	err = p.cmd.Start()
	w.Close()
	if err != nil {
		t.Skip(err)
	}
	go func() {
		defer close(p.lines)
		defer r.Close()
		for out := bufio.NewScanner(r); out.Scan(); {
			p.lines <- out.Text()
		}
	}()
	go func() {
		defer close(p.ended)
		p.err = p.cmd.Wait()
	}()
	t.Cleanup(func() {
		cancel()
		<-p.ended
		for range p.lines {
		}
	})
	return p
}

// listening waits until the peer listens, and returns where.
func (p *wirepeer) listening() string {
	p.t.Helper()
	addr, ok := strings.CutPrefix(<-p.lines, "LISTENING ")
	if !ok {
		<-p.ended
		p.t.Fatalf("the peer does not listen: %v: %s", p.err, p.stderr.String())
	}
	return addr
}

// succeeds waits for the peer's end, and fails the test unless all went as it
// was asked for.
func (p *wirepeer) succeeds() {
	p.t.Helper()
	<-p.ended
	if p.err != nil {
		p.t.Fatalf("%v: %s", p.err, p.stderr.String())
	}
}

// places are a TCP and a Unix address in the peer's notation.
func places(t *testing.T) map[string]string {
	p := map[string]string{"tcp4": "tcp:127.0.0.1:0"}
	if runtime.GOOS != "windows" {
		_, path := address(t, "unix")
		p["unix"] = "unix:" + path
	}
	if runtime.GOOS == "linux" {
		_, name := address(t, "abstract")
		p["abstract"] = "unix:" + name
	}
	return p
}

// place is the peer's notation of a listener's address.
func place(l *sockhub.Listener) string { return l.Addr().Network() + ":" + l.Addr().String() }

// streams are what is sent in the tests with the peer, and how it is cut.
var streams = []struct {
	name, sizes string
	args        []string
}{
	{"all sizes", "0,1,7,8,9,255,256,16383,16384,16385,65536,0,1000000,9437184,1,0", nil},
	{"one byte at a time", "0,1,2,8,30,0,300", []string{"--chunk", "1"}},
	{"odd pieces", "0,100,1000,16384,70000,1,0", []string{"--chunk", "4093"}},
	{"many in one write", "8x2000,0x100,100x50,3000x20", []string{"--join"}},
	{"read one byte at a time", "0,1,2,8,30,0,300", []string{"--read-chunk", "1"}},
	{"9 MB in pieces", "9000000,1", []string{"--chunk", "60001", "--read-chunk", "50021"}},
}

func TestPythonPeerConnectsAndIsEchoed(t *testing.T) {
	for _, kind := range kinds() {
		for _, st := range streams {
			for _, name := range []string{"", "pythön"} {
				if st.name != "all sizes" && (kind == "tcp6" || kind == "abstract" || name == "") {
					continue // a Python process each is slow
				}
				t.Run(fmt.Sprintf("%s/%s/name %q", kind, st.name, name), func(t *testing.T) {
					t.Parallel()
					mode := sockhub.Anonymous
					args := append([]string{"--script", "send", "--expect-echo", "--sizes", st.sizes, "--seed", "11"}, st.args...)
					if name != "" {
						mode = sockhub.Named
						args = append(args, "--name", name)
					}
					s := newStand(t, nil, echo)
					l := s.listen(kind, &sockhub.ListenOptions{Mode: mode})
					where := place(l)
					if strings.HasPrefix(kind, "tcp") {
						where = "tcp:" + l.Addr().String()
					}
					p := startWirepeer(t, append([]string{"connect", where}, args...)...)
					p.succeeds()
					c := s.first()
					if d := s.end(c); d.Err != io.EOF || c.Name() != name {
						t.Errorf("%q ended with %v", c.Name(), d.Err)
					}
				})
			}
		}
	}
}

func TestPythonPeerIsDialedAndEchoes(t *testing.T) {
	sizes := []int{0, 1, 7, 8, 9, 255, 256, 16383, 16384, 16385, 65536, 0, 1000000, 9 << 20, 1, 0}
	for kind, where := range places(t) {
		for _, anonymous := range []bool{false, true} {
			for _, chunk := range []string{"0", "4099"} {
				t.Run(fmt.Sprintf("%s/anonymous %v/chunk %s", kind, anonymous, chunk), func(t *testing.T) {
					where := where
					if kind != "tcp4" { // an address of its own
						where = places(t)[kind]
					}
					t.Parallel()
					args := []string{"listen", where, "--script", "echo", "--expect-count", fmt.Sprint(len(sizes)), "--chunk", chunk}
					mode := sockhub.Named
					if anonymous {
						mode = sockhub.Anonymous
						args = append(args, "--anonymous")
					} else {
						args = append(args, "--accept-name", "somebody", "--accept-name", "gopher")
					}
					p := startWirepeer(t, args...)
					network := strings.TrimSuffix(kind, "4")
					if kind == "abstract" {
						network = "unix"
					}
					s := newStand(t, &sockhub.Options{Name: "gopher"}, nil)
					c, err := s.Dial(soon(t), network, p.listening(), &sockhub.DialOptions{Mode: mode})
					if err != nil {
						t.Fatal(err)
					}
					echoThrough(t, s, c, bodies(4, sizes))
					if err := c.CloseWrite(); err != nil {
						t.Error(err)
					}
					p.succeeds()
					if d := s.end(c); d.Err != io.EOF || d.Report.WrittenMessages != uint64(len(sizes)) {
						t.Errorf("ended with %v, %+v", d.Err, d.Report)
					}
				})
			}
		}
	}
}

func TestPythonPeerRefusesAndIsRefused(t *testing.T) {
	for kind, where := range places(t) {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := newStand(t, &sockhub.Options{Unexpected: sockhub.RefuseUnexpected, Name: "gopher"}, echo)
			l := s.listen(kind, nil)
			here := place(l)
			if kind == "tcp4" {
				here = "tcp:" + l.Addr().String()
			}
			if _, err := s.Expect("friend", nil); err != nil {
				t.Fatal(err)
			}
			startWirepeer(t, "connect", here, "--name", "stranger", "--expect-refused", "--script", "recv", "--sizes", "").succeeds()
			startWirepeer(t, "connect", here, "--name", "friend", "--script", "send", "--sizes", "5", "--expect-echo", "--eager").succeeds()
			s.end(s.first())

			p := startWirepeer(t, "listen", where, "--expect-refused", "--accept-name", "somebody")
			network := strings.TrimSuffix(kind, "4")
			if kind == "abstract" {
				network = "unix"
			}
			if _, err := s.Dial(soon(t), network, p.listening(), nil); !errors.Is(err, sockhub.ErrRefused) {
				t.Errorf("Dial: %v", err)
			}
			p.succeeds()

			where := places(t)[kind]
			p = startWirepeer(t, "listen", where, "--any-name", "--answer", "NO", "--script", "recv", "--sizes", "", "--cut-ok")
			if _, err := s.Dial(soon(t), network, p.listening(), nil); !errors.Is(err, sockhub.ErrRefused) {
				t.Errorf("Dial of a peer that answers NO: %v", err)
			}
			p.succeeds()
		})
	}
}

func TestManyPythonPeersAtOnce(t *testing.T) {
	t.Parallel()
	const n = 50
	s := newStand(t, nil, echo)
	l := s.listen("tcp4", nil)
	startWirepeer(t, "connect", "tcp:"+l.Addr().String(), "--name", "peer-{n}", "--conns", fmt.Sprint(n),
		"--script", "send", "--sizes", "8x100,0,10000", "--expect-echo").succeeds()
	s.until("all ends", func() bool { return len(s.gone) == n })
	names := make(map[string]bool)
	for _, c := range s.conns {
		names[c.Name()] = true
	}
	if len(names) != n || s.count != n*102 {
		t.Errorf("%d names and %d messages, want %d and %d", len(names), s.count, n, n*102)
	}
}

func TestPythonPeerMisbehaves(t *testing.T) {
	tests := []struct {
		name string
		args []string
		o    sockhub.Options
		want error
	}{
		{"huge length", []string{"--claim-huge", "2**64-1"}, sockhub.Options{}, sockhub.ErrMessageTooLarge},
		{"cut off", []string{"--script", "send", "--sizes", "100,100", "--cut", "150"}, sockhub.Options{}, io.ErrUnexpectedEOF},
		{"stalls within a message", []string{"--script", "send", "--sizes", "100,70000", "--stall", "200"}, sockhub.Options{FrameTimeout: 200 * time.Millisecond}, sockhub.ErrFrameTimeout},
		{"stalls after a large header", []string{"--script", "send", "--sizes", "100,70000", "--stall", "116"}, sockhub.Options{FrameTimeout: 200 * time.Millisecond}, sockhub.ErrFrameTimeout},
		{"says nothing", []string{"--script", "send", "--sizes", "100", "--stall", "0"}, sockhub.Options{IdleTimeout: 200 * time.Millisecond}, sockhub.ErrIdleTimeout},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newStand(t, &tt.o, nil)
			l := s.listen("tcp4", nil)
			startWirepeer(t, append([]string{"connect", "tcp:" + l.Addr().String(), "--name", "p", "--reset-ok"}, tt.args...)...).succeeds()
			if d := s.end(s.first()); !errors.Is(d.Err, tt.want) {
				t.Errorf("ended with %v, want %v", d.Err, tt.want)
			}
		})
	}
}
