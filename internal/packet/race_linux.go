package packet

// raceReceived and raceSending tell the race detector about transfers, which it
// cannot see in raw system calls. They are nil except in builds for it (race.go).
var (
	raceReceived func(fd int, p []byte)
	raceSending  func(p []byte)
)
