package replaybody

import (
	"io"
	"strings"
	"sync"
	"testing"
)

// bodyOf returns a body of client of which everything was read.
func bodyOf(t *testing.T, client, content string, memory *Memory) *Body {
	t.Helper()
	b := New(io.NopCloser(strings.NewReader(content)), -1, 1<<30, client, memory, func() {})
	read(t, b.First())
	return b
}

// Bodies count as what they take: chunks of 1, 2, 4, 8, 16 KiB, and then 32 KiB,
// as the documentation of replay_memory says.
func TestBodiesCountAsWhatTheyTake(t *testing.T) {
	for length, want := range map[int]int64{
		0:             0,
		1:             1 << 10,
		1 << 10:       1 << 10,
		1<<10 + 1:     3 << 10,
		3<<10 + 1:     7 << 10,
		7<<10 + 1:     15 << 10,
		15<<10 + 1:    31 << 10,
		31<<10 + 1:    63 << 10,
		63 << 10:      63 << 10,
		63<<10 + 1:    95 << 10,
		1 << 20:       1<<20 + 31<<10,
		1<<20 + 1<<15: 1<<20 + 63<<10,
	} {
		memory := newMemory(4 << 20)
		b := bodyOf(t, "client", text(length), memory)
		if got := memory.clients["client"]; got != want || shares*memory.share-memory.left != want {
			t.Errorf("a body of %d bytes takes %d, want %d", length, got, want)
		}
		b.Release()
		checkGivenBack(t, memory)
	}
}

// What the second reader has read is free for others.
func TestSecondReaderFreesWhatItHasRead(t *testing.T) {
	memory := newMemory(1 << 20)
	b := bodyOf(t, "client", text(100_000), memory)
	second, ok := b.Again(t.Context())
	if !ok {
		t.Fatal("cannot be sent again")
	}
	if _, err := io.CopyN(io.Discard, second, 64<<10); err != nil {
		t.Fatal(err)
	}
	if got := memory.clients["client"]; got != 64<<10 {
		t.Errorf("%d bytes are taken, want the two last chunks", got)
	}
	_ = second.Close()
	checkGivenBack(t, memory)
}

func TestOneClientHasAQuarter(t *testing.T) {
	const size = 1 << 20
	for name, length := range map[string]int{"bodies of a byte": 1, "long bodies": 100_000, "one after the other": 5000} {
		memory, content := NewMemory(size), text(length)
		var hostile []*Body
		for taken := 0; taken < 2*size; taken += max(length, 1<<10) {
			hostile = append(hostile, bodyOf(t, "hostile", content, memory))
		}
		if got := memory.clients["hostile"]; got > size/4 || got < size/4-32<<10 {
			t.Errorf("%s: a client has %d bytes, want a quarter of %d", name, got, size)
		}
		if last := hostile[len(hostile)-1]; last.Replayable() {
			t.Errorf("%s: the last is kept all the same", name)
		}
		honest := bodyOf(t, "honest", text(200_000), memory)
		if !honest.Replayable() {
			t.Errorf("%s: there is no memory for another client", name)
		}
		honest.Release()
		for _, b := range hostile {
			b.Release()
		}
		if again := bodyOf(t, "hostile", text(200_000), memory); !again.Replayable() {
			t.Errorf("%s: memory that was given back is not used again", name)
		} else {
			again.Release()
		}
		checkGivenBack(t, memory)
	}
}

func TestAllClientsHaveWhatThereIs(t *testing.T) {
	memory := NewMemory(4 << 10)
	var bodies []*Body
	for _, client := range []string{"a", "b", "c", "d", "e"} {
		bodies = append(bodies, bodyOf(t, client, "x", memory))
	}
	for i, b := range bodies {
		if want := i < shares; b.Replayable() != want {
			t.Errorf("body %d is kept: %v", i, !want)
		}
		b.Release()
	}
	checkGivenBack(t, memory)
}

func TestMemoryUnderConcurrency(t *testing.T) {
	memory := NewMemory(256 << 10)
	var wg sync.WaitGroup
	for _, client := range []string{"a", "b", "c", "d", "e", "f"} {
		wg.Go(func() {
			content := text(20_000)
			for range 200 {
				b := New(io.NopCloser(strings.NewReader(content)), -1, 1<<20, client, memory, func() {})
				_, _ = io.Copy(io.Discard, b.First())
				if second, ok := b.Again(t.Context()); ok {
					if got, _ := io.ReadAll(second); string(got) != content {
						t.Errorf("the second reader got %d other bytes", len(got))
					}
					_ = second.Close()
				}
				b.Release()
			}
		})
	}
	wg.Wait()
	checkGivenBack(t, memory)
}
