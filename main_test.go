package sockhub

import (
	"testing"

	"github.com/sockhub/sockhub/internal/leakcheck"
)

// TestMain fails the package if its tests leave a goroutine or a descriptor.
func TestMain(m *testing.M) { leakcheck.Main(m) }
