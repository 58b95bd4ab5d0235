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
)

// attempt is what came of sending a token request.
type attempt struct {
	token *tokenprovider.Token
	used  alternative // what it was obtained with
	err   error

	read       []alternative // all values of the secret that could be read
	unreadable error         // why the first of the others could not
	refused    int           // the number of the first that the server has refused
	refusal    error         // how
}

// exchange makes the token request, and reports how often it was sent again for
// want of an answer. The first answer counts, also if it is a failure: the next
// token request then waits as that says.
func (s *Source) exchange(r *tokenRequest) (a attempt, unanswered int) {
	ctx, cancel := context.WithTimeout(context.Background(), r.timeout)
	defer cancel()
	answers := make(chan attempt, maxAttempts)
	send := func() {
		answers <- s.attempt(ctx, r)
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

// attempt sends the token request once, or once with each value of the secret until
// the server knows one.
func (s *Source) attempt(ctx context.Context, r *tokenRequest) (a attempt) {
	defer func() { s.recovered(&a.err, recover()) }()
	if a.read, a.unreadable = s.read(ctx); len(a.read) == 0 {
		a.err = a.unreadable
		return a
	}
	s.try(ctx, r, &a)
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
