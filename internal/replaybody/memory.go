package replaybody

import (
	"sync"
	"sync/atomic"
)

// chunkSize is the unit in which bodies are kept.
const chunkSize = 32 << 10

// Memory bounds the memory of all bodies that are kept at a time.
type Memory struct{ left atomic.Int64 }

// NewMemory returns a Memory of size bytes.
func NewMemory(size int64) *Memory {
	m := new(Memory)
	m.left.Store(size)
	return m
}

type chunk [chunkSize]byte

// chunks are reused across requests.
var chunks = sync.Pool{New: func() any { return new(chunk) }}

// get returns a chunk, or nil if there is no memory left.
func (m *Memory) get() *chunk {
	if m.left.Add(-chunkSize) < 0 {
		m.left.Add(chunkSize)
		return nil
	}
	return chunks.Get().(*chunk)
}

// put gives a chunk back.
func (m *Memory) put(c *chunk) {
	chunks.Put(c)
	m.left.Add(chunkSize)
}
