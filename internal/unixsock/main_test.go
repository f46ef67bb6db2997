package unixsock

import (
	"testing"

	"github.com/sockhub/sockhub/internal/leakcheck"
)

// TestMain fails the package if its tests leave a goroutine or a descriptor: a
// socket that stays open keeps its name, and a lock file that stays open its
// lock.
func TestMain(m *testing.M) { leakcheck.Main(m) }
