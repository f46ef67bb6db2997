package transport_test

import (
	"testing"

	"github.com/sockhub/sockhub/internal/leakcheck"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }
