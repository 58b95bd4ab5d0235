package tokensource

import (
	"context"
	"errors"
	"time"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

const (
	// A token request that a client waits for is sent again if there is no answer
	// after sendAgain: the answer may never come, since the path of the first may
	// be dead, where the server would answer another at once.
	sendAgain   = 4 * time.Second
	maxAttempts = 3

	// lastMoment is how long attempts have to say how they failed once their time
	// is up.
	lastMoment = 100 * time.Millisecond

	// maxReading bounds how many reads of the secrets are under way: each that
	// hangs has a goroutine.
	maxReading = 4
)

// attempt is what came of sending a token request.
type attempt struct {
	token   *tokenprovider.Token
	secrets []tokenprovider.Secret // it was made with; nil if they could not be read
	err     error
}

// exchange makes the token request, and reports how often it was sent again for
// want of an answer. The first answer counts, also if it is a failure: the next
// token request then waits as that says.
func (s *Source) exchange(r *tokenRequest) (a attempt, unanswered int) {
	ctx, cancel := context.WithTimeout(context.Background(), r.timeout)
	defer cancel()
	answers := make(chan attempt, maxAttempts)
	send := func() {
		answers <- s.attempt(ctx)
		s.opts.Endpoint.release()
	}
	go send()
	again := time.NewTicker(sendAgain)
	defer again.Stop()
	for {
		select {
		case a = <-answers:
			return a, unanswered
		case <-again.C:
			if unanswered+1 < maxAttempts && s.maySendAgain(r) {
				unanswered++
				go send()
			}
		case <-ctx.Done():
			select {
			case a = <-answers:
				return a, unanswered
			case <-time.After(lastMoment):
				err := errors.New("no answer within token_timeout")
				return attempt{err: &tokenprovider.Error{Class: tokenprovider.Transient, Err: err}}, unanswered
			}
		}
	}
}

// maySendAgain reports whether r may be sent once more, and takes what that
// needs: a place at the endpoint, and a part of the budget. One that a 401 has
// caused is charged to a client, which has to pay for one only.
func (s *Source) maySendAgain(r *tokenRequest) bool {
	if r.trigger == triggerRejected {
		return false
	}
	st := s.state
	st.mu.Lock()
	defer st.mu.Unlock()
	now := time.Now()
	if !st.budget.has(now) || !s.opts.Endpoint.enter(r) {
		return false
	}
	st.budget.take(now)
	return true
}

// attempt sends the token request once.
func (s *Source) attempt(ctx context.Context) (a attempt) {
	defer func() { s.recovered(&a.err, recover()) }()
	if a.secrets, a.err = s.secrets(ctx); a.err != nil {
		return a
	}
	a.token, a.err = s.opts.Provider.Token(ctx, s.opts.Client)
	return a
}

// recovered makes an error of a panic, if there was one: no request of a client
// runs what a provider does, so that one would end the process.
func (s *Source) recovered(err *error, p any) {
	if p != nil {
		s.log.panicked()
		*err = &tokenprovider.Error{Class: tokenprovider.Transient, Reason: "internal error, see the log"}
	}
}

// secrets reads the secrets, until ctx ends: they may be in files, and a file can
// hang.
func (s *Source) secrets(ctx context.Context) ([]tokenprovider.Secret, error) {
	if s.state.reading.Add(1) > maxReading {
		s.state.reading.Add(-1)
		return nil, errReading
	}
	type result struct {
		secrets []tokenprovider.Secret
		err     error
	}
	done := make(chan result, 1)
	go func() {
		var r result
		defer func() {
			s.recovered(&r.err, recover())
			s.state.reading.Add(-1)
			done <- r
		}()
		r.secrets, r.err = s.opts.Provider.Secrets()
	}()
	select {
	case r := <-done:
		return r.secrets, r.err
	case <-ctx.Done():
		return nil, errReading
	}
}

// errReading says that secrets cannot be read in time.
var errReading = errors.New("reading the secret takes too long: its file is on a file system that does not answer, or is not a plain file")
