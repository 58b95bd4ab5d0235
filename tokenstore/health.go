package tokenstore

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-egress/caddy-egress/tokensource"
)

// After an operation has failed, others of its kind fail without being tried for a
// while, which doubles each time.
const (
	leaveFirst = time.Second
	leaveMax   = 30 * time.Second
)

// warnEvery bounds how often a storage that fails now and then is warned of.
const warnEvery = time.Minute

// Health is how the storage is doing.
type Health struct {
	Storage string    // its name
	Failing bool      // an operation that is needed to share tokens does not work
	Since   time.Time // it is as it is
	Err     error     // of an operation that fails; nil if none does
}

// health is what is known of the storage. It logs the first failure and the end of
// all.
type health struct {
	logger *zap.Logger

	mu      sync.Mutex
	since   time.Time
	failing map[string]*failure // by operation; empty: the storage works
	warned  time.Time           // that it fails
	silent  bool                // it has failed again so soon that this was not logged
	closed  bool
}

// failure is an operation that fails.
type failure struct {
	err   error
	count int
	until time.Time // it is left alone
}

func (h *health) get(storage string) Health {
	h.mu.Lock()
	defer h.mu.Unlock()
	health := Health{Storage: storage, Failing: len(h.failing) > 0, Since: h.since}
	for _, operation := range slices.Sorted(maps.Keys(h.failing)) {
		health.Err = fmt.Errorf("%s: %w", operation, h.failing[operation].err)
	}
	return health
}

var (
	errClosed    = errors.New("the store is closed")
	errLeftAlone = errors.New("not tried again yet")
)

// leftAlone returns an error if an operation is not to be tried now.
func (h *health) leftAlone(operation string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return errClosed
	}
	if f := h.failing[operation]; f != nil && tokensource.Until(f.until, time.Now()) > 0 {
		return fmt.Errorf("%w: %s: %w", errLeftAlone, operation, f.err)
	}
	return nil
}

// anyFailing reports whether an operation fails.
func (h *health) anyFailing() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.failing) > 0
}

// isDue reports whether an operation has failed, and may be tried again.
func (h *health) isDue(operation string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	f := h.failing[operation]
	return f != nil && tokensource.Until(f.until, time.Now()) <= 0
}

// failed notes that an operation has failed.
func (h *health) failed(operation string, err error) {
	now := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || !needed(operation) || errors.Is(err, errClosed) {
		return
	}
	if len(h.failing) == 0 {
		h.since = now
		h.failing = make(map[string]*failure)
		if h.silent = !h.warned.IsZero() && now.Sub(h.warned) < warnEvery; !h.silent {
			h.warned = now
			h.logger.Warn("the storage of shared tokens fails; tokens are not shared meanwhile",
				zap.String("operation", operation), zap.Error(err))
		}
	}
	f := h.failing[operation]
	if f == nil {
		f = new(failure)
		h.failing[operation] = f
	}
	f.err = err
	f.count++
	wait := leaveFirst
	for n := f.count; n > 1 && wait < leaveMax; n-- {
		wait *= 2
	}
	f.until = now.Add(min(wait, leaveMax))
}

// worked notes that an operation has succeeded.
func (h *health) worked(operation string) {
	now := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || h.failing[operation] == nil {
		return
	}
	delete(h.failing, operation)
	if len(h.failing) > 0 {
		return
	}
	if !h.silent {
		h.logger.Info("the storage of shared tokens works again", zap.Duration("outage", now.Sub(h.since)))
	}
	h.since = now
}

// needed reports whether tokens cannot be shared without an operation.
func needed(operation string) bool {
	switch operation {
	case OperationLoad, OperationStore, OperationLock:
		return true
	}
	return false
}

func (h *health) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
}
