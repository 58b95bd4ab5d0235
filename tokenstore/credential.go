package tokenstore

import (
	"context"
	"errors"
	"io/fs"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
)

// Credential keeps the token of one credential. It implements tokensource.Shared.
type Credential struct {
	store    *Store
	name     string // for people
	identity string
	warned   atomic.Pointer[time.Time] // that what is stored cannot be used
	denied   atomic.Int32              // how often in a row neither lock was granted
}

// Credential returns what keeps the token of the credential of that identity.
func (s *Store) Credential(name, identity string) *Credential {
	return &Credential{store: s, name: name, identity: identity}
}

// Place implements tokensource.Shared.
func (c *Credential) Place() string { return c.store.opts.Place }

func (c *Credential) key() string { return tokensPrefix + "/" + c.identity }

// Load implements tokensource.Shared.
func (c *Credential) Load(ctx context.Context, alternatives [][]tokenprovider.Secret) (*tokensource.SharedToken, error) {
	value, err := c.store.load(ctx, c.key())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	t, err := openAny(c.key(), alternatives, value, time.Now())
	switch {
	case errors.Is(err, errNewer):
		c.store.opts.OnOperation(OperationLoad, OutcomeAbsent)
		return nil, nil
	case err != nil:
		c.cannotUse(err)
		c.store.opts.OnOperation(OperationLoad, OutcomeUnusable)
		return nil, nil
	}
	c.store.opts.OnOperation(OperationLoad, OutcomeOK)
	c.store.probe()
	return t, nil
}

// Store implements tokensource.Shared.
func (c *Credential) Store(ctx context.Context, secrets []tokenprovider.Secret, t tokensource.SharedToken) error {
	value, err := seal(c.key(), secrets, t)
	if err != nil {
		c.cannotUse(err)
		return err
	}
	return c.store.store(ctx, c.key(), value)
}

// warnUnusableEvery bounds how often an entry that cannot be used is warned of:
// where two instances cannot read each other's, they store theirs by turns.
const warnUnusableEvery = time.Hour

// cannotUse logs why nothing is shared of this credential.
func (c *Credential) cannotUse(err error) {
	now, last := time.Now(), c.warned.Load()
	if (last == nil || now.Sub(*last) >= warnUnusableEvery) && c.warned.CompareAndSwap(last, &now) {
		c.store.opts.Logger.Warn("a shared token cannot be used; a token of our own takes its place",
			zap.String("credential", c.name), zap.String("reason", err.Error()))
	}
}

// maxDenied is how often in a row neither lock is granted until that is taken for a
// fault: each may have had a holder that waited for a token.
const maxDenied = 3

var errNotGranted = errors.New("its locks are not granted, time and again; if nobody holds them, delete them")

// Lock implements tokensource.Shared. An error of the first lock can mean that
// another instance has it; the second is waited for where that brought no token.
func (c *Credential) Lock(ctx context.Context, which tokensource.Lock) (unlock func(), err error) {
	name := c.key()
	if which == tokensource.SecondLock {
		name += "/2"
	}
	unlock, err = c.store.lock(ctx, name)
	switch {
	case err == nil:
		c.denied.Store(0)
	case errors.Is(ctx.Err(), context.DeadlineExceeded) && which == tokensource.SecondLock:
		if c.denied.Add(1) >= maxDenied { // of this credential alone, or the storage is found out to fail
			c.store.opts.OnOperation(OperationLock, OutcomeFailed)
			c.cannotUse(errNotGranted)
		}
	case ctx.Err() != nil || errors.Is(err, errLeftAlone) || errors.Is(err, errClosed):
	case which == tokensource.SecondLock:
		c.store.lockFailed(err)
	default:
		c.store.opts.OnOperation(OperationLock, OutcomeBusy)
	}
	return unlock, err
}

// Interface guard
var _ tokensource.Shared = (*Credential)(nil)
