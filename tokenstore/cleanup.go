package tokenstore

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"path"
	"strings"
	"time"

	"go.uber.org/zap"
)

const (
	cleanUpEvery = time.Hour

	// cleanUpAfter is how long ago a token has to have expired, by our clock, for
	// what is stored of it to be deleted.
	cleanUpAfter = time.Hour
)

// CleanUp deletes what is stored of tokens that have expired and that this config
// has no use for, now and about once an hour, until ctx ends: nobody else does,
// since storages keep what they are given.
func (s *Store) CleanUp(ctx context.Context, inUse func(identity string) bool) {
	failures := 0
	for {
		if err := s.cleanUp(ctx, inUse, time.Now()); err != nil && ctx.Err() == nil {
			if failures++; failures == 2 { // the first may be an outage, which is warned of
				s.opts.Logger.Warn("could not look for shared tokens that nobody needs any more; they stay in the storage", zap.Error(err))
			}
		}
		// instances that started together do not go on together
		wait := time.NewTimer(cleanUpEvery - time.Duration(rand.Int64N(int64(cleanUpEvery/10)))) //nolint:gosec // no secret
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return
		}
	}
}

func (s *Store) cleanUp(ctx context.Context, inUse func(identity string) bool, now time.Time) error {
	unused := func(key string) bool { return !inUse(path.Base(key)) }
	all := func(string) bool { return true }
	return errors.Join(
		s.cleanUpBelow(ctx, tokensPrefix, 1, unused, now),
		s.cleanUpBelow(ctx, sharersPrefix, 2, all, now),
		s.cleanUpBelow(ctx, probesPrefix, 1, all, now), // of an instance that died meanwhile
	)
}

// cleanUpBelow deletes what has expired of the keys that many levels below prefix,
// if it is for us to delete.
func (s *Store) cleanUpBelow(ctx context.Context, prefix string, levels int, ours func(key string) bool, now time.Time) error {
	keys, err := s.list(ctx, prefix)
	for _, key := range keys {
		if isBelow(key, prefix, levels) && ours(key) {
			err = errors.Join(err, s.deleteExpired(ctx, key, now))
		}
	}
	return err
}

// isBelow reports whether key is that many levels below prefix: storages list what
// is between as well, or do not.
func isBelow(key, prefix string, levels int) bool {
	rest, ok := strings.CutPrefix(key, prefix+"/")
	return ok && strings.Count(rest, "/") == levels-1
}

// deleteExpired deletes what is under key if it has expired long ago. What is not
// of this format is left: it may be of a later one, or of somebody else.
func (s *Store) deleteExpired(ctx context.Context, key string, now time.Time) error {
	value, err := s.load(ctx, key)
	if err != nil {
		return nil // deleted by another instance, or the next time
	}
	s.opts.OnOperation(OperationLoad, OutcomeOK)
	var stored struct {
		Format  int       `json:"format"`
		Expires time.Time `json:"expires"`
	}
	if json.Unmarshal(value, &stored) != nil || stored.Format != format || now.Sub(stored.Expires) < cleanUpAfter {
		return nil
	}
	return s.delete(ctx, key)
}
