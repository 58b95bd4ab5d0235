package replaybody

import (
	"sync"
	"time"
)

const (
	// MaxStalled is how many stalled bodies one client may have.
	MaxStalled = 64

	// StallTime is how long a client has sent nothing of a body that counts as
	// stalled.
	StallTime = 10 * time.Second
)

// epoch is what times of reads are counted from, by the monotonic clock.
var epoch = time.Now()

// uploads are the bodies that have not ended, by client. Those of clients that
// have none are not in it.
type uploads struct {
	mu      sync.Mutex
	clients map[string]upload
}

// upload is the bodies of one client, as a list.
type upload struct {
	newest *Body
	number int
}

// Stalled reports whether client has as many stalled bodies as it may have. Each
// costs a connection to the API, and whoever else waits for one.
func (m *Memory) Stalled(client string) bool {
	u := &m.uploads
	u.mu.Lock()
	defer u.mu.Unlock()
	list := u.clients[client]
	if list.number < MaxStalled {
		return false
	}
	stalled := 0
	now := int64(time.Since(epoch))
	for b := list.newest; b != nil && stalled < MaxStalled; b = b.older {
		if since := b.waiting.Load(); since != 0 && now-since > int64(StallTime) {
			stalled++
		}
	}
	return stalled == MaxStalled
}

// begin adds b to those of its client.
func (u *uploads) begin(b *Body) {
	u.mu.Lock()
	defer u.mu.Unlock()
	list := u.clients[b.client]
	if b.older = list.newest; b.older != nil {
		b.older.newer = b
	}
	u.clients[b.client] = upload{newest: b, number: list.number + 1}
	b.open = true
}

// end removes b, unless it is removed already.
func (u *uploads) end(b *Body) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !b.open {
		return
	}
	b.open = false
	list := u.clients[b.client]
	if list.number--; list.number == 0 {
		delete(u.clients, b.client)
		return
	}
	if b.newer == nil {
		list.newest = b.older
	} else {
		b.newer.older = b.older
	}
	if b.older != nil {
		b.older.newer = b.newer
	}
	b.older, b.newer = nil, nil
	u.clients[b.client] = list
}
