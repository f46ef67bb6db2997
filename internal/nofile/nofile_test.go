package nofile

import "testing"

func TestLimitIsAtLeastWhatEverySystemGives(t *testing.T) {
	if n := Limit(); n < 64 || n > Unlimited {
		t.Errorf("Limit() = %d", n)
	}
}
