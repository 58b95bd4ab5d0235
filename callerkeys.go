package egress

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/caddy-egress/caddy-egress/internal/option"
)

// keyProof is what is kept of a key: enough to recognize it, and the tokens that
// it was exchanged for.
type keyProof struct {
	digest   [sha256.Size]byte
	tokenKey [sha256.Size]byte // see localtoken.go
}

// newKeyProof returns what is kept of key, or an error that says what is wrong
// with it, and never what it is.
func newKeyProof(key string) (*keyProof, error) {
	switch {
	case len(key) < minKey:
		return nil, option.Errorf("key", "has fewer than %d characters; `caddy egress key` makes one", minKey)
	case len(key) > maxKey:
		return nil, option.Errorf("key", "has more than %d characters; `caddy egress key` makes one", maxKey)
	case strings.HasPrefix(key, localTokenPrefix):
		return nil, option.Errorf("key", "begins with %s, as tokens of egress_token do; `caddy egress key` makes one", localTokenPrefix)
	}
	for _, c := range []byte(key) {
		if c <= ' ' || c > '~' {
			return nil, option.Errorf("key", "has a space or another character than visible ASCII; `caddy egress key` makes one")
		}
	}
	p := &keyProof{digest: sha256.Sum256([]byte(key))}
	derived, err := hkdf.Key(sha256.New, []byte(key), nil, "caddy-egress local token 1", sha256.Size)
	copy(p.tokenKey[:], derived)
	return p, err
}

// callerKey is one key of a caller, as it was read last.
type callerKey struct {
	caller   *caller
	value    string // as configured
	previous bool   // it may have no value

	proof   *keyProof // what counts; nil: it has no value, or another caller has it now
	said    *keyProof // what its file said last, even if it is another caller's; nil: it has no value
	file    os.FileInfo
	read    time.Time
	missing bool   // it had no value when it was looked for last
	failure string // what is wrong with the file, as it was logged last
}

// resolve reads the key.
func (k *callerKey) resolve() (*keyProof, error) {
	key, err := option.Resolve("key", k.value)
	if err != nil {
		return nil, err
	}
	return newKeyProof(key)
}

// callerKeys are the keys of all callers.
type callerKeys struct {
	logger *zap.Logger
	keys   []*callerKey
	index  atomic.Pointer[keyIndex]

	mu   sync.Mutex    // held while keys are read anew
	stop chan struct{} // closed by stopWatching
}

// keyIndex finds the caller that a key belongs to, by the beginning of its
// digest. It never changes.
type keyIndex map[uint64][]*callerKey

// caller returns whose key has that digest, or nil. All of a digest is compared in
// constant time, so how long it takes tells nothing of the keys.
func (i keyIndex) caller(digest *[sha256.Size]byte) *caller {
	for _, key := range i[prefix(digest)] {
		if subtle.ConstantTimeCompare(key.proof.digest[:], digest[:]) == 1 {
			return key.caller
		}
	}
	return nil
}

func prefix(digest *[sha256.Size]byte) uint64 { return binary.BigEndian.Uint64(digest[:]) }

// add reads the keys of a caller.
func (ks *callerKeys) add(c *caller, values []string) error {
	for i, value := range values {
		key := &callerKey{caller: c, value: value, previous: i > 0}
		key.stat() // before it is read: what changes meanwhile is read again
		var proof *keyProof
		if !key.previous || !key.isGone() {
			var err error
			if proof, err = key.resolve(); err != nil {
				return err
			}
		}
		key.proof, key.said = proof, proof
		if other := ks.other(key, proof); other != nil {
			return option.Errorf("key", "is that of caller %s, too; give each caller its own", other.name)
		}
		ks.keys = append(ks.keys, key)
	}
	return nil
}

// other returns another caller that has the same key, by what its files say, or
// nil.
func (ks *callerKeys) other(key *callerKey, proof *keyProof) *caller {
	for _, k := range ks.keys {
		if k.caller != key.caller && k.said.is(proof) {
			return k.caller
		}
	}
	return nil
}

// is reports whether both are of the same key.
func (p *keyProof) is(other *keyProof) bool {
	return p != nil && other != nil && p.digest == other.digest
}

// publish has the keys count as they are now. mu is held, or nobody else knows ks.
func (ks *callerKeys) publish() {
	index := make(keyIndex, len(ks.keys))
	proofs := make(map[*caller][]*keyProof, len(ks.keys))
	for _, key := range ks.keys {
		if key.proof == nil {
			continue
		}
		p := prefix(&key.proof.digest)
		index[p] = append(index[p], &callerKey{caller: key.caller, proof: key.proof}) // a copy: key changes
		proofs[key.caller] = append(proofs[key.caller], key.proof)
	}
	for _, key := range ks.keys {
		of := proofs[key.caller]
		key.caller.proofs.Store(&of)
	}
	ks.index.Store(&index)
}

const (
	// keyInterval is how often files of keys are looked at.
	keyInterval = 500 * time.Millisecond

	// settled is how long after a change of a file another one certainly has
	// another time of modification, on any file system.
	settled = 3 * time.Second
)

// watch begins to look at files of keys, until stopWatching. Each directory has a
// goroutine of its own: a file system that does not answer holds up no other. The
// keys of one caller are looked at together, the present one first, so that one
// that becomes the previous one counts all the time.
func (ks *callerKeys) watch() {
	stop := make(chan struct{})
	ks.stop = stop
	of := make(map[*caller]string) // the directories of its keys
	for _, key := range ks.keys {
		path, _ := secretFile(key.value)
		if directory := filepath.Dir(path) + "\x00"; of[key.caller] != directory {
			of[key.caller] += directory
		}
	}
	directories := make(map[string][]*callerKey)
	for _, key := range ks.keys {
		if strings.Contains(key.value, "{file.") {
			directories[of[key.caller]] = append(directories[of[key.caller]], key)
		}
	}
	for _, keys := range directories {
		go func() {
			tick := time.NewTicker(keyInterval)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
					ks.look(keys)
				case <-stop:
					return
				}
			}
		}()
	}
}

// stopWatching ends what watch has begun.
func (ks *callerKeys) stopWatching() {
	if ks.stop != nil {
		close(ks.stop)
		ks.stop = nil
	}
}

// look reads those of keys that may have changed. Then it reads those again that
// were another caller's: callers may have exchanged them.
func (ks *callerKeys) look(keys []*callerKey) {
	changed := false
	for range 2 {
		for _, key := range keys {
			if key.stat() && ks.reread(key) {
				changed = true
			}
		}
		keys = slices.DeleteFunc(slices.Clone(keys), func(key *callerKey) bool { return key.failure == "" || key.missing })
	}
	if changed {
		ks.mu.Lock()
		defer ks.mu.Unlock()
		ks.publish()
	}
}

// stat reports whether the key may have changed since this was asked last.
func (k *callerKey) stat() bool {
	path, ok := secretFile(k.value)
	if !ok {
		return true // several placeholders, or none
	}
	before, read := k.file, k.read
	k.read = time.Now()
	k.file, _ = os.Stat(path)
	if before == nil && k.file == nil {
		return k.said != nil // else it has ended, or never was there
	}
	return before == nil || k.file == nil || k.missing && k.said != nil || k.failure != "" ||
		!os.SameFile(before, k.file) || before.Size() != k.file.Size() || !before.ModTime().Equal(k.file.ModTime()) ||
		read.Sub(before.ModTime()) < settled
}

// reread reads a key anew and reports whether that changes what counts.
//
// A file that is gone or empty twice in a row ends its key: between the two, one
// that is replaced may be neither here nor there. What cannot be read, or cannot
// be a key, changes nothing.
func (ks *callerKeys) reread(key *callerKey) bool {
	gone := key.isGone()
	var proof *keyProof
	var err error
	if !gone {
		proof, err = key.resolve()
	}
	ks.mu.Lock()
	defer ks.mu.Unlock()
	if proof != nil {
		key.said = proof
	}
	if other := ks.other(key, proof); other != nil && !key.proof.is(proof) {
		err = option.Errorf("key", "is that of caller %s, too", other.name)
	}
	missing := key.missing
	key.missing = gone
	switch {
	case err == nil && !gone:
		key.failure = ""
		if key.proof.is(proof) {
			return false
		}
		for _, k := range ks.keys { // that was another caller's, whose file says something else by now
			if k.caller != key.caller && k.proof.is(proof) {
				k.proof = nil
			}
		}
		key.proof = proof
		ks.log(key, zap.InfoLevel, "the key of a caller has changed", nil)
		return true
	case gone && (key.said == nil || !missing):
		return false
	case gone:
		key.proof, key.said, key.failure = nil, nil, ""
		if key.previous && ks.hasKey(key.caller) { // the end of a rotation
			ks.log(key, zap.InfoLevel, "the key of a caller is gone, and no longer counts", nil)
		} else {
			ks.log(key, zap.WarnLevel, "the key of a caller is gone, and no longer counts", nil)
		}
		return true
	}
	if key.failure == err.Error() {
		return false
	}
	key.failure = err.Error()
	if key.proof == nil {
		ks.log(key, zap.ErrorLevel, "the key of a caller cannot be read, and does not count", err)
	} else {
		ks.log(key, zap.ErrorLevel, "the key of a caller cannot be read; the one before is still used", err)
	}
	return false
}

// hasKey reports whether a key of c counts. mu is held.
func (ks *callerKeys) hasKey(c *caller) bool {
	return slices.ContainsFunc(ks.keys, func(key *callerKey) bool { return key.caller == c && key.proof != nil })
}

// isGone reports whether a key has no value: its file is not there, or empty, or
// holds nothing but space. Some file systems say of every file that its size is 0.
func (k *callerKey) isGone() bool {
	path, ok := secretFile(k.value)
	if !ok {
		_, err := option.Resolve("key", k.value)
		return errors.Is(err, option.ErrNoValue)
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return errors.Is(err, fs.ErrNotExist)
	case info.Size() >= minKey, info.Size() > 0 && !info.Mode().IsRegular():
		return false
	case !info.Mode().IsRegular():
		return true
	}
	content, err := os.ReadFile(path)
	return err == nil && len(bytes.TrimSpace(content)) == 0
}

func (ks *callerKeys) log(key *callerKey, level zapcore.Level, message string, err error) {
	fields := []zap.Field{zap.String("caller", key.caller.name), zap.Bool("previous", key.previous)}
	if path, ok := secretFile(key.value); ok {
		fields = append(fields, zap.String("file", path))
	}
	if err != nil {
		fields = append(fields, zap.Error(err))
	}
	ks.logger.Log(level, message, fields...)
}
