package sockhub_test

// Who may have a name, and the other options of one.

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sockhub/sockhub"
	"github.com/sockhub/sockhub/internal/memnet"
)

func TestHubListenerAndNameMustAllAdmit(t *testing.T) {
	for who := range 4 {
		synctest.Test(t, func(t *testing.T) {
			var asked []int
			rule := func(me int) sockhub.Rule {
				return func(p sockhub.Peer) error {
					if asked = append(asked, me); p.Name != "w" || p.Tag != "here" {
						t.Errorf("rule %d is asked about %+v", me, p)
					}
					if me == who {
						return errors.New("no")
					}
					return nil
				}
			}
			r := newRoom(t, &sockhub.Options{Admit: rule(0)}, &sockhub.ListenOptions{Admit: rule(1), Tag: "here"})
			r.expected("w", &sockhub.ClientOptions{Admit: rule(2)})
			if who < 3 {
				r.refused("w")
				r.happened()
			} else {
				r.join("w")
				r.happened("connected w")
			}
			want := []int{0, 1, 2}[:min(who+1, 3)]
			if d := cmp.Diff(want, asked); d != "" {
				t.Errorf("asked (-want +got):\n%s", d)
			}
		})
	}
}

// A rule registers who comes, so that nobody is unknown.
func TestRuleThatExpects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r *room
		r = newRoom(t, &sockhub.Options{
			Unexpected: sockhub.RefuseUnexpected,
			Admit: func(p sockhub.Peer) error {
				_, err := r.Expect(p.Name, &sockhub.ClientOptions{Admit: func(p sockhub.Peer) error {
					if p.Name == "nobody" {
						return errors.New("no")
					}
					return nil
				}})
				return err
			},
		}, nil)
		r.join("w")
		r.happened("connected w")
		r.refused("w") // the name is registered by now
		r.refused("nobody")
		r.happened()
	})
}

func TestNameBelongsWhereItsRuleSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, nil, nil)
		r.expected("w", &sockhub.ClientOptions{Admit: sockhub.CIDR(netip.MustParsePrefix("10.1.0.0/16"))})
		for _, test := range []struct {
			from, name string
			want       bool
		}{
			{"10.2.0.1", "w", false},
			{"10.2.0.1", "x", true},
			{"::ffff:10.2.0.1", "w", false},
			{"::ffff:10.1.0.1", "w", true},
		} {
			p, err := r.l.DialFrom(t.Context(), &net.TCPAddr{IP: net.ParseIP(test.from), Port: 1})
			if err != nil {
				t.Fatal(err)
			}
			p.Write(frame(test.name))
			if test.want {
				expect(t, p, frame("OK"))
			} else {
				endsUnheard(t, p)
			}
			p.Close()
		}
	})
}

func TestPanicInARuleRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, nil, nil)
		r.expected("w", &sockhub.ClientOptions{Admit: func(sockhub.Peer) error { panic("boom") }})
		r.refused("w")
		p := r.join("x")
		r.happened("unknown x")
		r.expected("x", &sockhub.ClientOptions{Admit: func(sockhub.Peer) error { panic("boom") }})
		endsUnheard(t, p)
		r.happened("disconnected x not admitted")
		if s := r.Stats(); s.RefusedPolicy != 1 || s.Panics != 2 {
			t.Errorf("%+v", s)
		}
	})
}

// A rule runs without locks, so it may take its time, and use the hub; what it
// was asked about may be different afterwards.
func TestRegistrationThatChangesWhileItsRuleIsAsked(t *testing.T) {
	handled := func(*sockhub.Conn) sockhub.Handler { return sockhub.BaseHandler{} }
	for _, test := range []struct {
		name   string
		change func(r *room)
		in     bool
		news   []string
	}{
		{"unchanged", func(*room) {}, true, nil},
		{"stricter", func(r *room) { r.expected("w", &sockhub.ClientOptions{Admit: deny}) }, false, nil},
		{"without its Handler", func(r *room) { r.expected("w", nil) }, true, []string{"connected w"}},
		{"forgotten", nil, true, []string{"unknown w"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRoom(t, nil, nil)
				asked, changed := make(chan struct{}), make(chan struct{})
				id := r.expected("w", &sockhub.ClientOptions{Handler: handled, Admit: func(sockhub.Peer) error {
					close(asked)
					<-changed
					return nil
				}})
				p := r.claim("w")
				<-asked
				if test.name != "unchanged" {
					if err := r.Forget(id); err != nil {
						t.Fatal(err)
					}
				}
				if test.change != nil {
					test.change(r)
				}
				close(changed)
				if test.in {
					expect(t, p, frame("OK"))
				} else {
					endsUnheard(t, p)
				}
				r.happened(test.news...)
			})
		})
	}
}

func TestNameThatIsRegisteredWhileTheHubsRuleIsAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r *room
		var once atomic.Bool
		r = newRoom(t, &sockhub.Options{
			Unexpected: sockhub.RefuseUnexpected,
			Admit: func(p sockhub.Peer) error {
				if once.CompareAndSwap(false, true) {
					r.expected(p.Name, nil)
				}
				return nil
			},
		}, nil)
		r.join("w")
		r.happened("connected w")
	})
}

// ---- the other options of a name ----

func TestOverflowOfANameIsTheListenersUnlessItHasOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, &sockhub.Options{ConnOutbound: 1000, WriteTimeout: -1}, &sockhub.ListenOptions{Overflow: sockhub.DropNewest})
		for name, o := range map[string]*sockhub.ClientOptions{
			"listeners": {},
			"own":       {Overflow: sockhub.BlockSender},
		} {
			r.expected(name, o)
			r.join(name)
			r.happened("connected " + name)
			c := r.conn(name)
			c.Send(t.Context(), make([]byte, 1<<20))
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			want := map[string]error{"listeners": sockhub.ErrBackpressure, "own": context.DeadlineExceeded}[name]
			if err := c.Send(ctx, []byte("x")); !errors.Is(err, want) {
				t.Errorf("%s: %v, want %v", name, err, want)
			}
		}
	})
}

func TestDuplicatesOfANameBeatTheHubs(t *testing.T) {
	for _, hubs := range []sockhub.DuplicatePolicy{sockhub.RefuseNew, sockhub.ReplaceOld} {
		synctest.Test(t, func(t *testing.T) {
			r := newRoom(t, &sockhub.Options{Duplicates: hubs}, nil)
			r.expected("refuse", &sockhub.ClientOptions{Duplicates: sockhub.RefuseNew})
			r.expected("replace", &sockhub.ClientOptions{Duplicates: sockhub.ReplaceOld})
			r.join("refuse")
			r.refused("refuse")
			old := r.join("replace")
			r.join("replace")
			endsUnheard(t, old)
		})
	}
}

func TestOverflowOfANameBeatsTheListeners(t *testing.T) {
	for _, adopted := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			r := newRoom(t, nil, &sockhub.ListenOptions{ConnOutbound: 1000, Overflow: sockhub.DisconnectPeer})
			o := &sockhub.ClientOptions{Overflow: sockhub.DropNewest}
			if adopted {
				r.join("w")
				r.expected("w", o)
			} else {
				r.expected("w", o)
				r.join("w")
			}
			c := r.conn("w")
			var err error
			for range 1000 { // nobody reads them
				if err = c.Send(context.Background(), make([]byte, 500)); err != nil {
					break
				}
			}
			if !errors.Is(err, sockhub.ErrBackpressure) {
				t.Errorf("Send with a full queue: %v", err)
			}
			synctest.Wait()
			if r.conn("w") != c {
				t.Error("it was disconnected")
			}
		})
	}
}

func TestHandlerOfANameBeatsTheListeners(t *testing.T) {
	answering := func(text string) func(*sockhub.Conn) sockhub.Handler {
		return func(*sockhub.Conn) sockhub.Handler {
			return &handlerFuncs{message: func(r *sockhub.Reply, _ []byte) { r.Send([]byte(text)) }}
		}
	}
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, nil, &sockhub.ListenOptions{Handler: answering("listener")})
		r.expected("own", &sockhub.ClientOptions{Handler: answering("name")})
		r.expected("plain", nil)
		for name, want := range map[string]string{"own": "name", "plain": "listener", "stranger": "listener"} {
			for range 2 {
				p := r.join(name)
				p.Write(frame("?"))
				expect(t, p, frame(want))
				p.Close()
				synctest.Wait()
			}
		}
		r.happened() // nothing of it
	})
}

// A handshake that has ended while a rule was asked is over, whatever the rule
// answers: it lets nobody in, and replaces nobody.
func TestRuleThatAnswersTooLateLetsNobodyIn(t *testing.T) {
	for what, end := range map[string]func(*sockhub.Listener){
		"HandshakeTimeout": func(*sockhub.Listener) {},
		"Listener.Close":   func(l *sockhub.Listener) { l.Close() },
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := openHub(t, &sockhub.Options{Duplicates: sockhub.ReplaceOld})
				asked := 0
				slow := func(sockhub.Peer) error {
					if asked++; asked > 1 {
						<-time.After(10 * time.Second)
					}
					return nil
				}
				inner := memnet.Listen(nil)
				l, err := hub.Serve(inner, &sockhub.ListenOptions{Admit: slow})
				if err != nil {
					t.Fatal(err)
				}
				r := &room{Hub: hub, t: t, l: inner}
				first := r.claim("alice")
				expect(t, first, frame("OK"))
				r.take()
				r.claim("alice")
				synctest.Wait()
				end(l)
				<-time.After(time.Minute)
				if b := r.take(); len(batchText(b)) > 0 {
					t.Errorf("%q", batchText(b))
				}
				if n := hub.Stats().HandshakeTimeouts; n != 1 && what == "HandshakeTimeout" {
					t.Errorf("%d timeouts", n)
				}
			})
		})
	}
}

func TestServeConnDoesNotWaitForARule(t *testing.T) {
	for _, how := range []string{"ctx", "Close"} {
		t.Run(how, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := openHub(t, &sockhub.Options{HandshakeTimeout: -1, Admit: func(sockhub.Peer) error {
					<-time.After(time.Hour)
					return nil
				}})
				ours, p := memnet.Pair(nil)
				defer p.Close()
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				want := context.DeadlineExceeded
				if how == "Close" {
					want = sockhub.ErrClosed
					time.AfterFunc(time.Second, func() { hub.Close() })
				}
				begun := time.Now()
				if _, err := hub.ServeConn(ctx, ours, &sockhub.ListenOptions{Mode: sockhub.Anonymous}); !errors.Is(err, want) {
					t.Error(err)
				}
				if d := time.Since(begun); d > 61*time.Second {
					t.Errorf("after %v", d)
				}
				<-time.After(2 * time.Hour)
				hub.Close()
				for b := range hub.Events() {
					t.Errorf("%q", batchText(b))
				}
			})
		})
	}
}
