package sockhub_test

// Descriptors that a peer sends along (SCM_RIGHTS).

import (
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func openFiles() int {
	d, _ := os.ReadDir("/proc/self/fd")
	return len(d)
}

// A peer may send some (SCM_RIGHTS), which nobody would close.
func TestPacketBringsNoDescriptors(t *testing.T) {
	hub := openHub(t, nil)
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	if _, err := hub.Listen(t.Context(), "unixgram", path, nil); err != nil {
		t.Fatal(err)
	}
	go func() {
		for range hub.Events() {
		}
	}()
	to := &net.UnixAddr{Name: path, Net: "unixgram"}
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "c"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.WriteTo([]byte("first"), to)
	<-time.After(200 * time.Millisecond)
	before := openFiles()
	for range 20 {
		if _, _, err := c.WriteMsgUnix([]byte("x"), syscall.UnixRights(0, 1, 2), to); err != nil {
			t.Fatal(err)
		}
		<-time.After(5 * time.Millisecond)
	}
	<-time.After(200 * time.Millisecond)
	if after := openFiles(); after > before {
		t.Fatalf("%d descriptors before, %d after 20 packets", before, after)
	}
}
