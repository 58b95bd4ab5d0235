package tokenstore

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"time"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// sharer notes that an instance uses a token. It says nothing of the token itself.
type sharer struct {
	Format   int       `json:"format"`
	Instance string    `json:"instance"`
	Token    string    `json:"token"`   // a digest
	Expires  time.Time `json:"expires"` // of the token: the note means nothing after that
}

// sharer returns the note that this instance uses t.
func (c *Credential) sharer(t tokenprovider.Token) sharer {
	digest := sha256.Sum256([]byte(t.Value.Reveal()))
	return sharer{Format: format, Instance: c.store.instance, Token: hex.EncodeToString(digest[:16]), Expires: t.Expires.UTC()}
}

func (c *Credential) sharersKey() string { return sharersPrefix + "/" + c.identity }

func (c *Credential) sharerKey() string { return c.sharersKey() + "/" + c.store.instance }

// Join implements tokensource.Shared.
func (c *Credential) Join(ctx context.Context, t tokenprovider.Token) {
	note, err := json.Marshal(c.sharer(t))
	if err == nil {
		_ = c.store.store(ctx, c.sharerKey(), note) // it says itself if it fails
	}
}

// Leave implements tokensource.Shared.
func (c *Credential) Leave(ctx context.Context, alternatives [][]tokenprovider.Secret, t tokenprovider.Token) (last bool) {
	if c.store.delete(ctx, c.sharerKey()) != nil {
		return false
	}
	notes, err := c.store.list(ctx, c.sharersKey())
	if err != nil {
		return false
	}
	ours := c.sharer(t)
	for _, key := range notes {
		if !isBelow(key, c.sharersKey(), 1) {
			continue
		}
		note, err := c.store.load(ctx, key)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return false
		}
		c.store.opts.OnOperation(OperationLoad, OutcomeOK)
		var other sharer
		if json.Unmarshal(note, &other) != nil || other.Token == ours.Token && other.Instance != ours.Instance { // ours may come late
			return false
		}
	}
	stored, err := c.Load(ctx, alternatives)
	if err != nil {
		return false
	}
	if stored == nil || stored.Value.Reveal() != t.Value.Reveal() {
		return true
	}
	return c.store.delete(ctx, c.key()) == nil
}
