package tokensource

import (
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// repeatEvery is how often a failure that goes on is logged again.
const repeatEvery = time.Minute

// logger logs changes of state, not events: the first of many failures, and
// their end.
type logger struct {
	logger     *zap.Logger
	credential string
	provider   string

	// mu of the state is held for these.
	repeated time.Time // when a failure was last logged
	heldBack time.Time // when a hold was last logged
	usable   bool      // there was a live token then
	rejected bool      // the API had answered 401 to it
	narrowed bool      // warned that the server grants less than was asked for
	assumed  bool      // warned that it does not say how long tokens live
	failing  *failure  // the last one, until there is a token
}

// named returns the logger with the fields that each line has. A logger with
// fields takes more memory than all else of a source, so none is kept.
func (l *logger) named() *zap.Logger {
	return l.logger.With(zap.String("credential", l.credential), zap.String("provider", l.provider))
}

// obtained logs a new token: at debug, or at info where it ends an outage.
func (l *logger) obtained(r *tokenRequest, t *tokenprovider.Token, asked []string, before *failure, now time.Time) {
	fields := []zap.Field{
		zap.String("trigger", r.trigger),
		zap.Duration("lifetime", t.Expires.Sub(t.Issued)),
	}
	if before == nil {
		before = l.failing // it was forgotten for a changed secret
	}
	l.failing = nil
	if before != nil {
		l.named().Info("token endpoint issues tokens again", append(fields,
			zap.Duration("outage", now.Sub(before.since)),
			zap.Int("attempts", before.count+1))...)
	} else if l.logger.Core().Enabled(zap.DebugLevel) {
		l.named().Debug("obtained a token", fields...)
	}

	if missing := narrower(asked, t.Scopes); len(missing) > 0 && !l.narrowed {
		l.narrowed = true
		l.named().Warn("the authorization server granted less than was asked for; requests that need the rest will be refused",
			zap.Strings("scopes_missing", missing)) // not those granted: they are what the server sent
	}
	if t.ExpiryAssumed && !l.assumed {
		l.assumed = true
		l.named().Warn("the token response has no lifetime above zero (expires_in); assuming a short one",
			zap.Duration("lifetime", t.Expires.Sub(t.Issued)))
	}
}

// secretInUse is a value of the secret that a token was obtained with.
type secretInUse struct {
	number      int
	fingerprint [32]byte
}

// logSecretInUse logs which value of the secret is in use, once that has changed. mu
// is held.
func (s *Source) logSecretInUse(a attempt) {
	st := s.state
	before := st.told
	st.told = secretInUse{a.used.number, a.used.fingerprint}
	if st.told == before {
		return
	}
	fields := []zap.Field{zap.Int("secret_in_use", a.used.number), zap.Int("secret_values", len(s.providers))}
	switch {
	case a.used.number == 1 && len(a.read) > 1:
		s.log.named().Info("the first value of the secret works; the others are not needed any more and can be deleted", fields...)
	case a.used.number == 1 && before.number > 1:
		s.log.named().Info("the first value of the secret works", fields...)
	case a.used.number > 1 && a.read[0].number == 1:
		s.log.named().Warn("the first value of the secret is refused; another one is in use", append(fields, zap.Error(a.refusal),
			zap.String("advice", "a new value that is not active yet is tried again once an hour, and by the command refresh; otherwise correct it before the other one is deleted"))...)
	case a.used.number > 1:
		s.log.named().Warn("the first value of the secret cannot be read; another one is in use", append(fields, zap.Error(a.unreadable),
			zap.String("advice", tokenprovider.Advice(a.unreadable)))...)
	}
}

// tookOver logs that a token of another instance is in use now.
func (l *logger) tookOver(t *Token, before *failure, now time.Time) {
	l.failing = nil
	level, fields := zap.DebugLevel, []zap.Field{zap.Duration("lifetime", t.Expires.Sub(now))}
	if before != nil {
		level, fields = zap.InfoLevel, append(fields, zap.Duration("outage", now.Sub(before.since)))
	}
	if l.logger.Core().Enabled(level) {
		l.named().Log(level, "took over a token of another instance", fields...)
	}
}

// dropped logs that another instance has revoked the token.
func (l *logger) dropped() {
	l.named().Info("the token was revoked by another instance, and is no longer used")
}

// failed logs a failed token request if it is the first, of another kind than
// the one before, or the last log line is long ago.
func (l *logger) failed(r *tokenRequest, before *failure, now time.Time, live bool) {
	l.failing = r.failure
	// while a config starts, its own servers may not be up yet: the first try
	// of all is allowed to fail
	early := r.trigger == triggerWarmup && before == nil && r.failure.class == tokenprovider.Transient
	rejected := live && r.failure.rejected
	lost := l.usable && !live || rejected && !l.rejected // what was a warning is an error now
	l.usable, l.rejected = live, rejected
	if before != nil && !lost && sameKind(before.err, r.failure.err) && !l.repeated.IsZero() && now.Sub(l.repeated) < repeatEvery {
		return
	}
	if !early {
		l.repeated = now
	}

	fields := []zap.Field{
		zap.String("trigger", r.trigger),
		zap.Int("attempt", r.failure.count),
		zap.Duration("next_attempt", r.failure.until.Sub(now)),
		zap.Error(r.failure.err),
		zap.String("advice", tokenprovider.Advice(r.failure.err)),
	}
	if e, ok := errors.AsType[*tokenprovider.Error](r.failure.err); ok {
		fields = append(fields, zap.Int("status", e.Status), zap.String("error_code", e.Code))
	}
	switch {
	case early:
		l.named().Info("no first token yet; trying again", fields...)
	case rejected:
		l.named().Error("could not replace a token that the API has rejected; requests that it rejects fail until another comes", fields...)
	case live:
		l.named().Warn("could not refresh the token; the present one is used until it expires", fields...)
	case r.failure.class == tokenprovider.Refused:
		l.named().Error("the authorization server refuses the credential; requests fail until it is corrected", fields...)
	default:
		l.named().Error("could not get a token; requests fail until one comes", fields...)
	}
}

// held logs that a fresh token was rejected as well, at most every repeatEvery:
// a client can try any number of operations.
func (l *logger) held(client string, until, now time.Time) {
	if !l.heldBack.IsZero() && now.Sub(l.heldBack) < repeatEvery {
		return
	}
	l.heldBack = now
	l.named().Warn("the API rejects a fresh token as well; 401 answers ask for no other for a while",
		zap.String("client", client),
		zap.Duration("hold", until.Sub(now)),
		zap.String("advice", "check what this client calls; if all clients get 401, that the token is for this API: audience, region, scopes, and whether the key may be used from this address"))
}

// panicked logs a defect of a provider. The value of the panic is left out: it
// could be anything.
func (l *logger) panicked() {
	l.named().Error("a token request ended in a panic; please report this", zap.Stack("stack"))
}

func sameKind(a, b error) bool {
	var x, y *tokenprovider.Error
	if errors.As(a, &x) && errors.As(b, &y) {
		return x.Class == y.Class && x.Status == y.Status && x.Code == y.Code
	}
	return a.Error() == b.Error()
}
