// Package replaybody keeps request bodies while they stream to an API, so that
// a request can be sent a second time.
package replaybody

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// detachTimeout bounds the wait for a read of the client's body that is under
// way. It is longer than the gaps of any upload that makes progress; a client
// that sends nothing for so long may be waiting for the answer itself.
const detachTimeout = 2 * time.Second

// errDetached is what the first reader gets once the second has taken over.
var errDetached = errors.New("the request is sent again")

// Body is a request body on its way to the API: streamed, and kept as it
// streams so that it can be sent a second time.
//
// It has one reader at a time. The first is detached before the second begins.
// As long as a second may follow, closing the first does not close the client's
// body: the HTTP transport closes a body whenever the API answers early, and
// with HTTP/1 may still be reading it.
//
// The methods of a nil Body, which stands for a request without one, do nothing.
type Body struct {
	source io.ReadCloser // the client's body
	atEnd  func()
	client string
	memory *Memory
	limit  int64

	first reader

	// reading holds a value while source is read. It is a channel, not a mutex,
	// since waiting for it has to end.
	reading chan struct{}

	waiting atomic.Int64 // since when a read of source is under way, as time since epoch; 0: none is

	// mu of uploads is held for these.
	older, newer *Body
	open         bool

	mu        sync.Mutex
	keeping   bool   // what is read is kept
	whole     bool   // all that has been read so far is kept
	kept      *chunk // the first one; those that the second reader has read are gone
	last      *chunk
	chunks    int   // how many were kept
	filled    int   // how much of the last one is used
	sent      int   // how much of the first one the second reader has read
	size      int64 // of all that was kept
	ended     error // what ended the reading of source
	undecided bool  // a second reader may follow
	closed    bool  // the first reader was closed meanwhile
}

// New returns a Body that streams source, and keeps it as long as it does not
// exceed limit and there is memory, which is charged to client. A size that is
// known to exceed limit is not kept at all; a negative size is unknown. When
// source has ended, atEnd is called, by the goroutine that reads.
func New(source io.ReadCloser, size, limit int64, client string, memory *Memory, atEnd func()) *Body {
	fits := limit > 0 && size <= limit
	b := &Body{
		source:    source,
		atEnd:     atEnd,
		client:    client,
		memory:    memory,
		limit:     limit,
		reading:   make(chan struct{}, 1),
		keeping:   fits,
		whole:     fits,
		undecided: true,
	}
	b.first.body = b
	memory.uploads.begin(b)
	return b
}

// First returns the body of the first request.
func (b *Body) First() io.ReadCloser {
	if b == nil {
		return nil
	}
	return &b.first
}

// Replayable reports whether the body could be sent again, as far as is known.
func (b *Body) Replayable() bool {
	if b == nil {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.whole
}

// Failed reports whether the client has broken off the body.
func (b *Body) Failed() bool {
	if b == nil {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ended != nil && !errors.Is(b.ended, io.EOF)
}

// Again takes the body away from the first reader and returns the body of the
// second request, nil for a nil Body. ok is false if it cannot be sent again;
// the first reader then goes on.
func (b *Body) Again(ctx context.Context) (second io.ReadCloser, ok bool) {
	if b == nil {
		return nil, true
	}
	timer := time.NewTimer(detachTimeout)
	defer timer.Stop()

	// no read begins between the end of the one under way and the decision, and
	// what that one has read is kept
	select {
	case b.reading <- struct{}{}:
		defer func() { <-b.reading }()
	case <-timer.C:
		return nil, false
	case <-ctx.Done():
		return nil, false
	}

	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.whole {
		return nil, false
	}
	b.first.detached.Store(true)
	// what is still to come is not kept: there is no third request
	b.keeping, b.undecided = false, false
	return &reader{body: b, second: true}, true
}

// Release says that no second request follows: nothing is kept any longer, and
// a close that was put off happens.
func (b *Body) Release() {
	if b == nil {
		return
	}
	b.mu.Lock()
	b.forget()
	b.undecided = false
	closed := b.closed
	b.mu.Unlock()
	if closed {
		_ = b.closeSource()
	}
}

// readSource reads from the client and keeps what was read.
func (b *Body) readSource(p []byte) (int, error) {
	b.mu.Lock()
	ended := b.ended
	b.mu.Unlock()
	if ended != nil {
		return 0, ended
	}
	b.waiting.Store(int64(time.Since(epoch)))
	n, err := b.source.Read(p)
	b.waiting.Store(0)
	if err != nil {
		b.memory.uploads.end(b)
	}

	b.mu.Lock()
	defer b.mu.Unlock()
	if b.keeping {
		b.keep(p[:n])
	}
	if err != nil {
		b.ended = err
		b.atEnd()
	}
	return n, err
}

// readKept reads what is left of what was kept, and frees what it has read.
func (b *Body) readKept(p []byte) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.kept != nil {
		end := len(b.kept.data)
		if b.kept == b.last {
			end = b.filled
		}
		if b.sent < end {
			n := copy(p, b.kept.data[b.sent:end])
			b.sent += n
			return n
		}
		b.freeFirst()
	}
	b.forget()
	return 0
}

// keep keeps p, or gives up keeping if there is too much. mu is held.
func (b *Body) keep(p []byte) {
	if b.size+int64(len(p)) > b.limit {
		b.forget()
		return
	}
	b.size += int64(len(p))
	for len(p) > 0 {
		if b.last == nil || b.filled == len(b.last.data) {
			c := b.memory.get(b.client, b.chunks)
			if c == nil {
				b.forget()
				return
			}
			if b.last == nil {
				b.kept = c
			} else {
				b.last.next = c
			}
			b.last, b.filled = c, 0
			b.chunks++
		}
		n := copy(b.last.data[b.filled:], p)
		b.filled += n
		p = p[n:]
	}
}

// freeFirst frees the first chunk. mu is held.
func (b *Body) freeFirst() {
	c := b.kept
	b.kept, b.sent = c.next, 0
	b.memory.put(b.client, c)
}

// forget frees what is kept, and keeps no more. mu is held.
func (b *Body) forget() {
	for b.kept != nil {
		b.freeFirst()
	}
	b.last, b.keeping, b.whole = nil, false, false
}

// closeSource closes the client's body, after the read that is under way, if
// there is one. It does not wait for that read: the client may send no more
// before it has the answer.
func (b *Body) closeSource() error {
	select {
	case b.reading <- struct{}{}:
		defer func() { <-b.reading }()
		b.memory.uploads.end(b)
		return b.source.Close()
	default:
	}
	go func() {
		b.reading <- struct{}{}
		b.memory.uploads.end(b)
		_ = b.source.Close()
		<-b.reading
	}()
	return nil
}

// reader is the body of one of the two requests.
type reader struct {
	body     *Body
	second   bool
	detached atomic.Bool
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	if r.second {
		if n := r.body.readKept(p); n > 0 {
			return n, nil
		}
	}
	r.body.reading <- struct{}{}
	defer func() { <-r.body.reading }()
	if r.detached.Load() {
		return 0, errDetached
	}
	return r.body.readSource(p)
}

// Close implements io.Closer.
func (r *reader) Close() error {
	b := r.body
	b.mu.Lock()
	switch {
	case r.detached.Load(): // the second reads on
		b.mu.Unlock()
		return nil
	case b.undecided:
		b.closed = true
		b.mu.Unlock()
		return nil
	}
	b.forget()
	b.mu.Unlock()
	return b.closeSource()
}
