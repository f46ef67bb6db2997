package memnet_test

import (
	"io"
	"testing"

	"github.com/sockhub/sockhub/internal/memnet"
	"github.com/sockhub/sockhub/internal/transport"
	"github.com/sockhub/sockhub/internal/transport/transporttest"
)

// TestConformance runs the tests that every transport has to pass.
func TestConformance(t *testing.T) {
	for name, options := range map[string]memnet.Options{
		"tcp":      {},
		"unix":     {Unix: true},
		"lacking":  {NoUnacked: true, NoWriteNow: true, NoCloseWrite: true},
		"spurious": {Faults: memnet.Faults{Blind: 0.5, Spurious: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			transporttest.Run(t, func(t *testing.T) (transport.Conn, io.ReadWriteCloser) {
				a, b := memnet.Pair(&options)
				return transport.New(a), b
			})
		})
	}
}
