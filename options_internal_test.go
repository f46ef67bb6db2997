package sockhub

// What the fields of the options come to: the defaults, none, and what a connection has
// from its listener, its dial and its hub.

import (
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/sockhub/sockhub/internal/nofile"
)

// limits is what a hub has of Options, when they are resolved.
func limits(t *testing.T, o *Options) Options {
	t.Helper()
	r, err := o.resolve()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func same(t *testing.T, what string, got, want any, opts ...cmp.Option) {
	t.Helper()
	if d := cmp.Diff(want, got, opts...); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

// The numbers are those of the documentation, and not the constants.
func TestDefaultsAreThoseOfTheDocumentation(t *testing.T) {
	n := nofile.Limit()
	same(t, "Options", limits(t, nil), Options{
		Unexpected: HoldUnexpected, Duplicates: RefuseNew, Overflow: BlockSender,
		MaxConns: max(1, min(65_536, n-max(8, n/16))), MaxPending: 1024, MaxPendingPerSource: 64,
		MaxMessage: 64 << 20, ConnInbound: 4 << 20, ConnOutbound: 4 << 20,
		HandshakeTimeout: 5 * time.Second, FrameTimeout: 30 * time.Second, WriteTimeout: 10 * time.Second, Linger: 500 * time.Millisecond,
	})
	b := NewBudget(0, 0, 0)
	same(t, "Budget", []int64{b.inLimit, b.outLimit, b.total}, []int64{512 << 20, 512 << 20, 2 << 30})
	hub := limits(t, nil)
	for network, want := range map[string]ListenOptions{
		"tcp":        {Mode: Named, MaxConns: math.MaxInt},
		"unixpacket": {Mode: Anonymous, MaxConns: math.MaxInt},
		"udp":        {Mode: Anonymous, MaxConns: 65_536, IdleTimeout: 60 * time.Second},
		"unixgram":   {Mode: Anonymous, MaxConns: 65_536, IdleTimeout: 60 * time.Second},
	} {
		r, _, err := (*ListenOptions)(nil).resolve(&hub, network)
		if err != nil {
			t.Error(err)
		}
		same(t, "ListenOptions on "+network, r, want, cmpopts.IgnoreFields(ListenOptions{}, "Admit", "Classify", "Handler"))
	}
	d, _, err := (&DialOptions{Name: "w", Reconnect: new(Backoff)}).resolve(&hub, "tcp")
	if err != nil {
		t.Fatal(err)
	}
	same(t, "Timeout", d.Timeout, 5*time.Second)
	same(t, "Backoff", *d.Reconnect, Backoff{Min: 100 * time.Millisecond, Max: 30 * time.Second, Factor: 1.6, Jitter: 0.2})
	same(t, "keep-alive", []any{keepAlive.Enable, keepAlive.Idle, keepAlive.Interval, keepAlive.Count}, []any{true, 15 * time.Second, 5 * time.Second, 3})
}

// A negative limit or duration is none, in each field that has one.
func TestNegativeIsNone(t *testing.T) {
	const none = math.MaxInt
	same(t, "Options", limits(t, &Options{
		MaxConns: -1, MaxPending: -1, MaxPendingPerSource: -1, MaxMessage: -1, ConnInbound: -1, ConnOutbound: -1,
		HandshakeTimeout: -1, FrameTimeout: -1, WriteTimeout: -1, Linger: -1,
	}), Options{
		Unexpected: HoldUnexpected, Duplicates: RefuseNew, Overflow: BlockSender,
		MaxConns: none, MaxPending: none, MaxPendingPerSource: none, MaxMessage: none, ConnInbound: none, ConnOutbound: none,
	})
	b := NewBudget(-1, -1, -1)
	same(t, "Budget", []int64{b.inLimit, b.outLimit, b.total}, []int64{none, none, none})
	hub := limits(t, &Options{MaxMessage: 1, StreamOver: 2, ConnInbound: 3, ConnOutbound: 4, IdleTimeout: 5})
	r, set, err := (&ListenOptions{MaxConns: -1, MaxMessage: -1, StreamOver: -1, ConnInbound: -1, ConnOutbound: -1, IdleTimeout: -1}).resolve(&hub, "tcp")
	if err != nil {
		t.Fatal(err)
	}
	same(t, "ListenOptions", []any{r.MaxConns, set.maxMessage, set.streamOver, set.connIn, set.connOut, set.idleTimeout},
		[]any{none, uint64(none), uint64(0), int64(none), int64(none), time.Duration(0)})
	d, _, err := (&DialOptions{Name: "w", Timeout: -1, Reconnect: &Backoff{Jitter: -1}}).resolve(&hub, "tcp")
	if err != nil {
		t.Fatal(err)
	}
	same(t, "DialOptions", []any{d.Timeout, d.Reconnect.Jitter}, []any{time.Duration(0), 0.0})
}

// A connection has of its own options what they say, and of its hub's what they do not.
func TestOptionsOfAConnection(t *testing.T) {
	hub := limits(t, &Options{Name: "hub", Overflow: DropOldest, MaxMessage: 1, StreamOver: 2, ConnInbound: 3, ConnOutbound: 4, IdleTimeout: 5, ReuseBuffers: true})
	ofHub := settings{mode: Named, overflow: DropOldest, maxMessage: 1, streamOver: 2, connIn: 3, connOut: 4, idleTimeout: 5, reuse: true}
	compare := func(what string, set *settings, err error, want settings) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		same(t, what, *set, want, cmp.AllowUnexported(settings{}), cmpopts.IgnoreFields(settings{}, "handler"))
	}

	_, set, err := (*ListenOptions)(nil).resolve(&hub, "tcp")
	compare("accepted, of the hub", set, err, ofHub)
	_, set, err = (&ListenOptions{
		Mode: Raw, Framing: Uvarint(), Tag: "t", HalfOpen: true, MaxMessage: 11, StreamOver: 12, ConnInbound: 13, ConnOutbound: 14, IdleTimeout: 15, Overflow: DropNewest,
	}).resolve(&hub, "tcp")
	compare("accepted, of the listener", set, err, settings{
		mode: Raw, framing: Uvarint(), tag: "t", halfOpen: true, maxMessage: 11, streamOver: 12, connIn: 13, connOut: 14, idleTimeout: 15, overflow: DropNewest, reuse: true,
	})

	ofHub.dials = true
	d, set, err := (*DialOptions)(nil).resolve(&hub, "tcp")
	compare("dialed, of the hub", set, err, ofHub)
	same(t, "Name", d.Name, "hub")
	d, set, err = (&DialOptions{Name: "w", Mode: NamedRaw, Framing: Uvarint(), Tag: "t", HalfOpen: true}).resolve(&hub, "tcp")
	ofHub.mode, ofHub.framing, ofHub.tag, ofHub.halfOpen = NamedRaw, Uvarint(), "t", true
	compare("dialed, of its own", set, err, ofHub)
	same(t, "Name", d.Name, "w")

	hub.ReuseBuffers = false
	for _, own := range []bool{true, false} {
		_, l, _ := (&ListenOptions{ReuseBuffers: own}).resolve(&hub, "tcp")
		_, d, _ := (&DialOptions{ReuseBuffers: own}).resolve(&hub, "tcp")
		same(t, "ReuseBuffers", []bool{l.reuse, d.reuse}, []bool{own, own})
	}
}
