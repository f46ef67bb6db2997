package sockhub_test

// SendFrom of files.

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sockhub/sockhub"
)

// aFile is a file of n bytes, and what is in it.
func aFile(t *testing.T, n int) (*os.File, []byte) {
	t.Helper()
	name, want := filepath.Join(t.TempDir(), "file"), pattern(n)
	if err := os.WriteFile(name, want, 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file, want
}

// eachWay runs test with what a file is read by on every kind of socket: the file
// itself, which the system may send, and a reader that hides what it is.
func eachWay(t *testing.T, test func(t *testing.T, kind string, reader func(*os.File) io.Reader)) {
	for _, kind := range withTLS() {
		t.Run(kind+"/file", func(t *testing.T) {
			test(t, kind, func(f *os.File) io.Reader { return f })
		})
		t.Run(kind+"/reader", func(t *testing.T) {
			test(t, kind, func(f *os.File) io.Reader { return struct{ io.Reader }{f} })
		})
	}
}

// serveFile lets one peer connect, and returns both ends.
func serveFile(t *testing.T, kind string, o *sockhub.Options) (*stand, *sockhub.Conn, *peer) {
	t.Helper()
	s := newStand(t, o, nil)
	s.readers = true
	p := dialKind(t, kind, s.listen(kind, &sockhub.ListenOptions{Mode: sockhub.Anonymous}), "")
	return s, s.first(), p
}

func TestFileComesInItsPlace(t *testing.T) {
	eachWay(t, func(t *testing.T, kind string, reader func(*os.File) io.Reader) {
		_, c, p := serveFile(t, kind, nil)
		const skip, size = 1000, 5<<20 + 7
		file, data := aFile(t, skip+size+1000)
		file.Seek(skip, io.SeekStart)
		sent := make(chan error, 1)
		go func() {
			ctx := context.Background()
			sent <- errors.Join(c.Send(ctx, []byte("before")), c.SendFrom(ctx, size, reader(file)), c.Send(ctx, []byte("after")))
		}()
		for _, want := range [][]byte{[]byte("before"), data[skip : skip+size], []byte("after")} {
			if m := p.receive(); !bytes.Equal(m, want) {
				t.Fatalf("%d bytes, want %d", len(m), len(want))
			}
		}
		if err := <-sent; err != nil {
			t.Error(err)
		}
		if at, err := file.Seek(0, io.SeekCurrent); at != skip+size || err != nil {
			t.Errorf("the file is at %d, %v", at, err)
		}
	})
}

func TestFileThatIsTooShortCutsItsMessage(t *testing.T) {
	eachWay(t, func(t *testing.T, kind string, reader func(*os.File) io.Reader) {
		s, c, p := serveFile(t, kind, nil)
		const there, size = 3 << 20, 4 << 20
		file, data := aFile(t, there)
		sent := make(chan error, 1)
		go func() { sent <- c.SendFrom(context.Background(), size, reader(file)) }()
		got, _ := io.ReadAll(p.Conn)
		if len(got) < 8 || binary.LittleEndian.Uint64(got) != size || !bytes.HasPrefix(data, got[8:]) {
			t.Errorf("%d bytes came", len(got))
		}
		if err := <-sent; !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Error(err)
		}
		d := s.end(c)
		if r := d.Report; !errors.Is(d.Err, io.ErrUnexpectedEOF) || !r.Cut || r.CutSize != size || r.CutWritten > there || r.CutWritten < uint64(len(got)-8) {
			t.Errorf("%v, %+v", d.Err, r)
		}
	})
}

func TestFileForAPeerThatDoesNotRead(t *testing.T) {
	eachWay(t, func(t *testing.T, kind string, reader func(*os.File) io.Reader) {
		for _, why := range []string{"ctx", "timeout", "peer"} {
			t.Run(why, func(t *testing.T) {
				timeout := time.Minute
				if why == "timeout" {
					timeout = 300 * time.Millisecond
				}
				s, c, p := serveFile(t, kind, &sockhub.Options{WriteTimeout: timeout})
				const size = 32 << 20
				file, err := os.CreateTemp(t.TempDir(), "")
				if err == nil {
					err = file.Truncate(size)
				}
				if err != nil {
					t.Fatal(err)
				}
				defer file.Close()
				ctx, cancel := context.WithCancelCause(context.Background())
				defer cancel(nil)
				boom := errors.New("boom")
				sent := make(chan error, 1)
				go func() { sent <- c.SendFrom(ctx, size, reader(file)) }()
				io.ReadFull(p.Conn, make([]byte, 100_000))
				var want error
				switch why {
				case "ctx":
					cancel(boom)
					want = boom
				case "timeout":
					want = sockhub.ErrSlowPeer
				case "peer":
					p.Conn.Close()
				}
				err = <-sent
				d := s.end(c)
				if err == nil || want != nil && !errors.Is(d.Err, want) || why == "ctx" && !errors.Is(err, boom) {
					t.Errorf("%v; %v", err, d.Err)
				}
				r := d.Report
				if !r.Cut || r.CutSize != size || r.CutWritten >= size || r.CutWritten < 99_992 || r.AcceptedMessages != 1 || r.WrittenMessages+r.UnsentMessages != 0 {
					t.Errorf("%+v", r)
				}
			})
		}
	})
}

func TestHandlerAnswersWithFiles(t *testing.T) {
	const size = 2 << 20
	h := &handlerFuncs{message: func(r *sockhub.Reply, m []byte) {
		file, err := os.Open(string(m))
		if err != nil {
			panic(err)
		}
		r.SendFrom(size, file)
		r.Send(m)
	}}
	for _, kind := range withTLS() {
		s := newStand(t, nil, nil)
		p := dialKind(t, kind, s.listen(kind, &sockhub.ListenOptions{Mode: sockhub.Anonymous, Handler: func(*sockhub.Conn) sockhub.Handler { return h }}), "")
		file, want := aFile(t, size)
		for range 3 {
			p.send([]byte(file.Name()))
		}
		for i := range 3 {
			if m := p.receive(); !bytes.Equal(m, want) {
				t.Fatal(kind, i, len(m))
			}
			if m := p.receive(); string(m) != file.Name() {
				t.Fatal(kind, i, string(m))
			}
		}
	}
}

// The peer reads in the same process, which costs the same in both ways.
func BenchmarkSendFrom(b *testing.B) {
	name := filepath.Join(b.TempDir(), "file")
	const size = 64 << 20
	if err := os.WriteFile(name, make([]byte, size), 0o600); err != nil {
		b.Fatal(err)
	}
	for _, how := range []string{"file", "reader"} {
		b.Run(how, func(b *testing.B) {
			hub, err := sockhub.New(context.Background(), nil)
			if err != nil {
				b.Fatal(err)
			}
			defer hub.Close()
			l, err := hub.Listen(b.Context(), "tcp", "127.0.0.1:0", &sockhub.ListenOptions{Mode: sockhub.Anonymous})
			if err != nil {
				b.Fatal(err)
			}
			nc, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			defer nc.Close()
			c := (<-hub.Events()).Unknown[0]
			file, err := os.Open(name)
			if err != nil {
				b.Fatal(err)
			}
			defer file.Close()
			var r io.Reader = file
			if how == "reader" {
				r = struct{ io.Reader }{file}
			}
			buf := make([]byte, 1<<20)
			b.SetBytes(size)
			for b.Loop() {
				file.Seek(0, io.SeekStart)
				go c.SendFrom(b.Context(), size, r)
				for n := 0; n < 8+size; {
					m, err := nc.Read(buf)
					if err != nil {
						b.Fatal(err)
					}
					n += m
				}
			}
		})
	}
}
