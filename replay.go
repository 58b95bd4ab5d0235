package egress

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-egress/caddy-egress/tokensource"
)

const (
	// maxUnauthorized and discardPatience bound what is read of a 401 that is
	// not passed on, for the sake of its connection.
	maxUnauthorized = 64 << 10
	discardPatience = time.Second

	// chunkSize is the unit in which bodies are kept.
	chunkSize = 32 << 10

	// detachPatience bounds the wait for a read of the client's body to come
	// back. It is longer than the gaps of any upload that moves; a client that
	// sends nothing for so long may be waiting for the answer itself.
	detachPatience = 2 * time.Second
)

var errDetached = errors.New("the request is sent again")

// memory bounds all bodies that are kept.
type memory struct{ left atomic.Int64 }

func newMemory(size int64) *memory {
	m := new(memory)
	m.left.Store(size)
	return m
}

// chunks are reused across requests.
var chunks = sync.Pool{New: func() any { return new([chunkSize]byte) }}

func (m *memory) get() *[chunkSize]byte {
	if m.left.Add(-chunkSize) < 0 {
		m.left.Add(chunkSize)
		return nil
	}
	return chunks.Get().(*[chunkSize]byte)
}

func (m *memory) put(c *[chunkSize]byte) {
	chunks.Put(c)
	m.left.Add(chunkSize)
}

// body is a request body on its way to the API: streamed, and kept as it
// streams so that it can be sent a second time.
//
// It is read by one attempt at a time. The first is detached before the second
// begins. As long as a second may follow, closing the first does not close the
// client's body: the HTTP transport closes it whenever the API answers early,
// and with HTTP/1 may be reading it still.
type body struct {
	source io.ReadCloser // the client's body
	req    *http.Request
	strip  []string // credential headers of the API, for trailers
	memory *memory
	limit  int64

	attempt *attempt      // the first
	reading chan struct{} // holds a value while source is read

	mu        sync.Mutex
	keeping   bool // what is read is kept
	whole     bool // all that was read so far is kept
	kept      []*[chunkSize]byte
	size      int64 // of what is kept
	sent      int64 // how much of that the second attempt has read
	ended     error // what ended the reading of source
	undecided bool  // a second attempt may follow
	closed    bool  // the first was closed meanwhile
}

// attempt is the body of one of the two requests.
type attempt struct {
	*body
	second   bool
	detached atomic.Bool
}

// keep returns the body of req, or nil if it has none. One that is known to be
// too long for a replay is not kept.
func (t *Transport) keep(req *http.Request) *body {
	if req.Body == nil || req.Body == http.NoBody {
		return nil
	}
	limit := t.replayBuffer()
	fits := limit > 0 && req.ContentLength <= limit
	b := &body{
		source:    req.Body,
		req:       req,
		strip:     t.api.CredentialHeaders,
		memory:    t.app.memory,
		limit:     limit,
		reading:   make(chan struct{}, 1),
		keeping:   fits,
		whole:     fits,
		undecided: true,
	}
	b.attempt = &attempt{body: b}
	return b
}

// first returns the body of the first request; nil if there is none.
func (b *body) first() *attempt {
	if b == nil {
		return nil
	}
	return b.attempt
}

// Read implements io.Reader.
func (a *attempt) Read(p []byte) (int, error) {
	if a.second {
		if n := a.readKept(p); n > 0 {
			return n, nil
		}
	}
	a.reading <- struct{}{}
	defer func() { <-a.reading }()
	if a.detached.Load() {
		return 0, errDetached
	}
	return a.readSource(p)
}

// Close implements io.Closer.
func (a *attempt) Close() error {
	a.mu.Lock()
	switch {
	case a.detached.Load(): // the second attempt reads on
		a.mu.Unlock()
		return nil
	case a.undecided:
		a.closed = true
		a.mu.Unlock()
		return nil
	}
	a.forget()
	a.mu.Unlock()
	return a.closeSource()
}

// readSource reads from the client and keeps what comes.
func (b *body) readSource(p []byte) (int, error) {
	b.mu.Lock()
	ended := b.ended
	b.mu.Unlock()
	if ended != nil {
		return 0, ended
	}
	n, err := b.source.Read(p)

	b.mu.Lock()
	defer b.mu.Unlock()
	if b.keeping {
		b.append(p[:n])
	}
	if err != nil {
		b.ended = err
		// the end of the body has filled in the trailers
		stripTrailers(b.req.Trailer, b.strip)
	}
	return n, err
}

// readKept reads what is left of what was kept, and frees it after that.
func (b *body) readKept(p []byte) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.sent == b.size {
		b.forget()
		return 0
	}
	offset := b.sent % chunkSize
	chunk := b.kept[b.sent/chunkSize][offset:min(chunkSize, offset+b.size-b.sent)]
	n := copy(p, chunk)
	b.sent += int64(n)
	return n
}

// append keeps p, or gives up keeping if there is too much. mu is held.
func (b *body) append(p []byte) {
	if b.size+int64(len(p)) > b.limit {
		b.forget()
		return
	}
	for len(p) > 0 {
		offset := b.size % chunkSize
		if offset == 0 {
			c := b.memory.get()
			if c == nil {
				b.forget()
				return
			}
			b.kept = append(b.kept, c)
		}
		n := copy(b.kept[len(b.kept)-1][offset:], p)
		b.size += int64(n)
		p = p[n:]
	}
}

// forget frees what is kept and keeps no more. mu is held.
func (b *body) forget() {
	for _, c := range b.kept {
		b.memory.put(c)
	}
	b.kept, b.size, b.sent, b.keeping, b.whole = nil, 0, 0, false, false
}

// replayable reports whether the body can be sent again, as far as it is known yet.
func (b *body) replayable() bool {
	if b == nil {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.whole
}

// release says that no second attempt follows: nothing is kept any longer, and
// a close that was put off happens.
func (b *body) release() {
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

// closeSource closes the client's body, after the read that is under way, if
// there is one. It does not wait for that: the client may send no more before
// it has the answer.
func (b *body) closeSource() error {
	select {
	case b.reading <- struct{}{}:
		defer func() { <-b.reading }()
		return b.source.Close()
	default:
	}
	go func() {
		b.reading <- struct{}{}
		_ = b.source.Close()
		<-b.reading
	}()
	return nil
}

// again takes the body from the first attempt and returns the second; ok is
// false if the body cannot be sent again, and then the first goes on as it was.
// The second is nil if there is no body.
func (b *body) again(ctx context.Context) (second *attempt, ok bool) {
	if b == nil {
		return nil, true
	}
	timer := time.NewTimer(detachPatience)
	defer timer.Stop()

	// once no read is under way, none begins before this is decided; what the
	// last one has brought is kept
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
	b.attempt.detached.Store(true)
	// what is still to come is not kept: there is no third attempt
	b.keeping, b.undecided = false, false
	return &attempt{body: b, second: true}, true
}

// replay answers a 401 to the request that carried token: with what the API
// says to a second one with a fresh token, or, where there cannot be one, with
// that 401. The time that it waited for that token is added to wait.
func (t *Transport) replay(req *http.Request, unauthorized *http.Response, token *tokensource.Token, b *body, wait *time.Duration) (resp *http.Response, outcome string, err error) {
	pass := func(result string) (*http.Response, string, error) {
		b.release()
		t.meter.unauthorized[result].Inc()
		return unauthorized, outcomeForwarded, nil
	}
	fresh := t.source.Rejected(token, false)
	if fresh == nil {
		return pass(unauthorizedHeldBack)
	}
	if fresh.First {
		go t.app.emit(eventTokenRejected, t.source, nil) // not at the cost of the request
	}
	if !b.replayable() {
		return pass(unauthorizedNotReplayable)
	}
	start := time.Now()
	token, err = fresh.Token(req.Context())
	*wait += time.Since(start)
	if err != nil {
		return pass(unauthorizedNotReplayable)
	}
	second, ok := b.again(req.Context())
	if !ok {
		return pass(unauthorizedNotReplayable)
	}
	go discard(unauthorized.Body)

	done := t.source.Carry(token)
	resp, err = t.upstream.RoundTrip(t.outgoing(req, token, second))
	done()
	switch {
	case err != nil:
		return nil, outcomeReplayed, err
	case resp.StatusCode != http.StatusUnauthorized:
		t.source.Accepted(token, true)
		t.meter.unauthorized[unauthorizedReplayedOK].Inc()
	default:
		if !insufficientScope(resp) {
			t.source.Rejected(token, true)
		}
		t.meter.unauthorized[unauthorizedReplayed401].Inc()
	}
	return resp, outcomeReplayed, nil
}

// discard reads what is left of a 401 that nobody will see, so that its
// connection can be used again; not for long, and not much of it.
func discard(body io.ReadCloser) {
	timer := time.AfterFunc(discardPatience, func() { _ = body.Close() })
	defer timer.Stop()
	_, _ = io.CopyN(io.Discard, body, maxUnauthorized)
	_ = body.Close()
}
