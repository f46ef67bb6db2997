package transporttest

import (
	"sync"

	"github.com/sockhub/sockhub/internal/transport"
)

func testAfterClose(e *env) {
	// Others may be about to kick or hang up when the connection's owner
	// closes it.
	var late sync.WaitGroup
	begin := make(chan struct{})
	for _, call := range []func(){
		func() { e.conn.Kick(transport.ReadSide) },
		func() { e.conn.Kick(transport.WriteSide) },
	} {
		late.Go(func() {
			<-begin
			for range 100 {
				call()
			}
		})
	}
	close(begin)
	e.close()
	late.Wait()
	if n, err := e.peer.Read(make([]byte, 10)); n != 0 || err == nil {
		e.Errorf("peer's Read = %d, %v; want an end", n, err)
	}

	// What the system had lent to the connection, such as a descriptor's
	// number, may be another's now, which must not be called in its place.
	other := newEnv(e.T, e.newPair)
	for range 2 {
		e.conn.Kick(transport.ReadSide)
		e.conn.Kick(transport.WriteSide)
		e.conn.Hangup()
	}
	other.send([]byte("abc"))
	other.wantRead([]byte("abc"))
	other.wg.Go(func() {
		if err := other.write([][]byte{[]byte("def")}); err != nil {
			e.Error(err)
		}
	})
	other.wantPeer([]byte("def"))
	other.wg.Wait()
}
