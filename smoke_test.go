package sockhub

import (
	"context"
	"fmt"
	"testing"
	"time"
)

func TestEcho(t *testing.T) {
	for _, network := range []string{"tcp", "tcp6", "unix", "abstract"} {
		t.Run(network, func(t *testing.T) {
			address := "127.0.0.1:0"
			switch network {
			case "unix":
				address = t.TempDir() + "/s"
			case "tcp6":
				address = "[::1]:0"
			case "abstract":
				network, address = "unix", fmt.Sprintf("@sockhub-%d", time.Now().UnixNano())
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			s, err := New(context.Background(), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			l, err := s.Listen(ctx, network, address, nil)
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				for b := range s.Events() {
					for c, m := range b.Messages() {
						if err := c.Send(context.Background(), m); err != nil {
							t.Error(err)
						}
					}
				}
			}()
			cl, err := New(context.Background(), &Options{Name: "client"})
			if err != nil {
				t.Fatal(err)
			}
			defer cl.Close()
			c, err := cl.Dial(ctx, network, l.Addr().String(), nil)
			if err != nil {
				t.Fatal(err)
			}
			const n = 1000
			sent, err := c.SendMany(ctx, func(yield func([]byte) bool) {
				for i := range n {
					if !yield(fmt.Appendf(nil, "message %d", i)) {
						return
					}
				}
			})
			if sent != n || err != nil {
				t.Fatal(sent, err)
			}
			got := 0
			for got < n {
				select {
				case b := <-cl.Events():
					for _, m := range b.Messages() {
						if string(m) != fmt.Sprintf("message %d", got) {
							t.Fatalf("got %q as message %d", m, got)
						}
						got++
					}
				case <-ctx.Done():
					t.Fatalf("got %d messages; %+v", got, cl.Stats())
				}
			}
			if err := cl.Shutdown(ctx); err != nil {
				t.Fatal(err)
			}
			for b := range cl.Events() {
				for _, d := range b.Disconnected {
					t.Log(d.Err, d.Report)
				}
			}
		})
	}
}
