package tokensource

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

const (
	// refusalLasts is how long a value that the server has refused is tried after the
	// others: a new one may not be active yet.
	refusalLasts = time.Hour

	// readingPatience is how long values that are at hand wait for those that are
	// still being read.
	readingPatience = time.Second

	// maxReading bounds how many reads of a value are under way: each that hangs has
	// a goroutine.
	maxReading = 4
)

// alternative is a value of the secret, as it was read. Most secrets have one; while
// a secret is rotated, it has the new value and the old one.
type alternative struct {
	number      int                    // as configured, from 1
	provider    tokenprovider.Provider // makes requests with this value alone
	secrets     []tokenprovider.Secret
	fingerprint [32]byte
	err         error // it cannot be read
}

// errReading says that secrets cannot be read in time.
var errReading = errors.New("reading the secret takes too long: its file is on a file system that does not answer, or is not a plain file")

// read reads the values of the secret, until ctx ends: they may be in files, and a
// file can hang. Those that cannot be read are left out; unreadable is why the first
// of them cannot.
func (s *Source) read(ctx context.Context) (all []alternative, unreadable error) {
	results := make(chan alternative, len(s.providers))
	for i, p := range s.providers {
		all = append(all, alternative{number: i + 1, provider: p, err: errReading})
		s.startReading(all[i], results)
	}
	var late <-chan time.Time
	for pending := len(all); pending > 0; {
		select {
		case a := <-results:
			pending--
			all[a.number-1] = a
			if a.err == nil && late == nil && pending > 0 {
				late = time.After(readingPatience)
			}
		case <-late:
			pending = 0
		case <-ctx.Done():
			pending = 0
		}
	}
	for _, a := range all {
		if a.err != nil {
			unreadable = a.err
			break
		}
	}
	return slices.DeleteFunc(all, func(a alternative) bool { return a.err != nil }), unreadable
}

// startReading has a read in the background, and sent to results.
func (s *Source) startReading(a alternative, results chan<- alternative) {
	st := s.state
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.reading == nil {
		st.reading = make(map[int]int)
	}
	if st.reading[a.number] >= maxReading {
		results <- a
		return
	}
	st.reading[a.number]++
	go func() {
		defer func() {
			s.recovered(&a.err, recover())
			a.fingerprint = Fingerprint(a.secrets)
			st.mu.Lock()
			if st.reading[a.number]--; st.reading[a.number] == 0 {
				delete(st.reading, a.number)
			}
			if len(st.reading) == 0 {
				st.reading = nil // a state may be kept for long
			}
			st.mu.Unlock()
			results <- a
		}()
		a.secrets, a.err = a.provider.Secrets()
	}()
}

// secretsOf returns the secrets of each alternative.
func secretsOf(all []alternative) [][]tokenprovider.Secret {
	secrets := make([][]tokenprovider.Secret, len(all))
	for i, a := range all {
		secrets[i] = a.secrets
	}
	return secrets
}

// Fingerprints returns the fingerprint of each value that the secret of p has, in
// their order. That of a value which cannot be read is zero; the error says why, if
// none can.
func Fingerprints(p tokenprovider.Provider) ([][32]byte, error) {
	var all [][32]byte
	var first error
	read := 0
	for _, alternative := range tokenprovider.Alternatives(p) {
		secrets, err := alternative.Secrets()
		if err == nil {
			read++
			all = append(all, Fingerprint(secrets))
			continue
		}
		all = append(all, [32]byte{})
		if first == nil {
			first = err
		}
	}
	if read == 0 {
		return nil, first
	}
	return all, nil
}

// numberOf returns the number of the value that had the fingerprint when the config
// was loaded; 0 if none had.
func (s *Source) numberOf(fingerprint [32]byte) int {
	return slices.Index(s.opts.Fingerprints, fingerprint) + 1
}

// try makes the token request with one value after the other, until the server knows
// the client by it. The values are those that a has read.
func (s *Source) try(ctx context.Context, r *tokenRequest, a *attempt) {
	sent := false
	for _, value := range s.inOrder(a.read, time.Now()) {
		if sent {
			if a.err = s.charge(ctx, r); a.err != nil {
				return
			}
		}
		a.used = value
		a.token, a.err = value.provider.Token(ctx, s.opts.Client)
		s.noteRefusal(value, a.err)
		if _, sent = errors.AsType[*tokenprovider.Error](a.err); a.err != nil && !sent { // its file has changed since it was read
			a.read = slices.DeleteFunc(a.read, func(of alternative) bool { return of.number == value.number })
			if a.unreadable == nil {
				a.unreadable = a.err
			}
			continue
		}
		if !isUnknownClient(a.err) {
			a.err = s.ofValue(a.err, value.number, "")
			return
		}
		if a.refusal == nil || value.number < a.refused {
			a.refusal, a.refused = a.err, value.number
		}
	}
	if a.refusal == nil {
		a.err = a.unreadable
		return
	}
	rest := "; no other is accepted either"
	if a.unreadable != nil {
		rest = "; no other that can be read is accepted either, and one cannot: " + a.unreadable.Error()
	}
	a.err = s.ofValue(a.refusal, a.refused, rest)
}

// ofValue says which value of the secret err is about, where there are several.
func (s *Source) ofValue(err error, number int, rest string) error {
	if err == nil || len(s.providers) == 1 {
		return err
	}
	return fmt.Errorf("%w, with value %d of %d of the secret%s", err, number, len(s.providers), rest)
}

// isUnknownClient reports whether another value of the secret may fare better.
func isUnknownClient(err error) bool {
	e, ok := errors.AsType[*tokenprovider.Error](err)
	return ok && e.UnknownClient()
}

// inOrder returns the values in the order in which they are tried: as configured, but
// those that the server has refused lately after the others. It forgets refusals of
// what is not a value any more.
func (s *Source) inOrder(all []alternative, now time.Time) []alternative {
	st := s.state
	st.mu.Lock()
	defer st.mu.Unlock()
	maps.DeleteFunc(st.refusals, func(fingerprint [32]byte, at time.Time) bool {
		isValue := slices.ContainsFunc(all, func(a alternative) bool { return a.fingerprint == fingerprint })
		return !isValue || now.Sub(at) >= refusalLasts
	})
	var first, last []alternative
	for _, a := range all {
		if _, refused := st.refusals[a.fingerprint]; refused {
			last = append(last, a)
		} else {
			first = append(first, a)
		}
	}
	return append(first, last...)
}

// noteRefusal notes what the server made of value.
func (s *Source) noteRefusal(value alternative, err error) {
	if len(s.providers) == 1 {
		return
	}
	st := s.state
	st.mu.Lock()
	defer st.mu.Unlock()
	switch {
	case err == nil:
		delete(st.refusals, value.fingerprint)
	case isUnknownClient(err):
		if st.refusals == nil {
			st.refusals = make(map[[32]byte]time.Time)
		}
		st.refusals[value.fingerprint] = time.Now()
	}
}

// charge has the next value charged as the token request that it is, and waits for
// the budget of those.
func (s *Source) charge(ctx context.Context, r *tokenRequest) error {
	st := s.state
	st.mu.Lock()
	wait := st.budget.take(time.Now())
	if wait == 0 {
		r.refused++
		st.mu.Unlock()
		return nil
	}
	st.mu.Unlock()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		st.mu.Lock()
		defer st.mu.Unlock()
		r.refused++
		return nil
	case <-ctx.Done():
		st.mu.Lock()
		defer st.mu.Unlock()
		st.budget.refund()
		return errBudget
	}
}

// withSecret calls f with the provider of the value that the token in use was
// obtained with, and then with those of others while the server does not know the
// client.
func (st *State) withSecret(providers []tokenprovider.Provider, f func(tokenprovider.Provider) error) error {
	st.mu.Lock()
	inUse := st.inUse
	st.mu.Unlock()
	if inUse > 1 && inUse <= len(providers) {
		used := providers[inUse-1]
		providers = slices.Insert(slices.Delete(slices.Clone(providers), inUse-1, inUse), 0, used)
	}
	var first error
	for _, p := range providers {
		err := f(p)
		_, tried := errors.AsType[*tokenprovider.Error](err) // else its value cannot be read
		if err == nil || tried && !isUnknownClient(err) {
			return err
		}
		if _, before := errors.AsType[*tokenprovider.Error](first); first == nil || tried && !before {
			first = err
		}
	}
	return first
}
