package main

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// histogram counts durations, from any goroutine, and knows each to within one
// part in 128: the first 256 nanoseconds have a bucket each, and every further
// power of two has 128.
type histogram struct {
	buckets [buckets]atomic.Uint64
	largest atomic.Int64
}

const (
	subBits = 7
	buckets = (64 - subBits) << subBits
)

func bucketOf(n uint64) int {
	shift := max(0, bits.Len64(n)-subBits-1)
	return shift<<subBits + int(n>>shift)
}

// middle is the duration in the middle of a bucket.
func middle(bucket int) time.Duration {
	shift := max(0, bucket>>subBits-1)
	low := uint64(bucket-shift<<subBits) << shift
	return time.Duration(low + (1<<shift-1)/2)
}

func (h *histogram) add(d time.Duration) {
	d = max(d, 0)
	h.buckets[bucketOf(uint64(d))].Add(1)
	for {
		largest := h.largest.Load()
		if int64(d) <= largest || h.largest.CompareAndSwap(largest, int64(d)) {
			return
		}
	}
}

// quantiles returns the durations that the given shares of all, in ascending
// order, were not above.
func (h *histogram) quantiles(shares ...float64) []time.Duration {
	var total uint64
	for i := range h.buckets {
		total += h.buckets[i].Load()
	}
	found := make([]time.Duration, 0, len(shares))
	var seen uint64
	for i := range h.buckets {
		seen += h.buckets[i].Load()
		for len(found) < len(shares) && total > 0 && float64(seen) >= shares[len(found)]*float64(total) {
			found = append(found, min(middle(i), time.Duration(h.largest.Load())))
		}
	}
	for len(found) < len(shares) {
		found = append(found, time.Duration(h.largest.Load()))
	}
	return found
}
