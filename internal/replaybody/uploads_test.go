package replaybody

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestStalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := newMemory(1 << 20)
		hold := make(chan struct{})
		var bodies []*Body
		begin := func(client string, stall bool) *Body {
			source := &clientBody{Reader: strings.NewReader("body")}
			if stall {
				source.hold = hold
			}
			b := New(source, -1, 1<<10, client, memory, func() {})
			bodies = append(bodies, b)
			if stall {
				go func() { _, _ = b.First().Read(make([]byte, 10)) }()
			}
			return b
		}
		for range MaxStalled - 1 {
			begin("hostile", true)
		}
		begin("hostile", false) // of which nothing is read: the API takes its time
		begin("honest", true)
		time.Sleep(StallTime + 1)
		if memory.Stalled("hostile") {
			t.Errorf("%d are too many", MaxStalled-1)
		}
		begin("hostile", true)
		synctest.Wait()
		time.Sleep(StallTime)
		if memory.Stalled("hostile") {
			t.Error("the last one has not been stalled for long enough")
		}
		time.Sleep(time.Nanosecond)
		if !memory.Stalled("hostile") || memory.Stalled("honest") || memory.Stalled("nobody") {
			t.Error("want too many of one client, and none of others")
		}

		// however they end, they are gone
		close(hold)
		synctest.Wait()
		for n, b := range bodies {
			switch n % 3 {
			case 0:
				_, _ = b.First().Read(make([]byte, 10)) // its end
			case 1:
				_ = b.First().Close()
			default:
				if second, ok := b.Again(context.Background()); ok {
					_ = second.Close()
				}
			}
			b.Release()
			_ = b.First().Close()
		}
		synctest.Wait()
		if memory.Stalled("hostile") || len(memory.uploads.clients) != 0 {
			t.Errorf("%d clients have uploads that have ended", len(memory.uploads.clients))
		}
	})
}
