package replaybody

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// clientBody is the body of a client's request. Reads block while hold is not nil.
type clientBody struct {
	io.Reader
	hold   chan struct{}
	closed atomic.Int32
}

func (c *clientBody) Read(p []byte) (int, error) {
	if c.hold != nil {
		<-c.hold
	}
	return c.Reader.Read(p)
}

func (c *clientBody) Close() error {
	c.closed.Add(1)
	return nil
}

// text returns n bytes of which no two chunks are alike.
func text(n int) string {
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		b.WriteString(strings.Repeat(string(rune('a'+i%26)), 1000+i))
	}
	return b.String()[:n]
}

// newMemory returns a Memory of which one client can have size bytes.
func newMemory(size int64) *Memory { return NewMemory(shares * size) }

func checkGivenBack(t *testing.T, m *Memory) {
	t.Helper()
	if taken := shares*m.share - m.left; taken != 0 || len(m.clients) != 0 {
		t.Errorf("%d bytes of memory are not given back, %d clients have some", taken, len(m.clients))
	}
}

func newBody(content string, limit int64, memory *Memory) (*Body, *clientBody, *int) {
	client := &clientBody{Reader: strings.NewReader(content)}
	ends := new(int)
	return New(client, int64(len(content)), limit, "client", memory, func() { *ends++ }), client, ends
}

func read(t *testing.T, r io.Reader) string {
	t.Helper()
	content, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func TestNilBody(t *testing.T) {
	var b *Body
	if b.First() != nil {
		t.Error("a request without a body has got one")
	}
	if !b.Replayable() {
		t.Error("a request without a body cannot be replayed")
	}
	if second, ok := b.Again(t.Context()); second != nil || !ok {
		t.Errorf("again: %v, %v", second, ok)
	}
	b.Release()
}

func TestSecondReaderGetsWhatTheFirstHasRead(t *testing.T) {
	// the chunks end at 1, 3, 7, 15, 31, 63, 95, … KiB
	for _, length := range []int{0, 1, 1023, 1024, 1025, 3072, 3073, 31 << 10, 63 << 10, 95<<10 + 1, 200_000} {
		for _, readByFirst := range []int{0, 1, 1024, 63 << 10, length / 2, length} {
			if readByFirst > length {
				continue
			}
			memory := newMemory(1 << 20)
			content := text(length)
			b, client, ends := newBody(content, 1<<20, memory)
			if got := read(t, io.LimitReader(b.First(), int64(readByFirst))); got != content[:readByFirst] {
				t.Fatalf("the first reader got %d other bytes", len(got))
			}
			second, ok := b.Again(t.Context())
			if !ok {
				t.Fatalf("%d of %d bytes: cannot be sent again", readByFirst, length)
			}
			if n, err := b.First().Read(make([]byte, 1)); n != 0 || !errors.Is(err, errDetached) {
				t.Errorf("the first reader reads on: %d bytes, %v", n, err)
			}
			if err := b.First().Close(); err != nil || client.closed.Load() != 0 {
				t.Errorf("the first reader has closed the body of the second: %v", err)
			}
			if got := read(t, second); got != content {
				t.Errorf("%d of %d bytes: the second reader got %d other bytes", readByFirst, length, len(got))
			}
			if *ends != 1 {
				t.Errorf("the end was reported %d times", *ends)
			}
			if err := second.Close(); err != nil || client.closed.Load() != 1 {
				t.Errorf("closing the second: %v, the client's body was closed %d times", err, client.closed.Load())
			}
			checkGivenBack(t, memory)
		}
	}
}

func TestBodiesThatAreNotKept(t *testing.T) {
	for name, test := range map[string]struct {
		size, limit, memory int64
		length              int
		kept                bool
	}{
		"at the limit":                          {size: 10, limit: 10, memory: 1 << 20, length: 10, kept: true},
		"of a size above the limit":             {size: 11, limit: 10, memory: 1 << 20, length: 10},
		"nothing is kept":                       {size: 1, limit: 0, memory: 1 << 20, length: 1},
		"of unknown size, at the limit":         {size: -1, limit: 10, memory: 1 << 20, length: 10, kept: true},
		"of unknown size, a byte above":         {size: -1, limit: 10, memory: 1 << 20, length: 11},
		"memory for one chunk, and it is used":  {size: -1, limit: 1 << 20, memory: 1 << 10, length: 1 << 10, kept: true},
		"memory for one chunk, and a byte more": {size: -1, limit: 1 << 20, memory: 1 << 10, length: 1<<10 + 1},
		"memory for two chunks":                 {size: -1, limit: 1 << 20, memory: 3 << 10, length: 3 << 10, kept: true},
		"a byte short of memory for a chunk":    {size: -1, limit: 1 << 20, memory: 1<<10 - 1, length: 1},
	} {
		memory := newMemory(test.memory)
		client := &clientBody{Reader: strings.NewReader(text(test.length))}
		b := New(client, test.size, test.limit, "client", memory, func() {})
		if got := read(t, b.First()); got != text(test.length) {
			t.Errorf("%s: the first reader got %d other bytes", name, len(got))
		}
		if b.Replayable() != test.kept {
			t.Errorf("%s: replayable: %v", name, !test.kept)
		}
		second, ok := b.Again(t.Context())
		if ok != test.kept {
			t.Errorf("%s: can be sent again: %v", name, ok)
		}
		if ok && read(t, second) != text(test.length) {
			t.Errorf("%s: the second reader got other bytes", name)
		}
		b.Release()
		checkGivenBack(t, memory)
	}
}

// A body that outgrows the limit after it was asked whether it is replayable
// must not be sent again in part.
func TestBodyThatOutgrowsTheLimitLate(t *testing.T) {
	b, _, _ := newBody("", 10, newMemory(1<<20))
	b.source = &clientBody{Reader: io.MultiReader(strings.NewReader("12345"), strings.NewReader("6789012345"))}
	read := func() { _, _ = b.First().Read(make([]byte, 100)) }
	read()
	if !b.Replayable() {
		t.Fatal("five bytes are too many")
	}
	read()
	if _, ok := b.Again(t.Context()); ok {
		t.Fatal("a part of the body would be sent again")
	}
	read()
	if _, err := b.First().Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the first reader does not go on: %v", err)
	}
}

func TestCloseIsPutOffWhileASecondMayFollow(t *testing.T) {
	b, client, _ := newBody("content", 1<<20, newMemory(1<<20))
	if err := b.First().Close(); err != nil || client.closed.Load() != 0 {
		t.Fatalf("closed %d times, %v", client.closed.Load(), err)
	}
	b.Release()
	if got := client.closed.Load(); got != 1 {
		t.Errorf("closed %d times after the release", got)
	}

	b, client, _ = newBody("content", 1<<20, newMemory(1<<20))
	b.Release()
	if got := client.closed.Load(); got != 0 {
		t.Errorf("a release closed a body that nobody has closed (%d times)", got)
	}
	if err := b.First().Close(); err != nil || client.closed.Load() != 1 {
		t.Errorf("closed %d times, %v", client.closed.Load(), err)
	}
}

func TestAgainWaitsForTheReadUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, client, _ := newBody("content", 1<<20, newMemory(1<<20))
		client.hold = make(chan struct{})
		go func() { _, _ = b.First().Read(make([]byte, 3)) }()
		synctest.Wait()
		time.AfterFunc(detachTimeout-time.Millisecond, func() { close(client.hold) })
		second, ok := b.Again(t.Context())
		if !ok {
			t.Fatal("not waited for")
		}
		if got := read(t, second); got != "content" {
			t.Errorf("the second reader got %q", got)
		}
	})
}

func TestAgainDoesNotWaitForEver(t *testing.T) {
	for _, cancelled := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			b, client, _ := newBody("content", 1<<20, newMemory(1<<20))
			client.hold = make(chan struct{})
			go func() { _, _ = b.First().Read(make([]byte, 3)) }()
			synctest.Wait()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			want := 2 * time.Second // documented: longer than the gaps of an upload
			if cancelled {
				cancel()
				want = 0
			}
			start := time.Now()
			if _, ok := b.Again(ctx); ok {
				t.Error("two readers at a time")
			}
			if took := time.Since(start); took != want {
				t.Errorf("waited %v, want %v", took, want)
			}
			close(client.hold)
			synctest.Wait()
			if got := read(t, b.First()); got != "tent" {
				t.Errorf("the first reader goes on with %q", got)
			}
		})
	}
}

// The client may wait for the answer before it sends more: closing must not
// wait for its next byte, and must not close the body under the read either.
func TestCloseComesAfterTheReadUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, client, _ := newBody("content", 1<<20, newMemory(1<<20))
		client.hold = make(chan struct{})
		go func() { _, _ = b.First().Read(make([]byte, 3)) }()
		synctest.Wait()
		_ = b.First().Close()
		b.Release()
		synctest.Wait()
		if got := client.closed.Load(); got != 0 {
			t.Errorf("closed %d times during a read", got)
		}
		close(client.hold)
		synctest.Wait()
		if got := client.closed.Load(); got != 1 {
			t.Errorf("closed %d times after the read", got)
		}
		if len(b.reading) != 0 {
			t.Error("the body stays locked")
		}
	})
}

func TestErrorsOfTheClientStay(t *testing.T) {
	broken := errors.New("connection reset")
	client := &clientBody{Reader: io.MultiReader(strings.NewReader("12"), &failing{broken})}
	b := New(client, -1, 10, "client", newMemory(1<<20), func() {})
	for range 2 {
		if _, err := io.ReadAll(b.First()); !errors.Is(err, broken) {
			t.Errorf("got %v", err)
		}
	}
	second, ok := b.Again(t.Context())
	if !ok {
		t.Fatal("cannot be sent again")
	}
	if got, err := io.ReadAll(second); string(got) != "12" || !errors.Is(err, broken) {
		t.Errorf("the second reader got %q, %v", got, err)
	}
}

// failing fails once; what is read after that would be a mistake.
type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) {
	err := f.err
	f.err = io.EOF
	return 0, err
}
