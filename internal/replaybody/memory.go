package replaybody

import "sync"

const (
	// Bodies are kept in chunks, of which each is twice as long as the one before
	// it, up to a limit: a short body takes little, a long one few chunks.
	minChunkSize = 1 << 10
	maxChunkSize = 32 << 10

	// shares is how many clients have to be at work to use up the memory.
	shares = 4
)

// Memory bounds the memory of all bodies that are kept at a time. One client
// has a quarter of it at most, so that others find some left.
type Memory struct {
	mu      sync.Mutex
	left    int64
	share   int64            // the most that one client has
	clients map[string]int64 // what each has; those that have nothing are not in it

	uploads uploads
}

// NewMemory returns a Memory of size bytes.
func NewMemory(size int64) *Memory {
	return &Memory{
		left: size, share: size / shares, clients: make(map[string]int64),
		uploads: uploads{clients: make(map[string]upload)},
	}
}

// chunk is a part of a body that is kept.
type chunk struct {
	next *chunk
	data []byte // all of it: how much is used is for the body to know
	pool *sync.Pool
}

// pools have chunks of every size, which are reused across requests.
var pools = func() (pools []*sync.Pool) {
	for size := minChunkSize; size <= maxChunkSize; size *= 2 {
		pool := new(sync.Pool)
		pool.New = func() any { return &chunk{data: make([]byte, size), pool: pool} }
		pools = append(pools, pool)
	}
	return pools
}()

// get returns the n-th chunk of a body of client, or nil if there is no memory
// left for it.
func (m *Memory) get(client string, n int) *chunk {
	n = min(n, len(pools)-1)
	size := int64(minChunkSize) << n
	m.mu.Lock()
	defer m.mu.Unlock()
	has := m.clients[client] + size
	if size > m.left || has > m.share {
		return nil
	}
	m.left -= size
	m.clients[client] = has
	return pools[n].Get().(*chunk)
}

// put gives back a chunk that client has got.
func (m *Memory) put(client string, c *chunk) {
	size := int64(len(c.data))
	m.mu.Lock()
	m.left += size
	if has := m.clients[client] - size; has > 0 {
		m.clients[client] = has
	} else {
		delete(m.clients, client)
	}
	m.mu.Unlock()
	c.next = nil
	c.pool.Put(c)
}
